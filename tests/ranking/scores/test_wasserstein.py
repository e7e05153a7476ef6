"""W2 between fitted Gaussians: golden numbers, closed forms, and few points."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stunet.ranking.scores.wasserstein import fit, squared_distances
from tests.loops import for_each


def w2(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.sqrt(squared_distances([fit(a), fit(b)])[0, 1]))


def normal(seed: int, *shapes: tuple[int, int]) -> list[NDArray[Any]]:
    rs = np.random.RandomState(seed)
    return [rs.standard_normal(shape) for shape in shapes]


def test_golden_numbers_exact_and_of_the_public_code() -> None:
    a, b = normal(0, (400, 32), (400, 32))
    c, d = normal(1, (100, 256), (100, 256))
    e, f = (rows.astype(np.float32) for rows in normal(2, (200, 128), (200, 128)))
    g, h = normal(3, (50, 8), (37, 8))
    f = (np.random.RandomState(2).standard_normal((2, 200, 128))[1] * np.linspace(0.1, 2, 128)).astype(np.float32)
    values = [
        ("G1a", a, 1.5 * b + 0.3, 3.6891913289589517, 3.689191328958942, 1e-9),
        ("G1b", a, 2 * a + 1, 7.896418300840671, 7.896418300840668, 1e-9),
        ("G1c", c, 0.5 * d - 0.2, 14.283072485731408, 14.283072316690678, 1e-7),
        ("G1d", e, f, 8.80211684229254, 8.802116850977354, 1e-7),
        ("G1e", g, h, 1.194555130880123, 1.1945551308801192, 1e-9),
    ]
    for name, first, second, exact, official, tolerance in values:
        assert w2(first, second) == pytest.approx(exact, rel=1e-9), name
        assert w2(first, second) == pytest.approx(official, rel=tolerance), name


@for_each("shape", [(400, 8), (50, 128), (2, 3), (30, 1)])
def test_an_affine_copy_is_at_its_closed_form_distance(shape: tuple[int, int]) -> None:
    (a,) = normal(4, shape)
    trace = a.var(0, ddof=1).sum()
    shift = np.square((3 - 1) * a.mean(0) + 0.7).sum()
    assert w2(a, 3 * a + 0.7) == pytest.approx(np.sqrt(shift + (3 - 1) ** 2 * trace), rel=1e-9)
    assert w2(a, a) <= 1e-6 * np.sqrt(trace)


def test_w2_is_a_metric_that_common_rotations_shifts_and_orders_of_points_leave_alone() -> None:
    a, b, c = normal(5, (60, 16), (40, 16), (9, 16))
    rotation = np.linalg.qr(normal(6, (16, 16))[0])[0]
    assert w2(a, b) == pytest.approx(w2(b, a), rel=1e-12)
    assert w2(a, c) <= w2(a, b) + w2(b, c)
    assert w2(a @ rotation + 5, b @ rotation + 5) == pytest.approx(w2(a, b), rel=1e-9)
    assert w2(a[::-1], b) == pytest.approx(w2(a, b), rel=1e-9)


def test_diagonal_covariances_and_orthogonal_supports_have_closed_forms() -> None:
    a = np.linalg.qr(np.concatenate([np.ones((40, 1)), normal(7, (40, 6))[0]], 1))[0][:, 1:] * np.sqrt(39)
    scales = np.arange(1.0, 7)
    assert w2(a * scales, a[:, ::-1] * 2) == pytest.approx(np.sqrt(np.square(scales - 2).sum()), rel=1e-9)
    left, right = a.copy(), a.copy()
    left[:, :3], right[:, 3:] = 0, 0
    assert w2(left, right) == pytest.approx(np.sqrt(6), rel=1e-9)


def test_fewer_points_than_channels_equal_the_formula_on_the_covariance() -> None:
    a, b = normal(8, (10, 24), (15, 24))
    mixed = np.linalg.qr(normal(9, (60, 9))[0] - normal(9, (60, 9))[0].mean(0))[0]
    factor = fit(a).factor
    more = mixed @ factor * np.sqrt(59) + a.mean(0)  # 60 points of the same mean and covariance
    assert w2(more, b) == pytest.approx(w2(a, b), rel=1e-8)


def test_sizes_mix_missing_ones_are_nan_and_dead_channels_add_nothing() -> None:
    rows = normal(10, (30, 8), (5, 8), (30, 8), (12, 8))
    result = squared_distances([fit(rows[0]), None, fit(rows[1]), fit(rows[2]), fit(rows[3])])
    assert np.isnan(result[1]).all()
    assert np.isnan(result[:, 1]).all()
    for (i, x), (j, y) in (((0, rows[0]), (2, rows[1])), ((2, rows[1]), (4, rows[3])), ((3, rows[2]), (4, rows[3]))):
        assert result[i, j] == result[j, i] == pytest.approx(w2(x, y) ** 2, rel=1e-12)
    dead = [np.concatenate([r, np.zeros((len(r), 3))], 1) for r in rows[:2]]
    assert w2(dead[0], dead[1]) == pytest.approx(w2(rows[0], rows[1]), rel=1e-9)
