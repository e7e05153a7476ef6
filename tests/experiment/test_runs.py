"""Running arms: several at a time, failures, signals, and what is remembered of them; with programs of two lines.

cli/test_experiment.py runs real trainings.
"""

import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from stunet.errors import DataError, Interrupted, UsageError
from stunet.experiment import runs
from stunet.experiment.arms import Arm
from stunet.experiment.runs import Record, read_dice, run
from stunet.files import read_json, write_json

ARM = Arm(weights=(), title="scratch", strategy="ramp", head=None, cases=4, seed=0)
ARMS = [replace(ARM, seed=seed) for seed in range(3)]


def program(code: str, folder: Path, ending: Path) -> list[str]:
    """An arm that runs this code and writes where its result is, as experiment/child.py does."""
    prelude = f"import json, os, signal, sys, time; from pathlib import Path; ending = Path({str(ending)!r})\n"
    end = f"\nending.write_text(json.dumps({{'folder': {str(folder)!r}}}))"
    return [sys.executable, "-S", "-c", prelude + code + end]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POLL_S", 0.01)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result folder with a summary."""
    (tmp_path / "result" / "validation").mkdir(parents=True)
    write_json(tmp_path / "result" / "validation" / "summary.json", {})
    return tmp_path / "result"


def go(codes: list[str], result: Path, folder: Path, jobs: int = 1) -> tuple[list[str], list[str]]:
    """Runs one arm per code; returns the states and what was told."""
    todo = {arm: ["arm", str(arm.seed)] for arm in ARMS[: len(codes)]}
    record, told = Record(folder), list[str]()
    run(todo, record, lambda arm, ending: program(codes[arm.seed], result, ending), jobs, told.append)
    return [record.state(command) for command in todo.values()], told


def test_an_arm_that_fails_does_not_stop_the_others(tmp_path: Path, result: Path) -> None:
    states, told = go(["", "sys.exit('what\\nno')", ""], result, tmp_path / "e")
    assert states == ["done", "failed", "done"]
    assert re.match(r"2 of 3: scratch-ramp-4-cases-seed-1 failed after \d+ s no \(exit code 1\)", told[3])
    assert "no" in (tmp_path / "e" / "logs" / "scratch-ramp-4-cases-seed-1.log").read_text()


def test_what_is_done_is_not_run_again_and_what_failed_is(tmp_path: Path, result: Path) -> None:
    go(["", "sys.exit(1)"], result, tmp_path / "e")
    states, told = go(["sys.exit(1)", "", ""], result, tmp_path / "e")
    assert states == ["done", "done", "done"]
    assert [line.split()[0] for line in told[::2]] == [arm.name for arm in ARMS[1:]]


def test_arms_of_the_same_name_share_no_file(tmp_path: Path, result: Path) -> None:
    alike = [replace(ARM, weights=(name,), title=title) for name, title in (("a", "my B"), ("b", "my-B"))]
    assert alike[0].name == alike[1].name
    record, endings = Record(tmp_path / "e"), list[Path]()

    def start(arm: Arm, ending: Path) -> list[str]:
        endings.append(ending)
        asked = ending.with_name("request.json")
        (weights,) = arm.weights
        asked.write_text(weights)
        here, there = (str(tmp_path / name) for name in (weights, "ba"[weights == "b"]))
        meet = f"Path({here!r}).touch()\nwhile not Path({there!r}).exists(): time.sleep(0.01)\n"
        return program(meet + f"sys.exit(Path({str(asked)!r}).read_text() != {weights!r})", result, ending)

    run({arm: ["arm", *arm.weights] for arm in alike}, record, start, 2)
    assert len({ending.parent for ending in endings}) == 2
    assert not any(ending.parent.exists() for ending in endings)


def test_an_arm_whose_result_is_gone_is_run_again(tmp_path: Path, result: Path) -> None:
    go([""], result, tmp_path / "e")
    assert len(go([""], result, tmp_path / "e")[1]) == 0
    (result / "validation" / "summary.json").rename(tmp_path / "away.json")
    restore = f"os.rename({str(tmp_path / 'away.json')!r}, {str(result / 'validation' / 'summary.json')!r})"
    states, told = go([restore], result, tmp_path / "e")
    assert (states, len(told)) == (["done"], 2)


def test_what_an_arm_writes_about_its_error_is_its_message(tmp_path: Path, result: Path) -> None:
    code = "ending.write_text(json.dumps({'message': 'stunet_train: why'})); print('noise'); sys.exit(3)"
    states, told = go([code], result, tmp_path / "e")
    assert states == ["failed"]
    assert told[-1].endswith("stunet_train: why (exit code 3)")


def test_an_arm_that_says_nothing_has_failed(tmp_path: Path, result: Path) -> None:
    for code, said in (("os._exit(0)", "exit code 0"), ("os.kill(os.getpid(), 9)", "exit code -9")):
        states, told = go([code], result, tmp_path / "e")
        assert states == ["failed"]
        assert told[-1].endswith(f" s {said}")


