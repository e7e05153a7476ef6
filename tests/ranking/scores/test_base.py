"""What holds for every score."""

import re
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from stunet.errors import DataError, UsageError
from stunet.ranking.pool import draw_cases
from stunet.ranking.sample import Facts, Layer, Sample
from stunet.ranking.scores import SCORES, find
from stunet.ranking.scores.base import FACTS, FEATURES, one_thread
from tests.ranking.samples import points_of, random_sample

FACTS_OF_ONE = Facts("ResEnc-L", "mae", 100, 100)


def test_every_score_is_finite_repeats_to_the_bit_and_has_draws() -> None:
    sample = random_sample(facts=FACTS_OF_ONE)
    counts = draw_cases(6, 8)
    for name, score in SCORES.items():
        value = score.compute(sample)
        assert np.isfinite(value.score), name
        assert all(np.isfinite(part) for part in value.parts.values()), name
        assert score.compute(sample) == value, name
        draws = score.scores([score.prepare(sample)], counts)
        assert draws.shape == (1, 8), name
        assert np.isfinite(draws).all(), name


def test_a_draw_of_pooled_scores_is_the_score_of_copied_cases() -> None:
    sample = random_sample(cases=4)
    counts = np.array([[2.0, 0, 1, 1]])
    copies = {"a": "case0", "b": "case0", "c": "case2", "d": "case3"}
    assert sample.predictions is not None
    copied = Sample(
        {new: sample.points[old] for new, old in copies.items()},
        [replace(layer, features={new: layer.features[old] for new, old in copies.items()}) for layer in sample.layers],
        {new: sample.predictions[old] for new, old in copies.items()},
    )
    for name in ("logme", "transrate", "transrate-normalised", "gbc", "gbc-diagonal", "gbc-published", "hscore",
                 "leep", "nce", "topology", "topology-corrected", "zero-shot"):  # fmt: skip
        score = SCORES[name]
        drawn = score.scores([score.prepare(sample)], counts)[0, 0]
        assert drawn == pytest.approx(score.compute(copied).score, rel=1e-9), name


def test_hard_samples_end_in_a_number_or_our_error() -> None:
    usual = random_sample(facts=FACTS_OF_ONE, cases=4)
    labels = {case: points.labels.copy() for case, points in usual.points.items()}
    labels["case0"][labels["case0"] == 2] = 1  # a class that a case lacks
    labels["case1"][np.flatnonzero(labels["case1"] == 2)[1:]] = 0  # a single point of it
    rare = replace(usual, points={case: points_of(values) for case, values in labels.items()})

    def with_features(width: int, constant: bool = False) -> Sample:
        layers = []
        for layer in usual.layers:
            rows = {case: np.resize(values, (len(values), width)) for case, values in layer.features.items()}
            rows = {case: np.full_like(values, 0.1) if constant else values for case, values in rows.items()}
            layers.append(Layer(layer.name, layer.part, rows))
        return replace(usual, layers=layers)

    fewer = random_sample(facts=FACTS_OF_ONE, points=5, channels=(40, 30), cases=3)
    twice = replace(usual, layers=[
        Layer(layer.name, layer.part, {c: np.concatenate([f, f], 1) for c, f in layer.features.items()})
        for layer in usual.layers
    ])  # fmt: skip
    background = replace(usual, points={case: points_of(np.zeros_like(values)) for case, values in labels.items()})
    for kind, sample in (
        ("rare", rare), ("one channel", with_features(1)), ("constant", with_features(3, constant=True)),
        ("fewer points than channels", fewer), ("rank", twice), ("one case", usual.only(["case0"])),
        ("background", background),
    ):  # fmt: skip
        for name, score in SCORES.items():
            try:
                value = score.compute(sample).score
            except DataError:
                assert kind in ("constant", "one case", "background"), (kind, name)
            else:
                assert np.isfinite(value), (kind, name)
                if score.needs != FACTS:
                    assert kind != "background", (kind, name)
                if score.needs == FEATURES:
                    assert kind != "constant", (kind, name)


def test_scores_of_a_head_need_one_and_static_lists_need_no_features() -> None:
    sample = random_sample(facts=FACTS_OF_ONE)
    for score in SCORES.values():
        if score.needs == FACTS:
            assert score.compute(Sample(sample.points, facts=FACTS_OF_ONE)).score >= 0.5
        elif score.needs != FEATURES:
            with pytest.raises(DataError, match="no head"):
                score.compute(replace(sample, predictions=None))


def test_linear_algebra_has_one_thread() -> None:
    with one_thread():
        ours = [p for p in threadpool_info() if re.search("numpy|scipy|scikit", p["filepath"])]
        assert {pool["num_threads"] for pool in ours} == {1}


def test_unknown_names_have_the_closest() -> None:
    assert find("ccfv").name == "ccfv"
    with pytest.raises(UsageError, match="did you mean 'logme'"):
        find("logmee")
