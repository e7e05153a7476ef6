"""Write a merge.yaml to begin with: the given datasets, and the classes that their labels name."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stunet import workspace
from stunet.errors import DataError, UsageError
from stunet.files import atomic_write
from stunet.kinds import read_dataset_json
from stunet.labels.names import canonical, match_classes
from stunet.merging.space import value_names

HEADER = """# A draft of stunet_merge init. Correct what it could not know, then: stunet_merge check {path}
# All keys: docs/pretraining.md. Names that mean the same are one class; each label below says which it is.
name: {name}
images: reference
classes:{classes}
sources:
"""


def write_draft(path: Path, datasets: Sequence[str], name: str) -> None:
    """Write the file.

    Args:
        path: A new file.
        datasets: Numbers or names of raw datasets.
        name: Of the union, such as `Dataset900_Union`.

    Raises:
        DataError: The file exists, or a dataset is not there or has no labels.
        UsageError: A dataset is given twice.
    """
    if path.exists():
        raise DataError(f"{str(path)!r} exists", "another name, or delete it")
    names = [workspace.dataset_name(each) for each in datasets]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise UsageError(f"{twice} is given twice", "every dataset once")
    described = {each: read_dataset_json(workspace.raw_dataset(each) / "dataset.json") for each in names}
    labels = {each: value_names(description) for each, description in described.items()}
    classes = leaves([label for known, _, regions in labels.values() if not regions for label in known.values()])
    if not classes:
        raise DataError(f"{', '.join(names)}: no labels to take classes from", "datasets with labels, without regions")
    lines = [HEADER.format(path=path, name=name, classes="".join(f"\n  - {_text(each)}" for each in classes))]
    for one, other in overlapping(classes):
        what = f"is {_text(one)} also {_text(other)}? As written, a voxel is of one of them only"
        lines.insert(0, f"# Look at the classes: {what}.\n")
    ids: list[str] = []
    for each, (known, _, regions) in labels.items():
        ids.append(_identifier(each, ids))
        lines += _source(ids[-1], each, described[each], known, regions, classes)
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def leaves(names: Sequence[str]) -> list[str]:
    """Return the names that no others cover, each once: not `kidney` beside both kidneys, nor `Liver` and `liver`."""
    found = list(dict.fromkeys(names))
    for name in list(found):
        others = [other for other in found if other != name]
        if others and match_classes([name], others)[0].sources:
            found = others
    return found


def overlapping(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of classes of which one has all words of the other: `kidney` and `kidney_left`."""
    words = {name: set(canonical(name).split("_")) for name in classes}
    return [(one, other) for one in classes for other in classes if words[one] < words[other]]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _identifier(dataset: str, taken: Sequence[str]) -> str:
    """Return an id for a source: the dataset's name, with its number if there is another of the name."""
    number, _, name = dataset.removeprefix("Dataset").partition("_")
    made = re.sub(r"[^a-z0-9-]+", "_", name.lower()).strip("_-") or f"d{number}"
    return f"{made}_{number}" if made in taken else made


def _source(
    identifier: str,
    dataset: str,
    description: Mapping[str, Any],
    known: Mapping[int, str],
    regions: bool,
    classes: Sequence[str],
) -> list[str]:
    """Return the lines of a source, with a comment on each label."""
    lines = [f"  - id: {_text(identifier)}\n", f"    dataset: {_text(dataset)}\n"]
    if licence := description.get("licence") or description.get("license"):
        lines.append(f"    license: {_text(str(licence))}\n")
    else:
        lines.append("    # license: CC-BY-4.0\n")
    if regions:
        listed = ", ".join(f"{value}: CLASS" for value in known)
        return [*lines, f"    labels: {{{listed}}}  # of regions: the classes of each value\n"]
    for name, row in zip(known.values(), match_classes(list(known.values()), classes), strict=True):
        meant = ", ".join(row.sources) or f"nothing; labels: {{{_text(name)}: ...}}"
        lines.append(f"    # {_text(name)} is {meant}\n")
    return lines
