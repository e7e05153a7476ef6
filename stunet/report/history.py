"""The course of a training, epoch by epoch: metrics.csv, and the same from checkpoints and logs of older runs.

metrics.csv has a row per epoch. It is appended to while a network is trained; a row that was torn when the machine went
down is left out, and written again when the training continues.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from stunet.errors import StunetError
from stunet.files import atomic_write
from stunet.names import csv_cells
from stunet.report.page import one_line
from stunet.workspace import FINAL, LATEST

FILE = "metrics.csv"
LOGS = "training_log*.txt"
COLUMNS = (
    "epoch", "seconds", "waiting_share", "memory_gb", "learning_rate", "train_loss", "validation_loss", "dice_mean",
    "dice_moving_average",
)  # fmt: skip
OF_CLASS = "dice_of "  # before the name of a class
_NUMBER = re.compile(r"(?:np\.float\d+\()?(-?\d+\.?\d*(?:e[+-]?\d+)?|-?inf|nan)\)?")
# Lines of nnU-Net's log, after the time; the value, and what it is called here.
_LINES = {
    "Epoch time: ": "seconds", "Epoch ": "epoch", "Current learning rate: ": "learning_rate",
    "train_loss ": "train_loss", "val_loss ": "validation_loss", "Pseudo dice ": "classes",
}  # fmt: skip


@dataclass(frozen=True)
class Epoch:
    """One epoch; NaN where a number is not known.

    Attributes:
        number: From 1.
        seconds: Wall time.
        waiting_share: The part of it, 0 to 1, in which the network waited for data.
        memory_gb: Largest memory so far, in 10^9 bytes: of the GPU, or of the process where there is none.
        learning_rate: At its start.
        train_loss: Mean over its steps.
        validation_loss: The same for the patches of the online evaluation.
        dice_mean: Of the online evaluation, over classes.
        dice_moving_average: nnU-Net's, by which the best checkpoint is chosen.
        dice_of_classes: Online, in the order of the classes.
    """

    number: int
    seconds: float = nan
    waiting_share: float = nan
    memory_gb: float = nan
    learning_rate: float = nan
    train_loss: float = nan
    validation_loss: float = nan
    dice_mean: float = nan
    dice_moving_average: float = nan
    dice_of_classes: tuple[float, ...] = ()

    def row(self) -> list[str]:
        """Return the cells of metrics.csv; empty where a number is not known."""
        numbers = [getattr(self, name) for name in COLUMNS[1:]]
        return [str(self.number), *(_written(value) for value in (*numbers, *self.dice_of_classes))]


@dataclass(frozen=True)
class History:
    """The epochs of a training, in order, and the names of the classes of their online evaluation, if known."""

    epochs: Sequence[Epoch] = ()
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def reached(self) -> int:
        """Number of the last finished epoch; 0 before it. Where logs were removed, fewer epochs than that are known."""
        return self.epochs[-1].number if self.epochs else 0

    def values(self, name: str) -> list[float]:
        """Return a number of every epoch, by the name of the attribute."""
        return [getattr(epoch, name) for epoch in self.epochs]


def read_history(folder: Path) -> History:
    """Return the epochs of a fold's folder: from metrics.csv, its checkpoint or its logs, whichever has most.

    Empty if none of them can be read, or none holds a finished epoch.
    """
    sources = [read_csv(folder / FILE), History(read_logs(logs_of(folder)))]
    if len(sources[0]) < max(1, len(sources[1])):
        sources.insert(1, History(_of_checkpoint(folder)))
    return max(sources, key=len)  # the first of those that are equally long


def logs_of(folder: Path) -> list[Path]:
    """Return the logs in a fold's folder, oldest first: dates in nnU-Net's names have no leading zeros."""
    return sorted(folder.glob(LOGS), key=lambda log: [int(part) for part in re.findall(r"\d+", log.name)])


def of_log(log: Mapping[str, Sequence[Any]]) -> list[Epoch]:
    """Return the epochs of nnU-Net's log in a checkpoint, or in memory."""
    times = [log.get(f"epoch_{side}_timestamps", ()) for side in ("start", "end")]
    columns = {
        "seconds": [end - start for start, end in zip(*times, strict=False)],
        "learning_rate": log.get("lrs", ()),
        "train_loss": log.get("train_losses", ()),
        "validation_loss": log.get("val_losses", ()),
        "dice_mean": log.get("mean_fg_dice", ()),
        "dice_moving_average": log.get("ema_fg_dice", ()),
    }
    classes = log.get("dice_per_class_or_region", ())
    count = min(len(columns["train_loss"]), len(columns["validation_loss"]))
    return [
        Epoch(
            number=i + 1,
            **{name: float(values[i]) if i < len(values) else nan for name, values in columns.items()},
            dice_of_classes=tuple(map(float, classes[i])) if i < len(classes) else (),
        )
        for i in range(count)
    ]


