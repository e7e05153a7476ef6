"""Judge scores by what fine-tuning reached: agreement with Dice, beside a static list and a random order.

Every table compares scores on the same candidates: where a score lacks some, there is another table without these. The
static list ranks candidates by what they reached on the other targets, the mean of Dice standardised in each, if there
are others. A random order is what the measures give for equal scores.

Intervals resample held-out cases and seeds, the same ones for all candidates, as stunet_experiment does
(evaluation/bootstrap.py), and the draws of the scores if they have any. Resampling adds noise, so intervals of
correlations lie lower, and those of regret higher, than the value itself. With one seed they reflect the cases alone,
and they never reflect other targets or candidates. P(best) is the share of draws in which the first is the best.

p is the chance that a random order of the candidates has at least this weighted tau, the mean of the targets.
formats.py reads the files, agreement.py defines the measures, verdicts.py writes the table, CSV file and plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from stunet.errors import DataError, closest, first_few
from stunet.evaluation.bootstrap import draw_counts, mean_dice, mean_dice_of_draws
from stunet.ranking.agreement import FEWEST, OTHERS, TAUS, Measure, permutation_p
from stunet.ranking.formats import Results, Scored, Scores

DRAWS = 2000
PERMUTATIONS = 10_000
LEVEL = 0.95
ALL = "all"  # the pool of all candidates
STATIC = "static, other targets"
RANDOM = "random order"
BASELINES = ("static", STATIC, RANDOM)

Missing = frozenset[tuple[str, str]]  # target and candidate


@dataclass(frozen=True, kw_only=True)
class Row:
    """How well one score ranks the candidates of a pool, on one target or on average.

    Attributes:
        pool: ALL, or an architecture; `without` has the candidates of it that are left out.
        target: Name of the target, or "" for the mean of `targets` targets.
        score: Name of the score.
        candidates: Number of candidates; of several targets the range.
        values: By measure; NaN where it is undefined.
        low, high: Bounds of the interval by measure, NaN if there is none.
        p: Of the weighted tau; NaN where that is undefined.
        first: Candidates with the highest score; empty for a mean.
        gain: Weighted tau minus that of the static list, and the bounds of its interval; NaN without a list.
        draws: Of the weighted tau, the mean of targets; empty if there are none.
    """

    pool: str
    without: Sequence[str]
    target: str
    targets: int
    score: str
    candidates: str
    values: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    p: float
    first: Sequence[str] = ()
    gain: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    draws: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)


@dataclass(frozen=True)
class Judgement:
    """Rows of the table, those of a pool one after the other; `measures` are its columns, `notes` what was left out."""

    rows: Sequence[Row]
    measures: Sequence[Measure]
    notes: Sequence[str]


@dataclass
class _Target:
    """What was reached on a target: Dice by candidate, and in each of the draws; without draws if it is only a mean."""

    name: str
    dice: dict[str, float]
    draws: dict[str, np.ndarray] = field(default_factory=dict)


def judge(
    scores: Scores, results: Results, tau: str = "scipy", draws: int = DRAWS, permutations: int = PERMUTATIONS
) -> Judgement:
    """Judge all scores on all targets that have results.

    Args:
        scores: Scores of the candidates.
        results: What they reached; targets without scores only serve the static list.
        tau: Definition of the weighted tau, of TAUS.
        draws: Of the bootstrap.
        permutations: Random orders for p.

    Raises:
        DataError: No target, or fewer than two candidates of any, have both scores and results.
    """
    measures = (TAUS[tau], *OTHERS)
    notes = list(results.notes)
    names = _common_targets(scores, results, notes)
    found = {name: _reached(name, results.targets[name], draws) for name in names}
    everywhere = {name: _means(dice) for name, dice in results.targets.items()}
    rows: list[Row] = []
    for pool, members in _pools(scores, found, notes).items():
        rows += _judge_pool(pool, members, scores, found, everywhere, measures, permutations, notes)
    if not rows:
        raise DataError("no target has two candidates with both a score and a result", "name them alike in both files")
    return Judgement(rows, measures, list(dict.fromkeys(notes)))


def _common_targets(scores: Scores, results: Results, notes: list[str]) -> list[str]:
    for name in (STATIC, RANDOM):
        if any(name in tables for tables in scores.targets.values()):
            raise DataError(f"a score is called {name!r}, as a row that is always there", "another name for it")
    names = [name for name in scores.targets if name in results.targets]
    if not names:
        ours, theirs = (first_few(sorted(found), separator=", ") for found in (scores.targets, results.targets))
        raise DataError(
            f"the scores are of {ours}, the results of {theirs}", "the same names for the same targets in both files"
        )
    for name in scores.targets:
        if name not in names:
            notes.append(f"{name} has scores, but no results{closest(name, list(results.targets))}")
    for name in names:
        scored = {candidate for table in scores.targets[name].values() for candidate in table}
        reached = set(results.targets[name])
        for lacking, what in ((sorted(scored - reached), "no result"), (sorted(reached - scored), "no score")):
            if lacking:
                notes.append(f"{name}: left out, with {what}: {first_few(lacking, separator=', ')}")
    for (target, score, candidate), reason in scores.failed.items():
        if target in names:
            notes.append(f"{target}: {score} of {candidate}: {reason}")
    return names


def _means(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.mean([mean_dice(dice) for dice in seeds])) for name, seeds in table.items()}


def _reached(name: str, table: Mapping[str, np.ndarray], draws: int) -> _Target:
    """Return what was reached on a target, with draws of its seeds and cases if there are several of one of them."""
    target = _Target(name, _means(table))
    shape = next(iter(table.values())).shape
    if max(shape[:2]) > 1:
        random = np.random.default_rng([0, crc32(name.encode())])  # the same whatever other targets there are
        seeds, cases = (draw_counts(n, draws, random) for n in shape[:2])
        for candidate, dice_SCK in table.items():
            by_seed = np.stack([mean_dice_of_draws(dice, cases) for dice in dice_SCK], axis=1)
            # A seed that is not drawn must not count, even if its draw of cases has none of the classes.
            target.draws[candidate] = np.where(seeds > 0, seeds * by_seed, 0).sum(axis=1) / seeds.sum(axis=1)
    return target


def _pools(scores: Scores, found: Mapping[str, _Target], notes: list[str]) -> dict[str, set[str]]:
    """Return the candidates of each pool: all, and those of each architecture if there are several."""
    everyone = {c for name, target in found.items() for t in scores.targets[name].values() for c in t} & {
        c for target in found.values() for c in target.dice
    }
    by_architecture: dict[str, set[str]] = {}
    for candidate in sorted(everyone):
        by_architecture.setdefault(scores.architectures.get(candidate, ""), set()).add(candidate)
    unknown = by_architecture.pop("", set())
    if unknown and by_architecture:
        notes.append(f"of unknown architecture, only in the pool of all: {first_few(sorted(unknown), separator=', ')}")
    if not unknown and len(by_architecture) == 1:
        return by_architecture
    pools = {ALL: everyone}
    for name, members in by_architecture.items():
        if len(members) > 1:
            # An architecture may have the name of the pool of all.
            pools[name if name != ALL else f"{name} (architecture)"] = members
        else:
            notes.append(f"{name} has no pool of its own, with one candidate")
    return pools


def _judge_pool(
    pool: str,
    members: set[str],
    scores: Scores,
    found: Mapping[str, _Target],
    everywhere: Mapping[str, Mapping[str, float]],
    measures: Sequence[Measure],
    permutations: int,
    notes: list[str],
) -> list[Row]:
    """Return the rows of a pool: a table for each set of candidates that some scores lack."""
    candidates = {
        name: [c for c in target.dice if c in members and any(c in t for t in scores.targets[name].values())]
        for name, target in found.items()
    }
    names = list(dict.fromkeys(score for name in found for score in scores.targets[name]))
    missing: dict[str, Missing] = {
        score: frozenset(
            (name, c) for name in found for c in candidates[name] if c not in scores.targets[name].get(score, {})
        )
        for score in names
    }
    rows = []
    for lacking in dict.fromkeys([frozenset(), *missing.values()]):
        kept = {name: [c for c in candidates[name] if (name, c) not in lacking] for name in found}
        kept = {name: those for name, those in kept.items() if len(those) > 1}
        # Scores that lack the same candidates, or fewer, are compared on the others.
        judged = [score for score in names if missing[score] <= lacking]
        if not kept or not judged:
            if lacking:
                who = [score for score in names if missing[score] == lacking]
                notes.append(f"{pool}: {first_few(who, separator=', ')} not judged, with fewer than two candidates")
            continue
        if too_few := [name for name, those in kept.items() if len(those) < FEWEST]:
            what = first_few(too_few, separator=", ")
            notes.append(f"{pool}: no correlations of fewer than {FEWEST} candidates ({what})")
        tables: dict[str, dict[str, Mapping[str, Scored]]] = {
            score: {name: scores.targets[name][score] for name in kept} for score in judged
        }
        static: dict[str, Mapping[str, Scored]] = {
            name: _static_list(those, name, everywhere) for name, those in kept.items()
        }
        if all(static.values()):
            tables[STATIC] = static
        elif "static" not in tables:
            notes.append(
                f"{pool}: no static list beside the scores: it needs results of other targets, "
                "or a score that is called static"
            )
        tables[RANDOM] = {name: {c: Scored(0) for c in those} for name, those in kept.items()}
        without = _without(lacking, candidates)
        own = [
            row
            for score, table in tables.items()
            for row in _judge_score(score, table, kept, found, pool, without, measures, permutations, notes)
        ]
        lists = {
            row.target: row for row in own if row.score == next((n for n in (STATIC, "static") if n in tables), "")
        }
        rows += [replace(row, gain=_gain(row, lists[row.target], measures[0])) if lists else row for row in own]
    return rows


def _gain(row: Row, static: Row, tau: Measure) -> tuple[float, float, float]:
    """Return the weighted tau minus that of the static list, and its interval, in draws of the same cases and seeds."""
    if row.score == static.score:
        return np.nan, np.nan, np.nan
    both = row.draws.size and row.draws.shape == static.draws.shape
    low, high = _bounds(row.draws - static.draws) if both else (np.nan, np.nan)
    return row.values[tau.name] - static.values[tau.name], low, high


def _without(lacking: Missing, candidates: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the candidates that are left out, with the targets if it is not in all."""
    listed = []
    for candidate in sorted({c for _, c in lacking}):
        targets = {name for name, c in lacking if c == candidate}
        having = {name for name, those in candidates.items() if candidate in those}
        listed.append(candidate if targets == having else f"{candidate} ({first_few(sorted(targets), separator=', ')})")
    return listed


