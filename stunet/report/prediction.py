"""The report of a prediction: what ran, volumes beside those of the training's references, structures at the border.

Volumes need `--statistics`, pictures `--preview`. runs/prediction_stages.py writes it; the same facts as JSON are
results/run_report.py's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import StunetError
from stunet.report.blocks import Block, Facts, Figure, Page, Section, Table, Text, number, text
from stunet.report.compared import joined
from stunet.report.figures import embedded
from stunet.report.runs import Model
from stunet.report.training import FOOTER
from stunet.results.statistics import JSON_FILE, Measurement, read_statistics

PICTURES = 3_000_000  # bytes of previews that are shown; the others lie beside the page
RANGE = 1.0, 99.0  # percentiles of the references' volumes between which one is usual
LEAST = 10  # references below which there is no range
UNUSUAL = 200  # lines of the table


def page(run: Mapping[str, Any], folder: Path, model: Path | None, preview_ending: str) -> Page:
    """Return the report of a prediction.

    Args:
        run: Content of the run's report (results/run_report.py).
        folder: Of the results.
        model: The model's folder, with its validation; None: not known.
        preview_ending: What the name of a case's preview ends with.
    """
    cases = list(run["cases"])
    failed = [[text(case["name"]), text(case["error"])] for case in cases if case["error"]]
    facts = [("device", str(run["device"])), ("started", str(run["started"])), ("command", " ".join(run["command"]))]
    facts += [(name, str(value)) for name, value in run["versions"].items()]
    facts += [(f"SHA-256 of fold {fold}", str(value)) for fold, value in _checkpoints(run).items()]
    names = [case["name"] for case in cases]
    return Page(
        title=f"Prediction of {len(cases)} cases",
        subtitle=f"in {folder.resolve().name}",
        headline=[("cases", str(len(cases))), ("failed", str(len(failed)))],
        sections=[
            Section("Failed", [Table("Cases without a result", ["case", "why"], failed)] if failed else []),
            Section("Volumes", _volumes(folder, names, model)),
            Section("Previews", _previews(folder, names, preview_ending)),
            Section("Time and memory", [_times(cases)] if cases else []),
            Section("What ran", [Facts(facts)]),
        ],
        footer=FOOTER,
    )


def _checkpoints(run: Mapping[str, Any]) -> Mapping[str, Any]:
    found = run["made_by"].get("checkpoints")
    return found if isinstance(found, Mapping) else {}


def _volumes(folder: Path, names: Sequence[str], model: Path | None) -> list[Block]:
    try:
        known = read_statistics(folder / JSON_FILE)
    except StunetError:
        return [Text("Volumes were not measured: --statistics measures them.")]
    measured = {name: known[name] for name in names if name in known}
    if not measured:
        return [Text("Volumes were not measured: --statistics measures them.")]
    usual = _usual(model)
    classes = list(dict.fromkeys(name for rows in measured.values() for name in rows))
    table = Table(
        "Classes",
        ["class", "cases", "median ml", "least ml", "most ml", "at the border", "references, 1 to 99 %"],
        [_row(name, [rows[name] for rows in measured.values() if name in rows], usual.get(name)) for name in classes],
        "A structure at the border of the image may go on outside: its volume is a lower bound. The last column is of "
        f"the references in the model's validation, for classes that at least {LEAST} of them have.",
        frozenset(range(1, 7)),
    )
    return [table, *_unusual(measured, usual)]


def _row(name: str, rows: Sequence[Measurement], usual: tuple[float, float] | None) -> list[Any]:
    found = [row.volume_mm3 / 1000 for row in rows if row.voxels and row.volume_mm3 is not None]
    return [
        text(name),
        number(float(sum(row.voxels > 0 for row in rows)), ".0f"),
        number(float(np.median(found)) if found else None, ".4g"),
        number(min(found) if found else None, ".4g"),
        number(max(found) if found else None, ".4g"),
        number(float(sum(row.touches_border for row in rows)), ".0f"),
        text(f"{usual[0]:.4g} to {usual[1]:.4g}" if usual else "-"),
    ]


def _usual(model: Path | None) -> dict[str, tuple[float, float]]:
    """Return the range of each class's volume in ml in the references of the model's validation, where known."""
    parts = [part for fold in (Model(model).folds() if model else ()) if (part := fold.compared)]
    compared = joined(parts) if parts else None
    if compared is None or compared.unit != "ml":
        return {}
    found = {}
    for k, name in enumerate(compared.classes):
        there = compared.reference[:, k][compared.reference[:, k] > 0]
        if len(there) >= LEAST:
            low, high = np.percentile(there, RANGE)
            found[name] = (float(low), float(high))
    return found


def _unusual(
    measured: Mapping[str, Mapping[str, Measurement]], usual: Mapping[str, tuple[float, float]]
) -> list[Block]:
    """Return the volumes that are outside of the usual range."""
    rows = []
    for case, classes in measured.items():
        for name, row in classes.items():
            if row.volume_mm3 is None or not row.voxels or name not in usual:
                continue
            volume, (low, high) = row.volume_mm3 / 1000, usual[name]
            if not low <= volume <= high:
                told = "too small" if volume < low else "too large"
                border = ", at the border" if row.touches_border else ""
                rows.append([text(case), text(name), number(volume, ".4g"), text(f"{told} for the references{border}")])
    if not rows:
        return []
    more = f" The first {UNUSUAL} of {len(rows)}." if len(rows) > UNUSUAL else ""
    title = "Volumes that few references have"
    note = f"Outside of the range above; two of a hundred usual ones are.{more}"
    return [Table(title, ["case", "class", "ml", "why"], rows[:UNUSUAL], note, frozenset({2}))]


def _previews(folder: Path, names: Sequence[str], ending: str) -> list[Block]:
    blocks: list[Block] = []
    left, room = 0, PICTURES
    for name in names:
        path = folder / f"{name}{ending}"
        if not path.is_file():
            continue
        content = path.read_bytes()
        figure: Figure | None = embedded(content, name, f"Three planes through the segmentation of {name}.")
        if figure is None or len(content) > room:
            left += 1
            continue
        room -= len(content)
        blocks.append(figure)
    if left:
        blocks.append(Text(f"{left} more previews lie in the folder of the results, as CASE{ending}."))
    return blocks


def _times(cases: Sequence[Mapping[str, Any]]) -> Table:
    stages = list(dict.fromkeys(stage for case in cases for stage in case["seconds"]))
    rows = [
        [
            text(case["name"]),
            *(number(case["seconds"].get(stage), ".1f") for stage in stages),
            number(sum(case["seconds"].values()), ".1f"),
            number(case["peak_gb"], ".1f"),
        ]
        for case in cases
    ]
    columns = ["case", *(f"{stage} s" for stage in stages), "all s", "peak GB"]
    return Table("Seconds by stage, and memory", columns, rows, "", frozenset(range(1, len(columns))))