def write_csv(path: Path, epochs: Iterable[Epoch], classes: Sequence[str]) -> None:
    """Write metrics.csv with these epochs; it appears whole.

    Args:
        path: The file.
        epochs: In order.
        classes: Names of the classes of the online evaluation.
    """
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(csv_cells([*COLUMNS, *(f"{OF_CLASS}{one_line(name)}" for name in classes)]))
        table.writerows(epoch.row() for epoch in epochs)


def append_csv(path: Path, epoch: Epoch) -> None:
    """Add an epoch to metrics.csv."""
    with path.open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerow(epoch.row())


def read_csv(path: Path) -> History:
    """Return the epochs of metrics.csv up to the first torn or unreadable row; none if there is no such file."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            rows = list(csv.reader(stream))
    except (OSError, csv.Error):
        return History()
    if not rows or tuple(rows[0][: len(COLUMNS)]) != COLUMNS:
        return History()
    epochs = []
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(rows[0]) or row[0] != str(number):
            break
        try:
            values = [float(cell) if cell else nan for cell in row[1:]]
        except ValueError:
            break
        known = dict(zip(COLUMNS[1:], values, strict=False))
        epochs.append(Epoch(number, **known, dice_of_classes=tuple(values[len(known) :])))
    return History(epochs, [name.removeprefix(OF_CLASS) for name in rows[0][len(COLUMNS) :]])


def read_logs(paths: Iterable[Path]) -> list[Epoch]:
    """Return the last finished epoch in nnU-Net's logs, and those before it without a gap.

    Args:
        paths: The logs of a fold, oldest first. One that begins with epoch 51 goes on from a checkpoint at 50: what
            earlier ones tell of later epochs became of another run.
    """
    found: dict[int, Epoch] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        values: dict[str, str] = {}
        goes_on = False
        for line in lines:
            _, _, told = line.partition(": ")
            name, key = next(((_LINES[start], start) for start in _LINES if told.startswith(start)), ("", ""))
            if name == "epoch":
                values = {}
            if name:
                values[name] = told[len(key) :].strip()
            if name == "seconds" and (epoch := _of_lines(values)):
                if not goes_on:
                    found = {number: known for number, known in found.items() if number < epoch.number}
                goes_on = True
                found[epoch.number] = epoch
    last = max(found, default=0)
    first = last
    while first - 1 in found:
        first -= 1
    epochs: list[Epoch] = []
    average = nan
    for here in (found[number] for number in range(first, last + 1) if number in found):
        if isfinite(here.dice_mean):
            average = here.dice_mean if not isfinite(average) else 0.9 * average + 0.1 * here.dice_mean
        epochs.append(Epoch(**{**vars(here), "dice_moving_average": average}))
    return epochs


def _of_lines(values: Mapping[str, str]) -> Epoch | None:
    """Return the epoch that the lines of a log tell of; None if they are not whole."""
    if not re.fullmatch(r"\d{1,7}", values.get("epoch", "")):
        return None
    numbers = {}
    for name in ("learning_rate", "train_loss", "validation_loss", "seconds"):
        found = _NUMBER.match(values.get(name, ""))
        numbers[name] = float(found[1]) if found else nan
    if not values["seconds"].endswith("s"):
        return None
    classes = tuple(float(found) for found in _NUMBER.findall(values.get("classes", "")))
    known = [value for value in classes if isfinite(value)]
    mean = sum(known) / len(known) if known else nan
    return Epoch(int(values["epoch"]) + 1, **numbers, dice_mean=mean, dice_of_classes=classes)


def _of_checkpoint(folder: Path) -> list[Epoch]:
    """Return the epochs in the log of the most advanced checkpoint; none if it cannot be read."""
    from stunet.weights.checkpoints import load_checkpoint

    for name in (FINAL, LATEST):
        if (folder / name).is_file():
            try:
                log = load_checkpoint(folder / name).get("logging")
                return of_log(log) if isinstance(log, Mapping) else []
            except (StunetError, TypeError, ValueError):
                continue
    return []


def _written(value: float) -> str:
    return f"{value:.6g}" if isfinite(value) else ""
