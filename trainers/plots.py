"""nnU-Net's logger, with a progress.png, a metrics.csv and a report of ours; one for pre-training.

Drawing takes a second or so, as long as a short epoch: it is done at most once a minute, and less often where it would
take more than a hundredth of the time. What is drawn appears whole.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from stunet.errors import Interrupted
from stunet.machine import GB, peak_resident
from stunet.plots import plotted
from stunet.report.figures import label
from stunet.report.history import FILE, Epoch, append_csv, of_log, read_csv, write_csv
from stunet.report.runs import write_environment
from stunet.report.training import NAME, write_fold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stunet.trainers.trainer import BaseTrainer

PICTURE = "progress.png"
INTERVAL_S = 60.0
SHARE = 0.01  # of the time that drawing may take
DPI = 100
CLASSES = 10  # classes with a line of their own: with more, those that are worst


class Logger(MetaLogger):
    """Logs as nnU-Net does, adds each epoch to metrics.csv, and draws at most once in INTERVAL_S.

    Attributes:
        title: Headline of progress.png.
        classes: Names of the classes of the online evaluation, in its order.
    """

    title = ""
    classes: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._due = time.monotonic() + INTERVAL_S
        self._warn: Callable[[str], None] = logging.getLogger("stunet").warning
        self._waited_s = self._memory_gb = nan

    def begin(self, trainer: "BaseTrainer") -> None:
        """Write metrics.csv with the epochs that the log has already, for a training that begins or goes on."""
        if trainer.local_rank:
            return
        folder = Path(trainer.output_folder)
        self.title = " · ".join(
            (trainer.plan.dataset_name, trainer.configuration_name, f"fold {trainer.fold}", trainer.plan.name)
        )
        self.classes, self._warn = trainer.class_names(), trainer.listener.warning
        write_environment(folder, _device_name(trainer.device))
        before = {epoch.number: epoch for epoch in read_csv(folder / FILE).epochs}
        epochs = of_log(self.get_checkpoint())
        for position, epoch in enumerate(epochs):
            # What no log of nnU-Net's has, as far as it is of the same epoch.
            if (known := before.get(epoch.number)) and np.isclose(known.train_loss, epoch.train_loss, rtol=1e-4):
                epochs[position] = replace(epoch, waiting_share=known.waiting_share, memory_gb=known.memory_gb)
        write_csv(folder / FILE, epochs, self.classes)

    def note_cost(self, trainer: "BaseTrainer") -> None:
        """Note what the epoch that ends took, besides what nnU-Net logs."""
        loaders = filter(None, (trainer.dataloader_train, trainer.dataloader_val))
        self._waited_s = sum(loader.take_waited() for loader in loaders)
        if trainer.device.type == "cuda":
            self._memory_gb = torch.cuda.max_memory_reserved(trainer.device) / GB
        else:
            self._memory_gb = peak_resident() / GB

    def end(self, trainer: "BaseTrainer") -> None:
        """Draw all epochs, however fast the last ones were."""
        if trainer.local_rank == 0:
            self.plot(trainer.output_folder)
            self.report(trainer.output_folder)

    def validated(self, trainer: "BaseTrainer") -> None:
        """Write the report with the final validation; a training that is only validated did not begin."""
        self._warn = trainer.listener.warning
        if trainer.local_rank == 0:
            self.report(trainer.output_folder, with_slices=True)

    def plot_progress_png(self, output_folder: str) -> None:
        """Add the epoch to metrics.csv, and draw if it is time; nnU-Net calls this after every epoch."""
        folder = Path(output_folder)
        self.record(folder)
        if (started := time.monotonic()) < self._due:
            return
        try:
            self.plot(output_folder)
            self.report(output_folder)
        finally:
            ended = time.monotonic()
            self._due = ended + pause(ended - started)

    def record(self, folder: Path) -> None:
        """Add the last epoch to metrics.csv."""
        epoch = of_log(self.get_checkpoint())[-1]
        share = min(1.0, self._waited_s / epoch.seconds) if epoch.seconds > 0 else nan
        append_csv(folder / FILE, replace(epoch, waiting_share=share, memory_gb=self._memory_gb))

    def plot(self, output_folder: str) -> None:
        """Draw progress.png now; an error leaves the earlier picture as it was."""
        with plotted(Path(output_folder) / PICTURE, 12, 13, DPI) as figure:
            self.draw(figure)

    def draw(self, figure: "Figure") -> None:
        """Draw the course of the training."""
        epochs = of_log(self.get_checkpoint())
        figure.suptitle(label(self.title, 100), fontsize=14)
        rows = figure.subplots(5, 1, sharex=True, height_ratios=[3, 3, 4, 2, 2])
        loss, dice, classes, seconds, rate = rows
        _lines(loss, epochs, {"training": "train_loss", "validation patches": "validation_loss"}, "loss")
        _lines(dice, epochs, {"epoch": "dice_mean", "moving average": "dice_moving_average"}, "online Dice, mean")
        dice.set_ylim(-0.02, 1.02)
        self._draw_classes(classes, epochs)
        _lines(seconds, epochs, {"": "seconds"}, "seconds per epoch")
        _lines(rate, epochs, {"": "learning_rate"}, "learning rate")
        rate.set_xlabel("epoch   (online Dice: an estimate from random patches, not the final validation)")

    def report(self, output_folder: str, with_slices: bool = False) -> None:
        """Write the report of the fold; what fails is told, because no training may end for it."""
        try:
            write_fold(Path(output_folder), with_slices)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: a training is worth more than its report
            self._warn(f"{NAME} was not written: {type(error).__name__}: {error}")

    def _draw_classes(self, axes: "Axes", epochs: Sequence[Epoch]) -> None:
        count = max((len(epoch.dice_of_classes) for epoch in epochs), default=0)
        names = list(self.classes) if len(self.classes) == count else [f"class {k + 1}" for k in range(count)]
        last = epochs[-1].dice_of_classes if epochs else ()
        worst = sorted(range(len(last)), key=lambda k: (not isfinite(last[k]), last[k] if isfinite(last[k]) else 0, k))
        for k in sorted(worst[:CLASSES]):
            values = [epoch.dice_of_classes[k] if k < len(epoch.dice_of_classes) else nan for epoch in epochs]
            axes.plot([epoch.number for epoch in epochs], values, label=label(names[k], 28), marker=_marker(epochs))
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("online Dice" if count <= CLASSES else f"online Dice, worst {CLASSES} of {count}")
        axes.grid(alpha=0.3)
        if worst:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


class PretrainingLogger(Logger):
    """Plots loss and measure of a pre-training beside what they are for a network that knows nothing.

    Its numbers per epoch are in pretraining.json: it writes no metrics.csv.

    Attributes:
        measure: Name of the measure, which is logged as nnU-Net's Dice.
        chance: What it is by chance.
        untrained: What it was before the first step; None if that is by chance.
        chance_loss: What the loss is by chance; None if that is not known.
    """

    measure = ""
    chance = 0.0
    untrained: float | None = None
    chance_loss: float | None = None

    def begin(self, trainer: "BaseTrainer") -> None:
        self.title = f"{trainer.plan.dataset_name} · {trainer.plan.name}"
        self._warn = trainer.listener.warning
        if trainer.local_rank == 0:
            write_environment(Path(trainer.output_folder), _device_name(trainer.device))

    def record(self, folder: Path) -> None:
        return

    def draw(self, figure: "Figure") -> None:
        epochs = of_log(self.get_checkpoint())
        numbers = [epoch.number for epoch in epochs]
        figure.suptitle(label(self.title, 100), fontsize=14)
        losses, measures, rates = figure.subplots(3, 1, sharex=True)
        _lines(losses, epochs, {"training": "train_loss", "held-out subjects": "validation_loss"}, "loss")
        if self.chance_loss is not None:
            losses.axhline(self.chance_loss, color="gray", linestyle="--", label="chance")
        measures.plot(numbers, [e.dice_mean for e in epochs], color="tab:orange", label="held-out subjects")
        measures.axhline(self.chance, color="gray", linestyle="--", label="chance")
        if self.untrained is not None:
            measures.axhline(self.untrained, color="gray", linestyle=":", label="untrained")
        measures.set_ylabel(self.measure)
        measures.grid(alpha=0.3)
        _lines(rates, epochs, {"": "learning_rate"}, "learning rate")
        rates.set_xlabel("epoch")
        losses.legend()
        measures.legend()


def pause(took_s: float) -> float:
    """Return the seconds until the next drawing, after one that took this long."""
    return max(INTERVAL_S, took_s / SHARE)


def _lines(axes: "Axes", epochs: Sequence[Epoch], names: Mapping[str, str], title: str) -> None:
    """Draw numbers of the epochs; `names` has the attribute by the name of the line."""
    for name, attribute in names.items():
        values = [getattr(epoch, attribute) for epoch in epochs]
        axes.plot([epoch.number for epoch in epochs], values, label=name, marker=_marker(epochs))
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _marker(epochs: Sequence[Epoch]) -> str | None:
    return "o" if len(epochs) < 3 else None  # a line of one epoch cannot be seen


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
