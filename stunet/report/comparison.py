"""The part of a report that compares predictions with references: classes, cases, volumes, and slices of the worst."""

from collections.abc import Callable, Sequence

import numpy as np

from stunet.report.blocks import Block, Cell, Section, Table, Text, number, text
from stunet.report.compared import Compared, nanmean
from stunet.report.plots import distributions, volumes

WORST = 5  # cases with slices
FORMS = {"NSD": ".3f", "HD95": ".2f"}

HOW = (
    "n: cases with the class in reference or prediction. Interval: 95 % of the mean over resampled cases, for at least "
    "three. 5 %: one case in twenty is below. Bias: mean of prediction minus reference, and its share of the mean "
    "reference."
)


def sections(
    compared: Compared, slices_of: Callable[[int], Sequence[Block]] | None = None, title: str = ""
) -> list[Section]:
    """Return the sections of a comparison.

    Args:
        compared: The numbers.
        slices_of: Returns the slices of a case, given its position, and how to see more of it; None: there are none.
        title: In front of the headings, such as "Final validation: ".
    """
    order = worst_first(compared)
    drawn: list[Block] = [*distributions(compared, order)]
    agreement = volumes(compared)
    found = [
        Section(f"{title}classes", [class_table(compared, order)]),
        Section(f"{title}distribution", drawn),
        Section(f"{title}volumes", [agreement] if agreement else []),
        Section(f"{title}cases", [case_table(compared)]),
    ]
    if slices_of:
        shown = [block for position in worst_cases(compared)[:WORST] for block in slices_of(position)]
        found.insert(3, Section(f"{title}worst cases", shown))
    return [Section(f"{section.title[:1].upper()}{section.title[1:]}", section.blocks) for section in found]


def worst_first(compared: Compared) -> list[int]:
    """Return the positions of the classes by mean Dice; those that do not occur come last."""
    means = compared.class_means()
    return sorted(range(len(means)), key=lambda k: (np.isnan(means[k]), means[k], k))


def worst_cases(compared: Compared) -> list[int]:
    """Return the positions of the cases that have any class, by mean Dice."""
    means = compared.case_means()
    return sorted((c for c in range(len(means)) if not np.isnan(means[c])), key=lambda c: (means[c], c))


def class_table(compared: Compared, order: Sequence[int]) -> Table:
    """Return a row per class: agreement, spread, volume bias and the worst case."""
    measured = {"NSD": compared.nsd, "HD95": compared.hd95}
    measured = {name: values for name, values in measured.items() if np.isfinite(values).any()}
    at = f" {compared.tolerance_mm:g} mm" if compared.tolerance_mm is not None else ""
    heads = {"NSD": f"NSD{at}", "HD95": "HD95 mm"}
    columns = ["class", "n", "Dice", "95 % interval", "median", "5 %", *(heads[name] for name in measured)]
    columns += [f"bias {compared.unit}", "bias %", "worst case", "its Dice"]
    low, high = compared.intervals()
    means, difference = compared.class_means(), compared.difference()
    rows = []
    for k in order:
        dice = compared.dice[:, k]
        known = dice[np.isfinite(dice)]
        bias = float(nanmean(difference[:, k], axis=0))
        size = float(nanmean(np.where(compared.occurs[:, k], compared.reference[:, k], np.nan), axis=0))
        worst = int(np.nanargmin(dice)) if len(known) else None
        interval = Cell("-") if np.isnan(low[k]) else Cell(f"{low[k]:.3f} to {high[k]:.3f}", float(low[k]))
        rows.append([
            text(compared.classes[k]),
            number(float(compared.occurs[:, k].sum()), ".0f"),
            Cell(f"{means[k]:.3f}", float(means[k]), float(min(1, max(0, means[k])))) if len(known) else Cell("-"),
            interval,
            number(float(np.median(known)) if len(known) else None),
            number(float(np.percentile(known, 5)) if len(known) else None),
            *(number(float(nanmean(values[:, k], axis=0)), FORMS[name]) for name, values in measured.items()),
            number(bias, "+.3g"),
            number(100 * bias / size if size > 0 else None, "+.1f"),
            text("-" if worst is None else compared.cases[worst]),
            number(None if worst is None else float(dice[worst])),
        ])  # fmt: skip
    shift = len(measured)
    numeric = frozenset({1, 2, 3, 4, 5, *range(6, 8 + shift), 9 + shift})
    note = HOW
    if "NSD" in measured or "HD95" in measured:
        note += (
            " NSD: share of both surfaces that lies within the tolerance of the other (Nikolov et al. 2021). HD95: "
            "distance that 95 % of each surface keep, by area, the larger of both directions; cases where one side is "
            "empty are not in its mean."
        )
    return Table("Classes, worst first", columns, rows, note, numeric)


def case_table(compared: Compared) -> Table:
    """Return a row per case: its mean Dice and its worst class."""
    means = compared.case_means()
    order = worst_cases(compared) + [c for c in range(len(means)) if np.isnan(means[c])]
    rows = []
    for c in order:
        dice = compared.dice[c]
        worst = int(np.nanargmin(dice)) if np.isfinite(dice).any() else None
        row = [text(compared.cases[c]), number(float(means[c]))]
        if len(compared.classes) > 1:
            named = Cell("-") if worst is None else text(compared.classes[worst])
            row += [named, number(None if worst is None else float(dice[worst]))]
        rows.append(row)
    columns = ["case", "Dice", "worst class", "its Dice"][: 4 if len(compared.classes) > 1 else 2]
    return Table("Cases, worst first", columns, rows, "", frozenset({1, 3}), narrow=True)


def headline(compared: Compared) -> list[tuple[str, str]]:
    """Return the numbers for the top of a page."""
    mean, count = compared.mean(), int((~np.isnan(compared.class_means())).sum())
    found = [("mean Dice", "-" if np.isnan(mean) else f"{mean:.4f}"), ("cases", str(len(compared.cases)))]
    return [*found, ("classes", str(count))]


def nothing(where: str) -> Text:
    """Return the paragraph of a run that was not validated."""
    return Text(f"There is no final validation in {where} yet.")
