"""nnU-Net's logger, with a progress.png that appears whole and is not drawn after every epoch; one for pre-training."""

import os
import time
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from stunet.files import remove, staging_name

INTERVAL_S = 60.0  # drawing takes seconds, as long as a short epoch


class Logger(MetaLogger):
    """Logs as nnU-Net does, and plots at most once in INTERVAL_S."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plotted = time.monotonic()

    def plot_progress_png(self, output_folder: str) -> None:
        """Plot if it is time; nnU-Net calls this after every epoch."""
        if time.monotonic() - self._plotted > INTERVAL_S:
            self.plot(output_folder)

    def plot(self, output_folder: str) -> None:
        """Plot now; an error leaves the earlier plot as it was."""
        self._plotted = time.monotonic()
        folder = Path(output_folder)
        # Drawn in a folder aside: whoever opens the file in between would see half a picture.
        part = folder / staging_name("plot")
        part.mkdir()
        try:
            self.draw(part)
            for file in part.iterdir():
                os.replace(file, folder / file.name)
        finally:
            remove(part)

    def draw(self, folder: Path) -> None:
        """Draw progress.png into a folder."""
        super().plot_progress_png(str(folder))


class PretrainingLogger(Logger):
    """Plots loss and measure of a pre-training beside what they are for a network that knows nothing.

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

    def draw(self, folder: Path) -> None:
        from matplotlib.figure import Figure  # takes half a second

        names = ("train_losses", "val_losses", "mean_fg_dice", "lrs")
        values = {name: self.get_value(name, None) for name in names}
        epochs = range(1, min(map(len, values.values())) + 1)
        figure = Figure(figsize=(10, 12), layout="constrained")
        losses, measures, rates = figure.subplots(3, 1, sharex=True)
        losses.plot(epochs, values["train_losses"][: len(epochs)], label="training")
        losses.plot(epochs, values["val_losses"][: len(epochs)], label="held-out subjects")
        if self.chance_loss is not None:
            losses.axhline(self.chance_loss, color="gray", linestyle="--", label="chance")
        measures.plot(epochs, values["mean_fg_dice"][: len(epochs)], color="tab:orange", label="held-out subjects")
        measures.axhline(self.chance, color="gray", linestyle="--", label="chance")
        if self.untrained is not None:
            measures.axhline(self.untrained, color="gray", linestyle=":", label="untrained")
        rates.plot(epochs, values["lrs"][: len(epochs)], color="tab:green")
        rates.set_xlabel("epoch")
        for axes, name in ((losses, "loss"), (measures, self.measure), (rates, "learning rate")):
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        losses.legend()
        measures.legend()
        figure.savefig(folder / "progress.png")
