"""stunet_evaluate: its table, files and JSON, and what it says of wrong input."""

import csv
import json
import multiprocessing.dummy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli.evaluate import main
from stunet.errors import WorkerCrashed
from stunet.evaluation import folders, metrics
from stunet.workers import Outcome
from tests.label_files import PLAIN, SHAPE, assert_same_numbers, make_two_cases, noise, write, write_dataset
from tests.loops import for_each
from tests.processes import kill_while_it_waits, run_tasks, start_task


@pytest.fixture
def two_cases(tmp_path: Path) -> tuple[Path, Path]:
    return make_two_cases(tmp_path)


def test_numbers_equal_those_of_nnunet_on_a_folder(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    # Its pool of one process, which imports nnU-Net for seconds, becomes one of a thread.
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)

    references, predictions = map(str, two_cases)
    theirs_file, ours_file = tmp_path / "theirs.json", tmp_path / "ours.json"
    compute_metrics_on_folder(references, predictions, str(theirs_file), SimpleITKIO(), ".nii.gz", [1, 2], None, 1)
    assert main([references, predictions, "-o", str(ours_file), "-np", "1"]) == 0
    theirs, ours = load_summary_json(str(theirs_file)), load_summary_json(str(ours_file))
    assert set(theirs) <= set(ours)
    assert_same_numbers(ours["foreground_mean"], theirs["foreground_mean"])
    for label in (1, 2):
        assert_same_numbers(ours["mean"][label], theirs["mean"][label])
    for one, other in zip(ours["metric_per_case"], theirs["metric_per_case"], strict=True):
        assert all(one[side] == other[side] for side in ("reference_file", "prediction_file"))
        for label in (1, 2):
            assert_same_numbers(one["metrics"][label], other["metrics"][label])


