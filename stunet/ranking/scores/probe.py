"""Probe: Dice of a linear classifier on the features, trained and tested on different cases.

Linear discriminant analysis with the covariance shrunk by Ledoit and Wolf (scikit-learn), in FOLDS folds of cases; the
score is the mean over foreground classes of Dice at points of cases that the classifier has not seen. Classes are as
frequent as `Points.weights` say, Dice counts points with them, and pools all cases (zero_shot.py has the reason). A
bootstrap draws held-out cases; classifiers are not trained again.
"""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from stunet.errors import DataError
from stunet.ranking.sample import BACKGROUND, Sample
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
    both, total, labelled = (np.zeros((len(cases), len(classes))) for _ in range(3))
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
            own, weight = sample.labels(cases[i]), sample.weights(cases[i])
            for k, label in enumerate(classes):
                both[i, k] = weight[(found == label) & (own == label)].sum()
                labelled[i, k] = weight[own == label].sum()
                total[i, k] = labelled[i, k] + weight[found == label].sum()

    def dice(counts: Counts) -> Array:
        """Dice of each class in draws (B, K); nan where a draw has no points of it."""
        return np.divide(
            2 * counts @ both,
            counts @ total,
            out=np.full((len(counts), len(classes)), np.nan),
            where=counts @ labelled > 0,
        )

    def terms(counts: Counts) -> Array:
        values = dice(counts)
        known = np.isfinite(values)
        return np.divide(
            np.where(known, values, 0).sum(1), known.sum(1), out=np.full(len(counts), np.nan), where=known.any(1)
        )

    parts = {
        f"class {label}": float(value) for label, value in zip(classes, dice(np.ones((1, len(cases))))[0], strict=True)
    }
    return Prepared(cases, terms, parts, layer.part)
