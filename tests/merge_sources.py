"""Small raw datasets that tests merge: boxes at fixed places in images of seeded noise, 12^3 voxels of 2 mm, RAS."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from stunet.files import read_json, write_json

SHAPE = (12, 12, 12)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])  # the first axis grows to the patient's right
BOXES = {  # x, y, z; the patient's left has the smaller x
    "kidney_left": (slice(1, 4), slice(1, 4), slice(1, 6)),
    "kidney_right": (slice(8, 11), slice(1, 4), slice(1, 5)),
    "liver": (slice(6, 11), slice(6, 11), slice(6, 11)),
    "liver_tumor": (slice(7, 9), slice(7, 9), slice(7, 9)),
    "spleen": (slice(1, 4), slice(7, 10), slice(7, 10)),
    "aorta": (slice(5, 6), slice(2, 4), slice(0, 12)),
}


def make_source(
    raw: Path,
    name: str,
    classes: Mapping[str, Sequence[str]],
    cases: int = 2,
    seed: int = 0,
    channels: Sequence[str] = ("CT",),
    **more: Any,
) -> Path:
    """Writes nnUNet_raw/NAME whose labels, numbered from 1 on, are unions of boxes; `more` goes into dataset.json."""
    folder = raw / name
    for index in range(cases):
        for channel in range(len(channels)):
            image = np.random.default_rng((seed, index, channel)).integers(-1000, 1000, SHAPE, np.int16)
            save(folder / "imagesTr" / f"case_{index}_{channel:04d}.nii.gz", image)
        label = np.zeros(SHAPE, np.uint8)
        for value, boxes in enumerate(classes.values(), start=1):
            for box in boxes:
                label[BOXES[box]] = value
        save(folder / "labelsTr" / f"case_{index}.nii.gz", label)
    description = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background": 0} | {label: value for value, label in enumerate(classes, start=1)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "licence": "CC-BY-4.0",
    }
    write_json(folder / "dataset.json", description | more)
    return folder


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Writes a NIfTI file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def read(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file."""
    return np.asanyarray(nibabel.load(path).dataobj)


def describe(folder: Path, **changes: Any) -> None:
    """Replaces entries of a dataset.json."""
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | changes)


def write_recipe(path: Path, sources: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Writes a merge.yaml."""
    content = {"name": "Dataset900_Union", "sources": [dict(source) for source in sources], **more}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