def test_several_arms_run_at_a_time_with_a_share_of_the_cores_each(
    tmp_path: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    meet = "Path(f'{a}').touch()\nwhile not Path(f'{b}').exists(): time.sleep(0.01)"
    threads = f"\nassert os.environ['OMP_NUM_THREADS'] == '{max(1, (os.cpu_count() or 1) // 2)}'"
    one, other = (str(tmp_path / name) for name in "ab")
    codes = [meet.replace("{a}", x).replace("{b}", y) + threads for x, y in ((one, other), (other, one))]
    assert go(codes, result, tmp_path / "e", jobs=2)[0] == ["done", "done"]


WAITS = """
def save(*_):
    print('saved')
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path({ready!r}).touch()
time.sleep(60)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_next_run_goes_on(tmp_path: Path, result: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"

    def interrupt() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    killer = threading.Thread(target=interrupt)
    before = signal.signal(number, signal.default_int_handler)  # under nohup it would be ignored
    try:
        killer.start()
        with pytest.raises(Interrupted, match="1 of 3 arms have ended"):
            go(["", WAITS.format(ready=str(ready)), ""], result, tmp_path / "e")
        killer.join()
    finally:
        signal.signal(number, before)
    assert [arm["state"] for arm in read_json(tmp_path / "e" / "arms.json").values()] == ["done", "begun"]
    assert (tmp_path / "e" / "logs" / "scratch-ramp-4-cases-seed-1.log").read_text().endswith("saved\n")
    states, told = go(["", "", ""], result, tmp_path / "e")
    assert (states, len(told)) == (["done"] * 3, 4)


def test_no_arm_is_left_running_when_its_experiment_breaks(tmp_path: Path, result: Path) -> None:
    ready = tmp_path / "ready"

    def start(arm: Arm, ending: Path) -> list[str]:
        if arm == ARMS[0]:
            return program(WAITS.format(ready=str(ready)), result, ending)
        while not ready.exists():
            time.sleep(0.01)
        return [str(tmp_path / "no_such_program")]

    todo = {arm: [str(n)] for n, arm in enumerate(ARMS[:2], start=1)}
    with pytest.raises(FileNotFoundError):
        run(todo, Record(tmp_path / "e"), start, jobs=2)
    assert (tmp_path / "e" / "logs" / "scratch-ramp-4-cases-seed-0.log").read_text().endswith("saved\n")


def test_an_arm_that_somebody_else_stopped_is_not_a_failure(tmp_path: Path, result: Path) -> None:
    with pytest.raises(Interrupted, match="1 of 2 arms"):
        go(["sys.exit(75)", ""], result, tmp_path / "e")


def test_an_arm_that_is_still_trained_is_waited_for(tmp_path: Path, result: Path) -> None:
    fold = tmp_path / "fold_0"
    fold.mkdir()
    refused = f"ending.write_text(json.dumps({{'message': 'held', 'lock': {str(fold / '.lock')!r}}})); sys.exit(3)"
    code = f"ended = Path({str(tmp_path / 'ended')!r})\nif not ended.exists():\n    {refused}"
    lock = FileLock(fold / ".lock", thread_local=False)
    lock.acquire()

    def end() -> None:
        (tmp_path / "ended").touch()
        lock.release()

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 2:  # it has been refused
            threading.Timer(0.1, end).start()

    record, told = Record(tmp_path / "e"), list[str]()
    run({ARM: ["arm"]}, record, lambda arm, ending: program(code, result, ending), tell=tell)
    assert record.state(["arm"]) == "done"
    assert "is still being trained by another process: waiting for it" in told[1]


def test_two_commands_do_not_run_in_one_folder(tmp_path: Path, result: Path) -> None:
    (tmp_path / "e").mkdir()
    with FileLock(tmp_path / "e" / ".lock"), pytest.raises(DataError, match="another stunet_experiment runs in"):
        go([""], result, tmp_path / "e")


def test_arms_that_are_the_same_command_are_refused(tmp_path: Path, result: Path) -> None:
    with pytest.raises(UsageError, match="scratch-ramp-4-cases-seed-0 and scratch-ramp-4-cases-seed-1 are the same"):
        run({arm: ["arm"] for arm in ARMS[:2]}, Record(tmp_path / "e"), lambda arm, ending: program("", result, ending))
    assert not (tmp_path / "e").exists()


def test_a_state_is_known_by_the_command(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.write(ARM, ["stunet_train", "--set", "a b"], "failed", message="why")
    again = Record(tmp_path)
    assert again.state(shlex.split("stunet_train --set 'a b'")) == "failed"
    assert again.message(["stunet_train", "--set", "a b"]) == "why"
    assert again.state(["stunet_train"]) == ""


def test_dice_are_read_from_nnunets_summary_with_class_names(tmp_path: Path) -> None:
    summary = tmp_path / "fold_0" / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "whole": [1, 2], "core": 2}})
    metrics = {"(1, 2)": {"Dice": 0.5}, "2": {"Dice": math.nan}}
    write_json(summary, {"metric_per_case": [{"reference_file": "gt/a.nii.gz", "metrics": metrics}]})
    dice = read_dice(summary)
    assert dice["a.nii.gz"]["whole"] == 0.5
    assert math.isnan(dice["a.nii.gz"]["core"])
    for damaged, what in (([{"metrics": metrics}], r"\[0\]: missing 'reference_file'"), ([], ": expected a list that")):
        write_json(summary, {"metric_per_case": damaged})
        with pytest.raises(DataError, match=rf"metric_per_case{what}"):
            read_dice(summary)
