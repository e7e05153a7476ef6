"""Candidates side by side: intervals, the chance of being the best, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.ranking.pool import Pooled, draw_cases, score_pool
from stunet.ranking.sample import ENCODER, Facts
from stunet.ranking.scores import SCORES
from tests.ranking.samples import random_sample


def test_draws_are_of_one_case_fewer_and_repeat_with_the_seed() -> None:
    counts = draw_cases(7, 50, seed=1)
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 6).all()
    assert (counts == draw_cases(7, 50, seed=1)).all()


def test_the_better_of_two_is_the_best_in_most_draws_and_its_interval_has_its_score() -> None:
    pool = [random_sample(case_shift=shift, cases=8) for shift in (0.1, 1.5)]
    for name in ("ccfv", "ccfv-debiased", "logme", "hscore", "probe", "topology-corrected"):
        score = SCORES[name]
        pooled = score_pool(score, [score.prepare(sample) for sample in pool], draw_cases(8, 60))
        low, high = pooled.intervals().T
        assert (low <= high).all()
        assert pooled.chance_of_best().sum() == pytest.approx(1)
        assert pooled.chance_of_best()[0] > 0.9, name
        assert pooled.scores[0] > pooled.scores[1], name


def test_equal_candidates_share_the_first_place() -> None:
    pooled = Pooled(np.zeros(3), np.array([[1.0, 2, 0], [1.0, 0, 0], [0.0, 0, 1]]))
    assert pooled.chance_of_best() == pytest.approx([0.5, 1 / 6, 1 / 3])


def test_static_lists_rank_by_what_is_known_and_put_a_method_first() -> None:
    facts = [
        Facts("STU-Net", "supervised", 14_600_000, 1204), Facts("ResEnc-L", "mae-no-skips", 102_000_000, 114_000),
        Facts("ResEnc-L", "voco", 102_000_000, 114_000), Facts("STU-Net", "random", 58_000_000, 0), Facts(),
    ]  # fmt: skip
    pool = [random_sample(facts=f, cases=2) for f in facts]
    best = {"static": 1, "always-mae": 1, "always-supervised": 0}
    for name, first in best.items():
        score = SCORES[name]
        pooled = score_pool(score, [score.prepare(sample) for sample in pool], draw_cases(2, 4))
        assert pooled.scores.argmax() == first
        assert (pooled.draws == pooled.scores[:, None]).all()
        assert pooled.scores[4] == 0.5


def test_candidates_of_other_cases_or_other_parts_are_not_compared() -> None:
    sample, score = random_sample(), SCORES["ccfv"]
    for other, message in (
        (sample.only(sample.cases[1:]), "other cases"),
        (replace(sample, layers=sample.of(ENCODER)), "decoder, encoder"),
    ):
        with pytest.raises(DataError, match=message):
            score_pool(score, [score.prepare(sample), score.prepare(other)])


def test_with_too_few_cases_for_a_bootstrap_there_are_scores_without_intervals() -> None:
    score, sample = SCORES["ccfv"], random_sample(cases=2)
    found = score_pool(score, [score.prepare(sample)], np.array([[2.0, 0], [0, 2], [2, 0], [1, 1]]))
    assert np.isfinite(found.scores).all()
    assert found.draws.shape == (1, 0)
    assert np.isnan(found.intervals()).all()
    assert np.isnan(found.chance_of_best()).all()
