"""2-Wasserstein distances between Gaussians that are fitted to features, exact and batched.

    W2^2 = |m_i - m_j|^2 + Tr S_i + Tr S_j - 2 Tr (S_i S_j)^(1/2)

With S = R^T R the last trace is the nuclear norm of R_i R_j^T: the eigenvalues of S_i S_j are the squared singular
values of R_i R_j^T. R comes from a QR decomposition of the features, so no covariance and no matrix square root is
formed: fewer points than channels are no special case, the result is symmetric and real, and equal Gaussians are at a
distance of 1e-7 where `sqrtm` gives 1e-3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stunet.ranking.sample import Floats
from stunet.ranking.scores.base import Array


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and factor (r, D) of the unbiased covariance factor^T factor; r is at most D and n - 1."""

    mean: Array
    factor: Array


def fit(rows: Floats) -> Gaussian:
    """Fit a Gaussian to features (n, D) of at least two points."""
    values = rows.astype(np.float64)
    mean = values.mean(0)
    # The column of ones takes the mean out once more, exactly, and with it the row that centring makes redundant.
    extended = np.concatenate([np.ones((len(values), 1)), values - mean], 1)
    triangle = np.asarray(np.linalg.qr(extended, mode="r"))
    return Gaussian(mean, triangle[1:, 1:] / np.sqrt(len(values) - 1))


def squared_distances(gaussians: Sequence[Gaussian | None]) -> Array:
    """Return W2^2 (N, N) between all pairs; nan where one is missing."""
    found = [(i, gaussian) for i, gaussian in enumerate(gaussians) if gaussian is not None]
    result = np.full((len(gaussians), len(gaussians)), np.nan)
    by_rows: dict[int, list[tuple[int, Gaussian]]] = {}  # factors of equal size are decomposed together
    for i, gaussian in found:
        by_rows.setdefault(len(gaussian.factor), []).append((i, gaussian))
    for group in by_rows.values():
        others = np.array([i for i, _ in group])
        means, factors = (np.stack([getattr(g, name) for _, g in group]) for name in ("mean", "factor"))
        traces = np.square(factors).sum((1, 2))
        for i, gaussian in found:
            later = others > i
            if later.any():
                products = gaussian.factor @ factors[later].swapaxes(1, 2)
                overlaps = np.linalg.svd(products, compute_uv=False).sum(1)
                shifts = np.square(means[later] - gaussian.mean).sum(1)
                squares = shifts + traces[later] + np.square(gaussian.factor).sum() - 2 * overlaps
                result[i, others[later]] = result[others[later], i] = np.maximum(squares, 0)
        result[others, others] = 0
    return result