def test_the_command_prints_a_table_and_writes_summary_and_csv(
    two_cases: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = map(str, two_cases)
    table_file = tmp_path / "new" / "cases.csv"
    options = ["-pfile", "plans.json", "--tolerance", "2", "--csv", str(table_file), "-np", "1"]
    assert main([references, predictions, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads((two_cases[1] / "summary.json").read_text())
    assert lines[0].split("  ")[0] == "class"
    assert "NSD 2 mm" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["liver", "tumour", "foreground"]
    assert lines[2].split()[1:3] == [f"{summary['mean']['1'][metric]:.4f}" for metric in ("Dice", "NSD")]
    rows = list(csv.DictReader(table_file.read_text().splitlines()))
    assert [(row["case"], row["class"]) for row in rows] == [(c, name) for c in "ab" for name in ("liver", "tumour")]
    assert float(rows[3]["NSD"]) == summary["metric_per_case"][1]["metrics"]["2"]["NSD"]


def test_a_metric_of_one_line_is_in_the_summary_the_csv_file_and_the_table(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precision = metrics.Metric(lambda pair: pair.tp / pair.n_pred, "precision within {tolerance_mm:g} mm", ".1f")
    monkeypatch.setitem(metrics.METRICS, "precision", precision)
    assert main([*map(str, two_cases), "--csv", str(tmp_path / "cases.csv"), "-np", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "HD95 mm  precision within 1 mm  cases" in lines[0]
    summary = json.loads((two_cases[1] / "summary.json").read_text())
    values = summary["metric_per_case"][0]["metrics"]["1"]
    assert values["precision"] == values["TP"] / values["n_pred"]
    assert f"{summary['foreground_mean']['precision']:.1f}" in lines[-1].split()
    row = next(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert float(row["precision"]) == values["precision"]


def test_json_on_stdout_is_valid_and_has_null_for_undefined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = write(tmp_path / "gt" / "a.nii.gz", noise(1, top=1))
    prediction = write(tmp_path / "pred" / "a.nii.gz", noise(2, top=1))
    write_dataset(tmp_path / "pred", PLAIN)
    assert main([str(reference), str(prediction), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["mean"]["2"]["Dice"] is None
    assert document["labels"] == {"1": "liver", "2": "tumour"}
    assert set(document["mean"]["1"]) == {*metrics.METRICS, "n_cases", "n_infinite"}
    assert not (tmp_path / "pred" / "summary.json").exists()


@for_each("folder", ["raw/Dataset007_X/labelsTs", "preprocessed/Dataset007_X/gt_segmentations"])
def test_a_dataset_number_stands_for_its_references(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    write_dataset(tmp_path / folder.rsplit("/", 1)[0], PLAIN)
    write(tmp_path / "raw/Dataset007_X/labelsTr/other.nii.gz", noise(3))
    write(tmp_path / folder / "a.nii.gz", noise(1))
    write(tmp_path / "pred" / "a.nii.gz", noise(1))
    assert main(["-d", "7", str(tmp_path / "pred"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["foreground_mean"]["Dice"] == 1
    assert document["metric_per_case"][0]["reference_file"] == str(tmp_path / folder / "a.nii.gz")


def test_what_is_wrong_ends_in_one_line_a_hint_and_a_code(
    two_cases: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = map(str, two_cases)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    for arguments, code, words in (
        ([references, str(tmp_path / "nowhere")], 3, "nowhere"),
        ([references, str(tmp_path / "empty")], 3, "no .nii.gz files"),
        ([references, predictions, "-djfile", str(tmp_path / "none.json")], 3, "none.json"),
        ([references, predictions, "-djfile", str(tmp_path / "bad.json")], 3, "file_ending"),
        ([predictions], 2, "only one folder"),
        ([references, predictions, "-np", "0"], 2, "-np 0"),
        ([references, predictions, "--tolerance", "-1"], 2, "--tolerance"),
        ([references, predictions, "-o", "summary.csv"], 2, ".json"),
    ):
        assert main(arguments) == code
        printed = capsys.readouterr()
        assert words in printed.err.splitlines()[0]
        assert printed.out == ""
    assert not (two_cases[1] / "summary.json").exists()


MODEL = {"background": 0, "kidney_left": 1, "spleen": 2, "kidney_right": 3, "liver": 4, "pancreas": 5}


@pytest.fixture
def abdomen(tmp_path: Path) -> tuple[Path, Path]:
    """References with the ids of AbdomenCT-1K, and the same voxels in the labels of a model that knows both sides."""
    organs = noise(1, top=5)
    write(tmp_path / "gt" / "a.nii.gz", np.array([0, 2, 3, 2, 1, 4], np.uint8)[organs])
    write(tmp_path / "pred" / "a.nii.gz", organs)
    write_dataset(tmp_path / "pred", MODEL)
    return tmp_path / "gt", tmp_path / "pred"


def test_predictions_of_a_model_are_compared_in_the_ids_of_the_references(
    abdomen: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, abdomen), "--labels", "abdomenct-1k", "-np", "1"]) == 0
    summary = json.loads((abdomen[1] / "summary.json").read_text())
    assert summary["label_system"] == "abdomenct-1k"
    assert summary["labels"] == {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}
    assert all(mean["Dice"] == 1 for mean in summary["mean"].values())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "liver",
        "kidney",
        "spleen",
        "pancreas",
        "foreground",
    ]


def test_predictions_in_the_ids_of_the_references_need_no_dataset_json(abdomen: tuple[Path, Path]) -> None:
    (abdomen[1] / "dataset.json").unlink()
    (abdomen[0] / "a.nii.gz").replace(abdomen[1] / "a.nii.gz")
    write(abdomen[0] / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    assert main([*map(str, abdomen), "--labels", "abdomenct-1k"]) == 0
    mean = json.loads((abdomen[1] / "summary.json").read_text())["mean"]
    assert {values["n_ref"] for values in mean.values()} == {0}
    assert all(values["n_pred"] > 0 for values in mean.values())


def test_several_ids_of_the_references_are_one_class_and_others_background(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[classes]\nliver = { labels = [3, 1] }\n[other]\nbone = 2\n")
    reference = noise(1, top=3)
    write(tmp_path / "gt" / "a.nii.gz", reference)
    write(tmp_path / "pred" / "a.nii.gz", np.where(reference % 2 == 1, np.uint8(3), np.uint8(0)))
    assert main([str(tmp_path / "gt"), str(tmp_path / "pred"), "--labels", str(own)]) == 0
    summary = json.loads((tmp_path / "pred" / "summary.json").read_text())
    assert (summary["labels"], summary["foreground_mean"]["Dice"]) == ({"(3, 1)": "liver"}, 1)


def test_what_is_wrong_with_labels_is_said_before_anything_is_compared(
    abdomen: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (
        ("abdomen", "no label system 'abdomen'; did you mean 'abdomenct-1k'"),
        ("segthor", "the model has no 'esophagus', 'trachea', 'aorta'"),
        ("msd-liver", "gt/a.nii.gz' has values that the label system 'msd-liver' does not list: 3, 4"),
    ):
        assert main([*map(str, abdomen), "--labels", name]) == 3
        assert words in capsys.readouterr().err.splitlines()[0]
    write_dataset(abdomen[1], {"liver": 1})
    assert main([*map(str, abdomen), "--labels", "msd-liver"]) == 3
    assert "'background': 0" in capsys.readouterr().err
    assert not (abdomen[1] / "summary.json").exists()


def test_the_references_of_a_dataset_are_found_whatever_their_endings(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw" / "Dataset005_A"
    raw.mkdir(parents=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable.removeprefix("nnUNet_")))
    two_cases[0].rename(raw / "labelsTs")
    write_dataset(raw, {"background": "0", "a": "1", "b": 2.0})
    for name in ("a", "b"):
        path = two_cases[1] / f"{name}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_name(f"{name}.nrrd")))
        path.unlink()
    assert main(["-d", "5", str(two_cases[1]), "-np", "1"]) == 0


def test_damaged_files_do_not_stop_the_others(two_cases: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = two_cases
    for name in "cd":
        write(references / f"{name}.nii.gz", noise(0))
        (predictions / f"{name}.nii.gz").write_bytes(b"no image")
    command = [str(references), str(predictions), "-np", "1"]
    assert main(command) == 3
    err = capsys.readouterr().err
    assert all(f"{name}.nii.gz" in err for name in "cd")
    assert main([*command, "--chill", "--csv", str(predictions / "cases.csv")]) == 0
    assert "case 'd' is left out" in capsys.readouterr().err
    assert len(json.loads((predictions / "summary.json").read_text())["metric_per_case"]) == 2
    assert len((predictions / "cases.csv").read_text().splitlines()) == 5


def test_a_crash_is_not_what_chill_leaves_out(two_cases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(work: Callable[..., Any], cases: Any, *_: Any) -> Any:
        yield Outcome(1, cases[1], value=work(cases[1]))
        yield Outcome(0, cases[0], error=WorkerCrashed("case 'a': its process crashed twice (SIGABRT)"))

    monkeypatch.setattr(folders, "map_cases", crash)
    assert main([*map(str, two_cases), "-np", "2", "--chill"]) == 3
    assert not (two_cases[1] / "summary.json").exists()


@pytest.mark.process
def test_an_array_of_parts_writes_what_one_run_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(6):
        write(tmp_path / f"gt/{seed}.nii.gz", noise(seed))
        write(tmp_path / f"pred/{seed}.nii.gz", noise(seed + 10))
    (tmp_path / "pred/4.nii.gz").write_bytes(b"damaged")
    write_dataset(tmp_path, PLAIN)
    one, many = tmp_path / "one", tmp_path / "many"

    def arguments(out: Path) -> list[Any]:
        files = ["-o", out / "summary.json", "--csv", out / "cases.csv"]
        return [tmp_path / "gt", tmp_path / "pred", *files, "-np", 1, "--chill"]

    assert main([str(each) for each in arguments(one)]) == 0
    records = many / ".parts-summary"
    kill_while_it_waits(records, lambda: start_task(main, arguments(many), 2))
    run_tasks(main, arguments(many), [3, 0])
    run_tasks(main, arguments(many), [1])
    assert not (many / "summary.json").exists()
    assert main([*map(str, arguments(many)), "--merge"]) == 3
    assert "of 4 parts, 1 are missing: 2 (not run yet)" in capsys.readouterr().err
    run_tasks(main, arguments(many), [2])
    for name in ("summary.json", "cases.csv"):
        assert (many / name).read_bytes() == (one / name).read_bytes()
    (many / "summary.json").unlink()
    assert main([*map(str, arguments(many)), "--merge"]) == 0
    assert (many / "summary.json").read_bytes() == (one / "summary.json").read_bytes()
    write(tmp_path / "pred/1.nii.gz", noise(99))
    assert main([*map(str, arguments(many)), "--merge"]) == 3
    assert "files of 1 cases have changed since part 1 measured them (e.g. '1')" in capsys.readouterr().err
