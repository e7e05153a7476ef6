"""LogME: how likely the labels are under linear models of the features (You et al., ICML 2021 and JMLR 2022).

For each class, with t its labels (0 or 1), F = U diag(s) V^T the features (N, D) and x = U^T t, the evidence

    D/2 log a + N/2 log b - 1/2 sum_i log(a + b s_i^2) - b/2 |F w - t|^2 - a/2 |w|^2 - N/2 log 2 pi

is maximised over the precisions a of the weights w and b of the noise by the fixed point of the second paper; LogME is
the evidence per point, averaged over classes. The sum has all D terms, of which D - rank(F) are log a. The public code
(thuml/LogME, 56551ca) leaves those out, and prefers features of more channels than points: 8.7 where 0.07 is right.
"""

import numpy as np

from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import Array, Prepared
from stunet.ranking.scores.moments import Moments, prepare

STEPS, TOLERANCE, SMALL = 11, 1e-3, 1e-5  # as in the public code
RANK = 1e-12  # of the largest squared singular value: less is rounding


def logme(sample: Sample) -> Prepared:
    """Prepare LogME of one-vs-rest labels, background included."""
    return prepare(sample, _formula)


def _formula(moments: Moments) -> Array:
    # The model has no intercept, so the features have to be as they are: not relative to the shift.
    gram = moments.scatter(-moments.shift).sum(1)
    towards = moments.sums + moments.n[..., None] * moments.shift  # F^T t of each class
    values, vectors = np.linalg.eigh(gram)
    values = np.where(values > RANK * values[:, -1:], values, 0)[:, None]  # (B, 1, D)
    projected = np.square(towards @ vectors)
    squares = np.divide(projected, values, out=np.zeros_like(projected), where=values > 0)
    present = moments.n > 0
    evidence = _evidence(values, squares, moments.n, moments.total[:, None])
    return np.asarray(np.where(present, evidence, 0).sum(1) / present.sum(1))


def _evidence(values: Array, squares: Array, ones: Array, points: Array) -> Array:
    """Maximise the evidence per point (B, K).

    Args:
        values: (B, 1, D) squared singular values, 0 beyond the rank.
        squares: (B, K, D) of x, 0 beyond the rank.
        ones: (B, K) points of the class, which are |t|^2.
        points: (B, 1).
    """
    channels = values.shape[-1]
    rest = np.maximum(ones - squares.sum(-1), 0)
    ratio = np.ones_like(ones)  # a / b
    result, done = np.zeros_like(ones), np.zeros_like(ones, dtype=bool)
    for _ in range(STEPS):
        r = ratio[..., None]
        gamma = (values / (values + r)).sum(-1)
        weights = (values * squares / np.square(values + r)).sum(-1)
        residual = (squares * np.square(r / (values + r))).sum(-1) + rest
        a = gamma / (weights + SMALL)
        b = np.maximum(points - gamma, np.finfo(np.float64).tiny) / (residual + SMALL)
        with np.errstate(divide="ignore", invalid="ignore"):  # gamma is 0 for features of nothing but 0
            evidence = (
                channels / 2 * np.log(a)
                + points / 2 * np.log(b)
                - np.log(a[..., None] + b[..., None] * values).sum(-1) / 2
                - b / 2 * residual
                - a / 2 * weights
                - points / 2 * np.log(2 * np.pi)
            ) / points
            after = a / b
            result = np.where(done, result, evidence)
            done |= np.abs(after - ratio) <= TOLERANCE * ratio
        if done.all():
            break
        ratio = np.where(done, ratio, after)
    return np.asarray(np.where(np.isfinite(result), result, np.nan))
