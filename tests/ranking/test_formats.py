"""Files of scores and results: what they may hold, and what is wrong in them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.files import write_json
from stunet.ranking.formats import (
    Scored,
    merge_results,
    merge_scores,
    read_results,
    read_scores,
    to_results,
    write_results,
)
from tests.loops import for_each


def results(folder: Path, target: Any) -> Path:
    write_json(folder / "results.json", {"targets": {"A": target}})
    return folder


def test_scores_are_numbers_or_tables_and_may_be_missing_with_a_reason(tmp_path: Path) -> None:
    table = {"a": 1, "b": {"score": 0.5, "low": 0.4, "draws": [0.4, 0.6]}, "c": None, "d": {"error": "no decoder"}}
    table["a"] = {"score": 1, "draws": [1, 1.5]}
    content = {
        "targets": {"A": {"scores": {"ccfv": table, "static": {"a": 2}}, "seconds": 3}},
        "candidates": {"a": {"architecture": "STU-Net", "weights": "x/a.pth", "licence": "MIT"}, "b": {}},
    }
    write_json(tmp_path / "rank.json", content)
    found = read_scores(tmp_path)
    assert found.targets["A"] == {
        "ccfv": {"a": Scored(1, (1, 1.5)), "b": Scored(0.5, (0.4, 0.6))},
        "static": {"a": Scored(2)},
    }
    assert found.failed == {("A", "ccfv", "c"): "no score", ("A", "ccfv", "d"): "no decoder"}
    assert (found.architectures, found.weights) == ({"a": "STU-Net"}, {"a": "x/a.pth"})
    assert found.candidates == ["a", "b"]


def test_results_are_means_or_by_seed_case_and_class(tmp_path: Path) -> None:
    classes = {"x": 0.25, "y": None}
    for dice, expected in (
        (0.5, [[[0.5]]]),
        ({"0": 0.5, "1": 1}, [[[0.5]], [[1]]]),
        ({"0": {"p": 0.5, "q": 0.25}}, [[[0.5], [0.25]]]),
        ({"0": {"p": classes, "q": {"x": 1, "y": 0.5}}}, [[[0.25, math.nan], [1, 0.5]]]),
    ):
        found = read_results(results(tmp_path, {"a": {"dice": dice}})).targets["A"]["a"]
        assert np.array_equal(found, np.array(expected), equal_nan=True)


def test_arrays_do_not_depend_on_the_order_in_the_file(tmp_path: Path) -> None:
    one, other = {"p": {"x": 0.1, "y": 0.2}, "q": {"x": 0.3}}, {"q": {"x": 0.3}, "p": {"y": 0.2, "x": 0.1}}
    found = read_results(results(tmp_path, {"a": {"dice": {"0": one}}, "b": {"dice": {"0": other}}})).targets["A"]
    assert np.array_equal(found["a"], found["b"], equal_nan=True)


def test_candidates_known_in_less_detail_reduce_the_others_to_means(tmp_path: Path) -> None:
    by_case = {"0": {"p": {"x": 0.2, "y": 0.4}, "q": {"x": 0.4, "y": 0.8}}, "1": {"p": {"x": 1, "y": 1}, "q": {"x": 1}}}
    found = read_results(results(tmp_path, {"a": {"dice": by_case}, "b": {"dice": 0.5}}))
    assert found.targets["A"]["a"] == pytest.approx(np.array([[[(0.45 + 1) / 2]]]))
    assert found.notes == ["A: no values by seed of b, so those of the others only count as means"]
    found = read_results(results(tmp_path, {"a": {"dice": by_case}, "b": {"dice": {"0": 0.5, "1": 0.6}}}))
    assert found.targets["A"]["a"] == pytest.approx(np.array([[[0.45]], [[1]]]))


def test_only_common_seeds_count_and_null_is_no_result(tmp_path: Path) -> None:
    found = read_results(
        results(tmp_path, {"a": {"dice": {"0": 0.5, "1": 0.6}}, "b": {"dice": {"1": 0.7}}, "c": {"dice": None}})
    )
    assert {name: dice.tolist() for name, dice in found.targets["A"].items()} == {"a": [[[0.6]]], "b": [[[0.7]]]}
    assert len(found.notes) == 2


@for_each(
    ("target", "message"),
    [
        ({"a": {"dice": 85.2}}, "a.dice: expected a Dice from 0 to 1, or those by seed, got 85.2"),
        ({"a": {"dice": math.nan}}, "a.dice"),
        ({"a": {"dice": {"0": {"p": {"x": -0.1}}}}}, "a.dice.0.p.x: expected a number from 0 to 1, got -0.1"),
        ({"a": {}}, "missing 'dice'"),
        ({"a": {"dice": {"0": {"p": {"x": None}}}}}, "'a' has no Dice for one of its seeds"),
        ({"a": {"dice": None}}, "has no results"),
        ({"a": {"dice": {"0": 0.5}}, "b": {"dice": {"1": 0.5}}}, "no seed in common"),
        ({"a": {"dice": {"0": {"p": 0.5}}}, "b": {"dice": {"0": {"q": 0.5}}}}, "'a' and 'b' have other cases"),
        ({"a": {"dice": {"0": {"p": 0.5}, "1": {"q": 0.5}}}}, "seeds of 'a' have other cases"),
    ],
)
def test_wrong_results_are_an_error_that_names_the_place(tmp_path: Path, target: Any, message: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"targets": {"A": target}}))
    with pytest.raises(DataError) as caught:
        read_results(tmp_path / "results.json")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@for_each(
    ("table", "message"),
    [
        ({"a": math.nan}, "scores.x.a: expected a number or a table, got nan"),
        ({"a": {"score": math.inf}}, "scores.x.a.score: expected a number, got inf"),
        ({"a": "1"}, "scores.x.a"),
        ({"a": {"score": 1, "draws": [1]}, "b": {"score": 1}}, "different numbers of draws of x: 0, 1"),
    ],
)
def test_wrong_scores_are_an_error_that_names_the_place(tmp_path: Path, table: Any, message: str) -> None:
    path = tmp_path / "rank.json"
    path.write_text(json.dumps({"targets": {"A": {"scores": {"x": table}}}}))
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert message in caught.value.message


def test_written_results_are_read_again_as_they_were(tmp_path: Path) -> None:
    values = {"A": {"a": {"0": {"p": {"x": 0.5, "y": math.nan}, "q": {"x": 0.25, "y": 0.75}}}}}
    write_results(values, tmp_path / "results.json")
    found, expected = read_results(tmp_path).targets["A"]["a"], to_results(values, "x").targets["A"]["a"]
    assert np.array_equal(found, expected, equal_nan=True)


def test_a_target_is_in_one_file_only(tmp_path: Path) -> None:
    one = read_results(results(tmp_path, {"a": {"dice": 0.5}}))
    with pytest.raises(DataError, match="two files have results of A"):
        merge_results([one, one])
    write_json(tmp_path / "rank.json", {"targets": {"A": {"scores": {"x": {"a": 1}}}}})
    with pytest.raises(DataError, match="two files have scores of A"):
        merge_scores([read_scores(tmp_path)] * 2)
