"""Scores of candidates, and what they reached when they were fine-tuned, in two JSON files; judging.py compares them.

rank.json, which stunet_rank writes: for each target (a dataset), and each score, the value of every candidate, higher
is better. Only "score" is needed, or a number in place of the table; a candidate without a score has null or an error.

    {"targets": {"Dataset004_Hippocampus": {"scores": {
        "ccfv": {"mae": {"score": -0.42, "low": -0.49, "high": -0.36, "draws": [-0.41, -0.44]},
                 "simclr": {"error": "no trained decoder"}},
        "static": {"mae": 2, "simclr": 1}}}},
     "candidates": {"mae": {"architecture": "STU-Net", "weights": "ssl/mae.pth"}}}

"low" and "high" are the bounds of an interval. "draws" are values of the bootstrap from which it comes; the n-th of
all candidates belong together. "candidates" and other keys may be left out.

results.json: for each target and candidate the Dice, from 0 to 1, that fine-tuning reached on held-out cases: the mean;
or by seed; or by seed and case; or by seed, case and class, where null is a class that is in neither reference nor
prediction. Only values by seed or case have intervals.

    {"targets": {"Dataset004_Hippocampus": {
        "mae": {"dice": {"0": {"case_1": {"Anterior": 0.87, "Posterior": 0.85}, "case_2": {"Anterior": null}}}},
        "simclr": {"dice": 0.85}}}}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, first_few
from stunet.evaluation.bootstrap import mean_dice
from stunet.files import write_json
from stunet.kinds import RESULTS, SCORES, read

HINT = "stunet_rank evaluate --help shows the format"
MEAN = "mean"  # of a case or seed that is not known

ByClass = Mapping[str, float]  # Dice; NaN for a class that is absent
BySeed = Mapping[str, Mapping[str, ByClass]]  # by seed, case and class


@dataclass(frozen=True)
class Scored:
    """A candidate's score, and its values in the draws of a bootstrap, if there was one."""

    score: float
    draws: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Scores of candidates.

    Attributes:
        targets: Scored candidates, by target, name of the score, and candidate.
        architectures: By candidate, where known.
        weights: Path or name of what a candidate's training starts from, where known.
        failed: Reasons by target, name of the score, and candidate.
    """

    targets: Mapping[str, Mapping[str, Mapping[str, Scored]]]
    architectures: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    @property
    def candidates(self) -> list[str]:
        """All candidates that have a score, in the order of their first one."""
        tables = [table for scores in self.targets.values() for table in scores.values()]
        return list(dict.fromkeys(candidate for table in tables for candidate in table))


@dataclass(frozen=True)
class Results:
    """What fine-tuned candidates reached.

    Attributes:
        targets: Dice (seeds S, cases C, classes K) by target and candidate, NaN for an absent class; the seeds, cases
            and classes of a target are the same for all of its candidates. One that is not known has the length 1.
        notes: What was left out, a sentence each.
    """

    targets: Mapping[str, Mapping[str, np.ndarray]]
    notes: Sequence[str] = ()


def read_scores(path: Path) -> Scores:
    """Read a rank.json, or that in a folder.

    Raises:
        DataError: It is missing, or something in it is wrong; the message states where.
    """
    path = path / "rank.json" if path.is_dir() else path
    content = read(path, SCORES, HINT)
    targets: dict[str, dict[str, dict[str, Scored]]] = {}
    failed: dict[tuple[str, str, str], str] = {}
    for target, found in content["targets"].items():
        scores = targets[target] = {}
        for name, table in found["scores"].items():
            values = {key: value if isinstance(value, Mapping) else {"score": value} for key, value in table.items()}
            scores[name] = {
                key: Scored(float(value["score"]), tuple(map(float, value.get("draws") or ())))
                for key, value in values.items()
                if value.get("score") is not None
            }
            failed |= {
                (target, name, key): value.get("error") or "no score"
                for key, value in values.items()
                if key not in scores[name]
            }
            if len(lengths := {len(scored.draws) for scored in scores[name].values()}) > 1:
                what = f"{str(path)!r}: {target}: candidates have different numbers of draws of {name}: "
                raise DataError(what + ", ".join(map(str, sorted(lengths))), "the same draws for all, or none")
    described = content.get("candidates") or {}
    return Scores(
        targets,
        {key: value["architecture"] for key, value in described.items() if value.get("architecture")},
        {key: value["weights"] for key, value in described.items() if value.get("weights")},
        failed,
    )


def read_results(path: Path) -> Results:
    """Read a results.json, or that in a folder.

    Raises:
        DataError: It is missing, or something in it is wrong; the message states where.
    """
    path = path / "results.json" if path.is_dir() else path
    targets: dict[str, dict[str, BySeed]] = {}
    notes = []
    for target, found in read(path, RESULTS, HINT)["targets"].items():
        values = {key: value["dice"] for key, value in found.items() if value["dice"] is not None}
        if missing := [key for key in found if key not in values]:
            notes.append(f"{target}: no result of {first_few(missing, separator=', ')}")
        targets[target] = {key: _by_seed(value) for key, value in values.items()}
    return to_results(targets, repr(str(path)), notes)


def _by_seed(dice: Any) -> BySeed:
    """Return the values of a candidate by seed, case and class, whatever of that is known."""
    seeds = dice if isinstance(dice, Mapping) else {MEAN: dice}
    by_case = {seed: cases if isinstance(cases, Mapping) else {MEAN: cases} for seed, cases in seeds.items()}
    return {
        seed: {
            case: {
                name: math.nan if value is None else float(value)
                for name, value in (classes if isinstance(classes, Mapping) else {MEAN: classes}).items()
            }
            for case, classes in cases.items()
        }
        for seed, cases in by_case.items()
    }


def to_results(targets: Mapping[str, Mapping[str, BySeed]], where: str, notes: Sequence[str] = ()) -> Results:
    """Return the results of candidates, whose cases and classes have to be the same within a target.

    Args:
        targets: Dice by target, candidate, seed, case and class.
        where: What they are from, for messages.
        notes: What is known to be left out.

    Raises:
        DataError: Candidates have other cases or classes than others, or no seed in common.
    """
    left_out = list(notes)
    found = {
        target: _to_arrays(values, f"{where}: {target}", left_out, target)
        for target, values in targets.items()
        if values
    }
    if not found:
        raise DataError(f"{where} has no results", HINT)
    return Results(found, left_out)


def merge_scores(each: Sequence[Scores]) -> Scores:
    """Return the scores of several files.

    Raises:
        DataError: Two have the same target, or different architectures or weights of a candidate.
    """
    return Scores(
        _merged([scores.targets for scores in each], "scores of"),
        _merged([scores.architectures for scores in each], "architectures of", same=True),
        _merged([scores.weights for scores in each], "weights of", same=True),
        _merged([scores.failed for scores in each], "scores of"),
    )


def merge_results(each: Sequence[Results]) -> Results:
    """Return the results of several files.

    Raises:
        DataError: Two have the same target.
    """
    return Results(
        _merged([results.targets for results in each], "results of"), [n for results in each for n in results.notes]
    )


def _merged(tables: Sequence[Mapping[Any, Any]], what: str, same: bool = False) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for table in tables:
        for key, value in table.items():
            if key in found and not (same and found[key] == value):
                raise DataError(f"two files have {what} {key}", "one file for each target, and one name for each model")
            found[key] = value
    return found


def _to_arrays(values: Mapping[str, BySeed], where: str, notes: list[str], target: str) -> dict[str, np.ndarray]:
    """Return arrays (seeds, cases, classes) of the seeds that all candidates have."""
    for known, what in ((_seeds_known, "seed"), (_cases_known, "case")):
        coarse = [name for name, by_seed in values.items() if not known(by_seed)]
        if coarse and len(coarse) < len(values):
            few = first_few(coarse, separator=", ")
            notes.append(f"{target}: no values by {what} of {few}, so those of the others only count as means")
            values = {name: _means(by_seed, what) for name, by_seed in values.items()}
    seeds = [seed for seed in next(iter(values.values())) if all(seed in by_seed for by_seed in values.values())]
    if not seeds:
        raise DataError(f"{where}: the candidates have no seed in common", "the same seeds for all, or only means")
    more = [name for name, by_seed in values.items() if len(by_seed) > len(seeds)]
    if more:
        listed, others = first_few(seeds, separator=", "), first_few(more, separator=", ")
        notes.append(f"{target}: only seeds that all candidates have count ({listed}); {others} have more")
    layout: dict[frozenset[tuple[str, frozenset[str]]], str] = {}
    for name, by_seed in values.items():
        for seed in seeds:
            layout.setdefault(frozenset((case, frozenset(dice)) for case, dice in by_seed[seed].items()), name)
    if len(layout) > 1:
        one, other = list(layout.values())[:2]
        who = f"{one!r} and {other!r} have" if one != other else f"seeds of {one!r} have"
        raise DataError(f"{where}: {who} other cases or classes", "the same held-out cases and classes for all")
    arrays = {name: _to_array(by_seed, seeds) for name, by_seed in values.items()}
    for name, dice in arrays.items():
        if np.isnan(dice).all(axis=(1, 2)).any():
            raise DataError(f"{where}: {name!r} has no Dice for one of its seeds", "null in place of its dice")
    return arrays


def _seeds_known(by_seed: BySeed) -> bool:
    return list(by_seed) != [MEAN]


def _cases_known(by_seed: BySeed) -> bool:
    return all(list(cases) != [MEAN] for cases in by_seed.values())


def _means(by_seed: BySeed, what: str) -> BySeed:
    """Return the mean of each seed, or that of all seeds."""
    means = {seed: mean_dice(_to_array(by_seed, [seed])[0]) for seed in by_seed}
    if what == "seed":
        means = {MEAN: float(np.mean(list(means.values())))}
    return {seed: {MEAN: {MEAN: value}} for seed, value in means.items()}


def _to_array(by_seed: BySeed, seeds: Sequence[str]) -> np.ndarray:
    """Return the Dice (seeds, cases, classes), with cases and classes sorted, and NaN where a case lacks a class."""
    cases = sorted(by_seed[seeds[0]])
    classes = sorted({name for dice in by_seed[seeds[0]].values() for name in dice})
    return np.array([[[by_seed[seed][case].get(key, math.nan) for key in classes] for case in cases] for seed in seeds])


def results_json(targets: Mapping[str, Mapping[str, BySeed]]) -> dict[str, Any]:
    """Return results as they are written to a results.json."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: without_nan(item) for key, item in value.items()}
        return None if math.isnan(value) else value

    return {
        "targets": {
            target: {name: {"dice": without_nan(by_seed)} for name, by_seed in values.items()}
            for target, values in targets.items()
        }
    }


def write_results(targets: Mapping[str, Mapping[str, BySeed]], path: Path) -> None:
    """Write a results.json."""
    write_json(path, results_json(targets))
