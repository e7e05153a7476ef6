"""Probe the features of many cases: which rows belong to a target, and the table of scores.

probing/probe.py fits and validates; features.py has computed the features.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stunet.errors import DataError, StunetError, closest
from stunet.files import atomic_write
from stunet.names import csv_cells
from stunet.probing.tables import Target
from stunet.runs.listener import Listener

if TYPE_CHECKING:
    from stunet.inference.features.stored import StoredFeatures
    from stunet.probing.probe import Probed

_SCORE = ("metric", "value", "low", "high", "chance")


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A probe: its target and scores, and the class or point whose rows were probed.

    `name` is "" for cases, and where rows have targets of their own.
    """

    target: str
    task: str
    name: str
    probed: "Probed"


def probe_all(
    targets: Sequence[Target],
    files: Mapping[str, Path],
    subjects: Mapping[str, str],
    errors: Mapping[str, StunetError],
    seed: int,
    listener: Listener,
) -> list[ProbeResult]:
    """Return the probes of each target: one for each name of rows, or one of all rows if these have targets.

    Args:
        targets: What is predicted.
        files: Of the features, by case.
        subjects: By case.
        errors: Of the cases that have no features.
        seed: Chooses the folds.
        listener: Warned of what is not probed, and of what makes scores doubtful.

    Raises:
        DataError: Nothing predicts a target; the message names it.
    """
    import numpy as np

    from stunet.inference.features.stored import read_features
    from stunet.probing.probe import probe

    cases = {case for each in targets for case in each.cases} & {*files}
    stored = [read_features(files[case]) for case in sorted(cases)]
    results = []
    for target in targets:
        if failed := sorted(case for case in target.cases if case in errors):
            listener.warn(f"{target.name}: {len(failed)} cases have no features and are left out ({failed[0]!r} ...)")
        found, problems = [], []
        for name, chosen in _rows(target, stored).items():
            where = f"{target.name} of {name}" if name else target.name
            stages = {
                f"stage {stage}": np.stack([one.features[stage][number].numpy() for one, number, _ in chosen])
                for stage in stored[0].features
            }
            of = [subjects[one.case] for one, _, _ in chosen]
            try:
                probed = probe(stages, [value for *_, value in chosen], of, target.task, seed)
            except DataError as error:
                problems.append(DataError(f"{where}: {error.message}", error.hint))
                continue
            for text in probed.warnings:
                listener.warn(f"{where}: {text}")
            found.append(ProbeResult(target=target.name, task=target.task, name=name, probed=probed))
        if not found:
            raise problems[0]
        # A class that few cases have, or a point that few of them name, does not keep the others from being probed.
        for problem in problems:
            listener.warn(f"not probed: {problem.message}")
        results += found
    return results


def _rows(
    target: Target, stored: "Sequence[StoredFeatures]"
) -> "dict[str, list[tuple[StoredFeatures, int, str | float]]]":
    """Return the rows of features that have a value of the target: case, number of the row, value; by what is probed.

    Raises:
        DataError: There is none, a row with a target does not exist, or classes and points share a name.
    """
    found: dict[str, list[tuple[StoredFeatures, int, str | float]]] = {}
    known = set()
    pools: dict[str, str] = {}
    for one in stored:
        for number, row in enumerate(one.features.rows):
            of_case = row.pool == "case"
            key = (one.case, row.name if target.by_row else "")
            if target.by_row and of_case:
                continue
            if not of_case and pools.setdefault(row.name, row.pool) != row.pool:
                what = f"{target.name}: rows called {row.name!r} are those of a class and of a point"
                raise DataError(what, "other names for the points, in their column `name`")
            known.add(key)
            if key in target.values:
                name = "" if target.by_row or of_case else row.name
                found.setdefault(name, []).append((one, number, target.values[key]))
    there = {one.case for one in stored}
    if missing := sorted(key for key in target.values if key[0] in there and key not in known):
        case, name = missing[0]
        names = sorted({name for of, name in known if of == case})
        what = f"{target.name}: case {case!r} has no row of features {name!r}{closest(name, names)}"
        raise DataError(what, f"its rows are {', '.join(names)}" if names else "correct the column `name`")
    if not found:
        raise DataError(f"{target.name}: no case with features has a value", "look at the column `case`")
    return found


def write_probes(path: Path, probes: Sequence[ProbeResult]) -> None:
    """Write a line for each score."""
    with atomic_write(path) as part, part.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["target", "task", "name", "rows", "subjects", "features", *_SCORE])
        for one in probes:
            for score in one.probed.scores:
                numbers = [getattr(score, key) for key in _SCORE[1:]]
                of = csv_cells([one.target, one.task, one.name])
                table.writerow([*of, one.probed.rows, one.probed.subjects, score.stage, score.metric, *numbers])
