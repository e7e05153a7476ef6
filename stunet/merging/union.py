"""Describe a union before it is built: its sources, its labels, what each case annotates, what its files hold.

check.py fills in the description, findings.py judges it, build.py writes the union.
"""

import csv
import operator
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stunet import workspace
from stunet.datasets import RawCase, Rules, read_dataset, require_labels, warn_left_out
from stunet.errors import DataError, closest
from stunet.files import sha256_of
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource, load_annotations
from stunet.merging import Finding
from stunet.merging.recipe import Recipe, SourceRecipe
from stunet.merging.scan import CaseScan, check_endings
from stunet.merging.space import IGNORE, Space, overlaps

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class Member:
    """A source that could be opened.

    Attributes:
        recipe: Its entry in merge.yaml.
        folder: Its raw dataset.
        description: Its dataset.json.
        cases: The cases that go into the union.
        rules: What its files must satisfy, with the reader of the union.
        annotations: Its own annotations.json, if it is a union itself.
        sha256: Hash of its dataset.json.
    """

    recipe: SourceRecipe
    folder: Path
    description: Mapping[str, Any]
    cases: tuple[RawCase, ...]
    rules: Rules
    annotations: Annotations | None
    sha256: str

    @property
    def licence(self) -> str:
        """Licence in the recipe, or else in dataset.json; empty if neither has one."""
        own = self.description.get("licence") or self.description.get("license") or ""
        return self.recipe.licence or str(own)

    def modality(self, case: str) -> str:
        """Return the modality of a case; empty if no rule of the recipe holds."""
        if isinstance(self.recipe.modality, str):
            return self.recipe.modality or self.rules.channels[0]
        number = int((re.findall(r"\d+", case) or ["-1"])[-1])
        for name, rule in self.recipe.modality.items():
            sign, limit = re.fullmatch(r"(\D+?)\s*(\d+)", rule).groups()  # type: ignore[union-attr]
            if COMPARE[sign](number, int(limit)):
                return name
        return ""


@dataclass(frozen=True)
class Union:
    """A union as known before it is built.

    Attributes:
        recipe: The merge.yaml.
        members: The sources by id.
        space: The label space.
        annotated: Labels that a case annotates, by source and by the case's name there.
        scans: What the files of a case hold, by source and by the case's name there.
        folds: nnU-Net's splits, with the case names of the union.
    """

    recipe: Recipe
    members: Mapping[str, Member]
    space: Space
    annotated: Mapping[str, Mapping[str, tuple[str, ...]]]
    scans: Mapping[str, Mapping[str, CaseScan]]
    folds: list[dict[str, list[str]]]

    @cached_property
    def annotations(self) -> Annotations:
        """Content of annotations.json."""
        return Annotations(
            leaves=self.space.leaves,
            sets=self.space.sets,
            # What most cases annotate: annotations.json then lists only those that differ.
            sources={n: CaseSource(_most_common(self.annotated[n]), m.recipe.weight) for n, m in self.members.items()},
            cases={
                case_name(source, case): AnnotatedCase(source, labels)
                for source, cases in self.annotated.items()
                for case, labels in cases.items()
            },
            head=self.recipe.head,
            alpha=self.recipe.alpha,
        )

    @cached_property
    def values(self) -> dict[str, int]:
        """Values in the label files by label, with the background and, if a source has one, the ignore label."""
        values = self.annotations.values
        return {**values, IGNORE: len(values)} if self.space.ignores else values

    def shares(self) -> dict[str, float]:
        """Return each source's share of the draws of an epoch: weight * n^(1 - alpha), divided by the sum over all."""
        drawn = {
            name: member.recipe.weight * len(member.cases) ** (1 - self.recipe.alpha)
            for name, member in self.members.items()
        }
        return {name: number / sum(drawn.values()) for name, number in drawn.items()}

    def annotating(self, label: str) -> dict[str, int]:
        """Return how many cases of each source annotate a label of the union; sources without any are left out."""
        return {name: numbers[label] for name, numbers in self._annotating.items() if numbers[label]}

    @cached_property
    def _annotating(self) -> dict[str, Counter[str]]:
        """Number of cases by source and by label."""
        found = {}
        for name, cases in self.annotated.items():
            found[name] = Counter[str]()
            # Each distinct set of labels once: there may be ten thousand cases.
            for labels, number in Counter(cases.values()).items():
                found[name].update(dict.fromkeys(labels, number))
        return found


