"""Judging rankings: published figures of the OpenMind benchmark, and what is missing, tied, or without intervals."""

import csv
from pathlib import Path

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.ranking.formats import MEAN, Results, Scored, Scores, to_results
from stunet.ranking.judging import ALL, RANDOM, STATIC, Judgement, Row, judge
from stunet.ranking.verdicts import table

SIX = ("ISL", "HNT", "MSF", "TPC", "ACD", "KIT")  # targets of TopoTE
LONGER = ("scratch", "scratch_1k", "nnunet_def", "nnunet_def_1k")  # not self-supervised
# Network and number of targets: tau by scipy and TopoTE, and regret of the static list, of the data's README.
OPENMIND = {
    ("ResEnc-L", 6): (0.534, 0.333, 0.31),
    ("ResEnc-L", 12): (0.638, 0.494, 0.37),
    ("Primus-M", 6): (0.897, 0.848, 0.07),
    ("Primus-M", 12): (0.933, 0.910, 0.04),
}


def means(dice: dict[str, dict[str, float]]) -> Results:
    return to_results({t: {c: {MEAN: {MEAN: {MEAN: v}}} for c, v in values.items()} for t, values in dice.items()}, "x")


def scored(scores: dict[str, dict[str, float]], target: str = "A", **more: str) -> Scores:
    return Scores({target: {name: {c: Scored(v) for c, v in s.items()} for name, s in scores.items()}}, more)


def row(judgement: Judgement, score: str, pool: str = ALL, target: str | None = None) -> Row:
    found = [r for r in judgement.rows if r.score == score and r.pool == pool and not r.without]
    return found[0] if target is None else next(r for r in found if r.target == target)


FIVE = dict(zip("abcde", (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))


def test_the_static_list_of_openmind_has_the_published_figures(data: Path) -> None:
    if not (data / "openmind").is_dir():
        pytest.skip(f"no openmind in {data}")
    with (data / "openmind" / "finetuned_dice.csv").open() as file:
        lines = list(csv.DictReader(file))
    for (network, number), (scipy, topote, regret) in OPENMIND.items():
        pool = {line["pretraining"]: line for line in lines if line["network"] == network}
        pool = {name: line for name, line in pool.items() if name not in LONGER}
        targets = [key for key in lines[0] if key not in ("network", "pretraining")]
        assert len(pool) == 7
        assert len(targets) == 12
        results = means({t: {name: float(line[t]) / 100 for name, line in pool.items()} for t in targets})
        always_mae = {"always MAE": {name: Scored(float(name == "mae")) for name in pool}}
        scores = Scores({target: always_mae for target in (SIX if number == 6 else targets)})
        for definition, expected in (("scipy", scipy), ("topote", topote)):
            found = judge(scores, results, definition, permutations=99)
            static = row(found, STATIC)
            assert static.targets == number
            assert static.values[found.measures[0].name] == pytest.approx(expected, abs=5e-4)
            assert static.values["regret_1"] == pytest.approx(regret, abs=5e-3)
            assert {r.first[0] for r in found.rows if r.score == STATIC and r.target} == {"mae"}
            # The list is headed by MAE everywhere.
            assert row(found, "always MAE").values["regret_1"] == pytest.approx(static.values["regret_1"])


def test_a_perfect_and_a_reversed_score_beside_the_static_list_and_a_random_order() -> None:
    results = means({"A": FIVE, "B": {**FIVE, "a": 0.55}})
    found = judge(scored({"good": FIVE, "bad": {c: -v for c, v in FIVE.items()}}), results)
    assert [r.score for r in found.rows] == ["good", "bad", STATIC, RANDOM]
    good, bad, static, chance = found.rows
    assert good.values == pytest.approx(
        {"weighted_tau": 1, "pearson": 1, "spearman": 1, "regret_1": 0, "regret_3": 0, "best": 1}
    )
    assert good.p == pytest.approx(1 / 120)
    assert good.first == ["a"]
    assert bad.values["regret_1"] == pytest.approx(40)
    assert bad.values["regret_3"] == pytest.approx(20)
    assert bad.p == 1
    assert static.values["regret_1"] == pytest.approx(10)  # B has b on top
    assert chance.values["regret_1"] == pytest.approx(20)
    assert chance.values["best"] == pytest.approx(0.2)
    assert np.isnan(chance.values["weighted_tau"])


def test_the_static_list_does_not_know_the_target_that_it_is_judged_on() -> None:
    dice = {"A": FIVE, "B": dict(zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))}
    scores = Scores({name: {"x": {c: Scored(v) for c, v in values.items()}} for name, values in dice.items()})
    found = judge(scores, means(dice))
    assert row(found, STATIC).values["weighted_tau"] == pytest.approx(-1)
    assert row(found, "x").values["weighted_tau"] == pytest.approx(1)


