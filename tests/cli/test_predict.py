"""Tests of stunet_predict: what it says before any work, what it leaves behind, and how it ends."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from stunet.cli.predict import main
from stunet.files import write_json
from stunet.inference.predictor import Predictor
from tests.loops import for_each
from tests.predictor_models import SMALL, make_model, write_image
from tests.processes import run_tasks, start_task

DATASET = "Dataset007_Test"
MODEL = "STUNetTrainer__STUNetPlans__3d_fullres"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnU-Net's three variables set, a trained model, two images a and b in `in`, and an empty store."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    make_model(tmp_path / "nnUNet_results" / DATASET / MODEL, mirror=None)
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"in/{name}_0000.nii.gz", seed, SMALL)
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments: Any) -> int:
    return main([str(argument) for argument in ("-device", "cpu", *arguments)])


def names(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir() if path.name != ".stunet")


def error(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The message and the hint of a command that failed: two lines on stderr and none on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    what, hint = captured.err.splitlines()
    assert what.startswith("stunet_predict: ")
    assert hint.startswith("  try: ")
    return what, hint


def test_a_folder_is_predicted_with_settings_beside_the_results(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["out/a.nii.gz", "out/b.nii.gz"]
    assert "predict 3d_fullres: 2 of 2" in captured.err
    settings = ["dataset.json", "plans.json", "predict_from_raw_data_args.json"]
    assert names("out") == ["a.nii.gz", "b.nii.gz", settings[0], "itksnap_labels.txt", *settings[1:]]
    model = place / "nnUNet_results" / DATASET / MODEL
    for name in settings[:2]:
        assert json.loads((place / "out" / name).read_text()) == json.loads((model / name).read_text())
    written = json.loads((place / "out" / settings[2]).read_text())
    assert written["overwrite"] is True
    checkpoint = (model / "fold_0/checkpoint_final.pth").read_bytes()
    assert written["stunet"]["checkpoints"] == {"0": hashlib.sha256(checkpoint).hexdigest()}


def test_one_file_becomes_one_file_and_the_variables_are_not_needed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = place / "nnUNet_results" / DATASET / MODEL
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable)
    assert predict("-i", "in/a_0000.nii.gz", "-o", "x/seg.nii.gz", "--model", model, "--disable_progress_bar") == 0
    captured = capsys.readouterr()
    assert captured.out == "x/seg.nii.gz\n"
    assert captured.err == "next, where there are references: stunet_evaluate REFERENCES x/seg.nii.gz\n"
    assert names("x") == ["seg.nii.gz"]


def test_the_last_model_is_the_one_whose_training_was_finished_last(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = place / "nnUNet_results" / DATASET / MODEL / "fold_0"
    (fold / "validation").mkdir()
    write_json(fold / "validation/summary.json", {"foreground_mean": {"Dice": 0.5}, "mean": {}})
    assert predict("-i", "in", "-o", "out", "--last", "--dry_run") == 0
    out, err = capsys.readouterr()
    assert f"the model that was trained last: {DATASET}/{MODEL}/fold_0" in err
    assert MODEL in out


def test_a_dry_run_writes_nothing_and_tells_cases_and_memory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "a_0000.nii.gz" in out
    assert "a_0000.nii.gz  0.25 GB" in out
    assert "cpu, " in out
    assert "patch 16 x 16 x 16" in out
    assert not Path("out").exists()


def test_a_broken_case_ends_with_3_after_the_others_are_done(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("in/a_0000.nii.gz").read_bytes()
    Path("in/a_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert predict("-i", "in", "-o", "out", "-d", DATASET, "-c", "3d_fullres", "--disable_progress_bar") == 3
    captured = capsys.readouterr()
    assert captured.out == "out/b.nii.gz\n"
    assert captured.err.startswith("stunet_predict: case 'a' failed: cannot read 'in/a_0000.nii.gz', it is damaged")
    assert not Path("out/a.nii.gz").exists()


def test_a_case_that_needs_more_than_the_limit_ends_with_5_and_names_the_memory(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("-i", "in/a_0000.nii.gz", "-o", "out", "-d", 7, "-c", "3d_fullres", "--disable_progress_bar")
    assert predict(*command, "--max_memory", "1MB") == 5
    what, hint = error(capsys)
    assert re.search(r"case 'a' failed: needs about \d+\.\d\d GB, more than the 0\.00 GB of --max_memory", what)
    assert not list(Path("out").glob("*.nii.gz"))
    assert predict(*command, "--max_memory", hint.split()[2].rstrip(",")) == 0


def test_continuing_skips_what_is_there_and_removes_leftovers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres")
    assert predict(*command) == 0
    done_before = Path("in/a_0000.nii.gz").read_bytes()
    Path("out/a.nii.gz").write_bytes(done_before)
    Path("out/b.nii.gz").rename("out/.part-1-b.nii.gz")
    capsys.readouterr()
    assert predict(*command, "--continue_prediction") == 0
    captured = capsys.readouterr()
    assert captured.out == "out/b.nii.gz\n"
    assert "1 of 2 cases are done already" in captured.err
    assert Path("out/a.nii.gz").read_bytes() == done_before
    assert not [name for name in names("out") if name.startswith(".part")]
    os.utime("in/a_0000.nii.gz")  # another image, or a copy of it: newer than its result
    assert predict(*command, "--continue_prediction") == 0
    captured = capsys.readouterr()
    assert captured.out == "out/a.nii.gz\n"
    assert "1 cases again, whose input has changed since (e.g. 'a')" in captured.err
    shutil.copy2("in/b_0000.nii.gz", "in/a_0000.nii.gz")  # older than the result
    assert predict(*command, "--continue_prediction") == 0
    assert "1 cases again, whose input has changed since (e.g. 'a')" in capsys.readouterr().err
    assert predict(*command, "--continue_prediction", "--save_probabilities") == 0
    assert {"a.npz", "b.npz"} <= set(names("out"))
    whole = Path("out/a.nii.gz").read_bytes()
    Path("out/a.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert predict(*command, "--continue_prediction") == 0
    assert Path("out/a.nii.gz").read_bytes() == whole


def test_parts_share_the_cases_and_leave_temporary_files_of_others(place: Path) -> None:
    Path("out").mkdir()
    for name in ("a", "b"):
        Path(f"out/.part-1-{name}.nii.gz").touch()
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres", "-num_parts", 2, "-part_id", 1) == 0
    assert "b.nii.gz" in names("out")
    assert [name for name in names("out") if name.startswith((".", "a"))] == [".part-1-a.nii.gz"]


def test_parts_write_what_one_run_writes_and_the_last_what_belongs_to_all(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/broken_0000.nii.gz").write_bytes(b"no image")
    command = ("-i", "in", "-d", 7, "-c", "3d_fullres", "--statistics", "--preview", "--report")
    assert predict(*command, "one.json", "-o", "one") == 3
    parts = (*command, "many.json", "-o", "many", "-num_parts", 2)
    assert predict(*parts, "-part_id", 1) == 0
    assert "part 1 of 2 is done; missing: 0 (not run yet). The last to finish merges" in capsys.readouterr().err
    assert names("many") == ["b.nii.gz", "b_preview.png"]
    assert not Path("many.json").exists()
    assert predict(*parts, "--merge") == 3
    assert "of 2 parts, 1 are missing: 0 (not run yet)" in capsys.readouterr().err
    assert predict(*parts, "-part_id", 0) == 3
    assert names("many") == names("one")
    for name in names("one"):
        content = Path("many", name).read_bytes()
        assert content.replace(b'"many"', b'"one"') == Path("one", name).read_bytes(), name
    assert [case["name"] for case in json.loads(Path("many.json").read_text())["cases"]] == ["a", "b", "broken"]
    # Once more: a part that is done is kept with --continue_prediction, and merging does no case.
    for name in ("statistics.json", "dataset.json"):
        Path("many", name).unlink()
    results = {path: path.stat().st_mtime_ns for path in Path("many").glob("*.nii.gz")}
    assert predict(*parts, "--continue_prediction", "-part_id", 1) == 0
    Path("many/dataset.json").unlink()
    assert predict(*parts, "--merge") == 3
    assert "case 'broken' failed" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("many").glob("*.nii.gz")} == results
    for name in ("statistics.json", "statistics.csv", "dataset.json"):
        assert Path("many", name).read_bytes() == Path("one", name).read_bytes()


def test_parts_of_different_models_do_not_share_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres", "-num_parts", 3)
    assert predict(*command, "-part_id", 2) == 0  # there are two cases
    assert "part 2 of 3 is done" in capsys.readouterr().err
    assert predict(*command, "-part_id", 0, "--disable_tta", "--disable_progress_bar") == 3
    assert "the results in 'out' were made with other mirroring" in error(capsys)[0]
    assert not Path("out/a.nii.gz").exists()
    assert predict("-i", "in/a_0000.nii.gz", "-o", "a.nii.gz", *command[4:], "-part_id", 0) == 2
    assert "is one file, which parts cannot share" in error(capsys)[0]


def test_a_slurm_array_of_which_each_task_has_an_image_shares_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    model = ("-d", 7, "-c", "3d_fullres")
    assert predict("-i", "in/a_0000.nii.gz", "-o", "a.nii.gz", *model) == 0
    assert Path("a.nii.gz").is_file()
    assert "part" not in capsys.readouterr().err
    assert predict("-i", "in", "-o", "out", *model) == 0
    said = capsys.readouterr().err
    assert "part 3 of 4, by the Slurm array; -num_parts 1 takes all cases" in said
    assert "part 3 of 4 has no case: there are 2 in all" in said
    assert predict("-i", "in", "-o", "out", *model, "-num_parts", 1) == 0
    assert {"a.nii.gz", "b.nii.gz", "dataset.json"} <= set(names("out"))


@pytest.mark.process
def test_an_array_of_parts_predicts_what_one_run_predicts(place: Path) -> None:
    for seed in range(8):
        write_image(place / f"many/{seed}_0000.nii.gz", seed, SMALL)
    model = place / "nnUNet_results" / DATASET / MODEL

    def command(out: str) -> list[Any]:
        where = ["-i", place / "many", "-o", place / out, "--model", model]
        return [*where, "-device", "cpu", "--statistics", "--disable_progress_bar"]

    assert main(list(map(str, command("one")))) == 0
    killed = start_task(main, command("array"), 2)
    while not (place / "array/2.nii.gz").exists():
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    for tasks in ([3, 0], [1, 2]):
        assert "dataset.json" not in names(place / "array")
        run_tasks(main, command("array"), tasks)
    assert names("array") == names("one")
    for name in set(names("one")) - {"predict_from_raw_data_args.json"}:  # which has the folder's name
        assert Path("array", name).read_bytes() == Path("one", name).read_bytes(), name


def test_a_cascade_predicts_its_previous_stage_first_or_takes_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = place / "nnUNet_results" / DATASET
    cascade = ("-i", "in", "-d", 7, "-c", "3d_cascade_fullres", "--disable_progress_bar")
    make_model(results / MODEL.replace("3d_fullres", "3d_cascade_fullres"), mirror=None)
    assert predict(*cascade, "-o", "out") == 3
    assert "there is no model" in error(capsys)[0]
    make_model(results / MODEL.replace("3d_fullres", "3d_lowres"), mirror=None)
    assert predict(*cascade, "-o", "out") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["out/a.nii.gz", "out/b.nii.gz"]
    assert "predicting 3d_lowres first" in captured.err
    assert {"a.nii.gz", "b.nii.gz"} <= set(names("out/prev_stage_3d_lowres"))
    assert predict(*cascade, "-o", "again", "-prev_stage_predictions", "out/prev_stage_3d_lowres") == 0
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(f"{folder}/a.nii.gz")) for folder in ("out", "again"))
    assert (first == second).all()
    assert first.any()
    capsys.readouterr()
    assert predict(*cascade, "-o", "none", "-prev_stage_predictions", "in") == 3
    assert "no prediction of the previous stage for case 'a'" in error(capsys)[0]
    assert predict("-i", "in", "-d", 7, "-c", "3d_fullres", "-o", "none", "-prev_stage_predictions", "out") == 2
    assert not Path("none").exists()


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_keeps_finished_cases_and_names_the_way_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    segment, cases = Predictor.segment, []

    def segment_then_signal(self: Predictor, *given: Any) -> Any:
        cases.append(given)
        if len(cases) == 2:
            os.kill(os.getpid(), number)
        return segment(self, *given)

    monkeypatch.setattr(Predictor, "segment", segment_then_signal)
    before = signal.getsignal(signal.SIGTERM)
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres") == code
    assert "--continue_prediction" in capsys.readouterr().err
    assert [name for name in names("out") if name.endswith(".gz")] == ["a.nii.gz"]
    assert signal.getsignal(signal.SIGTERM) is before


@for_each(
    ("arguments", "code", "what", "hint"),
    [
        ("-i in -o out", 2, "no model is named", "--model NAME"),
        ("-i in -o out -d 7 -c 3d_fullres --model x", 2, "--model names a model", "leave out one"),
        ("-i in -o out --last -f 0", 2, "--last names the model", "leave them out"),
        ("-i in -o out --last", 3, "--last: no training is finished", "stunet_info"),
        ("-i in -o out -d 8 -c 3d_fullres", 3, "no dataset '8'", ""),
        ("-i in -o out -d 7 -c 3d_low", 3, "no trained model STUNetTrainer__*__3d_low", "stunet_train 7 3d_low 0"),
        ("-i in -o out -d 7 -c 3d_fullres -p Other", 3, "no trained model STUNetTrainer__Other__3d_fullres", ""),
        ("-i in -o out --model nowhere", 4, "no model or file 'nowhere'", "stunet_models list"),
        ("-i in -o out --model STU-Net-X", 4, "did you mean 'STU-Net-", "stunet_models list"),
        (
            "-i in -o out --model STU-Net-B --dry_run",
            4,
            "STU-Net-B.totalseg is not installed",
            "stunet_models download",
        ),
        ("-i in -o out --model STU-Net-B.brats21", 4, "was published without its plans", "stunet_train --pretrained"),
        ("-i in -o out --model file", 4, "'file' is a file of weights", "stunet_models import file"),
        ("-i in -o out --model empty", 3, "'empty' is not a model folder: it has no plans.json", "TRAINER__PLANS__"),
        ("-i in -o out -d 7 -c 3d_fullres --labels amoz", 3, "did you mean 'amos'", "one of "),
        ("-i in -o out -d 7 -c 3d_fullres --labels amos", 3, "labels 'amos': the model has no 'spleen'", ".toml"),
        ("-i in -o out -d 7 -c 3d_fullres --labels amos --save_probabilities", 2, "--labels", "one of the two"),
        ("-i in -o out -d 7 -c 3d_fullres -f 3", 3, "fold 3 has no checkpoint_final.pth", "-f 0"),
        ("-i in -o out -d 7 -c 3d_fullres -chk best.pth", 3, "has a best.pth", "-chk checkpoint_final.pth"),
        ("-i none -o out -d 7 -c 3d_fullres", 3, "no input 'none'", "-i"),
        ("-i empty -o out -d 7 -c 3d_fullres", 3, "no files ending with '.nii.gz'", "CASE_0000.nii.gz"),
        ("-i in -o in -d 7 -c 3d_fullres", 3, "would share the folder 'in'", "another folder with -o"),
        ("-i in -o file/out -d 7 -c 3d_fullres", 3, "cannot write into 'file/out'", "another folder with -o"),
        ("-i in -o out.nii.gz -d 7 -c 3d_fullres", 2, "is one file for 2 cases", "name a folder"),
        ("-i in -o out -d 7 -c 3d_fullres --roi_subset a --save_probabilities", 2, "--roi_subset", "one of the two"),
        ("-i in -o out -d 7 -c 3d_fullres --roi_subset a leiver", 2, "the model has no class 'leiver'", "nearest to"),
        ("-i in -o out -d 7 -c 3d_fullres --fast", 3, "has no other model of low resolution", "stunet_train"),
        ("-i in -o out -d 7 -c 3d_fullres --precision fp16", 2, "--precision fp16 is for CUDA", "--precision auto"),
        ("-i in -o out -d 7 -c 3d_fullres --format dicom_seg", 2, "'a' is not a DICOM folder", "--format image"),
        ("-i in -o out -d 7 -c 3d_fullres --report none/r.json", 3, "cannot write the report", "another file"),
        ("-i in -o out -d 7 -c 3d_fullres -step_size 0", 2, "-step_size 0 is not above 0", "0.5"),
        ("-i in -o out -d 7 -c 3d_fullres -num_parts 2 -part_id 2", 2, "-part_id 2 with -num_parts 2", "from 0"),
        ("-i in -o out -d 7 -c 3d_fullres -device cuda", 2, "-device cuda", "-device cpu"),
    ],
)
def test_what_is_wrong_is_said_in_two_lines_before_any_work(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    code: int,
    what: str,
    hint: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("empty").mkdir()
    Path("file").touch()
    assert predict(*arguments.split()) == code
    message, step = error(capsys)
    assert what in message
    assert hint in step
    assert not Path("out").exists()


def test_a_missing_variable_is_named_with_its_export(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres") == 3
    message, step = error(capsys)
    assert "the variable nnUNet_results is not set" in message
    assert "export nnUNet_results=" in step


def test_bad_checkpoints_end_with_4_and_leave_no_output(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "nnUNet_results" / DATASET / MODEL / "fold_0/checkpoint_final.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres") == 4
    assert "is not a whole checkpoint" in error(capsys)[0]
    torch.save({"x": os.getcwd}, path)
    assert predict("-i", "in", "-o", "out", "-d", 7, "-c", "3d_fullres") == 4
    assert "wants to import" in error(capsys)[0]
    assert not Path("out").exists()
