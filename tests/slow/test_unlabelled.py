"""Real images without labels: what preprocessing makes of them is what it makes of the same images with labels."""

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from stunet.cli import convert, plan_and_preprocess
from stunet.files import read_json, write_json
from stunet.plans.files import read_plan

pytestmark = pytest.mark.slow

CASES = [f"hippocampus_{number:03d}" for number in (1, 3, 4, 7, 8, 11)]


def test_six_hippocampi_are_preprocessed_as_with_labels(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    source, folder = data / "Task04_Hippocampus", tmp_path / "images"
    folder.mkdir()
    for case in CASES:
        (folder / f"{case}.nii.gz").symlink_to(source / "imagesTr" / f"{case}.nii.gz")
    assert convert.main(["images", "-i", str(folder), "-d", "50", "--name", "Unlabelled", "-np", "1"]) == 0
    labelled = tmp_path / "nnUNet_raw" / "Dataset004_Labelled"
    labelled.mkdir()
    entries = read_json(tmp_path / "nnUNet_raw" / "Dataset050_Unlabelled" / "dataset.json")
    for case, entry in entries["dataset"].items():
        entry["label"] = str(source / "labelsTr" / f"{case}.nii.gz")
    write_json(labelled / "dataset.json", {**entries, "labels": {"background": 0, "anterior": 1, "posterior": 2}})
    assert plan_and_preprocess.main(["-d", "4", "50", "--size", "T", "-c", "3d_fullres", "-np", "1"]) == 0
    found = []
    for name in ("Dataset004_Labelled", "Dataset050_Unlabelled"):
        preprocessed = tmp_path / "nnUNet_preprocessed" / name
        plan = read_plan(preprocessed / "STUNetPlans_T.json")
        configuration = plan.configuration("3d_fullres")
        found.append((configuration, nnUNetDatasetBlosc2(str(preprocessed / configuration.data_identifier))))
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm"):  # patches differ: one is for restoring
        assert found[0][0].get(key) == found[1][0].get(key), key
    for case in CASES:
        (image, labels, *_), (own, region, _, properties) = (cases.load_case(case) for _, cases in found)
        np.testing.assert_array_equal(own[:], image[:])
        np.testing.assert_array_equal(region[:] == 0, labels[:] >= 0)
        assert properties["class_locations"] == {}
