"""How well a ranking agrees with what fine-tuning reached: correlations, regret, and chance of picking the best.

All take scores and Dice (..., N) of N candidates, higher is better, and return an array (...): leading axes are draws
of the bootstrap, or permutations. Candidates with the same score are in no order: regret and chance are means over all
orders of them. A correlation with scores that are all the same, or Dice that are, is NaN.

Two definitions of the weighted tau are in use whose values must not be compared: scipy's, which most publications
report, and that of TopoTE. judging.py applies them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import permutations
from math import comb

import numpy as np
from scipy.stats import rankdata

FEWEST = 4  # candidates: with three, one of six orders is right by chance
EXACT = 7  # candidates up to which all orders are compared, 5040
BLOCK = 2**21  # pairs at a time, 16 MB an array
EQUAL = 1e-12  # sums of the same terms in another order differ by less


def weighted_tau(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return `scipy.stats.weightedtau` with its defaults (Vigna 2015, doi:10.1145/2736277.2741088), for many draws.

    A pair at ranks r and s from the top, from 0, weighs 1/(r+1) + 1/(s+1); ranks are by score, ties by Dice, and the
    result is the mean with that of the other way round.
    """
    return _in_blocks(lambda x, y: (_ranked_tau(x, y) + _ranked_tau(y, x)) / 2, scores, dice)


def _ranked_tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the tau of arrays (D, N) whose ranks are by x, then y."""
    n = x.shape[1]
    weights = np.empty_like(x)
    np.put_along_axis(weights, np.lexsort((y, x)), np.broadcast_to(1 / np.arange(n, 0, -1.0), x.shape), axis=1)
    one, other = (np.sign(values[:, :, None] - values[:, None, :]) for values in (x, y))
    # A sum over pairs of (w_i + w_j) s_ij is the sum over i of w_i times the sum over j of s_ij, as s is symmetric.
    agree, untied_x, untied_y = (
        (weights * sums.sum(axis=2)).sum(axis=1) for sums in (one * other, np.abs(one), np.abs(other))
    )
    return _divide(agree, np.sqrt(untied_x * untied_y))


def topote_tau(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return the weighted tau of TopoTE (arXiv 2602.23916, equation 7; SPIresearch/TopoTE, commit dfe2f00).

    With candidates sorted by Dice, the pair at positions i < j from 0 weighs 1/((i+1)(j+1)), and tau is 1 - 2 times the
    share of the weight of pairs whose scores are in the wrong order. Pairs with the same score count as right, so that
    scores that are all the same would have 1; here they have NaN. Of the same Dice, the higher score comes first.
    """

    def tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = np.take_along_axis(x, np.lexsort((x, y))[:, ::-1], axis=1)
        i, j = np.triu_indices(x.shape[1], 1)
        weights = 1 / ((i + 1.0) * (j + 1.0))
        found = 1 - 2 * ((x[:, i] < x[:, j]) @ weights) / weights.sum()
        return np.where(_constant(x) | _constant(y), np.nan, found)

    return _in_blocks(tau, scores, dice)


def _constant(x: np.ndarray) -> np.ndarray:
    return x.max(axis=-1) == x.min(axis=-1)


