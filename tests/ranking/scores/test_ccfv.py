"""CC-FV: golden numbers of the public code and of the paper, and what may change the score."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stunet.errors import DataError
from stunet.ranking.sample import DECODER, Layer, Sample
from stunet.ranking.scores.base import Prepared, everyone
from stunet.ranking.scores.ccfv import debiased, energy, measure, official, paper
from tests.ranking.samples import Features, make, one_layer, points_of, random_sample

RECIPES = {
    "G4a": (0, 4, 2, {"l0": (60, 16), "l1": (80, 8)}),
    "G4b": (1, 4, 1, {"l0": (50, 128)}),
    "G4c": (2, 5, 2, {"s0": (100, 256), "s1": (200, 128), "s2": (400, 64)}),
}
OFFICIAL = {
    "G4a": (-4.521398802985618, [1.4822343587875366, 1.9119476047940796], [19.14675472012433, 13.611821346064126]),
    "G4b": (-4.0106689833344715, [0.4435005188], [24.474032949881373]),
    "G4c": (
        -14.437620677868402, [0.38887304, 0.56286622, 0.83970785],
        [101.49378344860447, 69.85474438291536, 48.29307624215652],
    ),
}  # fmt: skip
PAPER = {  # summed energy, mean energy, mean energy of unit vectors
    "G4a": (-10.700234837992962, -0.0315122719907282, -0.7080274633890385),
    "G4b": (-9.162220711520638, 0.0380693246020438, -1.149272374418362),
    "G4c": (-13.290740159995524, -0.4988277292681613, -1.7041687461034474),
}


def score(prepared: Prepared) -> float:
    return float(prepared.terms(everyone(prepared))[0])


def changed(sample: Sample, change: Any) -> Sample:
    """The sample with features replaced by change(features, labels, number of the case)."""
    layers = [
        replace(
            layer, features={c: change(f, sample.labels(c), sample.cases.index(c)) for c, f in layer.features.items()}
        )
        for layer in sample.layers
    ]
    return replace(sample, layers=layers)


def g4a() -> list[Sample]:
    features = make(*RECIPES["G4a"])
    return [one_layer(features, layer) for layer in features]


def features_of(name: str) -> Features:
    return make(*RECIPES[name])


def test_energies_of_the_notes() -> None:
    v = np.random.RandomState(6).standard_normal((50, 16))
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    pairs = 50 * 49
    for rows, s, total in (
        (v, 1, 471.15626438802263), (unit, 1, 1781.1100251949388), (v, 2, 93.73829212672388),
        (v, 0, -4079.484444669294), (unit, 0, -804.261123707975),
    ):  # fmt: skip
        assert pairs * energy(rows, s) == pytest.approx(total, rel=1e-11)
    assert energy(v) == pytest.approx(0.19230867934205007, rel=1e-11)


def test_scores_of_the_public_code() -> None:
    for name, (total, varieties, distances) in OFFICIAL.items():
        features = features_of(name)
        prepared = [official(one_layer(features, layer)) for layer in features]
        assert sum(score(p) for p in prepared) == pytest.approx(total, abs=1e-6), name
        for p, layer, v, w in zip(prepared, features, varieties, distances, strict=True):
            assert p.parts[f"{layer}: V"] == pytest.approx(v, rel=1e-6)
            assert p.parts[f"{layer}: w"] == pytest.approx(w, rel=1e-7)


@pytest.mark.slow
def test_the_score_of_the_public_code_for_20_cases_and_4_classes() -> None:
    features = make(7, 20, 4, {"0": (100, 256), "1": (200, 128), "2": (400, 64)})
    prepared = [official(one_layer(features, layer)) for layer in features]
    assert sum(score(p) for p in prepared) == pytest.approx(-24.60140436605105, abs=1e-6)
    for p, layer, w in zip(
        prepared, features, [3704.5655724510634, 2536.187961226364, 1744.4395224517548], strict=True
    ):
        assert p.parts[f"{layer}: w"] == pytest.approx(w, rel=1e-7)


def test_varieties_of_the_public_code() -> None:
    for rows, expected in (
        (np.random.RandomState(4).standard_normal((20, 64)), 0.09161649354716124),
        (np.ones((4, 3)), 31.622776601683793),
        (np.random.RandomState(5).standard_normal((6, 5)) * 1e-2, 22.61450197952018),
    ):
        # Two points of the class at equal distance from each mean leave the mean of the case what it is.
        spread = np.random.RandomState(0).standard_normal(rows.shape[1])
        cases = {f"case{i:02}": np.stack([row - spread, row + spread]) for i, row in enumerate(rows)}
        sample = Sample({c: points_of(np.array([1, 1])) for c in cases}, [Layer("x", DECODER, cases)])
        assert official(sample).parts["x: V"] == pytest.approx(expected, rel=1e-12)


def test_scores_of_the_paper() -> None:
    def unit(rows: NDArray[Any]) -> NDArray[Any]:
        return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)

    for name, (summed, mean, of_unit_vectors) in PAPER.items():
        features = features_of(name)
        samples = [one_layer(features, layer) for layer in features]
        prepared = [paper(sample) for sample in samples]
        assert np.mean([score(p) for p in prepared]) == pytest.approx(mean, rel=1e-8), name
        assert np.mean([score(paper(s, energy_sum=True)) for s in samples]) == pytest.approx(summed, rel=1e-9), name
        ratios = [
            np.mean([1 / energy(unit(rows)) for rows in s.layers[0].features.values()])
            / p.parts[f"{layer}: consistency"]
            for s, p, layer in zip(samples, prepared, features, strict=True)
        ]
        assert np.mean(np.log(ratios)) == pytest.approx(of_unit_vectors, rel=1e-9), name


def test_parts_of_the_paper() -> None:
    first, second = (paper(sample, energy_sum=True).parts for sample in g4a())
    assert first["l0: variety"] == pytest.approx(8.00914016549145e-05, rel=1e-9)
    assert first["l0: consistency"] == pytest.approx(2.907734555793971, rel=1e-9)
    assert second["l1: variety"] == pytest.approx(3.8224222603453464e-05, rel=1e-9)
    assert second["l1: consistency"] == pytest.approx(2.072410044270432, rel=1e-9)
    assert (first["l0: points"], first["l0: channels"]) == (60, 16)


def test_units_shifts_and_rotations_leave_the_paper_alone_and_units_change_the_public_code() -> None:
    rotation = {d: np.linalg.qr(np.random.RandomState(d).standard_normal((d, d)))[0] for d in (8, 16)}

    def both(change: Any) -> tuple[float, float]:
        samples = [changed(s, change) for s in g4a()]
        return sum(score(official(s)) for s in samples), float(np.mean([score(paper(s)) for s in samples]))

    for change, of_code, of_paper in (
        (lambda f, y, i: f, -4.521399, -0.031512),
        (lambda f, y, i: f.astype(np.float64) * 0.1, 4.423264, -0.031512),
        (lambda f, y, i: f * 10, -13.728627, -0.031512),
        (lambda f, y, i: f + 5, -4.521399, -0.031512),
        (lambda f, y, i: f @ rotation[f.shape[1]], -4.521399, -0.031512),
    ):
        assert both(change) == pytest.approx((of_code, of_paper), abs=2e-6)


def test_a_shift_between_cases_lowers_both_and_a_collapse_within_cases_lowers_the_paper_only() -> None:
    def shift(f: NDArray[Any], y: NDArray[Any], case: int) -> NDArray[Any]:
        return f + np.where(y[:, None] > 0, np.random.RandomState(case).standard_normal(f.shape[1]), 0)

    def collapse(f: NDArray[Any], y: NDArray[Any], case: int) -> NDArray[Any]:
        return f.mean(0) + 0.01 * (f - f.mean(0))

    for variant, falls in ((paper, True), (official, False), (debiased, True)):
        before = [score(variant(s)) for s in g4a()]
        assert sum(score(variant(changed(s, shift))) for s in g4a()) < sum(before)
        if variant is not debiased:
            assert (sum(score(variant(changed(s, collapse))) for s in g4a()) < sum(before)) is falls


def test_the_order_of_cases_classes_points_and_channels_does_not_matter() -> None:
    sample = g4a()[0]
    order = np.random.RandomState(0).permutation(180)
    layer = sample.layers[0]
    names = dict(zip(sample.cases, reversed(sample.cases), strict=True))
    mixed = Sample(
        {names[c]: points_of((2 * sample.labels(c) % 3)[order]) for c in sample.cases},  # classes 1 and 2 swapped
        [Layer("l0", DECODER, {names[c]: layer.features[c][order][:, ::-1] for c in sample.cases})],
    )
    assert score(paper(mixed)) == pytest.approx(score(paper(sample)), abs=1e-12)


def test_one_duplicated_point_changes_the_score_by_less_than_a_percent() -> None:
    def duplicate(f: NDArray[Any], y: NDArray[Any], case: int) -> NDArray[Any]:
        return np.concatenate([f[:1], f[:1], f[2:]])

    for sample in g4a():
        before = score(paper(sample, energy_sum=True))
        assert score(paper(changed(sample, duplicate), energy_sum=True)) == pytest.approx(before, rel=0.01)


def test_debiasing_takes_out_what_few_points_add() -> None:
    rs = np.random.RandomState(0)
    labels = np.ones(400, np.int64)
    scale = 1 / np.sqrt(1.0 + np.arange(64))
    scale /= np.linalg.norm(scale)
    cases = {f"case{i}": rs.standard_normal((400, 64)) * scale for i in range(6)}
    for i, case in enumerate(cases):
        cases[case][:, 63] += 0.3 * (i % 2)
    sample = Sample({c: points_of(labels) for c in cases}, [Layer("x", DECODER, cases)])
    between = 0.3 * np.sqrt(9 / 15)  # 9 of 15 pairs are 0.3 apart; roots of mean squares
    assert paper(sample).parts["x: consistency"] > 1.2 * between
    assert debiased(sample).parts["x: consistency"] == pytest.approx(between, rel=0.05)


def test_few_points_and_missing_classes_leave_out_a_case_for_that_class() -> None:
    sample = random_sample(classes=2, cases=5)
    few = sample.points["case0"].labels.copy()
    few[few == 2] = 0
    few[-1] = 2
    lacking = replace(sample, points={**sample.points, "case0": points_of(few)})
    assert np.isfinite(score(paper(lacking)))
    assert np.isfinite(score(official(lacking)))
    assert np.isfinite(score(debiased(lacking)))
    with pytest.raises(DataError, match="two cases"):
        paper(sample.only(["case0"]))


def test_dead_channels_one_channel_and_two_points_are_finite_and_constant_features_are_not() -> None:
    sample = random_sample(cases=3, points=2, channels=(1,))
    assert np.isfinite(score(paper(sample)))
    dead = changed(sample, lambda f, y, i: np.concatenate([f, np.zeros_like(f)], 1))
    assert score(paper(dead)) == pytest.approx(score(paper(sample)), rel=1e-9)
    constant = changed(sample, lambda f, y, i: np.full_like(f, 0.1))
    assert np.isnan(score(paper(constant)))


def test_counts_of_a_draw_equal_copies_of_the_cases_that_are_not_compared_with_each_other() -> None:
    sample = random_sample(cases=5)
    counts = np.array([[2.0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [5, 0, 0, 0, 0]])
    for variant in (paper, official, debiased):
        prepared = variant(sample)
        values = prepared.terms(counts)
        assert np.isfinite(values[:2]).all()
        assert np.isnan(values[2])
        assert values[1] == score(prepared)
    layer = sample.levels()[-1]
    single = replace(sample, layers=[layer])
    inverse = np.array([1 / energy(layer.features[c]) for c in sample.cases])
    pairs = counts[0][:, None] * counts[0] * (1 - np.eye(5))
    consistency = sum(np.sum(pairs * np.sqrt(squares)) / pairs.sum() for squares in measure(layer, sample).squares)
    expected = np.log(counts[0] @ inverse / 5 / consistency)
    assert paper(single).terms(counts)[0] == pytest.approx(expected, rel=1e-12)
