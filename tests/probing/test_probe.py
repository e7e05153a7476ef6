"""Probes: what can be predicted is found, what cannot is at chance, and no subject is in both parts."""

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.probing import probe as module
from stunet.probing.probe import auc, balanced_accuracy, probe, r2
from stunet.probing.tables import CLASSIFICATION, REGRESSION


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOOTSTRAP", 50)
    monkeypatch.setattr(module, "PENALTIES", (1.0, 100.0))


def test_measures_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    for classes in (2, 3):
        target, scores = rng.integers(classes, size=40), rng.random((40, classes)).round(1)
        scores[:, -1] += 1e-6 if classes == 3 else 0
        scores /= scores.sum(1, keepdims=True)
        given = scores[:, 1] if classes == 2 else scores
        assert auc(target, scores) == pytest.approx(metrics.roc_auc_score(target, given, multi_class="ovr"))
        expected = metrics.balanced_accuracy_score(target, scores.argmax(1))
        assert balanced_accuracy(target, scores) == pytest.approx(expected)
    values, predicted = rng.normal(size=(2, 30))
    assert r2(values, predicted[:, None]) == pytest.approx(metrics.r2_score(values, predicted))


def test_what_can_be_predicted_is_found_and_what_cannot_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 20))
    subjects = [f"s{n}" for n in range(60)]
    target = features[:, 0] + 0.1 * rng.normal(size=60)
    stages = {"stage 0": rng.normal(size=(60, 5)), "stage 1": features}
    told = probe(stages, list(target), subjects, REGRESSION)
    scores = {score.stage: score for score in told.scores}
    assert scores["stage 1"].value > 0.9
    assert scores["stage 1"].low < scores["stage 1"].value < scores["stage 1"].high
    assert scores["stage 0"].value < 0.1
    assert set(scores) == {"stage 0", "stage 1", "all"}
    names = ["high" if value > 0 else "low" for value in target]
    found = {(s.stage, s.metric): s for s in probe(stages, names, subjects, CLASSIFICATION).scores}
    assert found["stage 1", "AUC"].value > 0.95
    assert found["stage 1", "balanced accuracy"].chance == 0.5
    shuffled = list(rng.permutation(names))
    at_chance = probe(stages, shuffled, subjects, CLASSIFICATION).scores
    assert all(score.low < 0.5 < score.high for score in at_chance if score.metric == "AUC" and score.stage != "all")
    assert probe(stages, names, subjects, CLASSIFICATION) == probe(stages, names, subjects, CLASSIFICATION)


def test_scans_of_a_subject_are_never_on_both_sides() -> None:
    # A feature that only identifies the subject, whose scans share a random target: split by scan, it would score 1.
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(40), 3)
    identity = np.repeat(rng.normal(size=(40, 60)), 3, axis=0)
    target = np.repeat(rng.integers(2, size=40), 3).astype(str)
    told = probe({"0": identity}, list(target), [f"p{n}" for n in of], CLASSIFICATION)
    apart = probe({"0": identity}, list(target), [f"p{n}" for n in range(120)], CLASSIFICATION)
    assert told.subjects == 40
    assert told.scores[0].value < 0.75
    assert apart.scores[0].value > 0.95


def test_rows_are_standardised_by_those_that_are_learnt_from() -> None:
    rng = np.random.default_rng(0)
    features, others = rng.normal(3, 2, size=(20, 4)), np.full((2, 4), 1e6)
    features[:, 3] = 7  # constant
    train, test = module._standardised(features, others)
    np.testing.assert_allclose(train[:, :3].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(train[:, :3].std(0), 1)
    assert (train[:, 3] == 0).all()
    assert (test[:, 3] == 0).all()
    np.testing.assert_allclose(test[:, :3] * features[:, :3].std(0), others[:, :3] - features[:, :3].mean(0))


def test_fewer_columns_give_the_same_models() -> None:
    rng = np.random.default_rng(0)
    features, others, values = rng.normal(size=(12, 40)), rng.normal(size=(5, 40)), rng.normal(size=12)
    mean, scale = features.mean(0), features.std(0)
    whole = (features - mean) / scale, (others - mean) / scale
    short = module._standardised(features, others)
    assert short[0].shape == (12, 12)
    for task, target, classes in ((REGRESSION, values, 0), (CLASSIFICATION, (values > 0).astype(int), 2)):
        one, other = (module._fitted(a, target, b, 10.0, task, classes) for a, b in (whole, short))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_targets_that_cannot_be_probed_are_named() -> None:
    features = {"0": np.random.default_rng(0).normal(size=(6, 2))}
    subjects = list("abcdef")
    for values, task, message in (
        (["x"] * 6, CLASSIFICATION, "the same everywhere, 'x'"),
        ([2.0] * 6, REGRESSION, "the same everywhere, 2"),
        (["x", *"yyyyy"], CLASSIFICATION, "the class 'x' occurs in one subject"),
    ):
        with pytest.raises(DataError, match=message):
            probe(features, values, subjects, task)
    with pytest.raises(DataError, match="1 subjects are too few"):
        probe(features, list("xyxyxy"), ["a"] * 6, CLASSIFICATION)
    told = probe(features, list("xyxyxy"), subjects, CLASSIFICATION)
    assert told.classes == {"x": 3, "y": 3}
    assert len(told.warnings) == 2