def test_a_single_target_without_a_static_score_says_that_there_is_no_static_list() -> None:
    found = judge(scored({"x": FIVE}), means({"A": FIVE}))
    assert [r.score for r in found.rows] == ["x", RANDOM]
    assert any("no static list" in note for note in found.notes)
    assert not judge(scored({"x": FIVE, "static": FIVE}), means({"A": FIVE})).notes


def test_scores_that_lack_candidates_are_compared_on_the_others() -> None:
    four = {c: v for c, v in FIVE.items() if c != "a"}
    found = judge(scored({"full": {**FIVE, "a": 0}, "part": four, "static": FIVE}), means({"A": FIVE}))
    whole, without = ([r for r in found.rows if r.without == w] for w in ([], ["a"]))
    assert [r.score for r in whole] == ["full", "static", RANDOM]
    assert [r.score for r in without] == ["full", "part", "static", RANDOM]
    assert {r.candidates for r in without} == {"4"}
    assert without[0].values["weighted_tau"] == pytest.approx(1)
    assert whole[0].values["weighted_tau"] < 1


def test_architectures_are_judged_apart_and_together() -> None:
    results = means({"A": {"a1": 0.9, "a2": 0.8, "b1": 0.7, "b2": 0.6, "c": 0.5}})
    values = {"a1": 1.0, "a2": 2.0, "b1": 0.2, "b2": 0.1, "c": 0.0}
    found = judge(scored({"x": values, "static": values}, a1="A", a2="A", b1="B", b2="B", c="C"), results)
    assert {r.pool for r in found.rows} == {ALL, "A", "B"}
    assert row(found, "x", "A").values["best"] == 0
    assert row(found, "x", "B").values["best"] == 1
    assert any("C has no pool" in note for note in found.notes)
    assert any("no correlations" in note for note in found.notes)
    assert np.isnan(row(found, "x", "B").values["weighted_tau"])
    assert not np.isnan(row(found, "x").values["weighted_tau"])
    same = judge(scored({"x": FIVE}, **dict.fromkeys(FIVE, "STU-Net")), means({"A": FIVE}))
    assert {r.pool for r in same.rows} == {"STU-Net"}


def test_a_constant_score_has_the_regret_of_a_random_order_and_no_correlation() -> None:
    found = judge(scored({"x": dict.fromkeys(FIVE, 3.0)}), means({"A": FIVE}))
    x, chance = found.rows
    assert x.values == pytest.approx(chance.values, nan_ok=True)
    assert np.isnan(x.p)
    assert any("same for all" in note for note in found.notes)


def dice_of(level: float, random: np.random.Generator, seeds: int, cases: int) -> dict:
    return {
        str(s): {str(c): {"1": float(np.clip(level + 0.05 * random.standard_normal(), 0, 1))} for c in range(cases)}
        for s in range(seeds)
    }


