"""Zero-shot matched Dice: how well the candidate segments the target before any training, once classes are matched.

Each foreground class of the target gets one class of the candidate's head, no two the same, so that the sum of Dice
is largest (Hungarian algorithm); background is background. The score is the mean of Dice over foreground classes, with
0 for those that get none. Ours; DirectTransEst (2023) measured the same with equal label sets, where it was the best of
its predictors.

Dice is computed from the points, as every other score is, and not from whole segmentations. Points count as many voxels
as `Points.weights` say, or alike without them; then it is comparable between candidates only. The points of all cases
are pooled: a single point of far background may stand for more voxels than a small structure has in its case.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from stunet.ranking.sample import BACKGROUND, Sample
from stunet.ranking.scores.base import Array, Counts, Prepared


def zero_shot(sample: Sample) -> Prepared:
    """Prepare the Dice of the candidate's own predictions; draws match classes again."""
    predictions = sample.head()
    classes = [label for label in sample.classes if label != BACKGROUND]
    cases = sample.cases
    heads = next(iter(predictions.values())).shape[1]
    overlap = np.zeros((len(cases), len(classes), heads))
    labelled, predicted = np.zeros((len(cases), len(classes))), np.zeros((len(cases), heads))
    for i, case in enumerate(cases):
        found, labels, weights = predictions[case].argmax(1), sample.labels(case), sample.weights(case)
        predicted[i] = np.bincount(found, weights, heads)
        for k, label in enumerate(classes):
            here = labels == label
            overlap[i, k] = np.bincount(found[here], weights[here], heads)
            labelled[i, k] = weights[here].sum()

    def match(drawn: Array) -> tuple[Array, Array, Array]:
        """Return Dice of each pair of classes, and the matched rows and columns, in which background has no part."""
        both = 2 * np.tensordot(drawn, overlap, 1)
        total = (drawn @ labelled)[:, None] + drawn @ predicted
        dice = np.divide(both, total, out=np.zeros_like(both), where=total > 0)
        rows, columns = linear_sum_assignment(dice[:, 1:], maximize=True)
        return dice, rows, columns + 1

    def terms(counts: Counts) -> Array:
        result = np.full(len(counts), np.nan)
        for b, drawn in enumerate(counts):
            dice, rows, columns = match(drawn)
            present = (drawn @ labelled > 0).sum()
            if present:
                result[b] = dice[rows, columns].sum() / present
        return result

    _, rows, columns = match(np.ones(len(cases)))
    matched = {f"class {classes[k]} is class": float(z) for k, z in zip(rows, columns, strict=True)}
    return Prepared(cases, terms, matched, "head")
