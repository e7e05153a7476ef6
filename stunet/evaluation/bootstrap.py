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
    valid = ~np.isnan(dice_CK)
    # One matrix product for all draws, in place of a resampled table for each.
    total, number = counts_DC @ np.where(valid, dice_CK, 0), counts_DC @ valid
    classes = np.divide(total, number, out=np.zeros_like(total), where=number > 0)
    with np.errstate(invalid="ignore"):
        return classes.sum(axis=1) / (number > 0).sum(axis=1)
