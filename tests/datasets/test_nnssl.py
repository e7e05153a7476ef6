"""nnssl's pretrain_data.json becomes a dataset without labels, with its masks, subjects and variables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli import convert as command
from stunet.datasets import read_dataset
from stunet.datasets.check import check_dataset
from stunet.datasets.nnssl import prepare_nnssl
from stunet.errors import DataError
from tests.loops import for_each

SHAPE = (5, 6, 7)


def write(path: Path, array: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) if array is None else array
    sitk.WriteImage(sitk.GetImageFromArray(values), path)
    return str(path)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two datasets with a subject of the same name, as nnssl's Collection.to_dict() writes them."""
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "raw"))
    anonymised, anatomy = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    anonymised[0], anatomy[:4] = 1, 1
    write(tmp_path / "raw" / "anon.nii.gz", anonymised)
    write(tmp_path / "raw" / "anat.nii.gz", anatomy)

    def image(path: str, modality: str, **masks: str) -> dict[str, Any]:
        write(tmp_path / "raw" / path)
        names = ("anonymization_mask", "anatomy_mask")
        paths = {name: f"$nnssl_raw/{masks[name]}" if name in masks else None for name in names}
        return {
            "name": Path(path).name,
            "image_path": f"$nnssl_raw/{path}",
            "modality": modality,
            "image_info": {"echo_time": 0.003},
            "associated_masks": paths if masks else None,
        }

    def subject(*images: dict[str, Any]) -> dict[str, Any]:
        sessions = {"ses-DEFAULT": {"session_id": "ses-DEFAULT", "session_info": None, "images": list(images)}}
        return {"subject_id": "sub-1", "sessions": sessions, "subject_info": {"age": 30}}

    both = {"anonymization_mask": "anon.nii.gz", "anatomy_mask": "anat.nii.gz"}
    first = subject(
        image("ds1/sub-1_T1w.nii.gz", "T1w", **both),
        image("ds1/sub-1_T2w.nii.gz", "T2w", anonymization_mask="anon.nii.gz"),
    )
    second = subject(image("ds2/sub-1_T1w.nii.gz", "T1w"))
    datasets = {
        name: {"dataset_index": name, "name": None, "dataset_info": {}, "subjects": {"sub-1": one}}
        for name, one in (("ds1", first), ("ds2", second))
    }
    path = tmp_path / "pretrain_data.json"
    path.write_text(json.dumps({"collection_index": 7, "collection_name": "Dataset007_X", "datasets": datasets}))
    return path


def convert(file: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    conversion = prepare_nnssl(file, file.parent / "nnunet", 51, "Listed", **options)
    conversion.run(conversion.pending(), 1)
    return conversion.target, json.loads((conversion.target / "dataset.json").read_text())


def test_images_masks_and_subjects_are_taken_over(file: Path) -> None:
    target, content = convert(file)
    assert check_dataset(target) == []
    assert content["channel_names"] == {"0": "image"}  # of two modalities
    assert content["subjects"] == {
        "ds1_ses-DEFAULT_sub-1_T1w": "ds1/sub-1",
        "ds1_ses-DEFAULT_sub-1_T2w": "ds1/sub-1",
        "ds2_ses-DEFAULT_sub-1_T1w": "ds2/sub-1",
    }
    entries = content["dataset"]
    assert entries["ds2_ses-DEFAULT_sub-1_T1w"] == {"images": ["$nnssl_raw/ds2/sub-1_T1w.nii.gz"]}
    assert entries["ds1_ses-DEFAULT_sub-1_T2w"]["mask"] == "$nnssl_raw/anon.nii.gz"
    (case, *_) = read_dataset(target)[0]
    assert case.mask == target / "masksTr" / "ds1_ses-DEFAULT_sub-1_T1w.nii.gz"
    excluded = sitk.GetArrayFromImage(sitk.ReadImage(case.mask))
    assert excluded[:, 0, 0].tolist() == [1, 0, 0, 0, 1]  # anonymised, or not anatomy


def test_modalities_and_masks_may_be_chosen(file: Path) -> None:
    _, content = convert(file, modalities=["T1w"], masks="anonymization")
    assert content["channel_names"] == {"0": "T1w"}
    assert list(content["dataset"]) == ["ds1_ses-DEFAULT_sub-1_T1w", "ds2_ses-DEFAULT_sub-1_T1w"]
    assert content["dataset"]["ds1_ses-DEFAULT_sub-1_T1w"]["mask"] == "$nnssl_raw/anon.nii.gz"
    _, content = convert(file, modalities=["T1w"], masks="none", channel="MR")
    assert content["channel_names"] == {"0": "MR"}
    assert "mask" not in content["dataset"]["ds1_ses-DEFAULT_sub-1_T1w"]


def test_an_image_that_two_subjects_have_is_taken_once(file: Path) -> None:
    _replace("ds2/sub-1", "ds1/sub-1")(file)
    conversion = prepare_nnssl(file, file.parent / "nnunet", 51, "Listed")
    assert [one.subject for one in conversion.sources] == ["ds1/sub-1"] * 2
    assert "1 images that are listed twice are left out" in conversion.warnings[0]


def _replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


@for_each(
    ("damage", "options", "message"),
    [
        (_replace('"datasets"', '"dataset"'), {}, "missing 'datasets'"),
        (_replace('"image_path"', '"path"'), {}, r"images\[0\].*missing 'image_path'"),
        (_replace("$nnssl_raw/ds2", "$NO_SUCH/ds2"), {}, "variable that is not set"),
        (_replace("anon.nii.gz", "no.nii.gz"), {}, "case 'ds1_.*no file"),
        (_replace("ds2/sub-1", "ds3/sub-1"), {}, "case 'ds2_.*no file"),
        (_replace(".nii.gz", ".b2nd"), {}, "no image of .* can be read: 3 files of a format that is not read"),
        (_replace(", ", ","), {"modalities": ["T1"]}, "no image of modality 'T1'; did you mean 'T1w'"),
        (lambda file: file.unlink(), {}, "pretrain_data.json"),
    ],
)
def test_what_is_wrong_with_the_file_is_named(
    file: Path, damage: Callable[[Path], object], options: dict[str, Any], message: str
) -> None:
    damage(file)
    with pytest.raises(DataError, match=message):
        convert(file, **options)


def test_the_command_takes_the_folder_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["nnssl", "-i", str(file.parent), "-d", "51", "--name", "Listed", "-o", str(file.parent / "nnunet")]
    assert command.main([*argv, "-np", "1", "--modalities", "T2w"]) == 0
    assert "1 scans found, of 1 subjects" in capsys.readouterr().err
    assert command.main([*argv, "--variable", "X"]) == 2
