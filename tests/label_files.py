"""Small label maps of noise, and the dataset.json that names their values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

SHAPE = (8, 9, 10)
PLAIN = {"background": 0, "liver": 1, "tumour": 2}
IGNORING = {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def noise(seed: int, top: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, SHAPE, dtype=np.uint8)


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 2.0, 3.0), **geometry: Any) -> Path:
    """Writes labels in array order; `spacing`, `origin` and `direction` are in SimpleITK's order (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    for name, value in geometry.items():
        getattr(image, f"Set{name.capitalize()}")(value)
    sitk.WriteImage(image, str(path))
    return path


def write_dataset(folder: Path, labels: dict) -> Path:
    content = {"labels": labels, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        content["regions_class_order"] = [1, 2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def make_two_cases(folder: Path) -> tuple[Path, Path]:
    """Returns folders of references and predictions with two cases, and a dataset.json above the references."""
    for seed, name in enumerate(("a", "b")):
        write(folder / "gt" / f"{name}.nii.gz", noise(seed))
        write(folder / "pred" / f"{name}.nii.gz", noise(seed + 10))
    write_dataset(folder, PLAIN)
    return folder / "gt", folder / "pred"


def assert_same_numbers(ours: dict, theirs: dict) -> None:
    for metric, value in theirs.items():
        assert ours[metric] == pytest.approx(value, nan_ok=True), metric
