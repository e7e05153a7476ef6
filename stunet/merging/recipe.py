"""Read a merge.yaml into data classes, and check every key, type and name in it.

docs/pretraining.md shows such a file with all keys. Read next: space.py, which determines what its labels mean.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.labels import systems
from stunet.labels.annotations import HEAD_KINDS
from stunet.merging.yaml_values import name_list, number, one_of, read_yaml, table, text, triple

READERS = {"nibabel_reorient": "NibabelIOWithReorient", "simpleitk_reorient": "SimpleITKIOWithReorient"}
SCHEMES = ("zscore", "ct")
MIRRORS = ("auto", "none", "all", "swap")
IMAGES = ("reference", "copy", "symlink")
ON_UNKNOWN = ("error", "unannotated")
ON_ABSENT = ("error", "keep", "unannotated")
SEPARATE, UNANNOTATED = "separate", "unannotated"
TOP_KEYS = (
    *("name", "head", "classes", "extra_classes", "geometry", "intensity", "mirror", "sampling", "folds", "images"),
    *("defaults", "sources"),
)
SOURCE_KEYS = (
    *("id", "dataset", "modality", "license", "labels", "split", "weight", "annotated_overrides", "exclude", "pseudo"),
)
PSEUDO_HINT = (
    "make one with stunet_pseudo_label, which writes a dataset of its own, and give that as the source's dataset"
)


@dataclass(frozen=True)
class LabelTarget:
    """What a label of a source maps to: names of classes, or SEPARATE or UNANNOTATED in `how`."""

    names: tuple[str, ...] = ()
    how: str = "classes"


@dataclass(frozen=True)
class SourceRecipe:
    """One dataset that goes into the union.

    Attributes:
        id: Prefix of the names of its cases.
        dataset: Number or name of a raw dataset.
        labels: What its labels map to, by name or by value in the files; other labels are matched by name.
        modality: One for all cases, or, by modality, a comparison with the last number in a case's name; empty: that
            of its dataset.json.
        licence: Empty: that of its dataset.json.
        split: "dataset": by its own splits_final.json; "seeded": by the seed; "auto": its own if it has one.
        weight: How often it is drawn, relative to the share that its number of cases gives it.
        overrides: A table of the cases that annotate other classes than the source.
        exclude: Cases that are left out.
    """

    id: str
    dataset: str
    labels: Mapping[str | int, LabelTarget] = field(default_factory=dict)
    modality: str | Mapping[str, str] = ""
    licence: str = ""
    split: str = "auto"
    weight: float = 1.0
    overrides: Path | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A merge.yaml.

    Attributes:
        path: The file.
        content: Its parsed content.
        name: Name of the union, such as `Dataset900_BodyUnion`.
        classes: Names of the leaves in order.
        required: Those classes that must be annotated somewhere, because they were listed one by one.
        reader: nnU-Net's reader class for all images and labels; it brings them to one orientation.
        spacing: In mm, array order; None: nnU-Net plans it.
        patch: In voxels, array order; None: the planner fits it.
    """

    path: Path
    content: Mapping[str, Any]
    name: str
    classes: tuple[str, ...]
    required: frozenset[str]
    sources: tuple[SourceRecipe, ...]
    head: str = "softmax"
    reader: str = READERS["nibabel_reorient"]
    spacing: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    scheme: str = "zscore"
    mirror: str = "auto"
    alpha: float = 0.5
    oversample_foreground: float | None = None
    folds: int = 5
    seed: int = 12345
    images: str = "reference"
    on_unknown: str = "error"
    on_absent: str = "error"
    allow_noncommercial: bool = False


def load_recipe(path: Path) -> Recipe:
    """Load the recipe in a file.

    Raises:
        DataError: The file is missing, is not YAML, or something in it is wrong; the message names the key.
    """
    content = read_yaml(path)
    try:
        return _recipe(path, content)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error.message}", error.hint) from None


