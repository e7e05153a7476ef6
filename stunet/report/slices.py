"""Slices of a case with the outlines of reference and prediction, where they differ most.

Planes are those of results/planes.py: oriented as in radiology, in mm. The reference is a solid line, the prediction a
dashed one, in the colour of the class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stunet.datasets.check import UNREADABLE
from stunet.errors import Interrupted, StunetError
from stunet.images import file_reader
from stunet.report.blocks import Block, Text
from stunet.report.figures import WIDTH, drawn, label, png
from stunet.results.colours import unit_colour
from stunet.results.planes import Plane, cut
from stunet.results.preview import window_of
from stunet.results.segmentation import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CLASSES = 10  # that are outlined: those of the case that are worst
PIXELS = 256  # of the longest side of a slice
TALLEST = 2.7  # inches of a slice


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """A case of which slices are shown.

    Attributes:
        title: Name of the case, with its numbers.
        images: Its image files; the first channel is shown. Without any, outlines are drawn on black.
        reference: Reference segmentation, on the grid of the image.
        prediction: Prediction, on the same grid.
        reader: nnU-Net's class that reads these files.
        dataset: dataset.json with the `labels` of both files.
        worst: Names of its classes, worst first; the first of them are outlined.
    """

    title: str
    images: Sequence[Path]
    reference: Path
    prediction: Path
    reader: str
    dataset: Mapping[str, Any]
    worst: Sequence[str]


class _NotShown(Exception):
    """Why there are no slices."""


def slices(case: Sliced) -> Block:
    """Return three slices through the largest differences of a case; or why they cannot be shown."""
    try:
        draw, height, caption, alt = _prepared(case)
        return drawn(draw, height, caption, alt)
    except _NotShown as reason:
        return Text(f"{case.title}: no slices, because {reason}")


def picture(case: Sliced) -> bytes | None:
    """Return the same slices as a PNG; None if they cannot be shown."""
    try:
        draw, height, _, _ = _prepared(case)
        return png(draw, height)
    except _NotShown:
        return None


def _prepared(case: Sliced) -> "tuple[Callable[[Canvas], None], float, str, str]":
    """Return what draws the slices, their height in inches, caption and alternative text."""
    try:
        return _read(case)
    except Interrupted:
        raise
    except (StunetError, KeyError, *UNREADABLE) as error:
        # Readers raise all of these for files that are missing, damaged or of another kind: a report does without.
        told = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise _NotShown(f"its files cannot be shown ({told})") from None


def _read(case: Sliced) -> "tuple[Callable[[Canvas], None], float, str, str]":
    title, dataset = case.title, case.dataset
    files = file_reader(case.reader)
    true, properties = files.read_seg(str(case.reference))
    guess, _ = files.read_seg(str(case.prediction))
    true, guess = (np.asarray(array)[0].astype(np.int64) for array in (true, guess))
    if true.shape != guess.shape:
        raise _NotShown(f"prediction {guess.shape} and reference {true.shape} differ in shape")
    note, grey = "", np.zeros(true.shape, np.float32)
    existing = [path for path in case.images[:1] if path.is_file()]
    if existing:
        grey = files.read_images([str(existing[0])])[0][0]
    if grey.shape != true.shape:
        note, grey = f"; its image has another shape, {grey.shape}", np.zeros(true.shape, np.float32)
    elif not existing:
        note = "; its image was not found"
    named = Segmentation.from_properties(np.zeros(true.shape, np.uint8), properties, dataset)
    outlined = {name: named.values(name) for name in case.worst[:CLASSES] if name in named.names}
    wrong = np.zeros(true.shape, np.uint8)
    for values in outlined.values():
        wrong |= np.isin(true, values) != np.isin(guess, values)
    # Where classes agree everywhere, the planes are those with most of the reference.
    guide = replace(named, labels_DHW=wrong if wrong.any() else (true > 0).astype(np.uint8))
    planes = list(zip(*(cut(guide, array) for array in (grey, true, guess)), strict=True))
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    low, high = window_of([plane for plane, _, _ in planes], str(channels.get("0", "")).casefold() == "ct")

    def draw(canvas: "Canvas") -> None:
        row = canvas.subplots(1, len(planes), squeeze=False)[0]
        for axes, (plane, of_reference, of_prediction) in zip(row, planes, strict=True):
            _draw(axes, plane, low, high)
            for name, values in outlined.items():
                for side, style in ((of_reference, "solid"), (of_prediction, "dashed")):
                    _outline(axes, side, values, style, unit_colour(name))
        if outlined:
            from matplotlib.lines import Line2D

            lines = [Line2D([], [], color=unit_colour(name), label=label(name, 24)) for name in outlined]
            canvas.legend(handles=lines, loc="outside lower left", ncols=5, fontsize=8)

    caption = f"{title}. Solid lines: reference; dashed lines: prediction{note}."
    shown = ", ".join(plane.caption for plane, _, _ in planes if plane.caption) or "the image"
    alt = f"Slices of {title}: {shown}, with {', '.join(outlined)}"
    return draw, _height(planes, len(outlined)), caption, alt


def _height(planes: Sequence[tuple[Plane, Plane, Plane]], classes: int) -> float:
    """Return the inches that slices of the same width need, and their legend."""
    tallest = max(plane.size_mm[0] / plane.size_mm[1] for plane, _, _ in planes)
    return float(min(TALLEST, max(1.4, tallest * WIDTH / max(len(planes), 2)))) + 0.5 + 0.18 * -(-classes // 5)


def _draw(axes: "Axes", plane: Plane, low: float, high: float) -> None:
    height, width = plane.size_mm
    step = [max(1, -(-size // PIXELS)) for size in plane.image.shape]
    grey = plane.image[:: step[0], :: step[1]].astype(np.float32)
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0), interpolation="none")
    axes.set_title(plane.caption, fontsize=8)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.grid(visible=False)
    for letter, x, y, turn in zip(plane.edges, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03), "lrtb", strict=True):
        across = {"l": "left", "r": "right"}.get(turn, "center")
        along = {"t": "top", "b": "bottom"}.get(turn, "center")
        axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=along, color="#f0f0f0", fontsize=8)


def _outline(axes: "Axes", plane: Plane, values: Sequence[int], style: str, colour: tuple[float, float, float]) -> None:
    mask = np.pad(np.isin(plane.image, values), 1)
    if not mask.any():
        return
    rows, columns = plane.image.shape
    y = (np.arange(-1, rows + 1) + 0.5) / rows * plane.size_mm[0]
    x = (np.arange(-1, columns + 1) + 0.5) / columns * plane.size_mm[1]
    axes.contour(x, y, mask.astype(np.float32), levels=[0.5], colors=[colour], linestyles=style, linewidths=1.1)
