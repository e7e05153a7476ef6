"""TransRate: how much of the features' coding length knowing the class saves (Huang et al., ICML 2022).

    R(Z) = 1/2 log det(I + Z^T Z / (n e)), e = 1e-4          T = R(Z) - sum_c w_c R(Z_c)

Z are features centred over all classes, which are not centred again within a class; w_c = 1/K, as in the paper's
listing, or n_c/n, as in the authors' analysis code. e is fixed, so T depends on the unit of the features, and on the
number of channels. `normalised` divides Z by its Frobenius norm first, as secret-hammer/EMAB does.
"""

import numpy as np

from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import Array, Prepared
from stunet.ranking.scores.moments import Moments, prepare

EPSILON = 1e-4


def transrate(sample: Sample, normalise: bool = False, proportional: bool = False, unit_rows: bool = False) -> Prepared:
    """Prepare TransRate.

    Args:
        sample: One candidate.
        normalise: Divide centred features by their Frobenius norm.
        proportional: Weight a class by its points.
        unit_rows: Scale the centred features of each point to length 1, as the authors' analysis code does.
    """

    def formula(moments: Moments) -> Array:
        centre = np.zeros_like(moments.mean) if unit_rows else moments.mean  # unit rows are not centred again
        scatter = moments.scatter(centre[:, None])  # (B, K, D, D)
        whole = scatter.sum(1)
        if normalise:
            norm = np.trace(whole, axis1=-2, axis2=-1)[:, None, None]
            norm = np.where(norm > 0, norm, 1)
            whole, scatter = whole / norm, scatter / norm[:, None]
        rate = _rate(whole, moments.total)
        rates = _rate(scatter, np.maximum(moments.n, 1))
        present = moments.n > 0
        weights = moments.n if proportional else present.astype(np.float64)
        weights = weights / weights.sum(1, keepdims=True)
        return np.asarray(rate - (weights * rates).sum(1))

    return prepare(sample, formula, unit_rows=unit_rows)


def normalised(sample: Sample) -> Prepared:
    """Prepare TransRate that does not depend on the unit of the features."""
    return transrate(sample, normalise=True)


def _rate(scatter: Array, points: Array) -> Array:
    identity = np.eye(scatter.shape[-1])
    return np.asarray(np.linalg.slogdet(identity + scatter / (points[..., None, None] * EPSILON))[1] / 2)
