"""Probe features: how well a linear model tells a target from them, in cases of subjects that it has not seen.

Logistic regression (classes weighted by their frequency) for classes, ridge regression for numbers. Subjects are split
into folds, classes in equal shares. Within the training part of each fold, features are standardised, and the strength
of the penalty is chosen by a second split over subjects. Predictions of all folds together give the score. Its interval
is the 95 % percentile interval of a bootstrap over subjects: it covers which subjects were at hand, not which folds
were drawn. Everything follows from the seed.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stunet.errors import DataError
from stunet.probing.tables import CLASSIFICATION

FOLDS, INNER_FOLDS = 5, 3
BOOTSTRAP = 1000
COVERED = 95  # percent, of the intervals
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # of the squared weights, beside the sum of losses
USUAL_PENALTY = 100.0  # where there are too few subjects to choose
FEW_SUBJECTS, FEW_OF_A_CLASS = 30, 10  # below these, a warning
ALL = "all"
Array = NDArray[Any]


@dataclass(frozen=True)
class Score:
    """A measure of one set of features: a stage, or all of them, with its interval and what chance gives."""

    stage: str
    metric: str
    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Probed:
    """The scores for one target.

    Attributes:
        rows: How many rows of features there were.
        subjects: Of how many subjects.
        classes: Rows of each class; empty for numbers.
        scores: Of each stage, and of all together.
        warnings: What makes them doubtful.
    """

    rows: int
    subjects: int
    classes: Mapping[str, int]
    scores: Sequence[Score]
    warnings: Sequence[str]


def probe(
    stages: Mapping[str, Array], values: Sequence[str | float], subjects: Sequence[str], task: str, seed: int = 0
) -> Probed:
    """Fit and validate linear models for each stage, and for all together.

    Args:
        stages: Features (N, C) by stage.
        values: The target of each row.
        subjects: Whose each row is.
        task: CLASSIFICATION or REGRESSION.
        seed: Chooses folds and bootstrap samples.

    Raises:
        DataError: The target is constant, a class occurs in one subject only, or there are too few subjects.
    """
    groups = np.unique(np.asarray(subjects, str), return_inverse=True)[1]
    count = int(groups.max()) + 1 if len(groups) else 0
    names: list[str] = []
    if task == CLASSIFICATION:
        found, target = np.unique(np.asarray(values, str), return_inverse=True)
        names = [str(name) for name in found]
        of_class = [len({*groups[target == n].tolist()}) for n in range(len(names))]
    else:
        target, of_class = np.asarray(values, np.float64), [count]
    _check(target, names, of_class, count)
    folds = _folds(target, groups, task, min(FOLDS, *of_class), seed)
    if task == CLASSIFICATION and any(len(np.unique(target[train])) < len(names) for train, _ in folds):
        raise DataError(
            "the subjects cannot be split so that every class is in every part",
            "more subjects of the rarest class, or leave that class out",
        )
    metrics = _metrics(task, len(names))
    together = {**stages, ALL: np.concatenate(list(stages.values()), axis=1)} if len(stages) > 1 else dict(stages)
    samples = _samples(groups, seed)
    scores = []
    for stage, features in together.items():
        predicted = _predict(np.asarray(features, np.float64), target, groups, folds, task, len(names), seed)
        for metric, (measure, chance) in metrics.items():
            drawn = [measure(target[rows], predicted[rows]) for rows in samples]
            known = [value for value in drawn if not math.isnan(value)]
            tail = (100 - COVERED) / 2
            low, high = np.percentile(known, [tail, 100 - tail]) if known else (math.nan, math.nan)
            scores.append(Score(stage, metric, measure(target, predicted), float(low), float(high), chance))
    said = {name: int((target == n).sum()) for n, name in enumerate(names)}
    return Probed(len(target), count, said, scores, _doubts(count, names, of_class))


def _check(target: Array, names: Sequence[str], of_class: Sequence[int], count: int) -> None:
    if len(np.unique(target)) < 2:
        only = repr(names[0]) if names else f"{target[0]:g}" if len(target) else "nothing"
        raise DataError(f"the target is the same everywhere, {only}", "a target that differs between cases")
    if count < 4:
        raise DataError(f"{count} subjects are too few to learn from some and to test with others", "at least 4")
    for name, number in zip(names, of_class, strict=False):
        if number < 2:
            what = f"the class {name!r} occurs in one subject: it cannot be both learnt and tested"
            hint = "leave its cases out, or merge it with another class; --task regression if these are measurements"
            raise DataError(what, hint)


def _doubts(count: int, names: Sequence[str], of_class: Sequence[int]) -> list[str]:
    found = []
    if count < FEW_SUBJECTS:
        found.append(f"{count} subjects are few: the same features may score quite differently in others")
    rarest = min(range(len(of_class)), key=lambda n: of_class[n])
    if names and of_class[rarest] < FEW_OF_A_CLASS:
        found.append(
            f"{names[rarest]!r} occurs in {of_class[rarest]} subjects only: its part of the score is uncertain"
        )
    return found


def _folds(target: Array, groups: Array, task: str, number: int, seed: int) -> list[tuple[Array, Array]]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    kind = StratifiedGroupKFold if task == CLASSIFICATION else GroupKFold
    folds = kind(number, shuffle=True, random_state=seed).split(target, target, groups)
    return [(train, test) for train, test in folds if len(test)]


def _predict(
    features: Array,
    target: Array,
    groups: Array,
    folds: Sequence[tuple[Array, Array]],
    task: str,
    classes: int,
    seed: int,
) -> Array:
    """Return what is predicted of each row by models that have not seen its subject, (N, K) or (N, 1)."""
    predicted = np.full((len(target), max(classes, 1)), np.nan)
    for train, test in folds:
        penalty = _penalty(features[train], target[train], groups[train], task, classes, seed)
        here, there = _standardised(features[train], features[test])
        predicted[test] = _fitted(here, target[train], there, penalty, task, classes)
    return predicted


def _penalty(features: Array, target: Array, groups: Array, task: str, classes: int, seed: int) -> float:
    """Return the penalty with the smallest loss in a split of these rows over subjects."""
    if task == CLASSIFICATION:
        fewest = min(len({*groups[target == n].tolist()}) for n in range(classes))
    else:
        fewest = len({*groups.tolist()})
    if fewest < 2:
        return USUAL_PENALTY
    folds = _folds(target, groups, task, min(INNER_FOLDS, fewest), seed)
    # Where subjects have rows of several classes, a part may be left with one of them.
    folds = [(train, test) for train, test in folds if len(np.unique(target[train])) > 1]
    if not folds:
        return USUAL_PENALTY
    losses = [0.0] * len(PENALTIES)
    for train, test in folds:
        here, there = _standardised(features[train], features[test])
        for n, penalty in enumerate(PENALTIES):
            predicted = _fitted(here, target[train], there, penalty, task, classes)
            if task == CLASSIFICATION:
                likely = predicted[np.arange(len(test)), target[test]]
                frequency = np.bincount(target, minlength=classes)[target[test]]
                losses[n] -= float((np.log(likely.clip(1e-6)) / frequency).sum())
            else:
                losses[n] += float(((predicted[:, 0] - target[test]) ** 2).sum())
    # Of equal ones the largest.
    return max(penalty for penalty, loss in zip(PENALTIES, losses, strict=True) if loss <= min(losses))


def _standardised(features: Array, others: Array) -> tuple[Array, Array]:
    """Return rows to learn from, and others, by mean and deviation of the first; in as few columns as that allows."""
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-9 * (1 + np.abs(mean))] = np.inf  # constant: says nothing
    train, test = (features - mean) / scale, (others - mean) / scale
    if train.shape[1] <= len(train):
        return train, test
    # More columns than rows: the models' squared weights are the same in the space that the rows span.
    axes = np.linalg.svd(train, full_matrices=False)[2]
    return train @ axes.T, test @ axes.T


def _fitted(train: Array, target: Array, test: Array, penalty: float, task: str, classes: int) -> Array:
    """Return what a model of standardised rows predicts of others, (N, K) or (N, 1)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if task != CLASSIFICATION:
        return Ridge(penalty).fit(train, target).predict(test)[:, None]
    model = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with a small penalty, which is then not chosen
        model.fit(train, target)
    predicted = np.zeros((len(test), classes))
    predicted[:, model.classes_] = model.predict_proba(test)
    return predicted


