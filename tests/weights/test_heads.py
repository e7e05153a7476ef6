"""Which rows of a head go where: by the classes' names, and never by their numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stunet.architectures.base import Recognised
from stunet.architectures.stunet import STUNET
from stunet.errors import UsageError
from stunet.weights.heads import NEW_CLASS, choose_head, plan_heads, take_rows
from stunet.weights.reading import Weights
from tests.loops import for_each

GIVEN = ["background", "spleen", "kidney_right", "kidney_left", "liver"]


def weights(classes: list[str] | None = GIVEN, rows: int = 5) -> Weights:
    """Weights without tensors, for the names alone matter here."""
    labels = {"labels": {name: value for value, name in enumerate(classes)}} if classes else None
    return Weights(Path("given.pth"), "bare", {}, Recognised(STUNET, {"size": "T"}, "T", 2, 1, rows, 3), dataset=labels)


def test_rows_are_found_by_name_whatever_the_order() -> None:
    heads = plan_heads(None, weights(), ["background", "Liver", "left kidney", "spleen"])
    assert heads.mode == "slice"
    assert heads.moves == ((0,), (4,), (3,), (1,))
    assert heads.unused == ("kidney_right",)
    assert heads.warnings == ()


def test_a_union_takes_all_its_parts_and_an_unknown_class_none() -> None:
    heads = plan_heads("slice", weights(), ["background", "kidney", "liver tumor", "spleen"])
    assert [sorted(rows) for rows in heads.moves] == [[0], [2, 3], [], [1]]
    assert heads.unused == ("liver",)
    assert heads.lines() == [
        "heads: 1 classes copied, 1 merged, 1 new; 1 of the weights' unused",
        "  merged: kidney = mean of kidney_left, kidney_right",
        f"  new: liver tumor (closest: {', '.join(heads.rows[1].closest)})",
    ]
    assert "liver" in heads.rows[1].closest


def test_rows_are_copied_or_averaged_and_new_ones_stay_as_drawn() -> None:
    drawn, given = torch.randn(3, 2, 1, 1, 1), torch.randn(5, 2, 1, 1, 1)
    moved = take_rows(drawn, given.half(), [(4,), (), (1, 2)])
    assert torch.equal(moved[0], given[4].half().float())
    assert torch.equal(moved[1], drawn[1])
    torch.testing.assert_close(moved[2], (given[1] + given[2]) / 2, rtol=1e-2, atol=1e-3)  # half precision
    assert moved.data_ptr() != drawn.data_ptr()


@for_each(
    ("given", "classes", "reason"),
    [
        (weights(None), ["background", "spleen", "a", "b", "c"], "do not say which classes their 5 rows are"),
        (weights(), ["background", "femur"], "no class of the dataset"),
        (weights(rows=0), ["background", "spleen"], "no heads"),
        (weights(), None, "names of the dataset's classes"),
    ],
)
@for_each("requested", [None, "slice", "reuse"])
def test_heads_are_reset_with_the_reason_where_no_name_matches(
    given: Weights, classes: list[str] | None, reason: str, requested: str | None
) -> None:
    heads = plan_heads(requested, given, classes)
    assert (heads.mode, heads.moves) == ("reset", ())
    assert reason in heads.reason
    assert heads.lines() == [f"heads: initialised at random, {heads.reason}"]
    assert [reason in warning for warning in heads.warnings] == ([True] if requested else [])


def test_a_reset_that_was_asked_for_needs_no_warning() -> None:
    assert choose_head("reset", weights(), GIVEN) == "reset"
    assert plan_heads("reset", weights(), GIVEN).warnings == ()


def test_reuse_keeps_every_row_and_new_ones_begin_as_a_part_of_the_background() -> None:
    heads = plan_heads("reuse", weights(), [*GIVEN, "liver tumor"])
    assert heads.mode == "reuse"
    assert heads.moves == ((0,), (1,), (2,), (3,), (4,), (0,))
    assert heads.added == (0, 0, 0, 0, 0, NEW_CLASS)
    assert heads.lines()[0] == "heads: all 4 classes of the weights kept, 1 new"
    assert "liver tumor (closest: " in heads.lines()[1]


def test_reuse_is_refused_for_a_network_without_the_classes_of_the_weights() -> None:
    with pytest.raises(UsageError, match="all classes of the weights"):
        plan_heads("reuse", weights(), ["background", "spleen"])


def test_regions_get_rows_without_a_background_and_a_warning() -> None:
    heads = plan_heads(None, weights(), ["kidney", "liver"])
    assert [sorted(rows) for rows in heads.moves] == [[2, 3], [4]]
    assert "regions" in heads.warnings[0]


def test_another_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'slice'"):
        plan_heads("slices", weights(), GIVEN)


@for_each("requested", ["slice", "reuse"])
@for_each(("pretext", "transfer", "why"), [("mae", None, "the heads of 'mae'"), (None, "encoder", "only the encoder")])
def test_without_rows_of_classes_none_can_be_sliced_or_reused(
    pretext: str | None, transfer: str | None, why: str, requested: str
) -> None:
    given = replace(weights(), pretext=pretext)
    with pytest.raises(UsageError, match=f"--head {requested}, but {why}"):
        plan_heads(requested, given, GIVEN, transfer)
    assert plan_heads(None, given, GIVEN, transfer).mode == plan_heads("reset", given, GIVEN, transfer).mode == "reset"