def _recipe(path: Path, content: Any) -> Recipe:
    top = table(content, TOP_KEYS, "the file")
    name = top.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"Dataset[0-9]{3}_[A-Za-z0-9_-]{1,64}", name):
        raise DataError(f"name is {name!r}", "name: Dataset900_Union, with three digits")
    classes, required = _classes(path, top)
    geometry = table(top.get("geometry", {}), ("reader", "spacing", "patch"), "geometry")
    sampling = table(top.get("sampling", {}), ("alpha", "oversample_foreground"), "sampling")
    folds = table(top.get("folds", {}), ("number", "seed"), "folds")
    defaults = table(
        top.get("defaults", {}), ("on_unknown_label", "on_absent_label", "allow_noncommercial"), "defaults"
    )
    intensity = table(top.get("intensity", {}), ("scheme",), "intensity")
    foreground = sampling.get("oversample_foreground")
    share: Callable[[float], bool] = lambda x: 0 <= x <= 1  # noqa: E731
    return Recipe(
        path=path,
        content=top,
        name=name,
        classes=classes,
        required=required,
        sources=_sources(path, top.get("sources")),
        head=one_of(top.get("head", "softmax"), HEAD_KINDS, "head"),
        reader=READERS[one_of(geometry.get("reader", "nibabel_reorient"), tuple(READERS), "geometry.reader")],
        spacing=triple(geometry.get("spacing"), float, "geometry.spacing"),
        patch=triple(geometry.get("patch"), int, "geometry.patch"),
        # Not CT by default: z-score takes sources of any modality.
        scheme=one_of(intensity.get("scheme", "zscore"), SCHEMES, "intensity.scheme"),
        mirror=one_of(top.get("mirror", "auto"), MIRRORS, "mirror"),
        alpha=number(sampling.get("alpha", 0.5), share, "sampling.alpha", "0.5, from 0 (by case) to 1 (by source)"),
        oversample_foreground=None
        if foreground is None
        else number(foreground, share, "sampling.oversample_foreground", "0.33"),
        folds=int(number(folds.get("number", 5), lambda n: n >= 2 and n == int(n), "folds.number", "5")),
        seed=int(number(folds.get("seed", 12345), lambda n: n >= 0 and n == int(n), "folds.seed", "12345")),
        images=one_of(top.get("images", "reference"), IMAGES, "images"),
        on_unknown=one_of(defaults.get("on_unknown_label", "error"), ON_UNKNOWN, "defaults.on_unknown_label"),
        on_absent=one_of(defaults.get("on_absent_label", "error"), ON_ABSENT, "defaults.on_absent_label"),
        allow_noncommercial=one_of(
            defaults.get("allow_noncommercial", False), (True, False), "defaults.allow_noncommercial"
        ),
    )


