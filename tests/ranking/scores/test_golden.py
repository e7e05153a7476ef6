"""Scores of pooled points: golden numbers of reference implementations, and what must not change a score."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from stunet.ranking.sample import Sample
from stunet.ranking.scores import gbc, hscore, leep, logme, transrate
from stunet.ranking.scores.base import Prepared, everyone
from tests.ranking.samples import pooled, random_sample


def value(prepared: Prepared) -> float:
    return float(prepared.terms(everyone(prepared))[0])


def comparators() -> tuple[Sample, Sample]:
    """The recipe of the notes: four classes of 150 points with a head of six classes, and an unbalanced part of it."""
    rs = np.random.RandomState(10)
    y = np.repeat(np.arange(4), 150)
    mu = rs.standard_normal((4, 24))
    x = mu[y] * 0.8 + rs.standard_normal((600, 24))
    p = np.exp(x[:, :6])
    p /= p.sum(1, keepdims=True)
    assert (x[0, 0], p[0, 0]) == pytest.approx((0.5831760644681354, 0.27705286370443627), rel=1e-12)
    part = np.r_[0:200, 300:330, 450:600]
    return pooled(x, y, p), pooled(x[part], y[part])


def test_golden_numbers() -> None:
    sample, unbalanced = comparators()
    for prepare, expected in (
        (logme.logme, -0.08683392415363689),
        (leep.leep, -1.231340606025197),
        (leep.nce, -1.1495908669699593),
        (transrate.transrate, 1.6394758578787645),
        (transrate.normalised, 0.4056426444690704),
        (lambda s: transrate.transrate(s, unit_rows=True), 1.603361904067512),
        (gbc.diagonal, -0.786631815959462),
        (gbc.gbc, -0.7987572478801209),
        (gbc.published, -0.7997685636443752),
        (hscore.plain, 2.2044669233829404),
        (hscore.hscore, 2.155143009629854),
    ):
        assert value(prepare(sample)) == pytest.approx(expected, rel=1e-10)
    assert value(transrate.transrate(unbalanced)) == pytest.approx(3.4650879585658174, rel=1e-10)
    assert value(transrate.transrate(unbalanced, proportional=True)) == pytest.approx(2.076954584503426, rel=1e-10)


def test_logme_of_fewer_points_than_channels_has_all_terms() -> None:
    for points, channels, expected, published in ((20, 24, -0.42755, 0.1234), (40, 128, 0.07457, 8.738)):
        rs = np.random.RandomState(11)
        y = np.arange(points) % 4
        x = rs.standard_normal((4, channels))[y] * 0.8 + rs.standard_normal((points, channels))
        score = value(logme.logme(pooled(x, y)))
        assert score == pytest.approx(expected, abs=1e-3)
        assert abs(score - published) > 0.1


def test_the_shrinkage_from_moments_is_scikit_learns() -> None:
    sample, _ = comparators()
    shrinkage = hscore.hscore(sample).parts["shrinkage"]
    assert shrinkage == pytest.approx(ledoit_wolf(sample.layers[0].features["case0"])[1], rel=1e-9)


def test_shifts_rotations_and_orders_change_what_they_should() -> None:
    sample, _ = comparators()
    x, y = sample.layers[0].features["case0"], sample.labels("case0")
    rs = np.random.RandomState(0)
    rotation, order = np.linalg.qr(rs.standard_normal((24, 24)))[0], rs.permutation(600)
    shifted, rotated, mixed = pooled(x + 3, y), pooled(x @ rotation, y), pooled(x[order], y[order])
    invariant: dict[str, tuple[Callable[[Sample], Prepared], list[Sample]]] = {
        "logme": (logme.logme, [rotated, mixed]),
        "transrate": (transrate.transrate, [shifted, rotated, mixed]),
        "normalised": (transrate.normalised, [shifted, rotated, mixed, pooled(7 * x, y)]),
        "gbc": (gbc.gbc, [shifted, rotated, mixed, pooled(7 * x, y)]),
        "diagonal": (gbc.diagonal, [shifted, mixed, pooled(7 * x, y)]),
        "hscore": (hscore.hscore, [shifted, rotated, mixed, pooled(7 * x, y)]),
    }
    for name, (prepare, others) in invariant.items():
        for number, other in enumerate(others):
            assert value(prepare(other)) == pytest.approx(value(prepare(sample)), rel=1e-9), (name, number)


def test_all_fall_when_classes_move_together() -> None:
    for prepare in (
        logme.logme,
        transrate.transrate,
        transrate.normalised,
        gbc.gbc,
        gbc.diagonal,
        hscore.hscore,
        leep.nleep,
    ):
        apart, together = (value(prepare(random_sample(separation=s))) for s in (3.0, 0.3))
        assert apart > together, prepare
    for prepare in (leep.leep, leep.nce):
        assert value(prepare(random_sample(separation=3.0))) > value(prepare(random_sample(separation=0.3)))


def test_gbc_of_classes_far_apart_keeps_its_order_in_the_logarithm() -> None:
    far, further = (gbc.gbc(random_sample(separation=s)).parts["log GBC"] for s in (40.0, 80.0))
    assert 100 < far < further < np.inf
    sample, _ = comparators()
    assert np.exp(-gbc.gbc(sample).parts["log GBC"]) == pytest.approx(-value(gbc.gbc(sample)), rel=1e-12)


def test_source_classes_that_never_occur_do_not_matter() -> None:
    sample, _ = comparators()
    assert sample.predictions is not None
    p = sample.predictions["case0"]
    more = pooled(sample.layers[0].features["case0"], sample.labels("case0"), np.insert(p, 2, 0, axis=1))
    for prepare in (leep.leep, leep.nce):
        assert value(prepare(more)) == pytest.approx(value(prepare(sample)), rel=1e-12)


def test_perfect_predictions_have_no_loss() -> None:
    y = np.arange(30) % 3
    sample = pooled(np.eye(3)[y], y, np.eye(3)[y][:, ::-1])
    assert value(leep.leep(sample)) == value(leep.nce(sample)) == 0
