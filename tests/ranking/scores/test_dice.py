"""Dice without training, and of a linear probe."""

from dataclasses import replace

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.ranking.sample import Sample
from stunet.ranking.scores import SCORES
from stunet.ranking.scores.probe import probe
from stunet.ranking.scores.zero_shot import zero_shot
from tests.ranking.samples import points_of, random_sample


def head(labels: list[int], found: list[int], classes: int = 4) -> Sample:
    cases = ("a", "b")
    return Sample(
        {case: points_of(np.array(labels)) for case in cases}, predictions={c: np.eye(classes)[found] for c in cases}
    )


def test_classes_are_matched_one_to_one_and_background_is_background() -> None:
    prepared = zero_shot(head([0, 0, 1, 1, 2, 2], [0, 0, 3, 3, 1, 0]))
    assert dict(prepared.parts) == {"class 1 is class": 3, "class 2 is class": 1}
    assert prepared.terms(np.ones((1, 2)))[0] == pytest.approx((1 + 2 / 3) / 2)
    nothing = zero_shot(head([0, 1, 2], [0, 0, 0], classes=2))
    assert nothing.terms(np.ones((1, 2)))[0] == 0
    only_background = zero_shot(head([0, 1], [0, 0], classes=1))
    assert only_background.terms(np.ones((1, 2)))[0] == 0


def test_weights_make_it_the_dice_of_voxels() -> None:
    sample = head([0, 0, 1, 1], [0, 1, 1, 0], classes=2)
    weights = np.array([90.0, 10, 5, 5])
    weighted = replace(sample, points={c: replace(p, weights=weights) for c, p in sample.points.items()})
    assert SCORES["zero-shot"].compute(sample).score == pytest.approx(0.5)
    assert SCORES["zero-shot"].compute(weighted).score == pytest.approx(2 * 5 / (10 + 15))


def test_predictions_where_a_case_lacks_the_class_count_against_it() -> None:
    sample = head([0, 0, 1, 1], [0, 1, 1, 1], classes=2)
    lacking = replace(sample, points={**sample.points, "b": points_of(np.array([0, 0, 0, 0]))})
    assert SCORES["zero-shot"].compute(lacking).score == pytest.approx(2 * 2 / (2 + 6))


def test_a_probe_separates_classes_that_are_apart_in_all_cases() -> None:
    apart, shifted = (SCORES["probe"].compute(random_sample(case_shift=s, separation=5.0)) for s in (0.1, 6.0))
    assert apart.score > 0.99
    assert shifted.score < apart.score
    assert apart.score == pytest.approx(np.mean([apart.parts["class 1"], apart.parts["class 2"]]))


def test_a_probe_needs_two_cases_and_two_classes() -> None:
    with pytest.raises(DataError, match="one case"):
        probe(random_sample().only(["case0"]))
    sample = random_sample()
    background = {case: points_of(np.zeros_like(points.labels)) for case, points in sample.points.items()}
    assert SCORES["probe"].scores([probe(sample)], np.array([[2.0, 1, 1, 0, 0, 1]])).shape == (1, 1)
    with pytest.raises(DataError, match="one class"):
        probe(replace(sample, points=background))
