"""Show and write a ranking: a table, a CSV file, a plot, a page."""

import csv
from math import isfinite
from pathlib import Path
from typing import Any

from stunet.files import atomic_write, write_json
from stunet.names import csv_cells
from stunet.plots import plotted
from stunet.ranking.outcome import FILE, Candidate, Outcome, Result
from stunet.report import tables as report_tables
from stunet.report.blocks import Text

COLUMNS = 4  # of panels
LONGEST = 40  # letters of a name in the plot
BLUE, GREY = "#0072B2", "0.6"


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: the ranked candidates, then the others with the reason."""
    more = list(outcome.scores)[1:]
    columns = ["rank", "model", outcome.first, "95 % interval", "P(best)", *more]
    columns += ["network", "parameters", "hours", "licence", "against"]
    ranked = outcome.order
    rows = []
    for number, name in enumerate([*ranked, *(name for name in outcome.candidates if name not in ranked)], start=1):
        candidate, found = outcome.candidates[name], outcome.scores[outcome.first].get(name)
        if isinstance(found, Result):
            first = [str(number), name, _number(found.score), _interval(found), _share(found.p_best)]
        else:
            first = ["-", name, "-", "-", "-"]
        # The reason that it has no rank, and else what speaks against it.
        why = candidate.error or ("; ".join(candidate.against) if isinstance(found, Result) else found)
        others = [outcome.scores[score].get(name) for score in more]
        rows.append([
            *first,
            *(_number(other.score) if isinstance(other, Result) else "-" for other in others),
            *_cells(candidate),
            why or "-",
        ])  # fmt: skip
    return columns, rows


def _cells(candidate: Candidate) -> list[str]:
    facts = candidate.facts
    return [
        facts.network or "-",
        f"{facts.parameters / 1e6:.1f} M" if facts.parameters else "-",
        "-" if candidate.hours is None else _hours(candidate.hours),
        candidate.licence or "-",
    ]


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours < 1 else f"{hours:.1f}" if hours < 100 else f"{hours:,.0f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.2f}" if isfinite(value) else "-"


def _interval(result: Result) -> str:
    return f"{_number(result.low)} to {_number(result.high)}" if isfinite(result.low) else "-"


def write(outcome: Outcome, folder: Path) -> list[Path]:
    """Write rank.json, rank.csv, rank.png and rank.html; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / FILE, folder / "rank.csv", folder / "rank.png", folder / "rank.html"]
    write_json(paths[0], outcome.to_json())
    with atomic_write(paths[1]) as part, part.open("w", newline="") as file:
        lines: list[list[Any]] = [["score", "candidate", "value", "low", "high", "p_best", "error"]]
        for score, results in outcome.scores.items():
            for name, found in results.items():
                if isinstance(found, Result):
                    bounds = [value if isfinite(value) else "" for value in (found.low, found.high, found.p_best)]
                    lines.append([score, name, found.score, *bounds, ""])
                else:
                    lines.append([score, name, "", "", "", "", found])
        csv.writer(file).writerows(map(csv_cells, lines))
    plot(outcome, paths[2])
    note = "Higher is better. The first score decides the order; P(best): share of resampled cases in which it is best."
    models = report_tables.of_texts("Models", *table(outcome), note)
    subtitle = f"{len(outcome.cases)} cases, {len(outcome.classes) - 1} classes"
    said = [Text(outcome.verdict())]
    report_tables.write_page(paths[3], f"Ranking for {outcome.target}", subtitle, models, paths[2], said)
    return paths


def _label(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}...{name[-LONGEST // 2 :]}"


def plot(outcome: Outcome, path: Path) -> None:
    """Plot each score of each candidate with its interval, in the order of the first; blue: not told from the best."""
    names = outcome.order[::-1]  # from the top
    same = set(outcome.not_worse()) if names else set()
    shown = {
        score: found for score, found in outcome.scores.items() if any(isinstance(r, Result) for r in found.values())
    }
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    wide = 0.08 * max(map(len, map(_label, names)))
    with plotted(path, 0.5 + wide + 2.8 * columns, 0.5 + rows * (0.9 + 0.28 * len(names))) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        for axes, (score, results) in zip(panels, shown.items(), strict=False):
            for y, name in enumerate(names):
                if isinstance(found := results.get(name), Result):
                    colour = BLUE if name in same else GREY
                    axes.plot([found.low, found.high], [y, y], color=colour, linewidth=1.5)
                    axes.plot(found.score, y, "o", color=colour, markersize=5)
            axes.set_xlabel(score)
            axes.grid(axis="x", color="0.93")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_yticks(range(len(names)), map(_label, names))
        panels[0].set_ylim(-0.7, len(names) - 0.3)
        figure.suptitle(f"{outcome.target}: {len(outcome.cases)} cases, higher is better", fontsize=10)
