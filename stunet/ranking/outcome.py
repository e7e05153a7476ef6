"""What a ranking found: each candidate's scores with intervals, which of them cannot be told apart, and rank.json.

The first score decides the order. rank.json has the form that formats.py reads, and more for each candidate, so that
stunet_rank evaluate judges it and `stunet_train --pretrained best-of rank.json` takes the best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, WeightsError
from stunet.files import sha256_of
from stunet.kinds import SCORES as RANK
from stunet.kinds import read
from stunet.models.store import find_model
from stunet.ranking.pool import LEVEL, Pooled
from stunet.ranking.sample import Facts
from stunet.weights.folders import checkpoint_in

FILE = "rank.json"
MUCH = 0.9  # of another's parameters: what is not worth mentioning as smaller


@dataclass(frozen=True)
class Candidate:
    """A model that was ranked, or could not be.

    Attributes:
        name: For tables.
        weights: What `stunet_train --pretrained` takes.
        facts: For scores that do not look at features.
        path: The file of the weights.
        sha256: Of that file.
        licence: None: not known.
        against: What speaks against it here, in a few words each.
        layers: Until where its network was trained: encoder, decoder or heads.
        hours: That fine-tuning takes here, about.
        error: Why it was not ranked.
    """

    name: str
    weights: str
    facts: Facts = field(default_factory=Facts)
    path: str | None = None
    sha256: str | None = None
    licence: str | None = None
    against: tuple[str, ...] = ()
    layers: str | None = None
    hours: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """A candidate's score: with all cases, and in draws of them; `low` and `high` bound 95 % of these.

    Where cases are too few for draws, there are none, and bounds and `p_best` are NaN.
    """

    score: float
    low: float
    high: float
    p_best: float
    draws: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """A ranking.

    Attributes:
        target: Full name of the dataset.
        cases: Those that were looked at.
        classes: Of the points, the background first.
        read: Where features were read: "encoder" or "decoder"; None: no score needed them.
        candidates: By name, as they were given.
        scores: By name of the score and candidate: a result, or why there is none.
        notes: What limits the ranking, a sentence each.
    """

    target: str
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    read: str | None
    candidates: Mapping[str, Candidate]
    scores: Mapping[str, Mapping[str, Result | str]]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The score that decides."""
        return next(iter(self.scores))

    @property
    def order(self) -> list[str]:
        """The candidates that have it, the best first; of equal ones the smaller."""
        found = self.scores[self.first]
        results = {name: result for name, result in found.items() if isinstance(result, Result)}
        return sorted(results, key=lambda name: (-results[name].score, self._size(name)))

    @property
    def best(self) -> Candidate:
        """The best candidate.

        Raises:
            DataError: None has a score.
        """
        if not self.order:
            reasons = [result for result in self.scores[self.first].values() if isinstance(result, str)]
            raise DataError(
                f"no candidate has the score {self.first}: {reasons[0]}", "more cases, another score, or other models"
            )
        return self.candidates[self.order[0]]

    def not_worse(self) -> list[str]:
        """Return the best candidate, and those that cannot be told from it: the interval of the difference has 0."""
        results = self.scores[self.first]
        best = results[self.order[0]]
        assert isinstance(best, Result)
        found = [self.order[0]]
        for name in self.order[1:]:
            other = results[name]
            assert isinstance(other, Result)
            low = np.quantile(best.draws - other.draws, (1 - LEVEL) / 2) if best.draws.size else -math.inf
            if low <= 0:
                found.append(name)
        return found

    def verdict(self) -> str:
        """Return in words what to do."""
        if len(self.order) < 2:
            return f"only {self.best.name} has the score {self.first}: there is nothing to compare it with"
        same = self.not_worse()
        if len(same) == 1:
            return f"{same[0]} is ahead of all others by {self.first}"
        smallest = min(same, key=self._size)
        advice = f"fine-tune {'both' if len(same) == 2 else 'these'}"
        if self._size(smallest) < MUCH * max(map(self._size, same)):
            advice += f", or take the smallest, {smallest}"
        names = f"{', '.join(same[:-1])} and {same[-1]}"
        return f"{names} cannot be told apart by {self.first} on {len(self.cases)} cases: {advice}"

    def _size(self, name: str) -> float:
        return self.candidates[name].facts.parameters or math.inf

    def to_json(self) -> dict[str, Any]:
        """Return the content of rank.json."""
        return {
            "targets": {self.target: {"scores": {name: _scores(found) for name, found in self.scores.items()}}},
            "candidates": {
                name: {"architecture": each.facts.network, **_described(each)} for name, each in self.candidates.items()
            },
            "target": self.target,
            "score": self.first,
            "ranking": self.order,
            "cannot_be_told_apart": self.not_worse() if len(self.order) > 1 else self.order,
            "verdict": self.verdict() if self.order else None,
            "cases": list(self.cases),
            "classes": list(self.classes),
            "read": self.read,
            "notes": list(self.notes),
        }


def results_of(names: Sequence[str], pooled: Pooled) -> dict[str, Result]:
    """Return the result of each candidate of a pool, in its order."""
    limits, best = pooled.intervals(), pooled.chance_of_best()
    return {
        name: Result(float(pooled.scores[n]), float(limits[n, 0]), float(limits[n, 1]), float(best[n]), pooled.draws[n])
        for n, name in enumerate(names)
    }


def best_of(path: Path) -> str:
    """Return the weights of the best candidate in a rank.json.

    Raises:
        DataError: The file is missing or another one, or ranked nothing.
        WeightsError: The weights are not there any more, or have changed.
    """
    hint = "stunet_rank makes it"
    content = read(path / FILE if path.is_dir() else path, RANK, hint)
    ranking = content.get("ranking")
    if not isinstance(ranking, list) or not ranking or ranking[0] not in content.get("candidates", {}):
        raise DataError(f"{str(path)!r} ranks no candidate", hint)
    found = content["candidates"][ranking[0]]
    weights = found.get("weights")
    if not isinstance(weights, str):
        raise DataError(f"{str(path)!r} does not say what {ranking[0]!r} is", hint)
    if known := found.get("sha256"):
        try:
            file = find_model(weights, offline=True)
            # What a training reads there today: another fold than was ranked may be the lowest by now.
            file = checkpoint_in(file) if file.is_dir() else file
        except WeightsError as error:
            raise WeightsError(f"the weights of {ranking[0]!r} have gone: {error.message}", "rank again") from None
        if sha256_of(file) != known:
            what = f"the weights of {ranking[0]!r}, {str(file)!r}, are not those that were ranked"
            raise WeightsError(what, "rank again")
    return weights


def _scores(found: Mapping[str, Result | str]) -> dict[str, Any]:
    return {
        name: {"error": result}
        if isinstance(result, str)
        else {
            "score": result.score,
            **{
                key: None if math.isnan(value) else value
                for key, value in (("low", result.low), ("high", result.high), ("p_best", result.p_best))
            },
            "draws": result.draws.tolist(),
        }
        for name, result in found.items()
    }


def _described(candidate: Candidate) -> dict[str, Any]:
    found = asdict(candidate)
    facts = found.pop("facts")
    del found["name"], facts["network"]
    return {key: value for key, value in (found | facts).items() if value is not None}
