"""Tests of inference/cases.py: models and their folds are found, and files become cases."""

import logging
import os
from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.inference.cases import InputCase, find_cases
from stunet.inference.model import ModelFolder, open_model, unfinished_folds
from stunet.inference.staging import name_too_long
from stunet.plans.plan import Plan
from tests.dicom_files import write_series
from tests.loops import for_each
from tests.predictor_models import make_model


def test_tiff_volumes_need_a_channel_number_because_their_spacing_is_found_by_it(tmp_path: Path) -> None:
    dataset = {"file_ending": ".tif", "channel_names": {"0": "MR0"}}
    model = ModelFolder(tmp_path, Plan({"image_reader_writer": "Tiff3DIO"}), dataset, (0,), "")
    (tmp_path / "c.tif").touch()
    with pytest.raises(DataError, match=r"'c\.tif' has no channel number") as caught:
        find_cases(tmp_path, model)
    assert "CASE_0000.tif" in caught.value.hint


@for_each(
    ("names", "channels", "cases"),
    [
        (["b_0000", "a_0000", ".part-1-x"], 1, {"a": ["a_0000"], "b": ["b_0000"]}),
        (["a", "b_1", "c_0007"], 1, {"a": ["a"], "b_1": ["b_1"], "c_0007": ["c_0007"]}),
        (["a_0001", "a_0000", "b_0000", "b_0001"], 2, {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]}),
        (["b_0000", "a_0000"], 2, {"a": ["a_0000"], "b": ["b_0000"]}),
        (["a_0000", "b_0000", "b_0001", "c_0001"], 2, {"b": ["b_0000", "b_0001"]}),
        (["a", "b_0000", "b_0001", "c_0000", "c_0001", "c_0002"], 2, {"b": ["b_0000", "b_0001"]}),
        (["a", "a_0000", "b"], 1, {"b": ["b"]}),
        (["a_0000", "b_0000", "b_0001", "b_0002"], 2, "lacks channel 1 (MR1): no 'a_0001.nii.gz'"),
        (["a_0001"], 2, "lacks channel 0 (MR0): no 'a_0000.nii.gz'"),
        (["a_0000", "a_0001"], 1, "has channel 1, but the model takes 1"),
        (["a_0000", "a_0001", "a_0002"], 2, "has channel 2, but the model takes 2"),
        (["a", "a_0000"], 1, "are the same case"),
        (["a"], 2, "has no channel number"),
        ([], 1, "no files ending with '.nii.gz'"),
    ],
)
def test_cases_are_grouped_by_name_and_channel(
    tmp_path: Path, names: list[str], channels: int, cases: dict[str, list[str]] | str
) -> None:
    dataset = {"file_ending": ".nii.gz", "channel_names": {str(i): f"MR{i}" for i in range(channels)}}
    model = ModelFolder(tmp_path, Plan({}), dataset, (0,), "")
    source = tmp_path / "in"
    source.mkdir()
    for name in names:
        (source / f"{name}.nii.gz").touch()
    if isinstance(cases, str):
        with pytest.raises(DataError) as caught:
            find_cases(source, model)
        assert cases in caught.value.message
    else:
        found = find_cases(source, model)
        stems = {case.name: [path.name.removesuffix(".nii.gz") for path in case.files] for case in found}
        assert {case.name: stems[case.name] for case in found if not case.error} == cases
        assert list(stems) == sorted(stems)
        assert {name for files in stems.values() for name in files} <= set(names)
        for case in found:
            assert case.error is None or (case.name in case.error.message and case.error.hint)


ITK = {"image_reader_writer": "SimpleITKIO"}
CT = {"file_ending": ".nii.gz", "channel_names": {"0": "CT"}}


def test_every_image_in_a_folder_is_a_case_or_named_as_one_that_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a_0000.nii.gz", "b_0000.NII.GZ", "c.nii", "d.nrrd", "._a_0000.nii.gz", ".DS_Store", "a.nrrd"):
        (tmp_path / name).touch()
    write_series(tmp_path / "series")
    for name in ("other/x.nii.gz", "g.mgz", "h.nrrd", "h.mha", "sub/text.txt", "a.seg.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.nii.gz").symlink_to("/nowhere/link.nii.gz")
    (tmp_path / "unmounted").symlink_to("/nowhere/series")
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / os.fsdecode(b"M\xfcller.nii.gz")).touch()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with caplog.at_level(logging.WARNING, "stunet"):
        cases = find_cases(tmp_path, ModelFolder(tmp_path, Plan(ITK), CT, (0,), ""))
    assert [case.name for case in cases if not case.error] == ["a", "b", "c", "d", "series"]
    errors = {case.name: case.error.message for case in cases if case.error}
    expected = {
        "M\udcfcller": "not UTF-8",
        "g": "not an image that this model's reader takes",
        "h": "are the same case",
    }
    expected |= dict.fromkeys(("link", "loop", "unmounted"), "broken link") | {"pipe": "neither a file nor a folder"}
    assert errors.keys() == expected.keys()
    assert all(expected[name] in message for name, message in errors.items())
    assert all(message.isprintable() for message in errors.values())
    assert "sub-folders with images are not predicted: 'a.seg.nrrd', 'other'" in caplog.text
    assert "left out, as there is an image .nii.gz of the same name: 'a.nrrd'" in caplog.text


