"""stunet_evaluate in parts: what the parts have to agree about."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli.evaluate import main


def test_parts_with_other_labels_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.zeros((4, 4, 4), np.uint8)
    values[:2] = 1
    for folder in ("gt", "pred"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / folder / f"{name}.nii.gz")

    def evaluate(number: int, labels: dict[str, int]) -> int:
        file = tmp_path / "dataset.json"
        file.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}))
        folders = [str(tmp_path / "gt"), str(tmp_path / "pred")]
        parts = ["-num_parts", "2", "-part_id", str(number), "-np", "1"]
        return main([*folders, "-djfile", str(file), *parts])

    labels = {"background": 0, "organ": 1}
    assert evaluate(0, labels) == 0
    assert evaluate(1, {**labels, "ignore": 2}) == 0  # the same classes, but other voxels count
    assert "of another run: ignore" in capsys.readouterr().err
    assert not (tmp_path / "pred/summary.json").exists()
    assert evaluate(1, labels) == 0
    assert (tmp_path / "pred/summary.json").is_file()
