"""H-score: the share of the features' variance that lies between classes, where covariances are shrunk.

    H = (1 - a) tr(S_a^-1 cov(E[F | y])),   S_a = (1 - a) cov F + a mu I

with the shrinkage a of Ledoit and Wolf (2004), as Ibrahim et al. (2021, "Newer is not always better") regularise the
score of Bao et al. (ICIP 2019), which is `plain`: tr(pinv(cov F) cov(E[F | y])), ill-conditioned for many channels.
cov F is over n and cov(E[F | y]) over n - 1 in the first, as in the authors' code; `plain` has the same for both.
"""

import numpy as np

from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import Array, Prepared
from stunet.ranking.scores.moments import Moments, prepare


def hscore(sample: Sample) -> Prepared:
    """Prepare the regularised H-score."""
    return prepare(sample, _regularised, lambda moments: {"shrinkage": _shrinkage(moments)[0]})


def plain(sample: Sample) -> Prepared:
    """Prepare the H-score without shrinkage."""

    def formula(moments: Moments) -> Array:
        inverse = np.linalg.pinv(_covariance(moments), rcond=1e-12, hermitian=True)
        return np.asarray((inverse * _between(moments)).sum((1, 2)))

    return prepare(sample, formula)


def _regularised(moments: Moments) -> Array:
    shrinkage, level = _shrinkage(moments)
    a = shrinkage[:, None, None]
    shrunk = (1 - a) * _covariance(moments) + a * level[:, None, None] * np.eye(moments.sums.shape[-1])
    # Channels that are constant in a draw, or all of them, make it singular; the pseudo-inverse leaves them out.
    inverse = np.linalg.pinv(shrunk, rcond=1e-12, hermitian=True)
    unbiased = moments.total / (moments.total - 1)
    result = (1 - shrinkage) * unbiased * (inverse * _between(moments)).sum((1, 2))
    return np.where(level > 0, result, np.nan)


def _covariance(moments: Moments) -> Array:
    """Covariance of all points (B, D, D), over n."""
    return np.asarray(moments.scatter(moments.mean[:, None]).sum(1) / moments.total[:, None, None])


def _between(moments: Moments) -> Array:
    """Covariance of the class means, each as often as its points (B, D, D), over n."""
    means = moments.means - moments.mean[:, None]
    weights = moments.n / moments.total[:, None]
    return np.asarray((weights[..., None] * means).swapaxes(1, 2) @ means)


def _shrinkage(moments: Moments) -> tuple[Array, Array]:
    """Ledoit and Wolf's shrinkage (B,) and the mean variance (B,), from moments."""
    covariance, mean, n = _covariance(moments), moments.mean, moments.total
    channels = covariance.shape[-1]
    level = np.trace(covariance, axis1=1, axis2=2) / channels
    products = moments.products.sum(1)
    # Sum over points of |x - m|^4, multiplied out.
    quadratic = np.einsum("bi,bij,bj->b", mean, products, mean)
    m2, sums = np.square(mean).sum(1), moments.sums.sum(1)
    fourth = (
        moments.fourth
        + 4 * quadratic
        + n * m2**2
        - 4 * (moments.cubes * mean).sum(1)
        + 2 * m2 * np.trace(products, axis1=1, axis2=2)
        - 4 * m2 * (sums * mean).sum(1)
    )
    squared = np.square(covariance).sum((1, 2))
    noise = (fourth / n - squared) / (n * channels)
    distance = (squared - channels * level**2) / channels
    noise = np.clip(noise, 0, np.maximum(distance, 0))
    return np.divide(noise, distance, out=np.zeros_like(noise), where=distance > 0), level
