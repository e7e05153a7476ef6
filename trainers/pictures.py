"""Pictures of a pre-training: what the network saw of held-out patches, what it answered, and what it should have.

One PNG per epoch in which they are due, in the folder of the run: a row for each patch and slice, a column for each
title. The patches are the same in all epochs.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stunet.files import atomic_write

FOLDER = "pictures"
COUNT = 10  # of a run, about
PATCHES, SLICES = 2, 3  # rows
WHERE = (0.25, 0.75)  # the first and the last slice, as shares of the first axis
INCHES, DPI = 2.0, 100  # of a picture
PERCENTILES = 1.0, 99.0


def are_due(epoch: int, epochs: int) -> bool:
    """Return whether a picture is drawn after this epoch, counted from 1: the first, the last, and some between."""
    return epoch in (1, epochs) or epoch % max(1, round(epochs / COUNT)) == 0


def write(shown: Mapping[str, torch.Tensor], folder: Path, epoch: int) -> None:
    """Write FOLDER/epoch_0010.png; each row has the grey values of its target, the last of `shown`.

    Args:
        shown: (B, C, D, H, W) or (B, C, H, W) each, by title; the first channel and samples are drawn.
        folder: Of the run.
        epoch: How many are complete.
    """
    path = folder / FOLDER / f"epoch_{epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    columns = {
        title: [each for image in images[:PATCHES, 0] for each in _slices(image)] for title, images in shown.items()
    }
    rows = len(next(iter(columns.values())))
    figure = Figure((INCHES * len(columns), INCHES * rows + 0.3), dpi=DPI, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    targets = list(columns.values())[-1]
    for column, (title, images) in enumerate(columns.items()):
        axes[0, column].set_title(title, color="white", size=10)
        for row, image in enumerate(images):
            low, high = np.percentile(targets[row], PERCENTILES)
            ax = axes[row, column]
            ax.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
            ax.set_axis_off()
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=DPI, facecolor="black")


def _slices(image: torch.Tensor) -> list[np.ndarray]:
    """Return slices across the first axis, (H, W) each; of a 2D image (H, W) itself."""
    values = image.detach().float().cpu().numpy()
    if values.ndim == 2:
        return [values]
    places = np.linspace(*WHERE, SLICES) * (len(values) - 1)
    return [values[round(place)] for place in places]