def test_slices_beside_images_and_a_folder_with_an_images_name_are_cases_that_failed(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "IM1.dcm"):
        (tmp_path / name).touch()
    write_series(tmp_path / "a")
    cases = find_cases(tmp_path, ModelFolder(tmp_path, Plan(ITK), CT, (0,), ""))
    errors = {case.files[0]: case.error.message for case in cases if case.error}
    assert "1 DICOM files lie beside images" in errors[tmp_path]
    assert "are the same case" in errors[tmp_path / "a"]
    assert len(cases) == 3


@for_each(("reader", "name"), [("NibabelIO", "a.nii"), ("Tiff3DIO", "a_0000.TIFF"), ("NaturalImage2DIO", "a.PNG")])
def test_a_single_image_may_have_any_ending_that_the_models_reader_takes(
    tmp_path: Path, reader: str, name: str
) -> None:
    (tmp_path / name).touch()
    endings = {"NibabelIO": ".nii.gz", "Tiff3DIO": ".tif", "NaturalImage2DIO": ".png"}
    model = ModelFolder(
        tmp_path, Plan({"image_reader_writer": reader}), {**CT, "file_ending": endings[reader]}, (0,), ""
    )
    assert find_cases(tmp_path / name, model) == find_cases(tmp_path, model) == [InputCase("a", (tmp_path / name,))]


def test_a_broken_link_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to("/nowhere/a.nii.gz")
    for source in (tmp_path, tmp_path / "a.nii.gz"):
        with pytest.raises(DataError, match=r"is a broken link to '/nowhere/a\.nii\.gz'"):
            find_cases(source, ModelFolder(tmp_path, Plan(ITK), CT, (0,), ""))


def test_names_that_leave_no_room_for_the_endings_of_results_are_said() -> None:
    assert name_too_long("x" * 247, [".nii.gz"]) is None
    assert "260 bytes" in str(name_too_long("x" * 248, ["_preview.png", ".nii.gz"]))


def test_a_single_file_brings_the_other_channels_of_its_case(tmp_path: Path) -> None:
    dataset = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    for name in ("a_0000", "a_0001", "ab_0000", "b_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    [case] = find_cases(tmp_path / "a_0001.nii.gz", ModelFolder(tmp_path, Plan({}), dataset, (0,), ""))
    assert case == InputCase("a", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"))


def test_the_folds_found_are_the_default_and_missing_ones_are_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", folds=(0, 2, "all"))
    assert open_model(folder).folds == (0, 2)
    assert open_model(folder, ["all"]).folds == ("all",)
    with pytest.raises(DataError, match=r"fold 1 has no checkpoint_final\.pth"):
        open_model(folder, [0, 1])
    with pytest.raises(DataError) as caught:
        open_model(folder, checkpoint="checkpoint_best.pth")
    assert caught.value.hint == "-chk checkpoint_final.pth"


def test_a_training_that_is_not_finished_says_how_it_is_finished_or_used(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "Dataset007_X" / "STUNetTrainer__P__3d_fullres", folds=(0,))
    (folder / "fold_1").mkdir()
    for name in ("checkpoint_best.pth", "checkpoint_latest.pth"):
        (folder / "fold_1" / name).touch()
    assert unfinished_folds(open_model(folder)) == ["1"]
    go_on = "stunet_train 7 3d_fullres 1 -p P --c finishes it; -chk checkpoint_best.pth predicts with what there is"
    with pytest.raises(DataError, match=r"fold 1 has no checkpoint_final.pth .*\(trained: 0\)") as caught:
        open_model(folder, [1])
    assert caught.value.hint == f"-f 0; or {go_on}"
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(DataError, match=r"is not finished: no fold has a checkpoint_final.pth \(begun: 1\)") as caught:
        open_model(folder)
    assert caught.value.hint == go_on


def test_images_beside_a_series_one_level_down_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "group").mkdir()
    write_series(tmp_path / "group" / "p1")
    (tmp_path / "group" / "p2.nii.gz").touch()
    with caplog.at_level(logging.WARNING, "stunet"):
        [case] = find_cases(tmp_path, ModelFolder(tmp_path, Plan(ITK), CT, (0,), ""))
    assert case.files == (tmp_path / "group" / "p1",)
    assert "are not predicted: 'p2.nii.gz'" in caplog.text