def _most_common(annotated: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return Counter(annotated.values()).most_common(1)[0][0] if annotated else ()


def case_name(source: str, case: str) -> str:
    """Return the name of a case in the union."""
    return f"{source}_{case}"


def open_source(recipe: Recipe, source: SourceRecipe) -> Member:
    """Open a source of a recipe.

    Raises:
        DataError: There is no such dataset, nnU-Net could not use it, or all of its cases are excluded.
    """
    # Not at the top: importing nnU-Net takes seconds.
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    folder = workspace.raw_dataset(workspace.dataset_name(source.dataset))
    cases, rules = read_dataset(folder)
    require_labels(folder.name, cases)
    description = read_dataset_json(folder / "dataset.json")
    warn_left_out(folder, description, cases)
    names = [case.name for case in cases]
    for name in source.exclude:
        if name not in names:
            raise DataError(f"{folder.name} has no case {name!r} to exclude{closest(name, names)}", "correct exclude")
    taken = tuple(case for case in cases if case.name not in source.exclude)
    if not taken:
        raise DataError(f"all cases of {folder.name} are excluded", "exclude fewer, or leave the source out")
    # The scan and write_label() read the files with nibabel, whatever reader the recipe names.
    check_endings(taken)
    reader = recursive_find_reader_writer_by_name(recipe.reader)
    return Member(
        recipe=source,
        folder=folder,
        description=description,
        cases=taken,
        # Read as the union will be, in one orientation, not as the source's dataset.json says.
        rules=Rules(reader, rules.channels, rules.values),
        annotations=load_annotations(folder),
        sha256=sha256_of(folder / "dataset.json"),
    )


def annotated_by(member: Member, space: Space) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    """Return which labels of the union each case of a source annotates, by case name."""
    name = member.recipe.id
    own = {m.name: space.label(m.leaves) for m in space.meanings[name].values() if m.leaves}
    complete = space.labels(name)
    found = {case.name: complete for case in member.cases}
    if member.annotations:
        for case in found:
            parts = (own[label] for label in member.annotations.cases[case].labels if label in own)
            found[case] = tuple(dict.fromkeys(parts))
    findings: list[Finding] = []
    # A union as a source may have overlapping labels, as long as they are not in the same case.
    if member.annotations:
        for together in dict.fromkeys(found.values()):
            findings += overlaps(name, {label: space.all_labels[label] for label in together})
    if member.recipe.overrides is not None:
        try:
            for case, classes in _overrides(member.recipe.overrides):
                # The table may use the names of the source or those of the union.
                labels = _override(member, case, classes, own | {label: label for label in complete})
                # In the order of the source, so that equal sets are equal tuples and share a look-up table.
                found[case] = tuple(label for label in complete if label in labels)
        except DataError as error:
            findings.append(Finding(error.message, error.hint))
    return found, findings


def _overrides(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a table `case;classes`, with the classes separated by commas."""
    hint = "a header case;classes and rows such as: case_12;liver, spleen"
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter=";"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read annotated_overrides {str(path)!r}: {error}", hint) from None
    if not rows or [cell.strip() for cell in rows[0]] != ["case", "classes"]:
        raise DataError(f"the first line of {str(path)!r} is not case;classes", hint)
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        classes = [name.strip() for name in row[1].split(",") if name.strip()] if len(row) == 2 else []
        if not classes:
            raise DataError(f"line {number} of {str(path)!r} names no case with classes: {';'.join(row)!r}", hint)
        yield row[0].strip(), classes


def _override(member: Member, case: str, classes: list[str], known: Mapping[str, str]) -> set[str]:
    path = member.recipe.overrides
    names = [c.name for c in member.cases]
    if case not in names:
        raise DataError(
            f"{str(path)!r}: source {member.recipe.id!r} has no case {case!r}{closest(case, names)}",
            os.fspath(member.folder),
        )
    for name in classes:
        if name not in known:
            near = closest(name, list(known))
            raise DataError(
                f"{str(path)!r}: case {case!r}: source {member.recipe.id!r} does not annotate {name!r}{near}",
                f"it annotates {', '.join(dict.fromkeys(known.values()))}",
            )
    return {known[name] for name in classes}
