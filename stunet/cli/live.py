"""What a command shows while it runs, on stderr: live on a terminal, elsewhere a line every 30 seconds.

A training also has a line for each epoch, no longer than a terminal is wide.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from stunet import console
from stunet.console import aligned, note, warn
from stunet.machine import GB, GIB, peak_resident

INTERVAL_S = 30.0  # between lines where there is no terminal
COLUMNS = 80  # of a line where there is no terminal, or a narrow one
ESTIMATED_AFTER = 10  # steps, after which the end of a training is estimated
HEADING = 14  # characters of a column's name
SHORTEST = 6  # characters that a class name is cut to, so that more classes fit


class Progress:
    """Progress of a loop with a known number of steps: `with Progress("preprocess", 200) as p: p.step("case_1")`."""

    def __init__(self, title: str, total: int, disable: bool = False) -> None:
        self.title, self.total, self.disable = title, total, disable
        self.done = 0
        self.started = self.last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if not self.disable and is_live():
            self._bar = new_bar("{task.fields[name]}")
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total or None, name="")
        return self

    def step(self, name: str = "") -> None:
        """Report that one more step is done; `name` identifies it."""
        self.done += 1
        self._show(self.done, name)

    def part(self, share: float, name: str = "") -> None:
        """Report the share of the next step that is done."""
        self._show(self.done + share, name)

    def _show(self, done: float, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total or None, name=name)
            return
        now = time.monotonic()
        if not self.disable and now - self.last > INTERVAL_S and done < self.total:
            self.last = now
            left = span((now - self.started) / done * (self.total - done)) if done else "unknown"
            note(f"{self.title}: {self.done} of {self.total}, about {left} left" + (f" ({name})" if name else ""))

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self.disable and error[0] is None and self.total:
            note(f"{self.title}: {self.done} of {self.total} in {time.monotonic() - self.started:.1f} s")


class TrainingProgress:
    """Shows a training: its steps on a bar, a line for each epoch, and the cases of its final validation.

    Implements the TrainingListener of trainers/progress.py without importing it, because that would import torch.
    """

    def __init__(self) -> None:
        self._bar: Any = new_bar("{task.fields[text]}") if is_live() else None
        self._task: Any = None
        self._heading = ""
        self._epoch_times: list[float] = []
        self._epoch = -1  # the running one
        self._begun = self._last = time.monotonic()
        self._steps = 0  # of the running epoch that were seen
        self._validation: Progress | None = None

    def loaded(self, report: Any) -> None:
        """Show that pre-trained weights have been put into the network."""
        for line in (*report.lines(), *aligned(*report.table())):
            note(line)
        if report.changes:
            for line in aligned(("changed", "in the weights' training", "here"), report.changes):
                note(line)
        for text in report.warnings:
            warn(text)

    def trains(self, text: str) -> None:
        """Show what is trained from now on."""
        note(text)

    def warning(self, text: str) -> None:
        """Show a warning; the training continues."""
        warn(text)

    def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
        """Show that a step of an epoch is finished."""
        now = time.monotonic()
        if trainer.current_epoch != self._epoch:
            # The first step that is seen: how long it took, or where an epoch goes on, is not known.
            self._epoch, self._begun, self._steps = trainer.current_epoch, now, 0
        else:
            self._steps += 1
        steps = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
        position = done + (trainer.num_iterations_per_epoch if phase == "validation" else 0)
        left = self._time_left(trainer, position / steps, now)
        text = f"loss {loss:.3f}" + (f"  {left}" if left else "")
        # nnU-Net counts from 0, and epoch() below is called after it has counted the finished epoch.
        title = f"epoch {trainer.current_epoch + 1}/{trainer.num_epochs} {phase}"
        if self._bar is not None:
            if not self._bar.live.is_started:
                self._bar.start()
                self._task = self._bar.add_task("", total=steps, text="")
            self._bar.update(self._task, description=title, completed=position, total=steps, text=text)
        elif now - self._last > INTERVAL_S:
            self._last = now
            of = trainer.num_iterations_per_epoch if phase == "train" else trainer.num_val_iterations_per_epoch
            note(f"{title} {done}/{of}  {text}  {_peak_memory(trainer.device)}")

    def _time_left(self, trainer: Any, share: float, now: float) -> str:
        """Return how long the training will take, from what the last epochs took, or the steps of the first one."""
        epochs = trainer.num_epochs - trainer.current_epoch - share
        if self._epoch_times:
            seconds = sum(self._epoch_times) / len(self._epoch_times) * epochs
        elif self._steps >= ESTIMATED_AFTER:
            steps = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
            seconds = (now - self._begun) / self._steps * steps * epochs
        else:
            return ""
        return f"about {span(seconds)} left"

    def epoch(self, trainer: Any) -> None:
        """Show a permanent line for a finished epoch."""
        self._end_bar()

        def last(key: str) -> Any:
            return trainer.logger.get_value(key, step=-1)

        seconds = last("epoch_end_timestamps") - last("epoch_start_timestamps")
        # Over ten epochs: the first one is longer (compiling, cold files), and validation varies.
        self._epoch_times = [*self._epoch_times[-9:], seconds]
        left = (trainer.num_epochs - trainer.current_epoch) * sum(self._epoch_times) / len(self._epoch_times)
        epochs, (results, classes) = str(trainer.num_epochs), trainer.epoch_results()
        columns = {
            "epoch": f"epoch {trainer.current_epoch}/{epochs}".ljust(7 + 2 * len(epochs)),
            "loss": f"{last('train_losses'):.3f}".rjust(6),
            "val": f"{last('val_losses'):.3f}".rjust(6),
            **results,
            "time": span(seconds).rjust(6),
            "left": (span(left) if left else "").rjust(6),
        }
        names = [shortened(name, HEADING) for name in columns]
        widths = [max(map(len, texts)) for texts in zip(names, columns.values(), strict=True)]
        names[0] = names[0].ljust(widths[0])
        heading, line = (" ".join(map(str.rjust, texts, widths)) for texts in (names, columns.values()))
        if heading != self._heading:
            self._heading = heading
            note(f"{heading} classes, worst first" if classes else heading)
        # One column of a terminal stays free: some break a line that fills it.
        room = max(COLUMNS, self._bar.console.width if self._bar else 0) - 1 - len(line) - 1
        note(f"{line} {worst(classes, room)}".rstrip())
        self._last = time.monotonic()

    def case(self, name: str, number: int, count: int) -> None:
        """Show that the final validation moves on to a case, the `number`-th of `count` from 1."""
        self._end_bar()
        if self._validation is None:
            self._validation = Progress("validate", count)
            self._validation.__enter__()
        self._validation.done = number - 1
        self._validation.part(0.0, name)

    def validated(self) -> None:
        """Show that the final validation has predicted its cases, and measures them next."""
        if self._validation is not None:
            self._validation.done = self._validation.total
            self._validation.__exit__(None, None, None)
            self._validation = None

    def _end_bar(self) -> None:
        if self._bar is not None and self._bar.live.is_started:
            self._bar.stop()
            self._bar.remove_task(self._task)


def worst(classes: Mapping[str, float], room: int) -> str:
    """Return the classes with the lowest values that `room` characters have space for, up to three."""
    found = sorted(classes.items(), key=lambda item: (item[1] != item[1], item[1]))[:3]  # NaN last
    while found:
        spaces = _shared_out([len(name) for name, _ in found], room - len(found) * len(" 0.00, ") + len(", "))
        if len(found) == 1 or all(
            space >= min(SHORTEST, len(name)) for space, (name, _) in zip(spaces, found, strict=True)
        ):
            parts = zip(found, spaces, strict=True)
            return ", ".join(f"{shortened(name, max(space, 1))} {value:.2f}" for (name, value), space in parts)
        found.pop()
    return ""


def _shared_out(lengths: Sequence[int], room: int) -> list[int]:
    """Return how many characters each name gets: what short ones leave is for the others."""
    spaces = [0] * len(lengths)
    for taken, number in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        spaces[number] = min(lengths[number], room // (len(lengths) - taken))
        room -= spaces[number]
    return spaces


def shortened(name: str, space: int) -> str:
    """Return a name in at most `space` characters; what is left out, in the middle, becomes two dots."""
    if len(name) <= space:
        return name
    if space < SHORTEST:
        return name[:space]
    end = (space - 2) // 2
    return f"{name[: space - 2 - end]}..{name[-end:]}"


def span(seconds: float) -> str:
    """Return a time in words of at most six characters: 1.5 s, 90 s, 12 min, 1.5 h, 14 h, 3.0 d."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    value, unit = (seconds / 3600, "h") if seconds < 172800 else (seconds / 86400, "d")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def is_live() -> bool:
    """Return whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def new_bar(last_column: str) -> Any:
    """Return a live bar on stderr that vanishes when it stops; it leaves stdout, and nnU-Net's output there, alone.

    It shows nothing any more once the terminal is gone, as after logging out.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    class Lasting(Bar):
        def start(self) -> None:
            with suppress(OSError, ValueError):
                super().start()

        def stop(self) -> None:
            with suppress(OSError, ValueError):
                super().stop()

        def refresh(self) -> None:
            with suppress(OSError, ValueError):
                super().refresh()

    # No markup: names may have brackets.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    last, shown = TextColumn(last_column, markup=False), Console(stderr=True)
    console.bars.append(Lasting(*columns, last, console=shown, transient=True, redirect_stdout=False))
    return console.bars[-1]


def _peak_memory(device: Any) -> str:
    if device.type == "cuda":
        import torch

        # Reserved, not allocated: this is what has to fit, and what nvidia-smi shows.
        return f"{torch.cuda.max_memory_reserved(device) / GIB:.1f} GiB GPU"
    return f"{peak_resident() / GB:.1f} GB"
