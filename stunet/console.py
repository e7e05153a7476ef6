"""User output: results on stdout; progress, messages and errors on stderr. Used by stunet.cli only.

On a terminal, progress is live; elsewhere it is one plain line per epoch, or per 30 seconds of a long loop.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from stunet.machine import GB, GIB, peak_resident

PLAIN_INTERVAL_S = 30.0

_results: TextIO | None = None  # the real stdout while reserve_stdout() holds it
_bars: list[Any] = []  # live bars, which have to leave the terminal before an error is shown on it


class OutputClosed(Exception):
    """The reader of stdout or stderr is gone, as with `head`; cli/common.py then ends the command quietly."""


@contextmanager
def reserve_stdout(verbose: bool) -> Iterator[None]:
    """Keep stdout for results: what nnU-Net and its worker processes print goes to stderr (verbose) or nowhere.

    nnU-Net reports through `print`, also in processes that it starts, so the file descriptor itself is replaced.
    """
    global _results
    stdout = sys.stdout
    stdout.flush()
    saved = os.dup(1)
    elsewhere = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    os.dup2(elsewhere, 1)
    captured = not _writes_to(stdout, 1)  # for example by a test: results go where the caller looks for them
    _results = stdout if captured else os.fdopen(os.dup(saved), "w")
    try:
        with os.fdopen(elsewhere, "w") as target, redirect_stdout(target):
            yield
    finally:
        # A bar that still runs would draw over the error that is shown next.
        while _bars:
            _bars.pop().stop()
        _results.flush()
        if not captured:
            _results.close()
        _results = None
        os.dup2(saved, 1)
        os.close(saved)


def result(text: str) -> None:
    """Write a line of the command's result to stdout."""
    _write(text, _results or sys.stdout)


def result_json(document: Any) -> None:
    """Write the command's result to stdout as one JSON document."""
    result(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Write a message to stderr."""
    _write(text, sys.stderr)


def warn(text: str) -> None:
    """Write a warning to stderr; the run continues."""
    note(f"warning: {text}")


def error(program: str, message: str, hint: str) -> None:
    """Write what happened on one line, and the next step on a second one."""
    note(f"{program}: {' '.join(message.split())}")
    if hint:
        note(f"  try: {hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Write a table to stdout."""
    for line in ([title] if title else []) + aligned(columns, rows):
        result(line)


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column left-aligned, the others right-aligned; plain text for piping."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]


class Progress:
    """Progress of a loop with a known number of steps: `with Progress("preprocess", 200) as p: p.step("case_1")`."""

    def __init__(self, title: str, total: int, disable: bool = False) -> None:
        self.title, self.total, self.disable = title, total, disable
        self.done = 0
        self.started = self.last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if not self.disable and sys.stderr.isatty():
            self._bar = _new_bar("{task.fields[name]}")
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, name="")
        return self

    def step(self, name: str = "") -> None:
        """Report that one more step is done; `name` identifies it."""
        self.done += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, name=name)
        elif not self.disable and now - self.last > PLAIN_INTERVAL_S and self.done < self.total:
            self.last = now
            left = (now - self.started) / self.done * (self.total - self.done)
            note(f"{self.title}: {self.done} of {self.total}, about {left:.0f} s left")

    def part(self, share: float, name: str = "") -> None:
        """Report the share of the next step that is done; only shown on a terminal."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + share, name=name)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self.disable and error[0] is None and self.total:
            note(f"{self.title}: {self.done} of {self.total} in {time.monotonic() - self.started:.1f} s")


def _write(text: str, stream: TextIO) -> None:
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:  # a name that is not UTF-8, or a terminal that is not
            encoding = stream.encoding or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:  # for what the stream still buffers, which Python writes on exit
            os.dup2(nowhere.fileno(), stream.fileno())
        raise OutputClosed from None


def _writes_to(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # io.UnsupportedOperation of in-memory streams is both
        return False


class TrainingProgress:
    """Shows a training: a live bar per epoch on a terminal, one plain line per epoch elsewhere (on stderr).

    Implements the TrainingListener of trainers/progress.py without importing it, because that would import torch.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._epoch_times: list[float] = []
        self._validated = 0
        self._last = 0.0
        if sys.stderr.isatty():
            self._bar = _new_bar("{task.fields[loss]}")

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
        if self._bar is None:
            return
        steps = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
        position = done + (trainer.num_iterations_per_epoch if phase == "validation" else 0)
        if not self._bar.live.is_started:
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, loss="")
        # nnU-Net counts from 0, and epoch() below is called after it has counted the finished epoch.
        text = f"epoch {trainer.current_epoch + 1}/{trainer.num_epochs} {phase}"
        self._bar.update(self._task, description=text, completed=position, total=steps, loss=f"loss {loss:.3f}")

    def epoch(self, trainer: Any) -> None:
        """Show a permanent line for a finished epoch."""
        if self._bar is not None and self._bar.live.is_started:
            self._bar.stop()
            self._bar.remove_task(self._task)

        def last(key: str) -> Any:
            return trainer.logger.get_value(key, step=-1)

        seconds = last("epoch_end_timestamps") - last("epoch_start_timestamps")
        # Over ten epochs: the first one is longer (compiling, cold files), and validation varies.
        self._epoch_times = [*self._epoch_times[-9:], seconds]
        left = (trainer.num_epochs - trainer.current_epoch) * sum(self._epoch_times) / len(self._epoch_times)
        note(
            f"epoch {trainer.current_epoch}/{trainer.num_epochs}  loss {last('train_losses'):.4f}  "
            f"validation {last('val_losses'):.4f}  {trainer.epoch_results()}  lr {last('lrs'):.2g}  "
            f"{seconds:.1f} s  {_peak_memory(trainer.device)}  {_clock(left)} left"
        )

    def case(self, name: str) -> None:
        """Show that the final validation moves on to this case."""
        now = time.monotonic()
        if now - self._last > PLAIN_INTERVAL_S:
            self._last = now
            note(f"validate: {name}" + (f", after {self._validated} cases" if self._validated else ""))
        self._validated += 1


def _new_bar(last_column: str) -> Any:
    """Return a live bar on stderr that vanishes when it stops; it leaves stdout, and nnU-Net's output there, alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # No markup: names may have brackets.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    last, console = TextColumn(last_column, markup=False), Console(stderr=True)
    _bars.append(Progress(*columns, last, console=console, transient=True, redirect_stdout=False))
    return _bars[-1]


def _peak_memory(device: Any) -> str:
    if device.type == "cuda":
        import torch

        # Reserved, not allocated: this is what has to fit, and what nvidia-smi shows.
        return f"{torch.cuda.max_memory_reserved(device) / GIB:.1f} GiB GPU"
    return f"{peak_resident() / GB:.1f} GB"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
