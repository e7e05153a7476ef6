"""The drawings of reports: curves over epochs, distributions, volume agreement, bars, histograms, reliability.

Each function returns a Figure with caption and alternative text. figures.py sets style and colours.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING

import numpy as np

from stunet.report.blocks import Figure
from stunet.report.compared import Compared, nanmean
from stunet.report.figures import COLOURS, INK, WIDTH, drawn, is_many, label, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

ROW = 0.2  # inches of a class in a distribution
ROWS = 40  # classes of a drawing: more do not fit on a page of paper
PANELS = 6  # classes up to which each has its own picture of volumes
OUTSIDE = 1.96  # standard deviations of the limits of agreement


def curves(
    title: str,
    epochs: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    unit: str,
    caption: str,
    height: float = 2.6,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Draw numbers over epochs.

    Args:
        title: What is drawn.
        epochs: Numbers of the epochs.
        lines: Values for each epoch by the name of the line; NaN leaves a gap.
        unit: Of the vertical axis.
        caption: See blocks.Figure.
        height: In inches.
        log: Whether the vertical axis is logarithmic.
        limits: Of the vertical axis.
        width: In inches.
    """

    from matplotlib.ticker import MaxNLocator

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        axes.set(title=label(title, 80), xlabel="epoch", ylabel=unit)
        known = 0
        for position, (name, values) in enumerate(lines.items()):
            numbers = np.asarray(values, float)
            known += int(np.isfinite(numbers).sum())
            # A single epoch is a dot, and so are epochs between others that are unknown.
            marker = "o" if np.isfinite(numbers).sum() < 3 else None
            axes.plot(
                epochs,
                np.where(np.isfinite(numbers), numbers, nan),
                color=COLOURS[position % len(COLOURS)],
                linestyle=("-", "--", ":", "-.")[position // len(COLOURS) % 4],
                label=label(name, 30),
                marker=marker,
                markersize=3,
            )
        if not known:
            say(axes, "no numbers")
        elif log and min(v for values in lines.values() for v in values if isfinite(v)) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        if limits and known:
            axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.legend(ncols=2 if len(lines) > 4 else 1, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    last = {name: [v for v in values if isfinite(v)] for name, values in lines.items()}
    told = ", ".join(f"{name} {values[-1]:.4g}" for name, values in list(last.items())[:12] if values)
    alt = f"{title} over {len(epochs)} epochs. At the end: {told or 'no numbers'}."
    return drawn(draw, height, caption, alt, width)


def distributions(compared: Compared, order: Sequence[int]) -> list[Figure]:
    """Draw the Dice of every case, a row per class, with the median; several drawings where there are many classes.

    Args:
        compared: The numbers.
        order: Positions of the classes, from the top.
    """
    many = is_many(int(np.isfinite(compared.dice).sum()))
    parts = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    return [_distribution(compared, part, number, len(parts), many) for number, part in enumerate(parts, 1)]


def _distribution(compared: Compared, part: Sequence[int], number: int, parts: int, many: bool) -> Figure:
    values = [column[np.isfinite(column)] for column in compared.dice[:, list(part)].T]
    names = [label(compared.classes[k], 36) for k in part]

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        shift = np.random.default_rng(0)
        for row, found in enumerate(values):
            heights = row + shift.uniform(-0.28, 0.28, len(found)) * (len(found) > 1)
            colour = COLOURS[0]
            axes.scatter(found, heights, s=7, color=colour, alpha=0.5, linewidths=0, rasterized=many)
            if len(found):
                axes.plot([np.median(found)] * 2, [row - 0.4, row + 0.4], color=COLOURS[1], linewidth=2)
        axes.set(xlabel="Dice", xlim=(-0.02, 1.02), ylim=(len(part) - 0.4, -0.6))
        axes.set_yticks(range(len(part)), names)
        axes.tick_params(axis="y", length=0)

    of = f" (part {number} of {parts})" if parts > 1 else ""
    caption = f"Dice of each case by class, worst class first{of}. A dot is a case, a line the median of its class."
    medians = [f"{name} {np.median(found):.3f}" for name, found in zip(names, values, strict=True) if len(found)]
    alt = f"Distribution of Dice over {len(compared.cases)} cases{of}. Medians: {', '.join(medians[:20]) or 'none'}"
    return drawn(draw, 0.75 + ROW * max(2, len(part)), caption, f"{alt}{' and others' * (len(medians) > 20)}.")


def volumes(compared: Compared) -> Figure | None:
    """Draw how volumes agree (Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8); None if no class occurs.

    Few classes have a panel each with differences in ml; of many, the differences are percent of the mean of both
    volumes, together in one panel.
    """
    if not np.isfinite(compared.difference()).any():
        return None
    return _volumes_by_class(compared) if len(compared.classes) <= PANELS else _volumes_together(compared)


def _volumes_by_class(compared: Compared) -> Figure:
    count = len(compared.classes)
    columns = min(3, count)
    rows = -(-count // columns)
    found, told = [], []
    for k, name in enumerate(compared.classes):
        difference = compared.difference()[:, k]
        known = np.isfinite(difference)
        middle = (compared.reference[known, k] + compared.prediction[known, k]) / 2
        found.append((name, middle, difference[known], *limits_of_agreement(difference)))
        bias, low, high = found[-1][3:]
        told.append(f"{name}: bias {bias:.3g} {compared.unit}, limits {low:.3g} to {high:.3g}")

    def draw(canvas: "Canvas") -> None:
        for axes, (name, middle, difference, *lines) in zip(
            canvas.subplots(rows, columns, squeeze=False).flat, found, strict=False
        ):
            axes.set_title(label(name, 34))
            axes.set(xlabel=f"mean volume, {compared.unit}", ylabel=f"prediction - reference, {compared.unit}")
            axes.scatter(
                middle, difference, s=9, color=COLOURS[0], alpha=0.6, linewidths=0, rasterized=is_many(len(middle))
            )
            _agreement_lines(axes, *lines)
        for axes in canvas.axes[count:]:
            axes.set_visible(False)

    return drawn(draw, 2.5 * rows, _agreement_caption("class"), f"Agreement of volumes. {'; '.join(told)}.")


def _volumes_together(compared: Compared) -> Figure:
    middle = (compared.reference + compared.prediction) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = 100 * compared.difference() / middle
    known = np.isfinite(percent) & (middle > 0)
    bias, low, high = limits_of_agreement(percent[known])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        # By row, and not by class: later classes would hide earlier ones.
        which = np.broadcast_to(np.arange(middle.shape[1]), middle.shape)[known]
        colours = np.array(COLOURS)[which % len(COLOURS)]
        many = is_many(int(known.sum()))
        axes.scatter(middle[known], percent[known], s=6, c=colours, alpha=0.5, linewidths=0, rasterized=many)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # without formulas, which names with dollars would be taken for
        axes.set(
            title="All classes",
            xlabel=f"mean volume, {compared.unit}",
            ylabel="prediction - reference, % of their mean",
            ylim=(-210, 210),
        )
        _agreement_lines(axes, bias, low, high)

    alt = f"Agreement of volumes of all classes: bias {bias:.3g} %, limits {low:.3g} to {high:.3g} %."
    return drawn(draw, 3.4, _agreement_caption("class and case"), alt)


def limits_of_agreement(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of differences, and the limits of agreement around it; NaN limits for fewer than two."""
    known = differences[np.isfinite(differences)]
    bias = float(nanmean(known, axis=0)) if len(known) else nan
    spread = OUTSIDE * float(known.std(ddof=1)) if len(known) > 1 else nan
    return bias, bias - spread, bias + spread


def _agreement_lines(axes: "Axes", bias: float, low: float, high: float) -> None:
    axes.axhline(0, color=INK, linewidth=0.8)
    for value, style in ((bias, "-"), (low, "--"), (high, "--")):
        if isfinite(value):
            axes.axhline(value, color=COLOURS[1], linestyle=style, linewidth=1.2)


def _agreement_caption(dot: str) -> str:
    what = "case" if dot == "class" else dot
    return (
        f"Volume agreement (Bland-Altman). A dot is a {what}; the solid line is the bias, the dashed lines are the "
        "95 % limits of agreement (1.96 standard deviations). Above zero, predictions are too large."
    )


def bars(title: str, values: Mapping[str, float], unit: str, caption: str, form: str = ".3g") -> Figure:
    """Draw a bar for each name, in the given order; at most ROWS of them."""
    shown = dict(list(values.items())[:ROWS])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        numbers = [value if isfinite(value) else 0.0 for value in shown.values()]
        axes.barh(range(len(shown)), numbers, color=COLOURS[0], height=0.7)
        for row, (number, value) in enumerate(zip(numbers, shown.values(), strict=True)):
            axes.text(number, row, f" {value:{form}}" if isfinite(value) else " -", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [label(name, 36) for name in shown])
        axes.set(title=label(title, 80), xlabel=unit, ylim=(len(shown) - 0.4, -0.6))
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)

    told = ", ".join(f"{name} {value:{form}}" for name, value in list(shown.items())[:20])
    return drawn(draw, 0.9 + ROW * max(2, len(shown)), caption, f"{title}: {told}.")


def histograms(panels: Mapping[str, Sequence[float]], units: Mapping[str, str], caption: str) -> Figure:
    """Draw a histogram for each name, side by side."""
    columns = min(3, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    told = [
        f"{name}: {min(v):.4g} to {max(v):.4g}, median {float(np.median(v)):.4g} {units.get(name, '')}".strip()
        for name, v in panels.items()
        if len(v)
    ]

    from matplotlib.ticker import MaxNLocator

    def draw(canvas: "Canvas") -> None:
        grid = canvas.subplots(rows, columns, squeeze=False).flat
        for axes, (name, values) in zip(grid, panels.items(), strict=False):
            axes.set(title=label(name, 34), xlabel=units.get(name, ""), ylabel="cases")
            if len(values) and max(values) > min(values):
                axes.hist(values, bins=np.linspace(min(values), max(values), 21), color=COLOURS[0])
                axes.xaxis.set_major_locator(MaxNLocator(4))
            else:
                all_are = (
                    f"{len(values)} cases, all {values[0]:.4g} {units.get(name, '')}" if len(values) else "no numbers"
                )
                say(axes, all_are)
                axes.set(xticks=[], yticks=[])
                continue
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in canvas.axes[len(panels) :]:
            axes.set_visible(False)

    return drawn(draw, 2.1 * rows, caption, "; ".join(told) + ".")


def reliability(classes: Mapping[str, tuple[Sequence[float], Sequence[float]]], caption: str) -> Figure:
    """Draw how often predictions of a confidence are right.

    Args:
        classes: For each name mean confidence and frequency of the class in bins of confidence; at most ten are drawn.
        caption: See blocks.Figure.
    """
    shown = dict(list(classes.items())[: len(COLOURS)])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfectly calibrated")
        for colour, (name, (confidence, frequency)) in zip(COLOURS, shown.items(), strict=False):
            axes.plot(confidence, frequency, color=colour, marker="o", markersize=3, label=label(name, 30))
        axes.set(xlabel="probability that the network states", ylabel="share of voxels that are the class")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return drawn(draw, 3.6, caption, f"Reliability diagram of {', '.join(shown)}.")
