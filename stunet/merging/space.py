"""Determine which label of the union each value of a source's label files is.

A source's label is the set of leaves that it covers: one class, or several that it does not distinguish. Equal sets are
one label of the union, whatever their names. labels/names.py matches names that the recipe does not mention.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stunet.errors import closest
from stunet.labels.annotations import Annotations
from stunet.labels.names import ClassMatch, match_classes
from stunet.merging import Finding
from stunet.merging.recipe import SEPARATE, UNANNOTATED, LabelTarget, Recipe, SourceRecipe

LESIONS = {"tumor", "tumour", "lesion", "cyst", "cancer", "metastasis", "mass"}
IGNORE = "ignore"


@dataclass(frozen=True)
class Meaning:
    """What a value of a source means.

    Attributes:
        name: Its name in the source.
        leaves: The classes of the union that it covers; empty: it is not annotated in the union.
        given: Whether this is stated in the recipe, rather than inferred from the name.
    """

    name: str
    leaves: tuple[str, ...]
    given: bool = False


@dataclass(frozen=True)
class Space:
    """The label space of the union.

    Attributes:
        leaves: The classes of the union that a source annotates, in order.
        sets: Leaves of each label that covers several of them, by label name.
        meanings: Meanings by source and by value in its files.
        ignores: Ignore value by source, for those that have one.
    """

    leaves: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    meanings: Mapping[str, Mapping[int, Meaning]]
    ignores: Mapping[str, int]

    @property
    def all_labels(self) -> dict[str, tuple[str, ...]]:
        """Leaves by label."""
        return {**{leaf: (leaf,) for leaf in self.leaves}, **self.sets}

    def label(self, leaves: tuple[str, ...]) -> str:
        """Return the label that covers exactly these leaves."""
        return leaves[0] if len(leaves) == 1 else next(name for name, own in self.sets.items() if own == leaves)

    def labels(self, source: str) -> tuple[str, ...]:
        """Return the labels that a source annotates, each once."""
        found = (self.label(m.leaves) for m in self.meanings[source].values() if m.leaves)
        return tuple(dict.fromkeys(found))

    def values(self, source: str, name: str) -> list[int]:
        """Return the values of a source that are the given label of the union."""
        return [v for v, m in self.meanings[source].items() if m.leaves and self.label(m.leaves) == name]


def value_names(description: Mapping[str, Any]) -> tuple[dict[int, str], int | None, bool]:
    """Return the names by value in a dataset.json, the value to ignore, and whether there are regions.

    A value in several regions is named after all of them: `kidney+tumor`.
    """
    names: dict[int, list[str]] = {}
    regions = False
    for name, value in description["labels"].items():
        values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
        regions |= len(values) > 1
        for v in values:
            names.setdefault(v, []).append(name)
    ignore = next((v for v, own in names.items() if own == [IGNORE]), None)
    known = {v: "+".join(own) for v, own in sorted(names.items()) if v not in (0, ignore)}
    return known, ignore, regions


def find_space(
    recipe: Recipe, descriptions: Mapping[str, Mapping[str, Any]], annotated: Mapping[str, Annotations | None]
) -> tuple[Space, list[Finding]]:
    """Return the label space of the sources that could be opened, and what is wrong with their labels.

    Args:
        recipe: The merge.yaml.
        descriptions: Content of dataset.json by source.
        annotated: annotations.json by source, for those that are unions themselves.
    """
    findings: list[Finding] = []
    meanings: dict[str, dict[int, Meaning]] = {}
    ignores: dict[str, int] = {}
    extra: list[str] = []
    for source in recipe.sources:
        if source.id not in descriptions:
            continue
        known, ignore, regions = value_names(descriptions[source.id])
        if ignore is not None:
            ignores[source.id] = ignore
        findings += _unknown_keys(source, known)
        parts = annotated[source.id]
        asked = {v: _asked(source, v, name, parts) for v, name in known.items()}
        rows = {
            row.target: row for row in match_classes([n for names in asked.values() for n in names], recipe.classes)
        }
        own: dict[int, Meaning] = {}
        for value, name in known.items():
            target = source.labels.get(name, source.labels.get(value))
            # Which classes a value lies in depends on how the regions overlap: only the recipe can say.
            if target is None and regions:
                findings.append(_region(source, value, name))
                continue
            found = _meaning(recipe, source, name, target, [rows[asked_for] for asked_for in asked[value]])
            if isinstance(found, Finding):
                findings.append(found)
                continue
            own[value] = found
            extra += [leaf for leaf in found.leaves if leaf not in (*recipe.classes, *extra)]
        meanings[source.id] = own
        # The labels of a union may overlap as long as no case has both; annotated_by() looks at its cases.
        if not parts:
            findings += overlaps(source.id, {m.name: m.leaves for m in own.values()})
    return _space(recipe, meanings, ignores, extra), findings


def overlaps(source: str, labels: Mapping[str, tuple[str, ...]]) -> Iterator[Finding]:
    """Find labels of a case that share some but not all of their classes."""
    owners: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for name, leaves in labels.items():
        for leaf in leaves:
            other = owners.setdefault(leaf, name)
            if labels[other] != leaves and (other, name) not in seen:
                seen.add((other, name))
                common = sorted(set(labels[other]) & set(leaves))
                yield Finding(
                    f"source {source!r}: {other!r} and {name!r} are both {', '.join(common)}",
                    "a voxel has one label: give each of them classes of its own, such as the organ and its tumour",
                )


def unasked_tumours(recipe: Recipe, space: Space) -> Iterator[Finding]:
    """Find organs that a source annotates without the lesion in them that the union distinguishes.

    It is unknown whether the mask of the organ includes the lesion.
    """
    for source, meanings in space.meanings.items():
        covered = {leaf for meaning in meanings.values() for leaf in meaning.leaves}
        for meaning in meanings.values():
            lesions = [leaf for leaf in space.leaves if any(_lesion_of(leaf, organ) for organ in meaning.leaves)]
            missing = [leaf for leaf in lesions if leaf not in covered]
            if missing:
                text = f"source {source!r}: {meaning.name!r} is {' + '.join(meaning.leaves)}"
                names = ", ".join((*meaning.leaves, *missing))
                yield Finding(
                    f"{text}, and nothing there is {', '.join(missing)}: does its mask include that?",
                    f"if it does: {meaning.name}: [{names}]"
                    + ("" if meaning.given else f"; if it does not: {meaning.name}: {_listed(meaning.leaves)}"),
                    # Whoever maps the label in the recipe has decided; only a label matched by name is uncertain.
                    fatal=not meaning.given,
                )


def _lesion_of(leaf: str, organ: str) -> bool:
    words, parts = set(leaf.lower().split("_")), set(organ.lower().split("_"))
    sides = {"left", "right"}
    # A lesion without a side, such as kidney_tumor, may be in either kidney.
    same_side = not words & sides or words & sides == parts & sides
    return bool(words & LESIONS) and words - LESIONS - sides == parts - sides and same_side


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _unknown_keys(source: SourceRecipe, known: Mapping[int, str]) -> Iterator[Finding]:
    for key in source.labels:
        if key not in known and key not in known.values():
            near = closest(str(key), list(known.values()))
            yield Finding(
                f"source {source.id!r}: its dataset.json has no label {key!r}{near}",
                f"it has {', '.join(f'{name!r} ({value})' for value, name in known.items())}",
            )


def _region(source: SourceRecipe, value: int, name: str) -> Finding:
    return Finding(
        f"source {source.id!r} has regions: what is the value {value}, which lies in {name.replace('+', ' and ')}?",
        f"give the classes of each value under labels: {{{value}: CLASS}}",
    )


def _asked(source: SourceRecipe, value: int, name: str, parts: Annotations | None) -> tuple[str, ...]:
    """Return the names by which a label is looked up: those in the recipe, its leaves in a union, or its own."""
    target = source.labels.get(name, source.labels.get(value))
    if target and target.names:
        return target.names
    return parts.labels[name] if parts else (name,)


def _meaning(
    recipe: Recipe, source: SourceRecipe, name: str, target: LabelTarget | None, rows: Sequence[ClassMatch]
) -> Meaning | Finding:
    """Return what a label means, by the recipe or by its names in the source."""
    if target and target.how == UNANNOTATED:
        return Meaning(name, (), True)
    if target and target.how == SEPARATE:
        # In the spelling of the common class, by which separate_leaves() finds the one that it competes with.
        base = rows[0].sources[0] if len(rows[0].sources) == 1 else _spelled(name)
        return Meaning(name, (f"{base}@{source.id}",), True)
    unknown = [row for row in rows if not row.sources]
    if not unknown:
        leaves = {leaf for row in rows for leaf in row.sources}
        # In the order of the recipe, so that equal sets of leaves are equal tuples.
        return Meaning(name, tuple(leaf for leaf in recipe.classes if leaf in leaves), bool(target))
    if target is None and recipe.on_unknown == UNANNOTATED:
        return Meaning(name, ())
    shown = "" if target is None else f" is {unknown[0].target!r}, which"
    return Finding(
        f"source {source.id!r}: the label {name!r}{shown} is not a class of the union; "
        f"nearest: {', '.join(map(repr, unknown[0].closest))}",
        f"say what it is under labels, {name}: {unknown[0].closest[0]} or {{as: unannotated}}, "
        "or add it to extra_classes",
    )


def _spelled(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _space(
    recipe: Recipe, meanings: Mapping[str, Mapping[int, Meaning]], ignores: Mapping[str, int], extra: Sequence[str]
) -> Space:
    """Return the space of the leaves that meanings use, with one label per distinct set of them."""
    used = {leaf for own in meanings.values() for meaning in own.values() for leaf in meaning.leaves}
    leaves = tuple(leaf for leaf in (*recipe.classes, *extra) if leaf in used)
    sets: dict[str, tuple[str, ...]] = {}
    for own in meanings.values():
        for meaning in own.values():
            if len(meaning.leaves) > 1 and meaning.leaves not in sets.values():
                # The source's own name, such as `kidney` for both sides.
                name = _spelled(meaning.name)
                if name in (*recipe.classes, *extra, *sets, IGNORE, "background"):
                    # Its own name is that of a class, or of another set.
                    name = "+".join(meaning.leaves)
                sets[name] = meaning.leaves
    return Space(leaves, sets, meanings, ignores)


def forget(recipe: Recipe, space: Space, values: Mapping[str, Sequence[int]]) -> Space:
    """Return the space in which these values of the sources are not annotated."""
    meanings = {
        source: {v: replace(m, leaves=()) if v in values[source] else m for v, m in own.items()}
        for source, own in space.meanings.items()
    }
    return _space(recipe, meanings, space.ignores, [leaf for leaf in space.leaves if leaf not in recipe.classes])
