"""What weights know of their images stands in their plan, or else in the registry."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import WeightsError
from stunet.models.known_input import known_input
from stunet.plans.plan import Plan
from stunet.weights.reading import Weights
from tests.loops import for_each
from tests.nnunet_networks import STRIDES, network

PLANNED = {
    "spacing": [2.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "patch_size": [8, 16, 16],
    "architecture": {"arch_kwargs": {"n_stages": 3, "strides": STRIDES}},
}


def weights(plan: dict[str, Any] | None = None, **values: Any) -> Weights:
    """Weights of a small residual encoder, of which nothing but these values is known."""
    state = network(RESENC).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if RESENC.canonical(name) == name}
    known = {"plan": Plan({"configurations": {"a": PLANNED}, **plan}), "configuration": "a"} if plan is not None else {}
    return Weights(Path("w.pth"), "bare", {}, RESENC.recognise(shapes), **known, **values)


def test_what_the_plan_says_comes_before_the_registry() -> None:
    entry = "ResEncL-T1-MAE"
    found = known_input(weights(entry=entry), "W", None)
    assert (found.spacing, found.normalization, found.patch) == ((1, 1, 1), ("ZScoreNormalization",), (160, 160, 160))
    assert found.transposition == (0, 1, 2)
    found = known_input(weights({"transpose_forward": [1, 0, 2]}, entry=entry), "W", None)
    assert (found.spacing, found.patch, found.strides) == ([2.0, 1.0, 1.0], [8, 16, 16], STRIDES)
    assert found.transposition == (1, 0, 2)
    assert found.network.found is not None
    assert found.network.found.strides == STRIDES
    assert known_input(weights(), "W", None).spacing is None


def test_a_name_is_one_part_of_a_plans_name() -> None:
    assert known_input(weights(), "TotalSegmentator-total_mr__x", None).name == "TotalSegmentator-total-mr-x"


@for_each(
    ("own", "axes", "theirs", "turned"),
    [
        ("LPS", (0, 1, 2), "LPS", False),
        ("RAS", (0, 1, 2), "LPS", False),  # mirroring has taught both directions
        ("RAS", (0, 1), "LPS", True),
        ("RAS", None, "LPS", False),
        ("PSR", (0, 1, 2), "LPS", True),  # another side of the patient
        ("PSR", (0, 1, 2), None, False),
        (None, (), "LPS", False),
    ],
)
def test_images_are_turned_only_to_what_the_weights_know(own: Any, axes: Any, theirs: Any, turned: bool) -> None:
    plan = {"transpose_forward": [0, 1, 2], "stunet": {"orientation": own} if own else {}}
    found = known_input(weights(plan, mirror_axes=axes), "W", theirs)
    assert found.orientation == (own if turned else None)


def test_plans_of_nnunet_know_the_orientation_by_their_reader_or_the_registry() -> None:
    stock = {"transpose_forward": [0, 1, 2], "image_reader_writer": "NibabelIOWithReorient"}
    assert known_input(weights(stock, mirror_axes=()), "W", "LPS").orientation == "RAS"
    stock["image_reader_writer"] = "SimpleITKIO"
    assert known_input(weights(stock, mirror_axes=()), "W", "LPS").orientation is None
    theirs = weights(stock, mirror_axes=(), entry="TotalSegmentator-total-part1")
    assert known_input(theirs, "W", "LPS").orientation == "RAS"
    assert known_input(theirs, "W", "RAS").orientation is None  # they run so already


def test_networks_that_cannot_be_planned_are_refused() -> None:
    for arguments, message in (({"size": None}, "is of no size"), ({"size": "T", "encoders": 2}, "several encoders")):
        state = STUNET.build(1, 2, {"size": "T", "strides": [[1, 1, 1], [2, 2, 2]]}).state_dict()
        found = STUNET.recognise({name: tuple(value.shape) for name, value in state.items()})
        other = replace(found, arguments={**found.arguments, **arguments}, size=arguments["size"])
        with pytest.raises(WeightsError, match=message) as caught:
            known_input(Weights(Path("w.pth"), "bare", {}, other), "W", None)
        assert caught.value.hint == "--spacing dataset"