def _in_blocks(
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray], scores: np.ndarray, dice: np.ndarray
) -> np.ndarray:
    """Apply a function of arrays (D, N) with memory N^2 for each draw to arrays (..., N), block by block."""
    x, y = np.broadcast_arrays(np.asarray(scores, float), np.asarray(dice, float))
    shape, n = x.shape[:-1], x.shape[-1]
    x, y = x.reshape(-1, n), y.reshape(-1, n)
    step = max(1, BLOCK // n**2)
    found = [compute(x[start : start + step], y[start : start + step]) for start in range(0, len(x), step)]
    return np.concatenate(found).reshape(shape)


def pearson(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation."""
    # Constant values less their mean are not always 0, so they are made so.
    x, y = (np.where(_constant(v)[..., None], 0, v - v.mean(axis=-1, keepdims=True)) for v in (scores, dice))
    # Scaled, since the squares of tiny scores would be 0.
    x, y = (v / np.where((top := np.abs(v).max(axis=-1, keepdims=True)) > 0, top, 1) for v in (x, y))
    return _divide((x * y).sum(axis=-1), np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1)))


def spearman(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation; ties have the mean of their ranks."""
    return pearson(rankdata(scores, axis=-1), rankdata(dice, axis=-1))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def regret(scores: np.ndarray, dice: np.ndarray, k: int = 1) -> np.ndarray:
    """Return by how many Dice points the best of the first k candidates stays below the best of all."""
    return 100 * (dice.max(axis=-1) - best_of_first(scores, dice, k))


def best_of_first(scores: np.ndarray, dice: np.ndarray, k: int) -> np.ndarray:
    """Return the highest of the Dice of the first k candidates; of ties at the border, the mean over all choices."""
    scores, dice = np.broadcast_arrays(np.asarray(scores, float), np.asarray(dice, float))
    k = min(k, scores.shape[-1])
    order = np.argsort(dice, axis=-1)
    dice, scores = (np.take_along_axis(values, order, axis=-1) for values in (dice, scores))
    border = np.partition(scores, -k, axis=-1)[..., [-k]]
    tied = scores == border
    surely = np.where(scores > border, dice, -np.inf).max(axis=-1, keepdims=True)
    # Of m tied candidates in the order of their Dice, the i-th is the highest of c chosen ones in (i-1 over c-1) of all
    # (m over c) choices.
    i, m = tied.cumsum(axis=-1), tied.sum(axis=-1, keepdims=True)
    c = k - (scores > border).sum(axis=-1, keepdims=True)
    share = _choose(i - 1, c - 1) / _choose(m, c)
    return np.where(tied, share * np.maximum(surely, dice), 0).sum(axis=-1)


def _choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    size = int(max(n.max(), k.max(), 0)) + 1
    table = np.array([[float(comb(row, column)) for column in range(size)] for row in range(size)])
    return table[np.maximum(n, 0), k]


def chance_of_best(scores: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return the chance that the first candidate is the best one, or one of several that are."""
    first = scores == scores.max(axis=-1, keepdims=True)
    best = dice == dice.max(axis=-1, keepdims=True)
    return (first & best).sum(axis=-1) / first.sum(axis=-1)


def permutation_p(
    scores: Sequence[np.ndarray], dice: Sequence[np.ndarray], tau: "Compute", draws: int, seed: int = 0
) -> float:
    """Return how often scores in random order have at least this mean tau over the targets.

    Args:
        scores: (N,) for each target; N may differ.
        dice: The same.
        tau: Definition of it.
        draws: Random orders, with the given one counted among them; a single target of up to EXACT candidates is
            compared with all orders.
        seed: Of the random orders.

    Returns:
        The one-sided p; NaN if tau is undefined for one of the targets.
    """
    observed = np.mean([tau(x, y) for x, y in zip(scores, dice, strict=True)])
    if np.isnan(observed):
        return float("nan")
    exact = len(scores) == 1 and len(scores[0]) <= EXACT
    found = np.mean(
        [
            _random_taus(_ranks(x), _ranks(y), tau, None if exact else draws, seed + number)
            for number, (x, y) in enumerate(zip(scores, dice, strict=True))
        ],
        axis=0,
    )
    reached = (found >= observed - EQUAL).sum()
    return float(reached / len(found) if exact else (1 + reached) / (1 + draws))


def _ranks(values: np.ndarray) -> tuple[int, ...]:
    """Return the sorted ranks, on which alone the tau of random orders depends: with N it is a matter of ties."""
    return tuple(sorted(np.unique(values, return_inverse=True)[1].tolist()))


@lru_cache(maxsize=128)
def _random_taus(x: tuple[int, ...], y: tuple[int, ...], tau: "Compute", draws: int | None, seed: int) -> np.ndarray:
    """Return the tau of random orders, or of all of them."""
    if draws is None:
        orders = np.array(list(permutations(x)), float)
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.array(x, float), (draws, 1)), axis=1)
    return tau(orders, np.array(y, float))


Compute = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measure:
    """A measure of agreement.

    Attributes:
        name: Key in files.
        heading: In tables.
        compute: Function of scores and Dice.
        fewest: Candidates below which it is left out.
        places: Digits after the point.
    """

    name: str
    heading: str
    compute: Compute
    fewest: int
    places: int = 3


# The definitions of tau, of which a judgement uses one.
TAUS = {
    "scipy": Measure("weighted_tau", "weighted tau", weighted_tau, FEWEST),
    "topote": Measure("topote_tau", "TopoTE's tau", topote_tau, FEWEST),
}
OTHERS = (
    Measure("pearson", "Pearson", pearson, FEWEST),
    Measure("spearman", "Spearman", spearman, FEWEST),
    Measure("regret_1", "regret@1", partial(regret, k=1), 2, 2),
    Measure("regret_3", "regret@3", partial(regret, k=3), 2, 2),
    Measure("best", "P(best)", chance_of_best, 2, 2),
)
