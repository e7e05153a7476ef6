"""CC-FV: are features of a class alike in all cases, and do features within a case vary (Yang et al., MICCAI 2023)?

As in the paper (arXiv:2307.11958v1, equations 1 to 5, s = 1):

    C  = sum over foreground classes k of the mean over pairs of cases of W2(F_i^k, F_j^k)    consistency: small is good
    E  = sum over pairs of points of a case of |v_i - v_j|^(-s)
    F  = mean over cases of 1 / E                                                             variety: large is good
    T  = mean over layers of log(F / C)

F and C have the same unit, so T does not change if the features of a layer are multiplied by a number. E is the mean
over pairs here: the same ranking wherever all cases have equally many points, since log L(L - 1) is then a constant,
and no case with few points outweighs the others. `energy_sum=True` has the equation to the letter.

Ours: E is over all points that were drawn, of every class equally many, where the paper draws from the whole case. And
where it says nothing: a class counts in the cases that have at least two points of it, and in at least two
of them; coinciding points are FLOOR apart, so that E stays finite; E of more than LARGEST points is that of LARGEST.
`official` and `debiased` are the variants; wasserstein.py has W2.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stunet.errors import DataError
from stunet.ranking.sample import BACKGROUND, Floats, Layer, Sample
from stunet.ranking.scores.base import SAME, Array, Counts, Prepared
from stunet.ranking.scores.wasserstein import fit, squared_distances

log = logging.getLogger("stunet")

FLOOR = 1e-6  # of the mean squared distance between points of a case: the least squared distance that counts
LARGEST = 2000  # points of a case in E, whose cost is quadratic; evenly chosen from all
BLOCK = 128
OFFICIAL_EPSILON = 1e-3
LEAST_SHARE = 0.01  # of W2^2 that debiasing leaves of it


@dataclass(frozen=True)
class Consistency:
    """How far the foreground classes of a layer are apart between cases.

    Attributes:
        labels: Of the K classes.
        squares: (K, N, N) W2^2, nan where a case has too few points of a class.
        points: Median of the points of a class in a case.
    """

    labels: Sequence[int]
    squares: Array
    points: float

    def per_class(self, counts: Counts, halves: Array | None = None) -> Array:
        """Return the mean W2 (B, K) over pairs of different cases in draws; nan where a class has no pair.

        Args:
            counts: (B, N).
            halves: (K, N) W2^2 between two halves of a case's points, to take out their noise; nan: too few points.
        """
        if halves is None:
            return _means(np.sqrt(self.squares), counts)
        without_noise = self.squares - (halves[:, :, None] + halves[:, None, :]) / 4
        raw = np.where(np.isfinite(without_noise), self.squares, np.nan)
        return np.sqrt(np.maximum(_means(without_noise, counts), LEAST_SHARE * _means(raw, counts)))


def paper(sample: Sample, energy_sum: bool = False, debias: bool = False) -> Prepared:
    """Prepare the paper's score.

    Raises:
        DataError: No foreground class has points in two cases.
    """

    def prepare(layer: Layer) -> tuple[Callable[[Counts], Array], dict[str, float]]:
        consistency = measure(layer, sample)
        halves = between_halves(layer, sample, consistency.labels) if debias else None
        inverse = _inverse_energies(layer, sample, energy_sum)
        known = np.isfinite(inverse)

        def log_ratio(counts: Counts) -> Array:
            weights = (counts * known).sum(1)
            variety = np.divide(counts @ np.where(known, inverse, 0), weights, where=weights > 0, out=_nans(counts))
            return _log(variety) - _log(_sum_of_classes(consistency.per_class(counts, halves)))

        parts = {
            "consistency": float(_sum_of_classes(consistency.per_class(_once(sample), halves))[0]),
            "variety": float(inverse[known].mean()) if known.any() else 0.0,
        }
        return log_ratio, parts | {"points": consistency.points, "channels": float(_channels(layer))}

    return _over_layers(sample, prepare, np.mean)


def debiased(sample: Sample) -> Prepared:
    """Prepare the paper's score with W2 freed from the noise of small samples; ours.

    W2 between samples of the same Gaussian is large where points are few and channels are many, so wide networks score
    low. Two halves of the same sample are exactly such a pair, with twice the noise in W2^2 for each of the two:

        W2^2(i, j) - 1/4 W2^2(i_a, i_b) - 1/4 W2^2(j_a, j_b)

    is averaged over pairs, and its root is W2 of the class. At least LEAST_SHARE of the average remains. That works
    with 1.5 points for each channel, or more; fewer leave much of the noise.
    """
    return paper(sample, debias=True)


def official(sample: Sample) -> Prepared:
    """Prepare what the public code (commit ba07768, utils/ccfv.py) computes from features: not what the paper says.

        V = mean over pairs of cases of 1 / sqrt(|g_i - g_j|^2 + 0.001)          g: mean of all points of a case
        w = sum_k S_k (1 + e)^(C - k + 1), e = 2 / (N^2 C)                       S_k: sum over pairs of cases of W2
        T = sum over layers of log(V / w)

    Features multiplied by a number score differently, and cases with equal means score high. Draws of a bootstrap, and
    classes that are missing in some case, where that code fails, have S_k from the mean over the pairs that exist.
    """

    def prepare(layer: Layer) -> tuple[Callable[[Counts], Array], dict[str, float]]:
        consistency = measure(layer, sample)
        means = np.stack([layer.features[case].mean(0, dtype=np.float64) for case in sample.cases])
        squares = np.stack([np.square(means - mean).sum(1) for mean in means])
        cases, classes = len(means), len(consistency.squares)
        apart = 1.0 - np.eye(cases)
        factors = (1 + 2 / (cases**2 * classes)) ** np.arange(classes, 0, -1) * (cases * (cases - 1) / 2)

        def variety(counts: Counts) -> Array:
            pairs = _over_pairs(apart, counts)
            energy = _over_pairs(apart / np.sqrt(squares + OFFICIAL_EPSILON), counts)
            return np.divide(energy, pairs, where=pairs > 0, out=_nans(counts))

        def log_ratio(counts: Counts) -> Array:
            return _log(variety(counts)) - _log(_sum_of_classes(consistency.per_class(counts) * factors))

        once = _once(sample)
        total = float((consistency.per_class(once) * factors).sum(1)[0])
        return log_ratio, {"V": float(variety(once)[0]), "w": total}

    return _over_layers(sample, prepare, np.sum)


def measure(layer: Layer, sample: Sample) -> Consistency:
    """Compute W2^2 between all cases for each foreground class that two cases have two points of.

    Raises:
        DataError: There is no such class.
    """
    return sample.once(("W2", layer.part, layer.name), lambda: _measure(layer, sample))


def _measure(layer: Layer, sample: Sample) -> Consistency:
    labels, squares, points, left_out = [], [], [], 0
    for label in sample.classes:
        if label == BACKGROUND:
            continue
        rows = [layer.features[case][sample.labels(case) == label] for case in sample.cases]
        enough = [len(r) >= 2 for r in rows]
        left_out += len(rows) - sum(enough)
        if sum(enough) < 2:
            continue
        labels.append(label)
        squares.append(squared_distances([fit(r) if ok else None for r, ok in zip(rows, enough, strict=True)]))
        points += [len(r) for r, ok in zip(rows, enough, strict=True) if ok]
    if not squares:
        raise DataError("no foreground class has two points in two cases", "more cases, or more points of each class")
    if left_out:
        log.info("CC-FV, layer %s: %d times, a case had too few points of a class", layer.name, left_out)
    return Consistency(labels, np.stack(squares), float(np.median(points)))


def between_halves(layer: Layer, sample: Sample, labels: Sequence[int]) -> Array:
    """Compute W2^2 (K, N) between two halves of each case's points of each class; nan for fewer than four.

    Which points are in a half is random, because their order has a meaning.
    """

    def of_case(rows: Floats) -> float:
        if len(rows) < 4:
            return float("nan")
        mixed = rows[np.random.RandomState(len(rows)).permutation(len(rows))]
        middle = len(rows) // 2
        return float(squared_distances([fit(mixed[:middle]), fit(mixed[middle:])])[0, 1])

    cases = sample.cases
    return np.array([[of_case(layer.features[c][sample.labels(c) == label]) for c in cases] for label in labels])


def energy(rows: Floats, s: float = 1) -> float:
    """Return the mean Riesz energy of points (L, D) over ordered pairs, logarithmic for s = 0; inf if all coincide."""
    values = rows.astype(np.float64)
    values = values[np.linspace(0, len(values) - 1, min(len(values), LARGEST)).astype(int)]
    mean = values.mean(0)
    values -= mean
    # Products instead of differences lose digits of distances far below FLOOR only, since points are centred.
    norms, count = np.square(values).sum(1), len(values)
    if norms.mean() <= SAME**2 * np.square(mean).sum():
        return float("inf")
    floor = FLOOR * 2 * norms.sum() / (count - 1)
    total = 0.0
    for start in range(0, count, BLOCK):
        block = -2 * values[start : start + BLOCK]
        terms = block @ values[start:].T
        terms += norms[start:]
        terms += norms[start : start + BLOCK, None]
        np.sqrt(np.maximum(terms, floor, out=terms), out=terms)
        terms = -np.log(terms) if s == 0 else np.reciprocal(terms, out=terms) ** s
        size = len(block)
        total += 2 * terms[:, size:].sum() + terms[:, :size].sum() - np.trace(terms[:, :size])
    return float(total / (count * (count - 1)))


def _inverse_energies(layer: Layer, sample: Sample, energy_sum: bool) -> Array:
    """Return 1 / E of each case; nan for one point only."""
    rows = [layer.features[case] for case in sample.cases]

    def energies() -> Array:
        return np.array([energy(r) if len(r) > 1 else np.nan for r in rows])

    pairs = np.array([len(r) * (len(r) - 1) if energy_sum else 1 for r in rows])
    return 1 / (pairs * sample.once(("energy", layer.part, layer.name), energies))


def _over_layers(
    sample: Sample,
    prepare: Callable[[Layer], tuple[Callable[[Counts], Array], dict[str, float]]],
    reduce: Callable[..., Array],
) -> Prepared:
    layers = sample.levels()
    ratios: list[Callable[[Counts], Array]] = []
    parts: dict[str, float] = {}
    for layer in layers:
        ratio, of_layer = prepare(layer)
        ratios.append(ratio)
        parts |= {f"{layer.name}: {name}": value for name, value in of_layer.items()}

    def terms(counts: Counts) -> Array:
        return np.asarray(reduce(np.stack([ratio(counts) for ratio in ratios]), axis=0))

    return Prepared(sample.cases, terms, parts, layers[0].part)


def _sum_of_classes(per_class: Array) -> Array:
    """Sum over classes; those without a pair of cases in a draw count as much as the others do on average."""
    known = np.isfinite(per_class)
    totals, classes = np.where(known, per_class, 0).sum(1), known.sum(1)
    return np.divide(totals * per_class.shape[1], classes, where=classes > 0, out=_nans(per_class))


def _means(values: Array, counts: Counts) -> Array:
    """Return the means (B, K) of values (K, N, N) over pairs of different cases in draws, nan if there are none."""
    pairs = np.isfinite(values) & ~np.eye(values.shape[1], dtype=bool)
    totals = np.stack([_over_pairs(v, counts) for v in np.where(pairs, values, 0)], 1)
    weights = np.stack([_over_pairs(v, counts) for v in pairs.astype(np.float64)], 1)
    return np.divide(totals, weights, out=np.full_like(totals, np.nan), where=weights > 0)


def _over_pairs(values: Array, counts: Counts) -> Array:
    return np.asarray(((counts @ values) * counts).sum(1))


def _log(values: Array) -> Array:
    return np.log(values, where=values > 0, out=_nans(values))


def _nans(rows: Array) -> Array:
    return np.full(len(rows), np.nan)


def _once(sample: Sample) -> Counts:
    return np.ones((1, len(sample.cases)))


def _channels(layer: Layer) -> int:
    return next(iter(layer.features.values())).shape[1]