def _classes(path: Path, top: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the leaves, and which of them were listed one by one, so that some source must annotate them."""
    given = top.get("classes")
    if isinstance(given, str):
        # Relative to the recipe, wherever the command is run.
        file = path.parent / _file(given, "classes")
        if given.endswith(".txt"):
            listed = tuple(line.strip() for line in text(file).splitlines() if line.strip())
            required = frozenset(listed)
        else:
            system = systems.load(str(file) if given.endswith(".toml") else given.replace("_", "-"))
            # Nobody expects that the sources annotate all classes of a label system.
            listed, required = tuple(entry.name for entry in system.classes), frozenset()
    else:
        listed = name_list(given, "classes", "a list of names, a .txt file, or a label system: totalsegmentator-v2")
        required = frozenset(listed)
    extra = name_list(top.get("extra_classes", ()), "extra_classes", "extra_classes: [liver_tumor]")
    names = listed + extra
    for name in names:
        # nnU-Net uses both names itself.
        if names.count(name) > 1 or name in ("background", "ignore"):
            reason = "is listed twice" if names.count(name) > 1 else "is not a class"
            raise DataError(f"classes: {name!r} {reason}", "every class once, without background and ignore")
    if not names:
        raise DataError("classes is empty", "classes: [liver, spleen]")
    return names, required | set(extra)


def _sources(path: Path, entries: Any) -> tuple[SourceRecipe, ...]:
    if not isinstance(entries, list) or not entries:
        raise DataError("sources is not a list", "sources: [{id: a, dataset: Dataset001_A}]")
    sources = tuple(_source(path, entry, index) for index, entry in enumerate(entries))
    ids = [source.id for source in sources]
    for name in ids:
        if ids.count(name) > 1:
            raise DataError(f"two sources have the id {name!r}", "an id of its own for each")
    return sources


def _source(path: Path, content: Any, index: int) -> SourceRecipe:
    entry = table(content, SOURCE_KEYS, f"source {index + 1}")
    name = entry.get("id")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise DataError(f"the id of source {index + 1} is {name!r}", "letters, digits, - and _: id: amos")
    where = f"source {name!r}"
    # type(), because YAML's `yes` is a bool, which is an int as well.
    if type(entry.get("dataset")) not in (str, int):
        raise DataError(f"{where} has no dataset", "dataset: Dataset001_A, the name or number of a raw dataset")
    # A known key only so that this error can name the command.
    if "pseudo" in entry:
        raise DataError(f"{where}: pseudo labels are not made here", PSEUDO_HINT)
    given = entry.get("labels", "auto")
    modality = entry.get("modality", "")
    if not isinstance(modality, str):
        # Some datasets mix modalities and number them apart: AMOS has CT below 500 and MR from there on.
        modality = _modality_rule(modality, where)
    file = entry.get("annotated_overrides")
    return SourceRecipe(
        id=name,
        dataset=str(entry["dataset"]),
        labels={} if given == "auto" else _targets(given, where),
        modality=modality,
        licence=str(entry.get("license") or ""),
        split=one_of(entry.get("split", "auto"), ("auto", "dataset", "seeded"), f"{where}: split"),
        weight=number(entry.get("weight", 1.0), lambda x: x > 0, f"{where}: weight", "a number above 0"),
        overrides=None if file is None else path.parent / _file(file, where),
        exclude=name_list(entry.get("exclude", ()), f"{where}: exclude", "exclude: [case_1, case_2]"),
    )


def _file(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"{where}: {given!r} is not the name of a file", "a path, from the folder of the recipe on")
    return given


def _targets(content: Any, where: str) -> dict[str | int, LabelTarget]:
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: labels are {content!r}", "labels: auto, or a table: {postcava: inferior_vena_cava}")
    return {key: _target(value, key, where) for key, value in content.items()}


def _target(value: Any, key: Any, where: str) -> LabelTarget:
    if isinstance(value, Mapping):
        entry = table(value, ("as",), f"{where}: label {key!r}")
        return LabelTarget(how=one_of(entry.get("as"), (SEPARATE, UNANNOTATED), f"{where}: label {key!r}: as"))
    names = name_list(
        [value] if isinstance(value, str) else value, f"{where}: label {key!r}", "a class or a list of them"
    )
    if not names:
        raise DataError(f"{where}: label {key!r} has no class", "{as: unannotated}, to leave it out")
    return LabelTarget(names)


def _modality_rule(content: Any, where: str) -> dict[str, str]:
    hint = 'modality: CT, or {from: case_id, CT: "<500", MR: ">=500"}, which compares the last number in a name'
    if not isinstance(content, Mapping) or content.get("from") != "case_id" or len(content) < 2:
        raise DataError(f"{where}: modality is {content!r}", hint)
    rules = {str(name): str(rule) for name, rule in content.items() if name != "from"}
    for rule in rules.values():
        if not re.fullmatch(r"(<|<=|>|>=|==)\s*[0-9]{1,15}", rule):
            raise DataError(f"{where}: modality has the rule {rule!r}", hint)
    return rules
