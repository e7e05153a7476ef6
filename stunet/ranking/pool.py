"""The scores of all candidates side by side: intervals, and the chance of being the best, by bootstrap over cases.

All candidates are scored in the same draws of cases, so what makes a case hard for all of them cancels. Draws are those
of evaluation/bootstrap.py: of one case fewer than there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stunet.errors import DataError
from stunet.evaluation.bootstrap import draw_counts
from stunet.ranking.scores.base import Array, Counts, Prepared, Score, everyone

DRAWS = 500
LEVEL = 0.95  # as of judgements and experiments
WORTH = 0.5  # of the draws have to be defined, else intervals would be of chosen cases


@dataclass(frozen=True)
class Pooled:
    """Scores of M candidates.

    Attributes:
        scores: (M,) with all cases.
        draws: (M, B) in the draws in which the score is defined for all candidates; none if it is so for few of them.
    """

    scores: Array
    draws: Array

    def intervals(self, level: float = LEVEL) -> Array:
        """Return the limits (M, 2) between which `level` of the draws are; NaN without draws."""
        if not self.draws.size:
            return np.full((len(self.scores), 2), np.nan)
        tail = (1 - level) / 2
        return np.quantile(self.draws, [tail, 1 - tail], axis=1).T

    def chance_of_best(self) -> Array:
        """Return the share of draws (M,) in which each candidate is the best; equal ones share a draw. NaN without."""
        if not self.draws.size:
            return np.full(len(self.scores), np.nan)
        best = self.draws == self.draws.max(0)
        return np.asarray((best / best.sum(0)).mean(1))


def draw_cases(cases: int, draws: int = DRAWS, seed: int = 0) -> Counts:
    """Draw cases with replacement: how often each is in each draw, (draws, cases)."""
    return draw_counts(cases, draws, np.random.default_rng(seed)).astype(np.float64)


def score_pool(score: Score, pool: Sequence[Prepared], counts: Counts | None = None) -> Pooled:
    """Score candidates that were prepared by `score.prepare`, with all cases and in draws of them.

    Raises:
        DataError: Candidates have other cases or were read at other parts of the network, or the score is not defined.
    """
    if len({prepared.cases for prepared in pool}) > 1:
        raise DataError(f"{score.name}: candidates have features of other cases", "Sample.only() the common ones")
    if len({prepared.read for prepared in pool}) > 1:
        places = ", ".join(sorted({prepared.read for prepared in pool}))
        raise DataError(f"{score.name}: candidates were read at different parts: {places}", "read all at the encoder")
    everything = everyone(pool[0])
    counts = draw_cases(everything.shape[1]) if counts is None else counts
    scores = score.scores(list(pool), everything)[:, 0]
    draws = score.scores(list(pool), counts)
    draws = draws[:, np.isfinite(draws).all(0)]
    if draws.shape[1] < WORTH * len(counts):
        draws = draws[:, :0]
    return Pooled(scores, draws)
