"""What a sample accepts, and which layers scores read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.ranking.sample import DECODER, ENCODER, Layer, Points, Sample, distribution
from tests.loops import for_each
from tests.ranking.samples import points_of, random_sample

LABELS = np.array([0, 0, 1])
POINTS = {"a": points_of(LABELS), "b": points_of(LABELS)}


def rows(*shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: np.ones(shape) for name, shape in zip("ab", shapes, strict=False)}


@for_each(
    "arguments, message",
    [
        ({"points": {}}, "no case"),
        ({"points": {"a": points_of(np.array([], int))}}, "no points"),
        ({"points": {"a": points_of(np.array([0.5]))}}, "not classes"),
        ({"points": {"a": points_of(np.array([-1, 2]))}}, "not classes"),
        ({"points": {"a": Points(LABELS, np.array([0, 1, 4]))}}, "regions"),
        ({"points": {"a": replace(POINTS["a"], weights=np.array([1.0, 0, 1]))}}, "weights"),
        ({"layers": [Layer("x", DECODER, rows((3, 2)))]}, "other cases"),
        ({"layers": [Layer("x", DECODER, rows((3, 2), (4, 2)))]}, "'b'"),
        ({"layers": [Layer("x", DECODER, rows((3, 2), (3, 4)))]}, "channels"),
        ({"layers": [Layer("x", DECODER, rows((3, 0), (3, 0)))]}, r"\(3, 0\)"),
        ({"layers": [Layer("x", "head", rows((3, 2), (3, 2)))]}, "'head'"),
        ({"layers": [Layer("x", DECODER, {n: v * np.inf for n, v in rows((3, 2), (3, 2)).items()})]}, "not finite"),
        ({"predictions": rows((3, 2), (3, 2))}, "not probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Sample(**{"points": POINTS, **arguments})


def test_scores_read_the_finest_levels_of_the_decoder_or_else_the_encoder() -> None:
    sample = random_sample(channels=(16, 12, 8, 4))
    assert [layer.name for layer in sample.levels()] == ["decoder1", "decoder2", "decoder3"]
    assert sample.head_input().name == "decoder3"
    encoder = replace(sample, layers=sample.of(ENCODER))
    assert [layer.name for layer in encoder.levels()] == ["encoder0", "encoder1", "encoder2", "encoder3"]
    for stages, chosen in ((1, 0), (2, 0), (4, 1), (6, 2)):  # of six, the fourth from fine to coarse
        features = sample.layers[0].features
        several = replace(sample, layers=[Layer(str(i), ENCODER, features) for i in range(stages)])
        assert several.head_input().name == str(chosen)
    with pytest.raises(DataError, match="no layer"):
        replace(sample, layers=[]).levels()


def test_a_part_of_the_cases_is_a_sample_too() -> None:
    part = random_sample(cases=3).only(["case2", "case0"])
    assert part.cases == ("case0", "case2")
    assert set(part.layers[0].features) == set(part.predictions or {}) == {"case0", "case2"}


def test_regions_become_a_distribution_with_background_where_there_is_none() -> None:
    rows = distribution(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    assert rows == pytest.approx(np.array([[1, 0, 0], [0, 1, 0], [0.2, 0.4, 0.4]]))
