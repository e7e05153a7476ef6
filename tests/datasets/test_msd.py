"""Decathlon tasks become raw datasets of nnU-Net: names, channels, labels, geometry, and nothing half-made."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli import convert
from stunet.datasets.check import check_dataset
from stunet.datasets.msd import convert_msd
from stunet.errors import DataError, UsageError
from tests.loops import for_each
from tests.processes import forked_from_the_server

DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def test_the_real_hippocampus_task_becomes_a_sound_dataset(data: Path, tmp_path: Path) -> None:
    source = _subset(data / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus", 3)
    folder = convert_msd(source, tmp_path / "raw")
    assert folder == tmp_path / "raw" / "Dataset004_Hippocampus"
    check_dataset(folder)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert description["channel_names"] == {"0": "MRI"}
    assert description["numTraining"] == 3
    for image in (source / "imagesTr").iterdir():
        converted = folder / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz")
        assert converted.read_bytes() == image.read_bytes()


def test_four_axes_become_one_file_per_channel_with_the_same_geometry(tmp_path: Path) -> None:
    source = _task(tmp_path / "Task01_BrainTumour", channels=2, test_cases=1)
    with forked_from_the_server():
        folder = convert_msd(source, tmp_path / "raw", dataset_id=7, name="Brain", workers=2)
    assert folder.name == "Dataset007_Brain"
    check_dataset(folder)
    whole = sitk.GetArrayFromImage(sitk.ReadImage(source / "imagesTr" / "a_0.nii.gz"))
    for channel in range(2):
        image = sitk.ReadImage(folder / "imagesTr" / f"a_0_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), whole[channel])
        assert image.GetSpacing() == pytest.approx((1, 2, 3))
        assert image.GetOrigin() == pytest.approx((5, 6, 7))
        assert image.GetDirection() == pytest.approx(DIRECTION)
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == ["t_0_0000.nii.gz", "t_0_0001.nii.gz"]


def test_files_that_macos_left_are_dropped(tmp_path: Path) -> None:
    source = _task(tmp_path / "Task02_Heart")
    (source / "imagesTr" / "._a_0.nii.gz").write_bytes(b"Mac OS X")
    folder = convert_msd(source, tmp_path / "raw")
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == ["a_0_0000.nii.gz", "a_1_0000.nii.gz"]


@for_each(
    ("name", "message"),
    [
        ("imagesTr/b.nii", r"holds images that are not .nii.gz, or cannot be read: 'b.nii'"),
        ("imagesTs/b.NII.GZ", r"b.NII.GZ' does not end with .nii.gz"),
        ("labelsTr/b.nii.gz", r"1 labels in .* have no image, first 'b.nii.gz'"),
    ],
)
def test_files_that_would_be_left_out_are_an_error(tmp_path: Path, name: str, message: str) -> None:
    source = _task(tmp_path / "Task02_Heart")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).touch()
    with pytest.raises(DataError, match=message):
        convert_msd(source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    source, raw = _task(tmp_path / "Task02_Heart"), tmp_path / "raw"

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_msd(source, raw, on_case=stop)
    assert list(raw.iterdir()) == []
    (raw / ".part-Dataset002_Heart" / "imagesTr").mkdir(parents=True)  # as a killed run leaves it
    convert_msd(source, raw)
    assert [path.name for path in raw.iterdir()] == ["Dataset002_Heart"]


def test_a_number_that_is_taken_is_refused(tmp_path: Path) -> None:
    source = _task(tmp_path / "Task02_Heart")
    convert_msd(source, tmp_path / "raw")
    with pytest.raises(DataError, match="number 2 is taken") as caught:
        convert_msd(source, tmp_path / "raw", name="OtherHeart")
    assert "-d" in caught.value.hint


def _remove_image(source: Path) -> None:
    (source / "imagesTr" / "a_0.nii.gz").unlink()


def _remove_label(source: Path) -> None:
    (source / "labelsTr" / "a_1.nii.gz").unlink()


def _damage_image(source: Path) -> None:
    (source / "imagesTr" / "a_1.nii.gz").write_bytes(b"no image")


def _add_channel(source: Path) -> None:
    _edit(source, modality={"0": "MRI", "1": "T2"})


def _double_label(source: Path) -> None:
    _edit(source, labels={"0": "background", "1": "left", "2": "left"})


def _drop_modality(source: Path) -> None:
    _edit(source, modality=None)


def _name_channels(source: Path) -> None:
    _edit(source, channel_names={"0": "MRI"})


@for_each(
    ("damage", "message"),
    [
        (_remove_image, r"1 of 2 images .* first 'a_0.nii.gz'"),
        (_remove_label, r"no label .*a_1.nii.gz"),
        (_damage_image, r"cannot read .*a_1.nii.gz"),
        (_add_channel, r"a_0.nii.gz' holds 1 channels; dataset.json names 2"),
        (_double_label, r"same name"),
        (_drop_modality, r"modality: expected a table"),
        (_name_channels, r"already"),
    ],
)
def test_an_incomplete_task_is_refused_by_name(tmp_path: Path, damage: Any, message: str) -> None:
    source = _task(tmp_path / "Task02_Heart")
    damage(source)
    with pytest.raises(DataError, match=message) as caught:
        convert_msd(source, tmp_path / "raw")
    assert caught.value.hint
    assert not list((tmp_path / "raw").glob("*"))


@for_each("options", [{}, {"dataset_id": 3}, {"dataset_id": 0, "name": "X"}, {"dataset_id": 3, "name": "../X"}])
def test_a_number_and_a_name_are_asked_for_where_the_folder_has_none(tmp_path: Path, options: dict) -> None:
    source = _task(tmp_path / "heart")
    with pytest.raises(UsageError):
        convert_msd(source, tmp_path / "raw", **options)


def test_the_command_prints_the_folder_and_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _task(tmp_path / "Task02_Heart")
    assert convert.main(["msd", "-i", str(source), "-o", str(tmp_path / "raw")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'raw' / 'Dataset002_Heart'}\n"
    assert "stunet_plan_and_preprocess -d 2" in printed.err
    assert convert.main(["msd", "-i", str(source), "-o", str(tmp_path / "raw")]) == DataError.exit_code
    assert "try: " in capsys.readouterr().err


def test_the_command_names_the_variable_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert convert.main(["msd", "-i", str(tmp_path)]) == DataError.exit_code
    assert "nnUNet_raw" in capsys.readouterr().err


def _task(source: Path, channels: int = 1, test_cases: int = 0) -> Path:
    """A task of two training cases, 4x5x6 voxels."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr/a_0", "imagesTr/a_1", *(f"imagesTs/t_{i}" for i in range(test_cases))):
        volumes = [_volume(rng.integers(0, 1000, (4, 5, 6)).astype(np.int16)) for _ in range(channels)]
        _write(sitk.JoinSeries(volumes) if channels > 1 else volumes[0], source / f"{name}.nii.gz")
    for name in ("labelsTr/a_0", "labelsTr/a_1"):
        _write(_volume(rng.integers(0, 2, (4, 5, 6)).astype(np.uint8)), source / f"{name}.nii.gz")
    task = {
        "name": "X",
        "modality": {str(i): f"MRI{i}" for i in range(channels)},
        "labels": {"0": "background", "1": "organ"},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/a_{i}.nii.gz", "label": f"./labelsTr/a_{i}.nii.gz"} for i in range(2)],
        "test": [f"./imagesTs/t_{i}.nii.gz" for i in range(test_cases)],
    }
    (source / "dataset.json").write_text(json.dumps(task))
    return source


def _volume(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((5, 6, 7))
    image.SetDirection(DIRECTION)
    return image


def _write(image: sitk.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, path)


def _edit(source: Path, **changes: Any) -> None:
    path = source / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _subset(source: Path, target: Path, cases: int) -> Path:
    """The first cases of a real task."""
    task = json.loads((source / "dataset.json").read_text())
    task["training"] = task["training"][:cases]
    for entry in task["training"]:
        for file in (entry["image"], entry["label"]):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
    (target / "dataset.json").write_text(json.dumps(task))
    return target


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    source = _task(tmp_path / "Task01_BrainTumour", channels=2)
    with room_for(200), pytest.raises(DataError, match=r"no space for case 'a_0\.nii\.gz'"):
        convert_msd(source, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("Dataset*"))
