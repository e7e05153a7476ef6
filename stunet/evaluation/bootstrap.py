"""Mean Dice of resampled cases and seeds; experiment/summary.py compares arms by it, ranking/judging.py rankings.

Of n it draws n-1, so that the variance is not understated by (n-1)/n (Rao and Wu 1988,
doi:10.1080/01621459.1988.10478591).
"""

import numpy as np


def mean_dice(dice_CK: np.ndarray) -> float:
    """Return nnU-Net's mean: that over the classes K of the mean over the cases C, ignoring NaN."""
    return float(mean_dice_of_draws(dice_CK, np.ones((1, len(dice_CK))))[0])


def draw_counts(n: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Return how often each of n items occurs in each draw, (draws, n)."""
    return random.multinomial(max(1, n - 1), np.full(n, 1 / n), size=draws)


def mean_dice_of_draws(dice_CK: np.ndarray, counts_DC: np.ndarray) -> np.ndarray:
    """Return the mean Dice of each draw D, given how often each case occurs in it; NaN for a draw without classes."""
    classes = class_means_of_draws(dice_CK, counts_DC)
    with np.errstate(invalid="ignore"):
        return np.nansum(classes, axis=1) / (~np.isnan(classes)).sum(axis=1)


def class_means_of_draws(values_CK: np.ndarray, counts_DC: np.ndarray) -> np.ndarray:
    """Return each class's mean in each draw, (D, K), given how often each case occurs in it; NaN without a case."""
    valid = ~np.isnan(values_CK)
    # One matrix product for all draws, in place of a resampled table for each.
    total, number = counts_DC @ np.where(valid, values_CK, 0), counts_DC @ valid
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