def _samples(groups: Array, seed: int) -> list[Array]:
    """Return the rows of each bootstrap sample of subjects."""
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    rows = [np.flatnonzero(groups == group) for group in range(count)]
    return [np.concatenate([rows[n] for n in rng.integers(count, size=count)]) for _ in range(BOOTSTRAP)]


def _metrics(task: str, classes: int) -> dict[str, tuple[Callable[[Array, Array], float], float]]:
    """Return the measures with their value by chance; NaN where a sample lacks a class, or varies in nothing."""
    if task == CLASSIFICATION:
        return {"AUC": (auc, 0.5), "balanced accuracy": (balanced_accuracy, 1 / classes)}
    return {"R2": (r2, 0.0)}


def auc(target: Array, predicted: Array) -> float:
    """Return the area under the ROC curve; of several classes, the mean over each against the others.

    Args:
        target: Numbers of classes.
        predicted: Probabilities (N, K).
    """
    from scipy.stats import rankdata

    areas = []
    for n in range(1, 2) if predicted.shape[1] == 2 else range(predicted.shape[1]):
        own = target == n
        positive, negative = int(own.sum()), int((~own).sum())
        if not positive or not negative:
            return math.nan
        ranks = float(rankdata(predicted[:, n])[own].sum())
        areas.append((ranks - positive * (positive + 1) / 2) / (positive * negative))
    return float(np.mean(areas))


def balanced_accuracy(target: Array, predicted: Array) -> float:
    """Return the mean over classes of the share that is recognised; arguments as of auc()."""
    counts = np.bincount(target, minlength=predicted.shape[1])
    if not counts.all():
        return math.nan
    right = np.bincount(target[predicted.argmax(1) == target], minlength=len(counts))
    return float((right / counts).mean())


def r2(target: Array, predicted: Array) -> float:
    """Return the coefficient of determination; below 0, the mean would have predicted better."""
    total = float(((target - target.mean()) ** 2).sum())
    return 1 - float(((predicted[:, 0] - target) ** 2).sum()) / total if total else math.nan
