"""A dataset as far as planning needs it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

DATASET = "Dataset997_Fake"


@pytest.fixture
def fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a dataset with this spacing (mm), shape and labels: a fingerprint, and one tiny image for the headers."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))

    def make(spacing: list[float], shape: list[int], labels: list[str], direction: str = "LPS") -> None:
        raw = tmp_path / "nnUNet_raw" / DATASET
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True)
        image = sitk.DICOMOrient(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32)), direction)
        sitk.WriteImage(image, str(raw / "imagesTr" / "case_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(raw / "labelsTr" / "case.nii.gz"))
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {name: i for i, name in enumerate(labels, 1)},
            "numTraining": 100,
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        intensities = {
            "max": 1.0,
            "mean": 0.0,
            "median": 0.0,
            "min": -1.0,
            "percentile_00_5": -1.0,
            "percentile_99_5": 1.0,
            "std": 1.0,
        }
        preprocessed = tmp_path / "nnUNet_preprocessed" / DATASET
        preprocessed.mkdir(parents=True)
        content = {
            "spacings": [spacing] * 100,
            "shapes_after_crop": [shape] * 100,
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": intensities},
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(content))

    return make
