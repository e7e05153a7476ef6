"""Moments of features by case and class: what LogME, TransRate, GBC and the H-score need of all points.

They add up over cases, so a draw of a bootstrap costs a matrix product instead of another look at the features.
Features are those of the head's input (Sample.head_input), points of all cases are pooled, background is a class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stunet.errors import DataError
from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import SAME, Array, Counts, Prepared

CHUNK_BYTES = 2**24  # of matrices of draws in memory at a time


@dataclass(frozen=True)
class Moments:
    """Sums over the points of draws; x is relative to `shift`, the mean of all points, which saves digits.

    Attributes:
        n: (B, K) points of each class.
        sums: (B, K, D) of x.
        products: (B, K, D, D) of x x^T.
        cubes: (B, D) of |x|^2 x.
        fourth: (B,) of |x|^4.
        shift: (D,).
    """

    n: Array
    sums: Array
    products: Array
    cubes: Array
    fourth: Array
    shift: Array

    @property
    def total(self) -> Array:
        """Points of each draw, (B,)."""
        return np.asarray(self.n.sum(1))

    @property
    def means(self) -> Array:
        """Mean of each class (B, K, D), relative to `shift`; that of all points where a draw has none of the class."""
        mean = np.broadcast_to(self.mean[:, None], self.sums.shape)
        return np.where(self.n[..., None] > 0, self.sums / np.maximum(self.n, 1)[..., None], mean)

    @property
    def mean(self) -> Array:
        """Mean of all points (B, D), relative to `shift`."""
        return np.asarray(self.sums.sum(1) / self.total[:, None])

    def scatter(self, centre: Array) -> Array:
        """Sums of (x - centre)(x - centre)^T (B, K, D, D) for centres that broadcast to (B, K, D)."""
        centre = np.broadcast_to(centre, self.sums.shape)
        cross = self.sums[..., :, None] * centre[..., None, :]
        square = self.n[..., None, None] * centre[..., :, None] * centre[..., None, :]
        return self.products - cross - cross.swapaxes(-1, -2) + square

    def variances(self) -> Array:
        """Variances of the channels in each class (B, K, D), over n; 0 where a draw has none of the class."""
        n = np.maximum(self.n, 1)[..., None]
        diagonal = np.diagonal(self.products, axis1=-2, axis2=-1)
        return np.where(self.n[..., None] > 0, np.maximum(diagonal / n - np.square(self.sums / n), 0), 0)


def prepare(
    sample: Sample,
    formula: Callable[[Moments], Array],
    parts: Callable[[Moments], dict[str, Array]] = lambda moments: {},
    unit_rows: bool = False,
) -> Prepared:
    """Prepare a score that is a formula of moments; draws with fewer than two classes are nan.

    Args:
        sample: One candidate.
        formula: From moments of B draws to scores (B,).
        parts: What the score is made of, (1,) each.
        unit_rows: Scale each point's features to length 1 after centring; the shift is then no mean any more.

    Raises:
        DataError: Features are constant.
    """
    layer = sample.head_input()
    labels = np.concatenate([sample.labels(case) for case in sample.cases])
    rows = np.concatenate([layer.features[case] for case in sample.cases]).astype(np.float64)
    shift, deviation = rows.mean(0), rows.std(0)
    constant = deviation <= SAME * np.abs(shift)
    if constant.all():
        raise DataError(f"features of layer {layer.name!r} are constant", "check the weights of this candidate")
    rows -= shift
    rows[:, constant] = 0  # exactly, or rounding looks like information
    if unit_rows:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    of_case = np.repeat(np.arange(len(sample.cases)), [len(sample.labels(case)) for case in sample.cases])
    cases, classes, channels = len(sample.cases), sample.classes, rows.shape[1]
    n, sums = np.zeros((cases, len(classes))), np.zeros((cases, len(classes), channels))
    products = np.zeros((cases, len(classes), channels, channels))
    cubes, fourth = np.zeros((cases, channels)), np.zeros(cases)
    for i in range(cases):
        in_case = rows[of_case == i]
        squares = np.square(in_case).sum(1)
        cubes[i], fourth[i] = squares @ in_case, squares @ squares
        for k, label in enumerate(classes):
            x = in_case[labels[of_case == i] == label]
            n[i, k], sums[i, k], products[i, k] = len(x), x.sum(0), x.T @ x

    def moments(counts: Counts) -> Moments:
        def add(values: Array) -> Array:
            return np.asarray((counts @ values.reshape(cases, -1)).reshape(len(counts), *values.shape[1:]))

        return Moments(add(n), add(sums), add(products), add(cubes), add(fourth), shift)

    def terms(counts: Counts) -> Array:
        chunk = max(1, CHUNK_BYTES // products[0].nbytes)
        result = np.full(len(counts), np.nan)
        defined = np.flatnonzero(((counts @ n) > 0).sum(1) > 1)
        for start in range(0, len(defined), chunk):
            chosen = defined[start : start + chunk]
            result[chosen] = formula(moments(counts[chosen]))
        return result

    shown = {name: float(value[0]) for name, value in parts(moments(np.ones((1, cases)))).items()}
    return Prepared(sample.cases, terms, shown | {"channels": float(channels), "points": float(len(rows))}, layer.part)
