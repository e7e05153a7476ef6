"""What a score is: statistics of each case, made once, and a formula that any choice of cases can be put into.

A bootstrap over cases therefore never looks at features again: `prepare` reduces them to statistics (distances between
pairs of cases, moments, counts), and `Prepared.terms` evaluates the formula for many draws of cases at a time.
pool.py draws, and puts the scores of several candidates side by side.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from stunet.errors import DataError
from stunet.ranking.sample import Sample

Array = NDArray[np.float64]
Counts = NDArray[np.float64]  # (B, N): how often each of the N cases is in each of B draws
SAME = 1e-6  # deviation relative to the mean that is rounding of float32 alone: constant features
FEATURES, PREDICTIONS, FACTS = "features", "predictions", "facts"  # what a score needs of a sample


@dataclass(frozen=True)
class Value:
    """A score of one candidate, higher being better, and what it is made of."""

    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Prepared:
    """The statistics of one candidate.

    Args:
        cases: In the order of the columns of counts.
        terms: From counts (B, N) to (B,), or (B, T) for a score of T terms that a pool fuses; nan where a draw leaves
            too little for the formula.
        parts: What the score of all cases is made of.
        read: Where in the network features were read; scores of other places are not comparable.
    """

    cases: tuple[str, ...]
    terms: Callable[[Counts], Array]
    parts: Mapping[str, float] = field(default_factory=dict)
    read: str = ""


def first(terms: Array) -> Array:
    """Take the first of the terms (M, B, T) of a pool as scores (M, B)."""
    return terms[..., 0]


@dataclass(frozen=True)
class Score:
    """One way to score candidates.

    Args:
        name: As in --scores.
        title: For tables, with the source.
        statistics: Reduce a sample to statistics.
        needs: FEATURES, PREDICTIONS or FACTS.
        fuse: From the terms (M, B, T) of M candidates to scores (M, B).
        fixed: What a bootstrap over cases does not repeat; empty: everything is recomputed.
    """

    name: str
    title: str
    statistics: Callable[[Sample], Prepared]
    needs: str = FEATURES
    fuse: Callable[[Array], Array] = first
    fixed: str = ""

    def prepare(self, sample: Sample) -> Prepared:
        """Reduce a sample to what the score needs of it.

        Raises:
            DataError: The sample lacks what the score needs, or the score is not defined for it.
        """
        with one_thread():
            prepared = self.statistics(sample)
        self.scores([prepared], everyone(prepared))  # one candidate's undefined score must not stop a pool later
        return prepared

    def compute(self, sample: Sample) -> Value:
        """Score one candidate at all its cases; a score that a pool fuses is fused over this candidate alone.

        Raises:
            DataError: The sample lacks what the score needs, or the score is not defined for it.
        """
        prepared = self.prepare(sample)
        score = float(self.scores([prepared], everyone(prepared))[0, 0])
        return Value(score, prepared.parts)

    def scores(self, pool: list[Prepared], counts: Counts) -> Array:
        """Return the scores (M, B) of M candidates in draws (B, N); nan where a draw leaves too little.

        Raises:
            DataError: The score is not defined for some candidate although all cases are drawn.
        """
        with one_thread():
            terms = [np.atleast_2d(prepared.terms(counts).T).T for prepared in pool]
            fused = self.fuse(np.stack(terms))
        whole = (counts == 1).all(1)
        if not np.isfinite(fused[:, whole]).all():
            raise undefined(self.name)
        return fused


def everyone(prepared: Prepared) -> Counts:
    """The counts (1, N) in which every case is drawn once."""
    return np.ones((1, len(prepared.cases)))


def undefined(name: str) -> DataError:
    """The error for a score that is not a finite number."""
    return DataError(
        f"{name}: not defined for these features, which are constant or of too few points",
        "more cases or points, or another score",
    )


def one_thread() -> AbstractContextManager[Any]:
    """Keep linear algebra to one thread: the same digits whatever the machine, and small matrices are faster by far."""
    return _libraries().limit(limits=1)


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that scores compute with, which are loaded by now; to find them takes longer than some scores."""
    return ThreadpoolController()
