"""Which classes each case of a dataset annotates, stored as annotations.json next to the dataset's dataset.json.

A label is a set of leaf classes: `kidney` is the set of the left and the right one, if they are not distinguished. The
labels of a case are disjoint; leaves that no label of a case covers are part of its background. An unannotated class, a
coarse label and complete labels are therefore the same thing: a partition of the leaves (Fidon et al. 2021, label-set
loss).

`stunet_merge` writes the file, trainers/partial/ trains with it, losses/ has the formulas.

    {"leaves": ["kidney_left", "kidney_right", "liver"],
     "sets": {"kidney": ["kidney_left", "kidney_right"]},
     "head": "softmax", "alpha": 0.5,
     "sources": {"ts": {"labels": ["kidney_left", "kidney_right", "liver"]}, "kits": {"labels": ["kidney"]}},
     "cases": {"ts_1": {"source": "ts"}, "ts_2": {"source": "ts", "labels": ["liver"]}, "kits_7": {"source": "kits"}}}
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, closest
from stunet.files import write_json
from stunet.kinds import ANNOTATIONS, read, read_dataset_json
from stunet.labels.names import match_classes, sides
from stunet.workspace import PARTIAL_TRAINER, preprocessed_dataset

FILE = "annotations.json"
HEAD_KINDS = ("softmax", "sigmoid")
HINT = "build the dataset again: stunet_merge build"


@dataclass(frozen=True)
class CaseSource:
    """Where cases come from.

    Attributes:
        labels: What its cases annotate, unless a case specifies otherwise.
        weight: How often it is drawn, relative to what its number of cases implies.
    """

    labels: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class AnnotatedCase:
    """A case: its source and what it annotates."""

    source: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Annotations:
    """The label space of a dataset and the part of it that each case annotates.

    Attributes:
        leaves: Names of the classes; the first is output 1 of a softmax head and value 1 of label files.
        sets: Labels that are not a leaf, with their leaves; in this order, their values follow those of the leaves.
        sources: By name.
        cases: By name, as in the dataset.
        head: "softmax", with one output per leaf and the background, or "sigmoid", with one per leaf and set.
        alpha: A source of n cases is drawn with a probability proportional to weight * n^(1 - alpha): each of its
            cases to n^-alpha.
        numbers: Values in label files by label, if they differ from the order above: for a dataset that became a
            source afterwards.
    """

    leaves: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, CaseSource]
    cases: Mapping[str, AnnotatedCase]
    head: str = "softmax"
    alpha: float = 0.5
    numbers: Mapping[str, int] | None = None

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Every label with its leaves, in the order of the values 1, 2, ... in label files."""
        return {**{leaf: (leaf,) for leaf in self.leaves}, **self.sets}

    @property
    def values(self) -> dict[str, int]:
        """Value in label files by label, including background; the dataset may have an ignore label after them."""
        if self.numbers is not None:
            # The files were written with the values of the classes before map_to_head().
            return {"background": 0, **self.numbers}
        return {"background": 0, **{label: value for value, label in enumerate(self.labels, start=1)}}

    @property
    def outputs(self) -> dict[str, tuple[str, ...]]:
        """The outputs of a sigmoid head: sets, the largest first, then leaves.

        The order matters: in nnU-Net, later regions overwrite earlier ones.
        """
        return {**dict(sorted(self.sets.items(), key=lambda item: -len(item[1]))), **{x: (x,) for x in self.leaves}}

    def groups(self, case: str) -> np.ndarray:
        """Return the partition of a case for a softmax head.

        Returns:
            (1 + leaves,) int64: for each output the value that voxels of its class have in the label file of this case,
            0 for classes that are not annotated.
        """
        leaf_index = {leaf: index for index, leaf in enumerate(self.leaves, start=1)}
        groups = np.zeros(1 + len(self.leaves), np.int64)
        for label in self.cases[case].labels:
            for leaf in self.labels[label]:
                groups[leaf_index[leaf]] = self.values[label]
        return groups

    def regions(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what a case annotates for each output of a sigmoid head.

        An output is annotated if its leaves are a union of labels of the case: `kidney` if both sides are, but not the
        left one if only `kidney` is.

        Returns:
            (R,) bool: which outputs are annotated; (R, values) bool: whether a voxel of a value belongs to an output.
            Outputs are in the order of `outputs`.
        """
        outputs, values = self.outputs, self.values
        inside = np.zeros((len(outputs), max(values.values()) + 1), bool)
        annotated = np.zeros(len(outputs), bool)
        for row, leaves in enumerate(outputs.values()):
            parts = [name for name in self.cases[case].labels if set(outputs[name]) <= set(leaves)]
            annotated[row] = {leaf for name in parts for leaf in outputs[name]} == set(leaves)
            # Of an output that is only partly annotated, no voxel is known to be outside: the loss leaves it out.
            if annotated[row]:
                inside[row, [values[name] for name in parts]] = True
        return annotated, inside

    def model_description(self, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
        """Return the dataset.json of a model of these classes, for nnU-Net's prediction; an ignore label stays one.

        A softmax model has the leaves. A sigmoid model has regions: a set is its leaves, the sets in it, and a value of
        its own for voxels that are in none of its leaves. A leaf is written twice, [1, 1]: nnU-Net recognizes a model
        with regions by a list with more than one value.
        """
        leaves = {leaf: value for value, leaf in enumerate(self.leaves, start=1)}
        labels: dict[str, Any] = {"background": 0, **leaves}
        content = {key: value for key, value in dataset_json.items() if key not in ("labels", "regions_class_order")}
        count = 1 + len(leaves)
        if self.head == "sigmoid":
            values = {label: value for value, label in enumerate(self.labels, start=1)}
            for name, parts in self.outputs.items():
                inner = [values[other] for other, fewer in self.sets.items() if set(fewer) <= set(parts)]
                labels[name] = [leaves[leaf] for leaf in parts] + (inner or [values[name]])
            labels = {name: labels[name] for name in ("background", *self.outputs)}
            content["regions_class_order"] = [values[name] for name in self.outputs]
            count = 1 + len(values)
        # nnU-Net requires that ignore is the highest value.
        if "ignore" in dataset_json["labels"]:
            labels["ignore"] = count
        return {"labels": labels, **content}

    def map_to_head(self, classes: Sequence[str]) -> "Annotations":
        """Map the annotations to the classes of a pre-trained head, and to new leaves for classes that it lacks.

        Args:
            classes: Classes of the head, in its order, without the background.
        """
        # A leaf that the head divides (kidney: left and right) becomes a set; one that it lacks becomes a new leaf.
        rows = {row.target: row.sources or (row.target,) for row in match_classes(self.leaves, classes)}
        leaves = (*classes, *(leaf for leaf in self.leaves if rows[leaf] == (leaf,) and leaf not in classes))
        parts = {label: tuple(x for leaf in given for x in rows[leaf]) for label, given in self.labels.items()}
        for source in self.sources.values():
            # Two labels that were disjoint may share a class of the head, and then a voxel would have two meanings.
            for problem in _label_problems(source.labels, parts):
                raise DataError(f"in the classes of the head {problem}", "--head slice, or rename one of the labels")
        names = {label: found[0] if len(found) == 1 else label for label, found in parts.items()}
        # Sets that became a single class of the head are leaves now; labels are renamed accordingly.
        moved = replace(
            self,
            leaves=leaves,
            sets={names[label]: found for label, found in parts.items() if len(found) > 1},
            sources={n: replace(s, labels=tuple(names[x] for x in s.labels)) for n, s in self.sources.items()},
            cases={n: replace(c, labels=tuple(names[x] for x in c.labels)) for n, c in self.cases.items()},
            # The label files stay as they are, whatever the order of the classes now.
            numbers={names[label]: self.values[label] for label in parts},
        )
        twice = [label for label in parts if names[label] in {names[x] for x in parts if x != label}]
        problems = [f"{twice[0]!r} and {twice[1]!r} are one class"] if twice else _problems(moved)
        for problem in problems:
            raise DataError(f"in the classes of the head {problem}", "--head slice, or rename one of the labels")
        return moved

    def save(self, folder: Path) -> None:
        """Write annotations.json into the folder of a dataset."""
        write_json(folder / FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of annotations.json."""
        cases = {
            # What all cases of a source share is written once: a union may have ten thousand cases.
            name: {"source": case.source}
            | ({} if case.labels == self.sources[case.source].labels else {"labels": list(case.labels)})
            for name, case in self.cases.items()
        }
        return {
            "leaves": list(self.leaves),
            "sets": {name: list(leaves) for name, leaves in self.sets.items()},
            "head": self.head,
            "alpha": self.alpha,
            "sources": {n: {"labels": list(s.labels), "weight": s.weight} for n, s in self.sources.items()},
            "cases": cases,
        }


def load_annotations(folder: Path) -> Annotations | None:
    """Load the annotations of the dataset in a folder, raw or preprocessed; None if it has none: all is annotated.

    Raises:
        DataError: The file is not what Annotations.save() writes, or contradicts itself.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read(path, ANNOTATIONS, HINT)
    for name, case in content["cases"].items():
        if case["source"] not in content["sources"]:
            near = closest(case["source"], list(content["sources"]))
            raise DataError(f"{str(path)!r}: case {name!r} is of no source {case['source']!r}{near}", HINT)
    annotations = _from_json(content)
    for problem in _problems(annotations):
        raise DataError(f"{str(path)!r}: {problem}", HINT)
    return annotations


def load_training_annotations(
    folder: Path, classes: Sequence[str] | None, dataset_json: Mapping[str, Any], cases: Iterable[str] = ()
) -> Annotations | None:
    """Return the annotations that a run of a plan trains with; None if every class is annotated in every case.

    Args:
        folder: Folder of the preprocessed dataset.
        classes: Those of the weights that the plan starts from, if their head is used whole.
        dataset_json: The dataset's dataset.json.
        cases: The dataset's case names, for a dataset without the file.

    Raises:
        DataError: As for load_annotations() and map_to_head().
    """
    annotations = load_annotations(folder)
    if classes is None:
        return annotations
    return (annotations or complete_annotations(dataset_json, cases)).map_to_head(classes)


def describe_trained_model(dataset: str, classes: Sequence[str] | None, trainer: str) -> dict[str, Any]:
    """Return the dataset.json of the model that a trainer makes; `classes` as for load_training_annotations()."""
    folder = preprocessed_dataset(dataset)
    content = read_dataset_json(folder / "dataset.json")
    annotations = load_training_annotations(folder, classes, content) if trainer == PARTIAL_TRAINER else None
    return annotations.model_description(content) if annotations else content


def complete_annotations(dataset_json: Mapping[str, Any], cases: Iterable[str]) -> Annotations:
    """Return the annotations of an ordinary dataset: every case annotates every class.

    Raises:
        DataError: The dataset has regions.
    """
    values = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    # Regions may overlap, whereas the labels of a case are disjoint here.
    if any(not isinstance(value, int) for value in values.values()):
        raise DataError("the classes of the dataset are regions, which may overlap", "a dataset of plain labels")
    leaves = tuple(sorted(values, key=values.__getitem__))
    source = str(dataset_json.get("name", "dataset"))
    return Annotations(
        leaves, {}, {source: CaseSource(leaves)}, {case: AnnotatedCase(source, leaves) for case in cases}
    )


def mirrored_values(annotations: Annotations) -> dict[int, int]:
    """Return each label's mirrored value in label files: for the left kidney that of the right one, and vice versa.

    Raises:
        DataError: A case annotates a label without its mirror image, which would be taken for background, or one that
            has none: in the heart, left and right are told apart by shape.
    """
    found = sides(annotations.leaves)
    opposite = {leaf: leaf for leaf in annotations.leaves}
    for left, right in found.images:
        opposite |= {left: right, right: left}
    values = {value: value for value in annotations.values.values()}  # a label may not be annotated by any case
    # Each distinct set once: many cases annotate the same.
    kinds = {case.labels: name for name, case in annotations.cases.items()} or {annotations.leaves: ""}
    for labels, case in kinds.items():
        by_leaves = {frozenset(annotations.labels[label]): label for label in labels}
        for leaves, label in by_leaves.items():
            image = by_leaves.get(frozenset(opposite[leaf] for leaf in leaves))
            one_side = not any(leaves.issuperset(pair) for pair in found.pairs)  # the whole heart is its own image
            if image is None or (one_side and leaves.intersection(found.others)):
                who = f"case {case!r} annotates" if case else "the dataset has"
                raise DataError(
                    f"mirror=swap: {who} {label!r} without its mirror image",
                    "--set mirror=auto, which does not mirror left and right",
                )
            values[annotations.values[label]] = annotations.values[image]
    return values


def _from_json(content: Mapping[str, Any]) -> Annotations:
    """Return what to_json() made the content from."""
    sources = {
        name: CaseSource(tuple(source["labels"]), float(source.get("weight", 1.0)))
        for name, source in content["sources"].items()
    }
    return Annotations(
        leaves=tuple(content["leaves"]),
        sets={name: tuple(leaves) for name, leaves in content["sets"].items()},
        sources=sources,
        cases={
            name: AnnotatedCase(case["source"], tuple(case.get("labels", sources[case["source"]].labels)))
            for name, case in content["cases"].items()
        },
        head=content["head"],
        alpha=float(content["alpha"]),
    )


def _problems(annotations: Annotations) -> list[str]:
    """Return how the annotations contradict themselves, one line each."""
    known = annotations.labels
    problems = []
    if annotations.head not in HEAD_KINDS:
        problems.append(f"head is {annotations.head!r}, not one of {', '.join(HEAD_KINDS)}")
    # `labels`, by name, silently keeps the last of two.
    if len(known) != len(annotations.leaves) + len(annotations.sets) or len(set(annotations.leaves)) < len(
        annotations.leaves
    ):
        problems.append("a name occurs twice among leaves and sets")
    for name, leaves in annotations.sets.items():
        unknown = sorted(set(leaves) - set(annotations.leaves))
        problems += [f"{name!r} has the leaf {leaf!r}{closest(leaf, list(annotations.leaves))}" for leaf in unknown]
    for kind, entries in (("source", annotations.sources), ("case", annotations.cases)):
        for name, entry in entries.items():
            problems += [f"{kind} {name!r}: {problem}" for problem in _label_problems(entry.labels, known)]
    problems += [f"source {n!r} has weight {s.weight}" for n, s in annotations.sources.items() if not s.weight > 0]
    return problems


def _label_problems(labels: tuple[str, ...], known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return what is wrong with the labels of a case or source: unknown ones, or two that share a leaf."""
    unknown = [label for label in labels if label not in known]
    if unknown:
        return [f"no label {unknown[0]!r}{closest(unknown[0], list(known))}"]
    owner: dict[str, str] = {}
    for label in labels:
        for leaf in known[label]:
            if leaf in owner:
                return [f"{owner[leaf]!r} and {label!r} are both {leaf!r}"]
            owner[leaf] = label
    return []
