"""Probe: Dice of a linear classifier on the features, trained and tested on different cases.

Linear discriminant analysis with the covariance shrunk by Ledoit and Wolf (scikit-learn), in FOLDS folds of cases; the
score is the mean over cases and foreground classes of Dice at points that the classifier has not seen. Classes are as
frequent as `Points.weights` say, and Dice counts points with them. A bootstrap draws held-out cases; classifiers are
not trained again.
"""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from stunet.errors import DataError
from stunet.ranking.sample import BACKGROUND, Integers, Sample
from stunet.ranking.scores.base import SAME, Array, Counts, Prepared

FOLDS = 5


def probe(sample: Sample) -> Prepared:
    """Prepare the probe of the head's input.

    Raises:
        DataError: There is one case, or the others have a single class, or features are constant.
    """
    layer, cases = sample.head_input(), sample.cases
    if len(cases) < 2:
        raise DataError("probe: one case leaves none to test on", "two labelled cases or more")
    classes = [label for label in sample.classes if label != BACKGROUND]
    dice = np.full((len(cases), len(classes)), np.nan)
    fold_of = np.arange(len(cases)) % min(FOLDS, len(cases))
    for fold in range(fold_of.max() + 1):
        training = [case for case, of in zip(cases, fold_of, strict=True) if of != fold]
        rows = np.concatenate([layer.features[case] for case in training]).astype(np.float64)
        labels = np.concatenate([sample.labels(case) for case in training])
        if len(np.unique(labels)) < 2:
            raise DataError("probe: the cases of a fold have points of one class", "more cases, or other points")
        centre, scale = rows.mean(0), rows.std(0)
        varying = scale > SAME * np.abs(centre)
        if not varying.any():
            raise DataError(f"probe: features of {layer.name!r} are constant", "check the weights of this candidate")
        centre, scale = centre[varying], scale[varying]
        weights = np.concatenate([sample.weights(case) for case in training])
        frequencies = np.array([weights[labels == label].sum() for label in np.unique(labels)]) / weights.sum()
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=frequencies)
        model.fit((rows[:, varying] - centre) / scale, labels)
        for i in np.flatnonzero(fold_of == fold):
            found = model.predict((layer.features[cases[i]][:, varying] - centre) / scale)
            dice[i] = _dice(found, sample.labels(cases[i]), sample.weights(cases[i]), classes)
    known = np.isfinite(dice)
    values = np.where(known, dice, 0)

    def terms(counts: Counts) -> Array:
        weights = (counts @ known).sum(1)
        totals = (counts @ values).sum(1)
        return np.divide(totals, weights, out=np.full(len(counts), np.nan), where=weights > 0)

    means = {f"class {label}": float(values[:, k].sum() / known[:, k].sum()) for k, label in enumerate(classes)}
    return Prepared(cases, terms, means, layer.part)


def _dice(found: Integers, labels: Integers, weights: Array, classes: list[int]) -> list[float]:
    """Return the Dice of each class that the case has points of; nan for the others."""
    result = []
    for label in classes:
        there, here = found == label, labels == label
        total = weights[there].sum() + weights[here].sum()
        result.append(float(2 * weights[there & here].sum() / total) if here.any() else float("nan"))
    return result
