"""Agreement of scores with Dice: published numbers, scipy, and loops over all orders of ties."""

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr, weightedtau

from stunet.ranking import agreement
from stunet.ranking.agreement import (
    best_of_first,
    chance_of_best,
    pearson,
    permutation_p,
    regret,
    spearman,
    topote_tau,
    weighted_tau,
)

# Task03 of the CC-FV paper (arXiv 2307.11958), figure 2, digitised: ten models.
DICE = [0.8028, 0.8030, 0.7967, 0.7793, 0.7627, 0.7360, 0.7821, 0.7271, 0.7215, 0.7457]
FIGURE_2 = {
    "transrate": [1.0221, 1.2786, 0.5047, 0.7648, 1.2196, 1.4726, 1.0313, 1.0192, 1.3703, 1.1798],
    "gbc": [0.4419, 0.7049, 0.4859, 0.3416, 0.4680, 0.5667, 0.4318, 0.6969, 0.5337, 0.4696],
    "leep": [-1.0926, -1.09348, -1.0931, -1.09349, -1.0962, -1.0961, -1.0955, -1.0962, -1.0941, -1.0965],
    "ccfv": [-0.8669, -0.953, -1.1693, -1.3252, -4.0414, -3.8245, -1.3313, -3.1034, -4.5028, -5.0283],
}
PRINTED = {  # weighted tau and Pearson of those points
    "transrate": (-0.1844, -0.5174),
    "gbc": (0.1234, -0.2630),
    "leep": (0.6008, 0.6759),
    "ccfv": (0.7322, 0.8607),
}


def with_ties(seed: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 4, n).astype(float), random.integers(0, 5, n) / 5


def test_the_points_of_figure_2_give_the_published_correlations() -> None:
    for name, (tau, r) in PRINTED.items():
        scores, dice = np.array(FIGURE_2[name]), np.array(DICE)
        assert weighted_tau(scores, dice) == pytest.approx(tau, abs=5e-5), name
        assert pearson(scores, dice) == pytest.approx(r, abs=5e-5), name


def test_a_mistake_at_the_top_costs_more_than_one_at_the_bottom() -> None:
    true = np.arange(1.0, 6)
    for scores, tau in (
        ([2, 1, 4, 3, 5], 0.718978102189781),
        ([1, 2, 3, 5, 4], 0.6715328467153284),
        ([2, 1, 3, 4, 5], 0.9014598540145985),
    ):
        assert weighted_tau(true, np.array(scores, float)) == pytest.approx(tau, abs=1e-12)


def test_correlations_equal_scipys_with_ties_and_for_many_draws() -> None:
    pairs = [with_ties(seed) for seed in range(200)]
    scores, dice = (np.array(values) for values in zip(*pairs, strict=True))
    assert weighted_tau(scores, dice) == pytest.approx([weightedtau(*pair)[0] for pair in pairs], abs=1e-12)
    assert pearson(scores, dice) == pytest.approx([pearsonr(*pair)[0] for pair in pairs], abs=1e-12)
    assert spearman(scores, dice) == pytest.approx([spearmanr(*pair)[0] for pair in pairs], abs=1e-12)


def test_many_draws_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    scores, dice = random.random((50, 6)), random.random(6)
    for tau in (weighted_tau, topote_tau):
        whole = tau(scores, dice)
        monkeypatch.setattr(agreement, "BLOCK", 200)
        assert tau(scores, dice) == pytest.approx(whole, abs=1e-12)
        monkeypatch.undo()


def test_the_two_weighted_taus_differ() -> None:
    scores, dice = np.array([2.0, 1, 4, 3, 5]), np.arange(1.0, 6)
    weights = {(i, j): 1 / ((i + 1) * (j + 1)) for i, j in combinations(range(5), 2)}
    wrong = weights[1, 2] + weights[3, 4]  # in the order of Dice, from the top
    assert topote_tau(scores, dice) == pytest.approx(1 - 2 * wrong / sum(weights.values()), abs=1e-12)
    assert abs(topote_tau(scores, dice) - weighted_tau(scores, dice)) > 0.01


def test_scores_that_are_all_the_same_have_no_correlation() -> None:
    for constant in (np.zeros(5), np.full(5, 0.1), np.full(5, -1.7)):
        for measure in (weighted_tau, topote_tau, pearson, spearman):
            assert np.isnan(measure(constant, np.arange(5.0)))
            assert np.isnan(measure(np.arange(5.0), constant))


def test_tiny_and_huge_scores_have_the_same_pearson() -> None:
    scores, dice = np.array(FIGURE_2["ccfv"]), np.array(DICE)
    for scale in (1e-200, 1e200):
        assert pearson(scores * scale, dice) == pytest.approx(pearson(scores, dice), abs=1e-12)


def test_regret_and_chance_of_tied_scores_are_means_over_all_orders() -> None:
    for seed in range(30):
        scores, dice = with_ties(seed, 5)
        orders = [order for order in permutations(range(5)) if np.all(np.diff(scores[list(order)]) <= 0)]
        for k in (1, 2, 3):
            expected = np.mean([dice[list(order[:k])].max() for order in orders])
            assert best_of_first(scores, dice, k) == pytest.approx(expected, abs=1e-12)
            assert regret(scores, dice, k) == pytest.approx(100 * (dice.max() - expected), abs=1e-9)
        chance = np.mean([dice[order[0]] == dice.max() for order in orders])
        assert chance_of_best(scores, dice) == pytest.approx(chance, abs=1e-12)


def test_the_regret_of_more_than_all_candidates_is_zero() -> None:
    assert regret(np.array([1.0, 2]), np.array([0.9, 0.8]), 3) == 0


def test_p_is_the_share_of_orders_that_agree_as_well() -> None:
    dice = np.arange(4.0)
    assert permutation_p([dice], [dice], weighted_tau, 10) == pytest.approx(1 / 24)
    assert permutation_p([-dice], [dice], weighted_tau, 10) == 1
    assert np.isnan(permutation_p([np.zeros(4)], [dice], weighted_tau, 10))


def test_p_of_several_targets_is_that_of_their_mean() -> None:
    random = np.random.default_rng(0)
    dice = [random.random(9) for _ in range(3)]
    assert permutation_p(dice, dice, weighted_tau, 999) == pytest.approx(1 / 1000)
    found = [permutation_p([random.random(9) for _ in dice], dice, weighted_tau, 99, seed) for seed in range(60)]
    assert 0.3 < np.mean(found) < 0.7


def test_random_orders_of_seven_have_the_known_spread() -> None:
    # The mean of six targets: sd 0.145 by scipy's definition and 0.175 by TopoTE's, 95 % below 0.243 and 0.283.
    random = np.random.default_rng(0)
    scores, dice = random.permuted(np.tile(np.arange(7.0), (6 * 4000, 1)), axis=1), np.arange(7.0)
    for tau, sd, high in ((weighted_tau, 0.145, 0.243), (topote_tau, 0.175, 0.283)):
        means = tau(scores, dice).reshape(6, -1).mean(axis=0)
        assert means.std() == pytest.approx(sd, abs=0.005)
        assert np.quantile(means, 0.95) == pytest.approx(high, abs=0.012)