def _static_list(
    candidates: Sequence[str], target: str, everywhere: Mapping[str, Mapping[str, float]]
) -> dict[str, Scored]:
    """Return the mean standardised Dice of candidates on the other targets; nothing if one of them has none there."""
    found: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for name, dice in everywhere.items():
        both = [candidate for candidate in candidates if candidate in dice]
        if name == target or len(both) < 2:
            continue
        values = np.array([dice[candidate] for candidate in both])
        spread = values.std() if values.max() > values.min() else 1.0
        for candidate, value in zip(both, (values - values.mean()) / spread, strict=True):
            found[candidate].append(float(value))
    return {key: Scored(float(np.mean(values))) for key, values in found.items()} if all(found.values()) else {}


def _judge_score(
    score: str,
    table: Mapping[str, Mapping[str, Scored]],
    kept: Mapping[str, Sequence[str]],
    found: Mapping[str, _Target],
    pool: str,
    without: Sequence[str],
    measures: Sequence[Measure],
    permutations: int,
    notes: list[str],
) -> list[Row]:
    """Return a row for each target, and of several that of their mean first."""
    values: dict[str, dict[str, float]] = {}
    draws: dict[str, dict[str, np.ndarray]] = {}
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, those in kept.items():
        scored, target = [table[name][c] for c in those], found[name]
        x, y = np.array([s.score for s in scored]), np.array([target.dice[c] for c in those])
        pairs[name] = x, y
        many = _draws(scored, target, those)
        applied = [measure for measure in measures if len(those) >= measure.fewest]
        values[name] = {measure.name: float(measure.compute(x, y)) for measure in applied}
        draws[name] = {measure.name: measure.compute(*many) for measure in applied} if many else {}
        if many:
            values[name]["best"] = float(draws[name]["best"].mean())
        if score != RANDOM and len(those) >= FEWEST and x.max() == x.min():
            notes.append(f"{name}: {score} is the same for all candidates, so it has no correlations there")
    tau = measures[0]
    defined = {
        measure.name: [name for name in kept if not np.isnan(values[name].get(measure.name, np.nan))]
        for measure in measures
    }

    def row(names: Sequence[str], target: str) -> Row:
        means, low, high = {}, {}, {}
        for measure in measures:
            key, own = measure.name, [name for name in names if name in defined[measure.name]]
            means[key] = float(np.mean([values[name][key] for name in own])) if own else np.nan
            low[key], high[key] = _bounds(_mean_draws([draws[name].get(key) for name in own]))
        own = [name for name in names if name in defined[tau.name]]
        numbers = [len(kept[name]) for name in names]
        x = pairs[names[0]][0]
        return Row(
            pool=pool,
            without=without,
            target=target,
            targets=len(names),
            score=score,
            candidates="-".join(map(str, dict.fromkeys((min(numbers), max(numbers))))),
            values=means,
            low=low,
            high=high,
            p=permutation_p([pairs[n][0] for n in own], [pairs[n][1] for n in own], tau.compute, permutations)
            if own
            else np.nan,
            first=[c for c, value in zip(kept[names[0]], x, strict=True) if value == x.max()] if target else (),
            draws=_mean_draws([draws[name].get(tau.name) for name in own]),
        )

    each = [row([name], name) for name in kept]
    return [row(list(kept), ""), *each] if len(each) > 1 else each


def _draws(
    scored: Sequence[Scored], target: _Target, candidates: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return draws of scores and Dice (D, N), without those in which a candidate has none of the classes."""
    number = len(scored[0].draws)
    if not target.draws and not number:
        return None
    y = np.stack([target.draws.get(c, np.full(number, target.dice[c])) for c in candidates], axis=1)
    x = np.tile([s.score for s in scored], (len(y), 1))
    if number:
        chosen = np.random.default_rng(0).integers(number, size=len(y))
        x = np.stack([np.array(s.draws)[chosen] for s in scored], axis=1)
    valid = ~np.isnan(y).any(axis=1)
    return (x[valid], y[valid]) if valid.any() else None


def _mean_draws(draws: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return draws of the mean of targets; none if one of them has none."""
    found = [d for d in draws if d is not None]
    if not found or len(found) < len(draws):
        return np.empty(0)
    size = min(map(len, found))  # some draws of a target may be left out
    return np.asarray(np.mean([d[:size] for d in found], axis=0))


def _bounds(draws: np.ndarray) -> tuple[float, float]:
    """Return the bounds of an interval, NaN without draws. Undefined draws do not count."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return np.nan, np.nan
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
