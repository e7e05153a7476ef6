"""The report of a union before it is built: what speaks against it, its sources, labels, folds and size.

cli/merge.py shows the same tables, and writes the page beside the recipe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stunet.machine import GB
from stunet.merging import Finding
from stunet.merging.check import CheckedUnion
from stunet.merging.estimate import Estimate, label_counts
from stunet.merging.recipe import Recipe
from stunet.merging.union import Member, Union
from stunet.report.blocks import Block, Cell, Facts, Page, Section, Table, Text, text
from stunet.report.plots import bars, histograms
from stunet.report.training import FOOTER

DRAWN = 12  # sources with histograms
LEAVES = 6  # of a label that are named
SOURCES = "source", "cases", "modality", "labels", "licence", "weight", "draws"
LABELS = "label", "value", "leaves", "cases", "voxels", "sources"
OVERLAPS = "output", "overlaps"

Rows = list[list[str]]


def sources(union: Union) -> Rows:
    """Return a row of SOURCES for each source."""
    shares = union.shares()
    return [_source(union, name, member, shares[name]) for name, member in union.members.items()]


def labels(union: Union) -> Rows:
    """Return a row of LABELS for each label of the union."""
    rows = []
    for label, (cases, voxels) in label_counts(union).items():
        leaves = union.annotations.labels[label]
        more = f" and {len(leaves) - LEAVES} more" if len(leaves) > LEAVES else ""
        shown = "" if len(leaves) == 1 else ", ".join(leaves[:LEAVES]) + more
        annotating = ", ".join(f"{name} {number}" for name, number in union.annotating(label).items())
        rows.append([label, str(union.values[label]), shown, str(cases), str(voxels), annotating])
    return rows


def overlaps(union: Union) -> Rows:
    """Return a row of OVERLAPS for each output of a sigmoid head that shares leaves with others."""
    outputs: Mapping[str, Any] = union.annotations.labels if union.recipe.head == "sigmoid" else {}
    rows = []
    for name, leaves in outputs.items():
        others = [other for other, own in outputs.items() if other != name and set(own) & set(leaves)]
        if others:
            rows.append([name, ", ".join(others)])
    return rows


def sizes(union: Union, estimate: Estimate) -> list[tuple[str, str]]:
    """Return folds and expected sizes, each with its name."""
    spacing = " x ".join(f"{pitch:.3g}" for pitch in estimate.spacing)
    folds = ", ".join(f"{len(fold['train'])}/{len(fold['val'])}" for fold in union.folds)
    return [
        ("folds", f"{folds} (training/validation)"),
        ("raw dataset", f"about {_size(estimate.raw_bytes)}, images by {union.recipe.images}"),
        (f"preprocessed at {spacing} mm", f"up to {_size(estimate.preprocessed_bytes)} before compression"),
        ("largest case", f"{_size(estimate.case_bytes)} of images per process that preprocesses it, at least"),
    ]


def page(recipe: Recipe, checked: CheckedUnion, findings: Sequence[Finding]) -> Page:
    """Return the report of a check.

    Args:
        recipe: What is to be built.
        checked: What the check has found out.
        findings: All of them, also of sources that could not be opened.
    """
    union, estimate = checked.union, checked.estimate
    problems = sum(finding.fatal for finding in findings)
    numbers = [("sources", str(len(recipe.sources))), ("problems", str(problems))]
    parts = [Section("What the check found", _findings(findings))]
    if union and estimate:
        numbers.insert(1, ("cases", str(sum(len(own) for own in union.scans.values()))))
        parts += [
            Section("Sources", [_table("Sources", SOURCES, sources(union), {1, 3, 5, 6})]),
            Section("Labels", _labels(union)),
            Section("Images", _images(union)),
            Section("Folds and size", [Facts(sizes(union, estimate))]),
        ]
    else:
        parts.append(Section("Sources", [Text("The union could not be put together, so there is no more to show.")]))
    return Page(
        title=recipe.name,
        subtitle=f"union of datasets, as {recipe.path.name} describes it",
        headline=numbers,
        sections=parts,
        footer=FOOTER,
    )


def _findings(findings: Sequence[Finding]) -> list[Block]:
    if not findings:
        return [Text("Nothing speaks against the union.")]
    ordered = sorted(findings, key=lambda finding: not finding.fatal)
    rows = [
        [text("problem" if finding.fatal else "warning"), text(finding.message), text(finding.hint)]
        for finding in ordered
    ]
    return [Table("Findings", ["", "what", "what to do"], rows, "A problem prevents the build.")]


def _labels(union: Union) -> list[Block]:
    blocks: list[Block] = [_table("Labels", LABELS, labels(union), {1, 3, 4})]
    counts = {label: float(cases) for label, (cases, _) in label_counts(union).items()}
    fewest = dict(sorted(counts.items(), key=lambda item: item[1]))
    blocks.append(
        bars("Cases that annotate a label, fewest first", fewest, "cases", "How many cases each label is learned from.")
    )
    if shared := overlaps(union):
        blocks.append(_table("Outputs that share leaves", OVERLAPS, shared))
    return blocks


def _images(union: Union) -> list[Block]:
    panels = {}
    largest = sorted(union.scans, key=lambda name: -len(union.scans[name]))[:DRAWN]
    for name in largest:
        scans = union.scans[name]
        panels[f"{name}, largest spacing"] = [max(scan.spacing) for scan in scans.values()]
        panels[f"{name}, volume"] = [
            float(np.prod([n * pitch for n, pitch in zip(scan.shape, scan.spacing, strict=True)]) / 1e6)
            for scan in scans.values()
        ]
    units = {name: "litres" if name.endswith("volume") else "mm" for name in panels}
    which = "each source" if len(largest) == len(union.scans) else f"the {DRAWN} largest sources"
    told = f"Images of {which}: the spacing of the coarsest axis, and the volume that they show."
    return [histograms(panels, units, told)]


def _table(title: str, columns: Sequence[str], rows: Rows, numeric: set[int] | None = None) -> Table:
    cells = [[_number(each) if k in (numeric or ()) else text(each) for k, each in enumerate(row)] for row in rows]
    return Table(title, columns, cells, "", frozenset(numeric or ()))


def _number(shown: str) -> Cell:
    return Cell(shown, float(shown.rstrip("%")))


def _source(union: Union, name: str, member: Member, share: float) -> list[str]:
    kinds = sorted({member.modality(case.name) for case in member.cases})
    count = str(len(union.space.labels(name)))
    licence = member.licence or "unknown"
    return [name, str(len(member.cases)), "/".join(kinds), count, licence, f"{member.recipe.weight:g}", f"{share:.1%}"]


def _size(number: int) -> str:
    return f"{number / GB:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
