"""Zero-shot matched Dice: how well the candidate segments the target before any training, once classes are matched.

Each foreground class of the target gets one class of the candidate's head, no two the same, so that the sum of Dice
over pooled points is largest (Hungarian algorithm); background is background. The score is the mean over cases and
foreground classes of Dice, with 0 for classes that get none. Ours; DirectTransEst (2023) measured the same with equal
label sets, where it was the best of its predictors.

Dice is computed from the points, as every other score is, and not from whole segmentations: with `Points.weights` it
estimates the Dice of the voxels, without them all points count alike, and it is comparable between candidates only.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from stunet.ranking.sample import BACKGROUND, Sample
from stunet.ranking.scores.base import PREDICTIONS, Array, Counts, Prepared


def zero_shot(sample: Sample) -> Prepared:
    """Prepare the Dice of the candidate's own predictions; draws match classes again."""
    assert sample.predictions is not None, PREDICTIONS
    classes = [label for label in sample.classes if label != BACKGROUND]
    cases = sample.cases
    heads = next(iter(sample.predictions.values())).shape[1]
    overlap = np.zeros((len(cases), len(classes), heads))
    labelled, predicted = np.zeros((len(cases), len(classes))), np.zeros((len(cases), heads))
    for i, case in enumerate(cases):
        found, labels, weights = sample.predictions[case].argmax(1), sample.labels(case), sample.weights(case)
        predicted[i] = np.bincount(found, weights, heads)
        for k, label in enumerate(classes):
            here = labels == label
            overlap[i, k] = np.bincount(found[here], weights[here], heads)
            labelled[i, k] = weights[here].sum()
    dice = _dice(overlap, labelled, predicted)
    present = labelled > 0

    def terms(counts: Counts) -> Array:
        result = np.full(len(counts), np.nan)
        for b, drawn in enumerate(counts):
            rows, columns = _match(overlap, labelled, predicted, drawn)
            of_case = np.zeros(present.shape)
            of_case[:, rows] = dice[:, rows, columns]
            weights = drawn[:, None] * present
            if weights.sum() > 0:
                result[b] = (of_case * weights).sum() / weights.sum()
        return result

    rows, columns = _match(overlap, labelled, predicted, np.ones(len(cases)))
    matched = {f"class {classes[k]} is class": float(z) for k, z in zip(rows, columns, strict=True)}
    return Prepared(cases, terms, matched, "head")


def _match(overlap: Array, labelled: Array, predicted: Array, counts: Array) -> tuple[Array, Array]:
    """Return matched rows of target classes and columns of source classes, in which background has no part."""
    pooled = _dice(*(np.tensordot(counts, values, 1) for values in (overlap, labelled, predicted)))
    rows, columns = linear_sum_assignment(pooled[:, 1:], maximize=True)
    return rows, columns + 1


def _dice(overlap: Array, labelled: Array, predicted: Array) -> Array:
    total = labelled[..., :, None] + predicted[..., None, :]
    return np.divide(2 * overlap, total, out=np.zeros_like(overlap), where=total > 0)
