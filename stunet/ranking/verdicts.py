"""Show and write what judging.py found: a table, a CSV and a JSON file, and a plot."""

import csv
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.files import atomic_write, write_json
from stunet.names import csv_cells
from stunet.plots import plotted
from stunet.ranking.agreement import Measure
from stunet.ranking.judging import BASELINES, Judgement, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITH_INTERVAL = ("weighted_tau", "topote_tau", "regret_1")  # in the table and the plot; the files have all
WITHOUT_INTERVAL = ("best",)  # is a mean over draws itself
BLUE, GREY = "#0072B2", "0.5"  # scores; what they have to beat


def table(judgement: Judgement) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table: of several targets only their means."""
    columns = ["pool", "score", "candidates"]
    for measure in judgement.measures:
        columns += [measure.heading, *["95 % interval"] * (measure.name in WITH_INTERVAL)]
        columns += ["p", "minus static", "95 % interval"] * (measure is judgement.measures[0])
    return columns, [_cells(row, judgement.measures) for row in main_rows(judgement)]


def main_rows(judgement: Judgement) -> list[Row]:
    """Return the rows of means, and of a table with a single target that target's."""
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in judgement.rows:
        tables.setdefault((row.pool, tuple(row.without), row.score), []).append(row)
    return [rows[0] for rows in tables.values()]


def _cells(row: Row, measures: Sequence[Measure]) -> list[str]:
    targets = f" x {row.targets}" if row.targets > 1 else ""
    cells = [_pool(row), row.score, row.candidates + targets]
    for measure in measures:
        value, low, high = (found[measure.name] for found in (row.values, row.low, row.high))
        cells.append("-" if isnan(value) else f"{value:.{measure.places}f}")
        if measure.name in WITH_INTERVAL:
            cells.append("-" if isnan(low) else f"{low:.{measure.places}f} to {high:.{measure.places}f}")
        if measure is measures[0]:
            cells.append("-" if isnan(row.p) else f"{row.p:.2g}")
            gain, low, high = row.gain
            cells.append("-" if isnan(gain) else f"{gain:+.3f}")
            cells.append("-" if isnan(low) else f"{low:+.3f} to {high:+.3f}")
    return cells


def _pool(row: Row) -> str:
    return row.pool if not row.without else f"{row.pool} without {', '.join(row.without)}"


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Return the judgement as it is written, with None for NaN."""
    return {"rows": [_record(row, judgement.measures) for row in judgement.rows], "notes": list(judgement.notes)}


def _record(row: Row, measures: Sequence[Measure]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pool": row.pool,
        "without": list(row.without),
        "target": row.target or "mean",
        "targets": row.targets,
        "score": row.score,
        "candidates": row.candidates,
        "first": list(row.first),
        "p": row.p,
        **dict(zip(("minus_static", "minus_static_low", "minus_static_high"), row.gain, strict=True)),
    }
    for measure in measures:
        record[measure.name] = row.values[measure.name]
        if measure.name not in WITHOUT_INTERVAL:
            record |= {f"{measure.name}_low": row.low[measure.name], f"{measure.name}_high": row.high[measure.name]}
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in record.items()}


def write(judgement: Judgement, folder: Path) -> list[Path]:
    """Write judged.json, judged.csv (also by target) and judged.png; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"judged.{ending}" for ending in ("json", "csv", "png")]
    content = to_json(judgement)
    write_json(paths[0], content)
    with atomic_write(paths[1]) as part, part.open("w", newline="") as file:
        lines = [list(content["rows"][0]), *(map(_cell, row.values()) for row in content["rows"])]
        csv.writer(file).writerows(map(csv_cells, lines))
    plot(judgement, paths[2])
    return paths


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(value)
    return "" if value is None else value


def plot(judgement: Judgement, path: Path) -> None:
    """Plot the weighted tau and the regret of every score in every pool, with intervals; baselines are grey."""
    rows = main_rows(judgement)[::-1]  # from the top
    shown = [judgement.measures[0], *(m for m in judgement.measures[1:] if m.name in WITH_INTERVAL)]
    with plotted(path, 10, 1.5 + 0.28 * len(rows)) as figure:
        panels = figure.subplots(1, len(shown), sharey=True)
        for axes, measure in zip(panels, shown, strict=True):
            _draw(axes, rows, measure)
        panels[0].set_yticks(range(len(rows)), [f"{_pool(row)}: {row.score}" for row in rows])
        panels[0].set_ylim(-0.7, len(rows) - 0.3)


def _draw(axes: "Axes", rows: Sequence[Row], measure: Measure) -> None:
    """Draw a panel: a point and an interval for each row; a line separates the pools."""
    for y, row in enumerate(rows):
        value, low, high = (found[measure.name] for found in (row.values, row.low, row.high))
        colour = GREY if row.score in BASELINES else BLUE
        if not isnan(low):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
        if not isnan(value):
            axes.plot(value, y, "o", color=colour, markersize=5)
        if y and _pool(row) != _pool(rows[y - 1]):
            axes.axhline(y - 0.5, color="0.85", linewidth=1)
    unit = ", Dice points (less is better)" if measure.name.startswith("regret") else ""
    axes.set_xlabel(measure.heading + unit)
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.grid(axis="x", color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
