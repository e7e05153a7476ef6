"""GBC: how little Gaussians of the classes overlap, by their Bhattacharyya coefficients (Pandy et al., CVPR 2022).

    B(c, c') = 1/8 (m - m')^T S^-1 (m - m') + 1/2 log(|S| / sqrt(|S_c| |S_c'|)),  S = (S_c + S_c') / 2
    GBC = - sum over ordered pairs of classes of exp(-B)

Covariances are multiples of the identity, or diagonal; variances are over n, and at least FLOOR. The public code
(google-research/stable_transfer) counts the logarithm of a spherical covariance once, where a determinant has it D
times: `published`. The paper reduces features to 64 dimensions first; the features of a head's input rarely have more,
so that is left out. Where classes are far apart GBC is close to 0 for all candidates: `log GBC` among the parts is
-log of the sum.
"""

import numpy as np

from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import Array, Prepared
from stunet.ranking.scores.moments import Moments, prepare

FLOOR = 1e-4


def gbc(sample: Sample, diagonal: bool = False, logarithm_once: bool = False) -> Prepared:
    """Prepare GBC of spherical covariances, or of diagonal ones."""

    def distances(moments: Moments) -> Array:
        """B of all pairs (B, K, K), inf for classes that a draw lacks, and for a class with itself."""
        means, variances = moments.means, moments.variances()
        if not diagonal:
            variances = variances.mean(-1, keepdims=True)
        variances = np.maximum(variances, FLOOR)
        classes, channels = moments.sums.shape[1:]
        repeats = channels if not diagonal and not logarithm_once else 1
        result = np.full((len(variances), classes, classes), np.inf)
        for c in range(classes):
            for other in range(c + 1, classes):
                both = (variances[:, c] + variances[:, other]) / 2
                shift = (np.square(means[:, c] - means[:, other]) / both).sum(-1) / 8
                logs = np.log(both / np.sqrt(variances[:, c] * variances[:, other])).sum(-1)
                present = (moments.n[:, c] > 0) & (moments.n[:, other] > 0)
                result[:, c, other] = result[:, other, c] = np.where(present, shift + repeats * logs / 2, np.inf)
        return result

    def formula(moments: Moments) -> Array:
        return np.asarray(-np.exp(-distances(moments)).sum((1, 2)))

    def parts(moments: Moments) -> dict[str, Array]:
        d = distances(moments)
        least = d.min((1, 2), keepdims=True)
        finite = np.where(np.isfinite(least), least, 0)
        sums = np.exp(finite - d).sum((1, 2))
        return {"log GBC": finite[:, 0, 0] - np.log(np.maximum(sums, np.finfo(np.float64).tiny))}

    return prepare(sample, formula, parts)


def diagonal(sample: Sample) -> Prepared:
    """Prepare GBC of diagonal covariances."""
    return gbc(sample, diagonal=True)


def published(sample: Sample) -> Prepared:
    """Prepare GBC of spherical covariances as the public code computes it."""
    return gbc(sample, logarithm_once=True)
