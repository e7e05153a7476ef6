"""Convert a model's segmentation to the labels of another dataset.

A label system is a TOML file in presets/labels/ or supplied by the user: the classes of a dataset with their ids in it.
Its classes are matched with a model's by name (names.py). evaluation/ compares in the ids of such a system.

    title = "..."
    [classes]
    spleen = 1
    liver = { labels = [1, 2] }                           # several ids are one class
    "femoral head" = { labels = [3], from = ["femur"] }   # the model's name for it, or the names of its parts
    [other]
    rectum = 4                                            # ids that the dataset has and that count as background
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, closest
from stunet.kinds import LARGEST_LABEL
from stunet.labels.names import match_classes
from stunet.schema import Wrong, check, dict_of, either, integer, list_of, read_toml, table, text

NOT_CLASSES = {"background", "ignore"}  # nnU-Net's other entries of `labels`


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """A class of a label system.

    Attributes:
        name: In the dataset's own words.
        labels: The dataset's ids that make it up; a prediction gets the first.
        sources: Names of the classes that it is the union of.
    """

    name: str
    labels: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelSystem:
    """The labels of a dataset.

    Attributes:
        name: `amos`, or the path of the file.
        title: One line for listings.
        source: Where the ids are published.
        classes: What is segmented.
        other: Ids of everything else in the dataset, by name: background here.
    """

    name: str
    title: str
    source: str
    classes: tuple[LabelClass, ...]
    other: Mapping[str, int]

    @property
    def known(self) -> frozenset[int]:
        """All values that a file in this system may have."""
        return frozenset({0, *self.other.values(), *(label for entry in self.classes for label in entry.labels)})

    @property
    def dataset_labels(self) -> dict[str, int]:
        """`labels` of a dataset.json for predictions in this system."""
        return {"background": 0, **{entry.name: entry.labels[0] for entry in self.classes}}

    def from_model(self, labels: Mapping[str, Any]) -> np.ndarray:
        """Return the value in this system for each value of a model, as a look-up array for `apply_lookup`.

        Args:
            labels: `labels` of the model's dataset.json.

        Raises:
            DataError: The model lacks some of the classes, has one that belongs to two of the system, or has regions.
        """
        values = {name: value for name, value in labels.items() if name not in NOT_CLASSES}
        for name, value in values.items():
            # type(), because True is an int as well.
            if type(value) is not int or not 0 < value <= LARGEST_LABEL:
                raise DataError(
                    f"labels {self.name!r}: class {name!r} of the model is {value!r}, not one label",
                    "a model of regions has no classes that could be renumbered",
                )
        table = np.zeros(max(values.values(), default=0) + 1, np.min_scalar_type(max(self.dataset_labels.values())))
        for name, target in self._targets(list(values)).items():
            table[values[name]] = target
        return table

    def _targets(self, names: list[str]) -> dict[str, int]:
        """Return the value in this system by name of the model's class; classes without a use are left out."""
        owners: dict[str, LabelClass] = {}
        missing = []
        for entry in self.classes:
            # The name of the system itself goes first: a model of this very system need not have the parts.
            rows = match_classes([entry.name] if entry.name in names else entry.sources, names)
            missing += [row for row in rows if not row.sources]
            for source in (source for row in rows for source in row.sources):
                if source in owners:
                    raise DataError(
                        f"labels {self.name!r}: {owners[source].name!r} and {entry.name!r} are both {source!r} here",
                        "leave one of the two out, in a .toml file of your own",
                    )
                owners[source] = entry
        if missing:
            first, near = missing[0].target, ", ".join(map(repr, missing[0].closest))
            raise DataError(
                f"labels {self.name!r}: the model has no {', '.join(repr(row.target) for row in missing)}",
                f"nearest to {first!r} it has {near or 'nothing'}; "
                "name a class of the model with `from` in a .toml file of your own",
            )
        return {source: entry.labels[0] for source, entry in owners.items()}


def names() -> list[str]:
    """Return the names of the label systems that come with the package."""
    return sorted(Path(p.name).stem for p in (files("stunet.presets") / "labels").iterdir() if p.name.endswith(".toml"))


def load(name_or_path: str) -> LabelSystem:
    """Load the label system of this name, or from this TOML file.

    Raises:
        DataError: Unknown name, missing file, or something in the file is wrong, which the message names.
    """
    is_file = name_or_path.endswith(".toml")
    # Files in presets/labels/ are named in lower case; the user's path stays as it is.
    name = name_or_path if is_file else name_or_path.lower()
    path = Path(name) if is_file else files("stunet.presets") / "labels" / f"{name}.toml"
    if not path.is_file():
        raise DataError(
            f"no label system {name_or_path!r}{closest(name, names())}", f"one of {', '.join(names())}, or a .toml file"
        )
    content = read_toml(path)
    check(content, _SYSTEM, f"labels {name!r}", "[classes] with lines like: liver = 1")
    other = content.get("other", {})
    system = LabelSystem(
        name=name,
        title=str(content.get("title", name)),
        source=str(content.get("source", "")),
        classes=tuple(_class(key, value) for key, value in content["classes"].items()),
        other=other,
    )
    _check_unique(system)
    return system


def apply_lookup(lookup: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Look up every value of an array; slice by slice, because look-ups take 8 bytes per voxel.

    Examples:
        >>> apply_lookup(np.array([0, 5, 7], np.uint8), np.array([[2, 1], [0, 2]])).tolist()
        [[7, 5], [0, 7]]

    Args:
        lookup: New value by old value, (N,).
        array: Integers of any shape.

    Returns:
        The array with the new values, in the type of `lookup`.

    Raises:
        DataError: The array has a value that `lookup` does not cover.
    """
    if array.size and not 0 <= (wrong := int(array.min())) <= (wrong := int(array.max())) < len(lookup):
        raise DataError(
            f"the segmentation has value {wrong}, the model's labels are 0 to {len(lookup) - 1}",
            "give the dataset.json that belongs to it",
        )
    result = np.empty(array.shape, lookup.dtype)
    # At least 2D, so that an array of one axis is one slice, not many scalars.
    for target, source in zip(np.atleast_2d(result), np.atleast_2d(array), strict=True):
        target[...] = lookup[source]
    return result


def _class(name: str, value: Any) -> LabelClass:
    entry = value if isinstance(value, dict) else {"labels": [value]}
    return LabelClass(name=name, labels=tuple(entry["labels"]), sources=tuple(entry.get("from", [name])))


def _class_name(value: Any, where: str) -> None:
    text(value, where)
    if value in NOT_CLASSES:
        raise Wrong(where, f"{value!r} is not a class; leave it out: what is not listed is background")


def _check_unique(system: LabelSystem) -> None:
    used: dict[int, str] = {}
    listed = [(entry.name, entry.labels) for entry in system.classes] + [(n, (v,)) for n, v in system.other.items()]
    for name, labels in listed:
        for label in labels:
            if label in used:
                raise DataError(
                    f"labels {system.name!r}: label {label} is {used[label]!r} and {name!r}",
                    "a label belongs to one class; parts of a class are named with `from`",
                )
            used[label] = name


_LABEL = integer(1, LARGEST_LABEL)
_PARTS = table({"labels": list_of(_LABEL, least=1)}, {"from": list_of(text, least=1)})
_SYSTEM = table(
    {"classes": dict_of(either("a label or a table", _LABEL, _PARTS), key=_class_name, least=1)},
    {"title": text, "source": text, "other": dict_of(_LABEL)},
)
