"""What a command shows while it runs: on a terminal, and where there is none."""

import io
import os
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import rich.console
import torch

from stunet import console
from stunet.cli import live
from stunet.errors import StunetError
from tests.loops import for_each


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    # Not in a fixture: pytest replaces stderr again before the test.
    monkeypatch.setattr(sys, "stderr", found := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line after every step where there is no terminal."""
    monkeypatch.setattr(live, "INTERVAL_S", -1.0)


def test_without_a_terminal_a_loop_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with live.Progress("read", 2) as progress:
        progress.step("a")
        progress.step("b")
    assert re.fullmatch(r"read: 2 of 2 in \d\.\d s\n", capsys.readouterr().err)


@pytest.mark.usefixtures("always")
def test_without_a_terminal_a_long_loop_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with live.Progress("predict", 0) as progress:
            progress.total = 3
            progress.part(0.5, "case_1, window 4 of 8")
            progress.step("case_1")
            raise StunetError("x")

    with pytest.raises(StunetError):
        stopped()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"predict: 0 of 3, about 0\.0 s left \(case_1, window 4 of 8\)", first)
    assert re.fullmatch(r"predict: 1 of 3, about 0\.0 s left \(case_1\)", second)


def test_on_a_terminal_a_loop_is_a_bar_of_a_total_that_may_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with live.Progress("predict", 0) as progress:
        progress.total = 2
        progress.part(0.5, "case_1, window 4 of 8")
        progress._bar.refresh()
        assert "0/2" in terminal.getvalue()
        assert "window 4 of 8" in terminal.getvalue()
        progress.step("case_1")
        progress.step("case_2")
    assert "2/2" in terminal.getvalue()


def test_lines_are_not_written_into_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, shown = on_terminal(monkeypatch), []

    def write(text: str) -> int:
        if "a message" in text:
            shown.append(progress._bar.live.is_started)
        return io.StringIO.write(terminal, text)

    terminal.write = write  # type: ignore[method-assign]
    with live.Progress("predict", 2) as progress:
        console.note("a message")
        assert progress._bar.live.is_started
    assert shown == [False]


def test_a_training_goes_on_when_its_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    stderr = os.fdopen(follower, "w")
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    progress, running = live.TrainingProgress(), trainer(1, {})
    progress.step(running, "train", 1, 0.5)
    os.close(leader)  # writing to the other side is an error from now on
    with pytest.raises(OSError, match="Input/output error"):
        os.write(follower, b"x")
    progress.step(running, "train", 2, 0.5)
    progress.epoch(running)
    console.note("a message")
    stderr.close()


class Log:
    """What a trainer has logged of its last epoch."""

    def __init__(self, **values: Any) -> None:
        self.values = {"epoch_start_timestamps": 100.0, "train_losses": -0.5, "val_losses": -0.25, **values}

    def get_value(self, key: str, step: int) -> Any:
        return self.values[key]


def trainer(epoch: int, classes: dict[str, float], seconds: float = 90.0) -> Any:
    return SimpleNamespace(
        current_epoch=epoch,
        num_epochs=1000,
        num_iterations_per_epoch=250,
        num_val_iterations_per_epoch=50,
        device=torch.device("cpu"),
        logger=Log(epoch_end_timestamps=100.0 + seconds),
        epoch_results=lambda: ({"Dice": "0.864"}, classes),
    )


@for_each("classes", [{"anterior": 0.85, "posterior": 0.8}, {f"gluteus maximus left {n}": n / 100 for n in range(117)}])
def test_an_epoch_is_a_line_of_a_table_that_fits_80_columns(
    classes: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = live.TrainingProgress()
    progress.epoch(trainer(1, classes))
    progress.epoch(trainer(2, classes))
    heading, *lines = capsys.readouterr().err.splitlines()
    assert heading.split() == ["epoch", "loss", "val", "Dice", "time", "left", "classes,", "worst", "first"]
    assert lines[0].split()[:9] == ["epoch", "1/1000", "-0.500", "-0.250", "0.864", "90", "s", "25", "h"]
    assert lines[1].startswith("epoch 2/1000    -0.500")
    assert max(map(len, (heading, *lines))) < 80
    wide = live.TrainingProgress()
    wide._bar = SimpleNamespace(console=SimpleNamespace(width=160), live=SimpleNamespace(is_started=False))
    wide.epoch(trainer(1, classes))
    assert capsys.readouterr().err.splitlines()[1].count("0.") == (5 if len(classes) == 2 else 6)
    named = lines[0].partition(" h ")[2]
    assert named == "posterior 0.80, anterior 0.85" if len(classes) == 2 else named == "glu..t 0 0.00, glut..t 1 0.01"


def test_as_many_of_the_worst_classes_are_named_as_there_is_room_for() -> None:
    classes = {"liver": 0.9, "inferior vena cava": 0.5, "spleen": float("nan"), "aorta": 0.25}
    assert live.worst(classes, 60) == "aorta 0.25, inferior vena cava 0.50, liver 0.90"
    assert live.worst(classes, 40) == "aorta 0.25, infer..cava 0.50, liver 0.90"
    assert live.worst(classes, 20) == "aorta 0.25"
    assert live.worst(classes, 0) == "a 0.25"
    assert live.worst({}, 60) == ""


@pytest.mark.usefixtures("always")
def test_the_end_of_a_training_is_estimated_after_ten_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(clock)))
    progress, running = live.TrainingProgress(), trainer(0, {})
    for done in range(1, 12):
        progress.step(running, "train", done, 0.125)
    *_, tenth, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"epoch 1/1000 train 10/250  loss 0\.125  \d\.\d GB", tenth)
    # A second for each of 300,000 steps.
    assert last.startswith("epoch 1/1000 train 11/250  loss 0.125  about 3.5 d left  ")


@pytest.mark.usefixtures("always")
def test_the_final_validation_says_which_case_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    progress = live.TrainingProgress()
    for number, name in enumerate("abc", 1):
        progress.case(name, number, 3)
    progress.validated()
    *lines, end = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["validate: 0 of 3", "validate: 1 of 3", "validate: 2 of 3"]
    assert lines[1].endswith("left (b)")
    assert end.startswith("validate: 3 of 3 in ")


@for_each(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (90, "90 s"), (100, "2 min"), (5400, "1.5 h"), (36000, "10 h"), (172800, "2.0 d")],
)
def test_times_are_said_with_two_digits(seconds: float, text: str) -> None:
    assert live.span(seconds) == text


def test_a_bar_takes_names_with_brackets_as_they_are() -> None:
    bar, out = live.new_bar("{task.fields[name]}"), io.StringIO()
    console.bars.remove(bar)
    bar.add_task("features of a[/b]", total=2, name="[red]c")
    rich.console.Console(file=out, width=200).print(bar.get_renderable())
    assert "features of a[/b]" in out.getvalue()
    assert "[red]c" in out.getvalue()
