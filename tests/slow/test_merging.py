"""Unions of real data: two halves of the hippocampus, and CT and MR of other grids, orientations and label systems."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from stunet.datasets.msd import convert_msd
from stunet.files import read_json, write_json
from stunet.labels import systems
from stunet.labels.annotations import load_annotations
from stunet.merging.build import build
from stunet.merging.check import CheckedUnion, check, open_sources
from stunet.merging.recipe import load_recipe
from stunet.workspace import VARIABLES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BODY = """
name: Dataset900_Body
classes: totalsegmentator-v2
extra_classes: [intervertebral_discs]
defaults: {on_absent_label: keep, allow_noncommercial: true}
sources:
  - {id: ct, dataset: Dataset102_CT}
  - id: mr
    dataset: Dataset103_MR
    labels:
      kidney_left: [kidney_left, kidney_cyst_left]
      kidney_right: [kidney_right, kidney_cyst_right]
"""


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    return tmp_path / "nnUNet_raw"


def _checked(path: Path) -> CheckedUnion:
    recipe = load_recipe(path)
    members, findings = open_sources(recipe)
    checked = check(recipe, members, workers=2)
    assert findings == []
    return checked


def test_two_halves_of_the_hippocampus_become_one_dataset(
    data: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_msd(data / "Task04_Hippocampus", raw)
    monkeypatch.setattr(sys, "argv", ["partial_data.py", "4", "--targets", "11", "12", "13"])
    runpy.run_path(str(ROOT / "benchmarks/partial_data.py"), run_name="__main__")
    recipe = raw.parent / "partial.yaml"
    recipe.write_text((ROOT / "benchmarks/partial.yaml").read_text())
    checked = _checked(recipe)
    assert not checked.fatal
    target = build(checked, workers=2)
    verify_dataset_integrity(str(target), 2)
    annotations = load_annotations(target)
    assert annotations is not None
    reader = NibabelIOWithReorient()
    complete = raw / "Dataset013_Both"
    for case, entry in annotations.cases.items():
        (value,) = (annotations.values[label] for label in entry.labels)
        assert value == {"anterior": 1, "posterior": 2}[entry.source]
        both, part = (reader.read_seg(str(folder / f"labelsTr/{case}.nii.gz"))[0] for folder in (complete, target))
        np.testing.assert_array_equal(part, np.where(both == value, value, 0))
    (fold,) = read_json(target / "splits_final.json")
    assert sorted(fold["val"]) == sorted(path.name[:-7] for path in complete.glob("labelsTs/*"))
    assert len(fold["train"]) == 160


def test_ct_and_mr_of_other_grids_and_labels_become_one_dataset(data: Path, raw: Path) -> None:
    series = sitk.ImageSeriesReader()
    series.SetFileNames(series.GetGDCMSeriesFileNames(str(data / "ct/abdomen_dicom")))
    ct, mr = series.Execute(), sitk.ReadImage(str(data / "mr/abdomen_mr.nii.gz"))
    segmentations = data / "ct/abdomen_dicom_reference_seg.nii.gz", data / "mr/abdomen_mr_seg.nii.gz"
    for name, image, segmentation in zip(("102_CT", "103_MR"), (ct, mr), segmentations, strict=True):
        folder = raw / f"Dataset{name}"
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        sitk.WriteImage(image, str(folder / "imagesTr/case_0000.nii.gz"))
        (folder / "labelsTr/case.nii.gz").write_bytes(segmentation.read_bytes())
        system = systems.load("totalsegmentator-v2" if name == "102_CT" else "totalsegmentator-mr")
        about = {"channel_names": {"0": name[4:]}, "labels": system.dataset_labels, "licence": "CC BY-NC-SA 2.0"}
        write_json(folder / "dataset.json", {**about, "numTraining": 1, "file_ending": ".nii.gz"})
    (raw.parent / "body.yaml").write_text(BODY)
    checked = _checked(raw.parent / "body.yaml")
    assert [finding.message for finding in checked.findings if finding.fatal] == []
    target = build(checked)
    verify_dataset_integrity(str(target), 1)
    annotations = load_annotations(target)
    assert annotations is not None
    assert len(annotations.leaves) == 118
    assert len(annotations.sets["vertebrae"]) == 24
    names = {value: name for name, value in annotations.values.items()}
    for source, folder in (("ct", "Dataset102_CT"), ("mr", "Dataset103_MR")):
        own = {value: name for name, value in read_json(raw / folder / "dataset.json")["labels"].items()}
        before = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / folder / "labelsTr/case.nii.gz")))
        after = sitk.GetArrayFromImage(sitk.ReadImage(str(target / f"labelsTr/{source}_case.nii.gz")))
        pairs = {(own[a], names[b]) for a, b in np.unique(np.stack([before.ravel(), after.ravel()]), axis=1).T}
        assert {(a, b) for a, b in pairs if a != b} == (
            {(f"kidney_{side}", f"kidney_{side}+kidney_cyst_{side}") for side in ("left", "right")}
            if source == "mr"
            else set()
        )
