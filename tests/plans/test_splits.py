"""The folds of a raw dataset reach training, and folds that fit neither the cases nor those in use are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stunet import workspace
from stunet.cli.plan_and_preprocess import main
from stunet.errors import DataError
from stunet.plans.splits import check_splits, check_used_splits
from tests.loops import for_each

CASES = [f"phantom_{number:03d}" for number in range(6)]
FOLD = {"train": CASES[:4], "val": CASES[4:]}


@pytest.fixture
def raw(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the raw phantom, with nothing preprocessed."""
    copy = tmp_path / "raw" / planned
    shutil.copytree(workspace.raw_dataset(planned), copy)
    monkeypatch.setenv("nnUNet_raw", str(copy.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return copy


def write(folder: Path, content: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits_final.json").write_text(json.dumps(content))


@for_each(
    ("content", "message"),
    [
        ([], "expected a list of folds that is not empty"),
        ({"train": []}, "expected a list of folds"),
        ([{"train": CASES[:3]}], r"\[0\]: missing 'val'"),
        ([{"train": [1, 2], "val": [3]}], r"\[0\]\.train\[0\]: expected a name, got 1"),
        ([{"train": [*CASES[:3], "phantom_009"], "val": CASES[3:]}], "has the case 'phantom_009'; did you mean"),
        ([{"train": CASES[:3], "val": CASES[2:]}], "has 'phantom_002' in training and in validation"),
        ([FOLD, {"train": CASES, "val": []}], "fold 1 .* has 6 cases to train and 0 to validate"),
    ],
)
def test_folds_that_cannot_be_trained_are_refused(raw: Path, content: Any, message: str) -> None:
    write(raw, content)
    with pytest.raises(DataError, match=message) as caught:
        check_splits(raw.name)
    assert caught.value.hint


def test_other_folds_than_those_in_use_are_refused_and_more_of_them_are_not(raw: Path) -> None:
    used = workspace.preprocessed_dataset(raw.name)
    check_splits(raw.name)
    write(raw, [FOLD])
    check_splits(raw.name)
    write(used, [{"train": FOLD["train"][::-1], "val": FOLD["val"]}, {"train": CASES[2:], "val": CASES[:2]}])
    check_splits(raw.name)
    write(used, [{"train": CASES[2:], "val": CASES[:2]}])
    with pytest.raises(DataError, match="have different folds") as caught:
        check_splits(raw.name)
    assert "remove" in caught.value.hint


def test_training_uses_the_folds_that_the_raw_dataset_brings(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_used_splits(raw.name)
    write(raw, [FOLD])
    with pytest.raises(DataError, match="has folds that came after the dataset was planned"):
        check_used_splits(raw.name)
    used = workspace.preprocessed_dataset(raw.name)
    write(used, [FOLD])
    check_used_splits(raw.name)
    write(raw, [{"train": CASES[2:], "val": CASES[:2]}])
    with pytest.raises(DataError, match="have different folds"):
        check_used_splits(raw.name)
    monkeypatch.delenv("nnUNet_raw")
    check_used_splits(raw.name)


def test_planning_brings_the_folds_to_where_training_reads_them(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as stock

    from stunet.plans import fingerprint, planner

    for module in (stock, planner):
        monkeypatch.setattr(module, "nnUNet_preprocessed", str(tmp_path / "preprocessed"))
        monkeypatch.setattr(module, "nnUNet_raw", str(raw.parent), raising=False)
    fingerprint.extract_fingerprint(raw.name, workers=1)
    write(raw, [FOLD])
    planner.STUNetPlanner(raw.name, size="T")
    used = workspace.preprocessed_dataset(raw.name) / "splits_final.json"
    assert json.loads(used.read_text()) == [FOLD]
    write(used.parent, [{"train": CASES[2:], "val": CASES[:2]}])
    assert main(["-d", "998", "-npfp", "1", "--no_check"]) == 3
    assert "have different folds" in capsys.readouterr().err


def test_another_reader_in_dataset_json_makes_another_fingerprint(raw: Path) -> None:
    from stunet.plans.fingerprint import extract_fingerprint

    before = json.loads(extract_fingerprint(raw.name, workers=1).read_text())
    description = json.loads((raw / "dataset.json").read_text())
    description["overwrite_image_reader_writer"] = "SimpleITKIOWithReorient"
    (raw / "dataset.json").write_text(json.dumps(description))
    after = json.loads(extract_fingerprint(raw.name, workers=1).read_text())
    assert after["stunet_source"] == [["SimpleITKIOWithReorient"], *before["stunet_source"]]
