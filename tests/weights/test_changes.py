"""Tests of weights/changes.py: the table of what a training has otherwise than that of its weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from stunet.labels.names import head_classes
from stunet.networks import build
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.weights.changes import changes
from stunet.weights.checkpoints import save_weights
from stunet.weights.reading import Weights, read_weights

NAME = "3d_fullres"
LABELS = {"background": 0, "liver": 1, "spleen": 2}


@pytest.fixture
def plan(planned: str) -> Plan:
    return read_plan(plan_path(planned, "STUNetPlans_T"))


@pytest.fixture
def weights(plan: Plan, tmp_path: Path) -> Weights:
    network = build("T", plan.configuration(NAME).strides, 1, len(LABELS))
    meta = {
        "plans": plan.to_json(),
        "configuration": NAME,
        "dataset": {"channel_names": {"0": "CT"}, "labels": LABELS},
        "mirror_axes": [0, 1],
    }
    save_weights(tmp_path / "weights.safetensors", network.state_dict(), meta)
    return read_weights(tmp_path / "weights.safetensors")


def test_the_same_training_has_no_changes(plan: Plan, weights: Weights) -> None:
    assert changes(weights, plan, NAME, head_classes(LABELS)) == ()
    rounded = [pitch * 1.0001 for pitch in plan.configuration(NAME).spacing]
    assert changes(weights, plan.with_configuration(NAME, spacing=rounded), NAME, head_classes(LABELS)) == ()


def test_what_is_different_stands_there_as_it_was_and_as_it_is(plan: Plan, weights: Weights) -> None:
    planned = plan.configuration(NAME)
    other = plan.with_configuration(NAME, spacing=[1.0, 0.75, 0.75], batch_size=planned.batch_size + 1)
    other = other.with_network(NAME, strides=planned.strides[:2]).with_ours(train={"mirror": "none"})
    found = changes(weights, other, NAME, ["background", *(f"an organ with a long name {n}" for n in range(9))])
    strides = " ".join("x".join(map(str, stride)) for stride in planned.strides)
    assert [title for title, *_ in found] == [
        *("spacing in mm", "batch", "strides", "mirrored axes at test time", "classes"),
    ]  # fmt: skip
    shown = {title: (there, here) for title, there, here in found}
    assert shown["spacing in mm"][1] == "1 0.75 0.75"
    assert shown["batch"] == (str(planned.batch_size), str(planned.batch_size + 1))
    assert strides.startswith(shown["strides"][0].removesuffix("..."))
    assert shown["mirrored axes at test time"] == ("0 1", "none")
    assert shown["classes"][0] == "background liver spleen"
    assert shown["classes"][1].endswith("...")


def test_without_the_plan_of_the_weights_nothing_is_said(plan: Plan, weights: Weights) -> None:
    assert changes(replace(weights, plan=None), plan, NAME, []) == ()
    assert changes(replace(weights, pretext="mae"), plan, NAME, []) == ()