def test_intervals_resample_cases_and_seeds_the_same_ones_for_all() -> None:
    random = np.random.default_rng(0)
    base = dice_of(0.5, random, 2, 6)
    shifted = {  # differ by a constant: no resampling changes their order
        name: {s: {c: {"1": d["1"] + shift} for c, d in cases.items()} for s, cases in base.items()}
        for name, shift in zip("abcd", (0.03, 0.02, 0.01, 0.0), strict=True)
    }
    scores = scored({"x": dict(zip("abcd", (4.0, 3, 2, 1), strict=True))})
    sure = judge(scores, to_results({"A": shifted}, "x")).rows[0]
    assert (sure.low["weighted_tau"], sure.high["weighted_tau"]) == pytest.approx((1, 1))
    assert sure.values["best"] == 1
    alike = to_results({"A": {name: dice_of(0.5, random, 2, 6) for name in "abcd"}}, "x")
    unsure = judge(scores, alike).rows[0]
    assert unsure.high["weighted_tau"] - unsure.low["weighted_tau"] > 0.3
    assert 0 < unsure.values["best"] < 1
    assert judge(scores, alike).rows == judge(scores, alike).rows


def test_draws_of_the_scores_widen_the_intervals_and_those_of_candidates_belong_together() -> None:
    random = np.random.default_rng(0)
    common, own = random.standard_normal(200), random.standard_normal((5, 200))
    together = {c: Scored(v, tuple(v + common)) for c, v in FIVE.items()}
    apart = {c: Scored(v, tuple(v + noise)) for (c, v), noise in zip(FIVE.items(), own, strict=True)}
    found = judge(Scores({"A": {"together": together, "apart": apart}}), means({"A": FIVE}))
    one, other = found.rows[:2]
    assert one.low["weighted_tau"] == one.high["weighted_tau"] == pytest.approx(1)
    assert other.low["weighted_tau"] < 0.5
    assert one.values["best"] == 1
    assert other.values["best"] < 0.6


def test_the_mean_of_targets_comes_first_and_has_its_own_p() -> None:
    dice = {"A": FIVE, "B": FIVE, "C": FIVE}
    scores = Scores({name: {"x": {c: Scored(v) for c, v in FIVE.items()}} for name in dice})
    found = judge(scores, means(dice))
    assert [r.target for r in found.rows if r.score == "x"] == ["", "A", "B", "C"]
    assert row(found, "x").p < row(found, "x", target="A").p
    columns, lines = table(found)
    assert [line[columns.index("candidates")] for line in lines] == ["5 x 3"] * 3


def test_what_is_missing_is_said_and_nothing_in_common_is_an_error() -> None:
    found = judge(scored({"x": {**FIVE, "y": 1.0}}), means({"A": {**FIVE, "z": 0.1}, "B": {"a": 0.1}}))
    assert "A: left out, with no result: y" in found.notes
    assert "A: left out, with no score: z" in found.notes
    with pytest.raises(DataError, match="scores are of A, the results of B"):
        judge(scored({"x": FIVE}), means({"B": FIVE}))
    with pytest.raises(DataError, match="two candidates"):
        judge(scored({"x": FIVE}), means({"A": {"a": 0.5, "z": 0.4}}))
    with pytest.raises(DataError, match="called 'random order'"):
        judge(scored({RANDOM: FIVE}), means({"A": FIVE}))


def test_what_a_score_gains_over_the_static_list_is_paired() -> None:
    random = np.random.default_rng(0)
    dice = {c: {"0": {f"case{n}": {"a": float(v + random.normal(0, 0.1))} for n in range(12)}} for c, v in FIVE.items()}
    names = {"same": FIVE, "static": FIVE, "reversed": {c: -v for c, v in FIVE.items()}}
    found = judge(scored(names), to_results({"A": dice}, "x"), draws=400, permutations=9)
    pool = next(iter(found.rows)).pool
    assert row(found, "same", pool).gain == (0, 0, 0)  # although each has an interval of its own
    assert row(found, "same", pool).high["weighted_tau"] > row(found, "same", pool).low["weighted_tau"]
    gain, low, high = row(found, "reversed", pool).gain
    assert gain == pytest.approx(
        row(found, "reversed", pool).values["weighted_tau"] - row(found, "static", pool).values["weighted_tau"]
    )
    assert low <= gain <= high < 0
    assert np.isnan(row(found, "static", pool).gain).all()
    assert np.isnan(row(judge(scored({"only": FIVE}), means({"A": FIVE})), "only", pool).gain).all()
