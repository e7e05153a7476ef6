"""stunet_experiment: what it refuses, what it would do, and real trainings that stop, go on, fail and are compared."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stunet import workspace
from stunet.cli import arm
from stunet.cli.experiment import main
from stunet.errors import DataError
from stunet.experiment.arms import arms, command, read_experiment, request
from stunet.experiment.child import read_ending, write_request
from stunet.experiment.runs import DONE, FAILED, Record
from stunet.files import read_json, write_json
from stunet.runs.training import TrainingRequest
from tests.loops import for_each

TEXT = """
dataset = 998
weights = ["none"]
strategies = ["full"]
cases = [2]
seeds = [0, 1]
set = { num_epochs = 3, num_iterations_per_epoch = 4, num_val_iterations_per_epoch = 1, batch_size = 2 }
"""
START = "import sys; from stunet.cli.experiment import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.fixture
def file(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of two arms, with results in a place of its own."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "models"))
    path = tmp_path / "compare.toml"
    path.write_text(TEXT)
    return path


@for_each(
    ("old", "new", "argv", "code", "message", "hint"),
    [
        ("", "", ["-j", "0"], 2, "-j 0 must be 1 or more", "-j 1"),
        ("", "", ["--summary_only"], 3, "no arm is done in", "without --summary_only"),
        ("998", "7", [], 3, "no dataset '7'", "stunet_convert"),
        ("seeds", "sedes", [], 3, "unknown key 'sedes'; did you mean 'seeds'", "--help"),
        ("seeds", "plans = 'X'\nseeds", [], 3, "no plans 'X'", "stunet_plan_and_preprocess -d 998"),
        ('"none"', '"STU-Net-B.totalsg"', [], 4, "'STU-Net-B.totalsg'", "stunet_models list"),
        ('"none"', '"STU-Net-X"', ["--dry_run"], 4, "no model or file 'STU-Net-X'; did you mean", "stunet_models list"),
        ('"none"', '"None"', ["--dry_run"], 4, "no model or file 'None'", "stunet_models list"),
        ('"none"', '"STU-Net-B", "stu-net-b.totalseg"', ["--dry_run"], 3, "are the same weights", "leave one"),
        ("seeds", "fold = 5\nseeds", ["--dry_run"], 3, "fold 5 is asked for, but Dataset998_Phantom has 5", "0 to 4"),
        ("seeds", "configuration = '3d_lowres'\nseeds", ["--dry_run"], 3, "no configuration '3d_lowres'", "one of"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_trained(
    file: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    argv: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    file.write_text(TEXT.replace(old, new))
    assert main([str(file), *argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 2
    assert err.startswith("stunet_experiment: ")
    assert message in err
    assert hint in err
    assert not (file.parent / "compare").exists()


def test_weights_of_another_size_than_the_plans_are_warned_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = '["none", "STU-Net-B", "STU-Net-S"]'
    file.write_text(TEXT.replace('["none"]', weights))
    assert main([str(file), "--dry_run"]) == 0
    err = capsys.readouterr().err
    assert "training from scratch is of size T, but STU-Net-B of size B, STU-Net-S of size S" in err
    file.write_text(TEXT.replace('["none"]', weights) + 'size = "B"')
    assert main([str(file), "--dry_run"]) == 3
    assert "size B is asked for, but the weights 'STU-Net-S' are of size S" in capsys.readouterr().err
    file.write_text(TEXT.replace('["none"]', '["none", "STU-Net-B"]') + 'size = "B"')
    assert main([str(file), "--dry_run"]) == 0
    assert capsys.readouterr().err == ""


def test_a_file_whose_folder_would_have_its_name_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file.rename(file.with_suffix("")))]) == 2
    assert "compare' does not end with .toml" in capsys.readouterr().err


def test_a_dry_run_shows_the_commands_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--dry_run"]) == 0
    title, _, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "2 arms"
    assert [line.split("seed=")[1].split() for line in lines] == [["0", "to", "do"], ["1", "to", "do"]]
    assert lines[0].startswith("stunet_train 998 3d_fullres 0 --finetune full --set num_epochs=3")
    assert sorted(path.name for path in file.parent.iterdir()) == ["compare.toml"]


def test_arms_that_are_done_are_compared_and_what_failed_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = read_experiment(file)
    (first, one), (second, other) = ((arm, command(request(experiment, arm))) for arm in arms(experiment))
    record, folder = Record(file.with_suffix("")), file.parent / "Model" / "fold_0"
    record.folder.mkdir()
    (folder / "validation").mkdir(parents=True)
    write_json(folder.parent / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    dice = {"a": 0.5, "b": 0.75}
    cases = [{"reference_file": name, "metrics": {"1": {"Dice": value}}} for name, value in dice.items()]
    write_json(folder / "validation" / "summary.json", {"metric_per_case": cases})
    record.write(first, one, DONE, folder=str(folder))
    assert main([str(file), "--summary_only"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].split()[-8:] == ["2", "1", "0.6250", *"-----"]
    assert "1 of 2 arms are done" in printed.err

    record.write(second, other, FAILED, message="stunet_train: no cases")
    assert main([str(file), "--summary_only", "--json"]) == DataError.exit_code
    printed = capsys.readouterr()
    assert json.loads(printed.out)
    assert f"1 of 2 arms failed, first {second.name}: stunet_train: no cases" in printed.err


def test_the_process_of_an_arm_writes_how_it_ended_and_says_it_as_stunet_train(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_request(TrainingRequest(dataset="997"), tmp_path / "request.json")
    assert arm.main([str(tmp_path / "request.json"), str(tmp_path / "ending.json")]) == DataError.exit_code
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("stunet_train: no dataset '997'")
    assert read_ending(tmp_path / "ending.json").message == said


@pytest.mark.process
@pytest.mark.slow
def test_an_experiment_stops_goes_on_grows_and_tells_what_failed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = file.parent / "elsewhere"
    argv = [str(file), "-o", str(folder), "-device", "cpu"]
    logs = [folder / "logs" / f"scratch-full-2-cases-seed-{seed}.log" for seed in (0, 1)]
    with subprocess.Popen([sys.executable, "-c", START, *argv], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (logs[0].is_file() and "epoch 1/3" in logs[0].read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 75, err
    assert "stopped; 0 of 2 arms have ended" in err
    assert "try: the same command again" in err
    assert not logs[1].exists()

    file.write_text(TEXT.replace("cases = [2]", "cases = [2, 99]").replace("[0, 1]", "[0]"))
    assert main([*argv, "--json"]) == 3
    out, err = capsys.readouterr()
    assert logs[0].read_text().count("epoch 1/3 ") == 1
    assert logs[0].read_text().count("epoch 3/3 ") == 1
    assert "warning: 1 of 2 arms are done" in err
    assert "1 of 2 arms failed, first scratch-full-99-cases-seed-0: " in err
    assert "num_cases=99, but fold 0 has" in err
    (row,) = json.loads(out)
    (fold,) = workspace.folder("nnUNet_results").glob("*/*-cases2-*/fold_0")
    assert row["dice"] == pytest.approx(read_json(fold / "validation" / "summary.json")["foreground_mean"]["Dice"])
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        *("arms.json", "logs", "summary.csv", "summary.html", "summary.json", "summary.png"),
    ]

    before = logs[0].read_text()
    file.write_text(TEXT.replace("[0, 1]", "[0]"))
    assert main(argv) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["arm", "cases", "seeds", "Dice", "sd"]
    assert line.split() == ["scratch", "full", "2", "1", f"{row['dice']:.4f}", *"-----"]
    assert logs[0].read_text() == before
