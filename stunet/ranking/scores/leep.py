"""LEEP, NCE and N-LEEP: how well the labels follow from classes that the source knows, or that clusters stand for.

With probabilities q_i(z) of Z source classes at point i (Nguyen et al., ICML 2020):

    P(y, z) = 1/n sum_i q_i(z) 1[y_i = y],   P(y | z) = P(y, z) / P(z)
    LEEP = 1/n sum_i log sum_z P(y_i | z) q_i(z)

NCE (Tran et al., ICCV 2019) is -H(y | z) for the most probable z. N-LEEP (Li et al., CVPR 2021) needs no head: q are
memberships in a mixture of Gaussians, five for each class, fitted to the principal components that hold 80 % of the
variance. Source classes that never occur are left out. Points of all cases are pooled, background is a class; where
classes have equally many points, LEEP is above -log K, often barely: differences count, not the level.
"""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from stunet.errors import DataError
from stunet.ranking.sample import Sample
from stunet.ranking.scores.base import SAME, Array, Counts, Prepared

ENERGY, COMPONENTS = 0.8, 5
LARGEST = 4000  # points that the mixture is fitted to, evenly chosen from all
STEPS = 50
LEAST = 1e-20
CHUNK = 50  # draws at a time


def leep(sample: Sample) -> Prepared:
    """Prepare LEEP of the probabilities that the candidate's own head predicts."""
    return _expected_log(sample, _predictions(sample), "head")


def nce(sample: Sample) -> Prepared:
    """Prepare NCE of the candidate's own predictions."""
    predictions = _predictions(sample)
    found = predictions.argmax(1)
    classes, case = _classes(sample), _case_of_point(sample)
    joint = np.zeros((len(sample.cases), classes.max() + 1, predictions.shape[1]))
    np.add.at(joint, (case, classes, found), 1)

    def terms(counts: Counts) -> Array:
        table = np.einsum("bn,nyz->byz", counts, joint)
        total = table.sum((1, 2))
        columns = np.broadcast_to(table.sum(1, keepdims=True), table.shape)
        logs = np.log(np.divide(table, columns, out=np.ones_like(table), where=table > 0))
        return np.where((table.sum(2) > 0).sum(1) > 1, (table * logs).sum((1, 2)) / total, np.nan)

    return Prepared(sample.cases, terms, {"source classes found": float(len(np.unique(found)))}, "head")


def nleep(sample: Sample) -> Prepared:
    """Prepare N-LEEP of the features of the head's input.

    Raises:
        DataError: Features are constant.
    """
    layer = sample.head_input()
    rows = np.concatenate([layer.features[case] for case in sample.cases]).astype(np.float64)
    mean = rows.mean(0)
    rows -= mean
    deviation = np.sqrt(np.square(rows).mean())
    if deviation <= SAME * np.sqrt(np.square(mean).mean()):
        raise DataError(f"nleep: features of {layer.name!r} are constant", "check the weights of this candidate")
    rows /= deviation
    fitted = rows[np.linspace(0, len(rows) - 1, min(len(rows), LARGEST)).astype(int)]
    reduction = PCA(ENERGY, svd_solver="full").fit(fitted)
    reduced = reduction.transform(fitted)
    components = min(COMPONENTS * len(sample.classes), len(np.unique(reduced, axis=0)))
    mixture = GaussianMixture(components, max_iter=STEPS, reg_covar=1e-4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # STEPS bounds the cost; memberships hardly change later
        mixture.fit(reduced)
    return _expected_log(sample, mixture.predict_proba(reduction.transform(rows)), layer.part)


def _expected_log(sample: Sample, q: Array, read: str) -> Prepared:
    classes, case = _classes(sample), _case_of_point(sample)
    number, cases = int(classes.max()) + 1, len(sample.cases)
    joint = np.zeros((cases, number, q.shape[1]))
    points = np.zeros((cases, number))
    rows = [[q[(case == i) & (classes == y)] for y in range(number)] for i in range(cases)]
    for i in range(cases):
        for y in range(number):
            joint[i, y], points[i, y] = rows[i][y].sum(0), len(rows[i][y])

    def terms(counts: Counts) -> Array:
        result = np.zeros(len(counts))
        for start in range(0, len(counts), CHUNK):
            chosen = counts[start : start + CHUNK]
            table = np.einsum("bn,nyz->byz", chosen, joint)
            columns = np.broadcast_to(table.sum(1, keepdims=True), table.shape)
            known = np.divide(table, columns, out=np.zeros_like(table), where=columns > 0)  # P(y | z)
            for i in range(cases):
                for y in range(number):
                    if len(rows[i][y]):
                        those = np.flatnonzero(chosen[:, i])
                        logs = np.log(np.maximum(rows[i][y] @ known[those, y].T, LEAST)).sum(0)
                        result[start + those] += chosen[those, i] * logs
        drawn = counts @ points
        return np.where((drawn > 0).sum(1) > 1, result / drawn.sum(1), np.nan)  # a single class is no question

    return Prepared(sample.cases, terms, {"source classes": float(q.shape[1])}, read)


def _predictions(sample: Sample) -> Array:
    joined = np.concatenate([sample.head()[case].astype(np.float64) for case in sample.cases])
    return np.asarray(joined / joined.sum(1, keepdims=True))


def _classes(sample: Sample) -> np.ndarray:
    """The class of each point of all cases, numbered from 0."""
    labels = np.concatenate([sample.labels(case) for case in sample.cases])
    return np.searchsorted(sample.classes, labels)


def _case_of_point(sample: Sample) -> np.ndarray:
    return np.repeat(np.arange(len(sample.cases)), [len(sample.labels(case)) for case in sample.cases])
