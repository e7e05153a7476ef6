"""The report of an evaluation: the same sections as a training's final validation. runs/evaluation.py writes it."""

import shlex
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from stunet.datasets import find_reader
from stunet.datasets.listing import ending_of
from stunet.errors import DataError
from stunet.report import comparison
from stunet.report.blocks import Block, Command, Facts, Page, Section, Table, Text, text
from stunet.report.compared import of_summary
from stunet.report.slices import Sliced, slices
from stunet.report.training import FOOTER


def page(
    metrics: Mapping[str, Any],
    predictions: Path,
    references: Path,
    dataset: Mapping[str, Any],
    images: Mapping[str, Sequence[Path]],
    left_out: Mapping[str, str],
    names: Path | None = None,
) -> Page:
    """Return the report of an evaluation.

    Args:
        metrics: Content of the summary.
        predictions: Folder or file.
        references: Folder or file.
        dataset: dataset.json with the labels of both; empty if they differ, and there are no slices then.
        images: Image files by case; empty if they are not known.
        left_out: Why cases were left out; "" for files without a partner.
        names: The dataset.json that was given; None: it lies where the viewer finds it.
    """
    entry = metrics["metric_per_case"][0]
    ending = ending_of(Path(entry["prediction_file"]).name, str(dataset.get("file_ending", ".nii.gz")))
    compared = of_summary(metrics, metrics["labels"], ending)
    assert compared is not None  # an evaluation has a case, and a class
    reader = _reader(dataset, compared.files[0][1]) if dataset else None

    def slices_of(position: int) -> list[Block]:
        case, dice = compared.cases[position], compared.dice[position]
        worst = sorted((k for k in range(len(dice)) if isfinite(dice[k])), key=lambda k: dice[k])
        prediction, reference = compared.files[position]
        title, shown = f"{case}: mean Dice {compared.case_means()[position]:.3f}", [compared.classes[k] for k in worst]
        files = [str(path.absolute()) for path in (*images.get(case, ()), prediction)]
        options = ["--reference", str(reference.absolute()), *(["-djfile", str(names.absolute())] if names else [])]
        return [
            slices(
                Sliced(
                    title=title,
                    images=images.get(case, ()),
                    reference=reference,
                    prediction=prediction,
                    reader=reader or "",
                    dataset=dataset,
                    worst=shown,
                )
            ),
            Command("In the viewer", shlex.join(["stunet_view", *files, *options])),
        ]

    facts = [("predictions", str(predictions)), ("references", str(references))]
    facts += [("tolerance of the NSD", f"{metrics['tolerance_mm']:g} mm")]
    if system := metrics.get("label_system"):
        facts.append(("label system", str(system)))
    missing = [[text(name), text(why or "no partner, or no content")] for name, why in left_out.items()]
    return Page(
        title=f"Evaluation of {predictions.resolve().name}",
        subtitle=f"against {references.resolve().name}",
        headline=comparison.headline(compared),
        sections=[
            *comparison.sections(compared, slices_of if reader else None),
            Section("Left out", [Table("Files that were left out", ["name", "why"], missing)] if missing else []),
            Section("What was compared", [Facts(facts), *_no_slices(reader)]),
        ],
        footer=FOOTER,
    )


def _reader(dataset: Mapping[str, Any], reference: Path) -> str | None:
    """Return the name of nnU-Net's class for these files; None if it has none."""
    try:
        return str(find_reader(dict(dataset), reference).__name__)
    except (DataError, RuntimeError):
        return None


def _no_slices(reader: str | None) -> list[Block]:
    told = "No slices are drawn: predictions have other label values than references, or no reader takes the files."
    return [] if reader else [Text(told)]
