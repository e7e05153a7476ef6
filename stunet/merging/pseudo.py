"""Determine what a teacher can complete in a dataset: classes that it has and that some cases do not annotate.

Read next: completing.py, which completes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stunet.datasets import RawCase, read_dataset, require_labels, warn_left_out
from stunet.errors import DataError, UsageError
from stunet.files import sha256_of, sha256_of_json
from stunet.inference.model import ModelFolder
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource, load_annotations
from stunet.labels.names import head_classes, match_classes
from stunet.merging.build import label_bound
from stunet.merging.scan import check_endings, files_of
from stunet.merging.space import IGNORE

REST = "background"  # name of the threshold for "none of the missing classes"


@dataclass(frozen=True)
class Completion:
    """What is to be completed in a dataset.

    Attributes:
        folder: The raw dataset.
        cases: Its cases.
        description: Its dataset.json.
        before: What its cases annotate now.
        after: What they will annotate.
        classes: By leaf, the classes of the teacher that make it up.
        thresholds: Probability that each leaf, and REST, has to reach.
    """

    folder: Path
    cases: tuple[RawCase, ...]
    description: Mapping[str, Any]
    before: Annotations
    after: Annotations
    classes: Mapping[str, tuple[str, ...]]
    thresholds: Mapping[str, float]

    @property
    def values(self) -> dict[str, int]:
        """Values in the new label files by label; the ignore label is last."""
        values = self.after.values
        return {**values, IGNORE: len(values)}

    def missing(self, case: str) -> list[str]:
        """Return the leaves that the teacher adds to a case."""
        return [label for label in self.after.cases[case].labels if label not in self.before.cases[case].labels]

    def lookup(self) -> np.ndarray:
        """Return the table from old to new label values."""
        old, new = self.description["labels"], self.values
        table: np.ndarray = np.zeros(1 + max(int(value) for value in old.values()), label_bound(new))
        for name, value in old.items():
            table[int(value)] = new[name]
        return table

    def state(self, teacher: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the result depends on."""
        content = {
            "dataset": self.folder.name,
            "dataset.json": sha256_of(self.folder / "dataset.json"),
            "files": sha256_of_json([files_of(case) for case in self.cases]),
            "annotates": {case: list(entry.labels) for case, entry in self.before.cases.items()},
            "teacher": teacher,
            "classes": self.classes,
            "thresholds": self.thresholds,
        }
        # As it is read back, to be compared.
        return json.loads(json.dumps(content))


def plan_completion(
    folder: Path,
    teacher: ModelFolder,
    classes: Sequence[str] = (),
    min_confidence: float = 0.9,
    thresholds: Mapping[str, float] | None = None,
) -> Completion:
    """Determine what a teacher can complete in a raw dataset.

    Args:
        folder: nnUNet_raw/DatasetXXX_Name.
        teacher: The model.
        classes: Classes to complete; new ones become part of the dataset. Empty: all that some case lacks.
        min_confidence: Probability that the class of a voxel has to reach.
        thresholds: The same for single classes.

    Raises:
        DataError: Something does not exist, the teacher lacks a class, or nothing is missing.
        UsageError: A threshold is not a probability, or is given for an unknown class.
    """
    cases, rules = read_dataset(folder)
    require_labels(folder.name, cases)
    check_endings(cases)
    description = read_dataset_json(folder / "dataset.json")
    warn_left_out(folder, description, cases)
    if len(teacher.channels) != len(rules.channels):
        text = f"the teacher takes {len(teacher.channels)} channels ({', '.join(teacher.channels)})"
        raise DataError(f"{text}, {folder.name} has {len(rules.channels)}", "a teacher for these images")
    for whose, labels in ((folder.name, description["labels"]), ("the teacher", teacher.dataset["labels"])):
        if any(isinstance(value, list | tuple) for value in labels.values()):
            raise DataError(
                f"{whose} has regions, not classes", "a dataset and a teacher in which a voxel has one class"
            )
    before = load_annotations(folder) or _complete(description["labels"], cases)
    _check_cases(before, cases, folder)
    # Without row 0, the background.
    known = head_classes(teacher.dataset["labels"])[1:]
    wanted = _wanted(before, classes)
    found = {row.target: row for row in match_classes(wanted, known)}
    if lacking := [name for name in classes if not found[_own(before, name)].sources]:
        near = ", ".join(map(repr, found[_own(before, lacking[0])].closest))
        raise DataError(f"the teacher has no class {lacking[0]!r}; nearest: {near}", "leave it out of --classes")
    able = {name: row.sources for name, row in found.items() if row.sources}
    after = _extended(before, list(able))
    result = Completion(
        folder, tuple(cases), description, before, after, able, _thresholds(able, min_confidence, thresholds)
    )
    if not any(result.missing(case.name) for case in cases):
        hint = f"name new ones with --classes; the teacher has {', '.join(known[:8])}"
        raise DataError(f"no case of {folder.name} lacks a class that the teacher has", hint)
    return result


def _complete(labels: Mapping[str, Any], cases: Sequence[RawCase]) -> Annotations:
    """Return annotations in which all cases annotate all classes, as in a dataset without annotations.json."""
    names = tuple(name for name in head_classes(labels) if name != "background")
    source = "dataset"
    return Annotations(
        leaves=names,
        sets={},
        sources={source: CaseSource(names)},
        cases={case.name: AnnotatedCase(source, names) for case in cases},
    )


def _check_cases(annotations: Annotations, cases: Sequence[RawCase], folder: Path) -> None:
    for case in cases:
        if case.name not in annotations.cases:
            text = f"annotations.json of {folder.name} does not know the case {case.name!r}"
            raise DataError(text, "build the dataset again: stunet_merge build")


def _own(annotations: Annotations, name: str) -> str:
    """Return the dataset's own name for a class, or `name` if it does not have the class."""
    row = match_classes([name], annotations.leaves)[0]
    return row.sources[0] if len(row.sources) == 1 else name


def _wanted(annotations: Annotations, classes: Sequence[str]) -> list[str]:
    if not classes:
        return list(annotations.leaves)
    return list(dict.fromkeys(_own(annotations, name) for name in classes))


def _extended(before: Annotations, wanted: Sequence[str]) -> Annotations:
    """Return annotations in which every case also annotates the wanted classes."""
    leaves = (*before.leaves, *(name for name in wanted if name not in before.leaves))
    cases = {}
    for name, case in before.cases.items():
        # A coarse label also annotates its parts: the teacher must not divide it.
        covered = {leaf for label in case.labels for leaf in before.labels[label]}
        added = tuple(leaf for leaf in wanted if leaf not in covered)
        cases[name] = replace(case, labels=(*case.labels, *added))
    return replace(before, leaves=leaves, cases=cases)


def _thresholds(
    classes: Mapping[str, Sequence[str]], default: float, single: Mapping[str, float] | None
) -> dict[str, float]:
    values = dict.fromkeys((*classes, REST), default)
    for name, value in (single or {}).items():
        if name not in values:
            raise UsageError(f"no class {name!r} is completed", f"a threshold for one of {', '.join(values)}")
        values[name] = value
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UsageError(f"the confidence of {name!r} is {value:g}, not a probability", "--min_confidence 0.9")
    return values
