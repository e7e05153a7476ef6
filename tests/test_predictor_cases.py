"""Tests of inference/cases.py: models and their folds are found, and files become cases."""

from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.inference.cases import Case, Model, begun_folds, find_cases, open_model
from tests.predictor_models import make_model


def test_tiff_volumes_need_a_channel_number_because_their_spacing_is_found_by_it(tmp_path: Path) -> None:
    dataset = {"file_ending": ".tif", "channel_names": {"0": "MR0"}}
    model = Model(tmp_path, {"image_reader_writer": "Tiff3DIO"}, dataset, (0,), "")
    (tmp_path / "c.tif").touch()
    with pytest.raises(DataError, match=r"'c\.tif' has no channel number") as caught:
        find_cases(tmp_path, model)
    assert "CASE_0000.tif" in caught.value.hint


@pytest.mark.parametrize(
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
    model = Model(tmp_path, {}, dataset, (0,), "")
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


def test_a_single_file_brings_the_other_channels_of_its_case(tmp_path: Path) -> None:
    dataset = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    for name in ("a_0000", "a_0001", "ab_0000", "b_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    [case] = find_cases(tmp_path / "a_0001.nii.gz", Model(tmp_path, {}, dataset, (0,), ""))
    assert case == Case("a", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"))


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
    assert begun_folds(open_model(folder)) == ["1"]
    go_on = "stunet_train 7 3d_fullres 1 -p P --c finishes it; -chk checkpoint_best.pth predicts with what there is"
    with pytest.raises(DataError, match=r"fold 1 has no checkpoint_final.pth .*\(trained: 0\)") as caught:
        open_model(folder, [1])
    assert caught.value.hint == f"-f 0; or {go_on}"
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(DataError, match=r"is not finished: no fold has a checkpoint_final.pth \(begun: 1\)") as caught:
        open_model(folder)
    assert caught.value.hint == go_on
