"""What a plan says, with the defaults of what it leaves out, and plans with other values."""

import ast
import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError
from stunet.plans.plan import Plan, StartingWeights
from stunet.plans.settings import PlanSettings, TrainSettings

NETWORK = {"network_class_name": "stunet.networks.STUNet", "arch_kwargs": {"size": "B", "strides": [[1, 1], [2, 2]]}}
FULL = {
    "data_identifier": "data", "spacing": [1.0, 0.5], "patch_size": [8, 16], "batch_size": 2, "architecture": NETWORK,
    "normalization_schemes": ["CTNormalization"], "next_stage": "second",
}  # fmt: skip
OURS = {"size": "B", "memory_gb": 10, "stages": 6, "mirror_axes": [0, 1], "plan": {}, "train": {"num_epochs": 5}}
CONTENT = {
    "plans_name": "P",
    "dataset_name": "Dataset001_A",
    "of_tomorrow": 1,
    "configurations": {
        "first": FULL,
        "second": {"inherits_from": "first", "previous_stage": "first", "next_stage": None},
        "third": {"inherits_from": "third"},
    },
    "stunet": OURS,
}


def plan(**block: Any) -> Plan:
    return Plan(copy.deepcopy({**CONTENT, "stunet": {**OURS, **block}}))


def test_a_configuration_has_what_it_inherits() -> None:
    second = plan().configuration("second")
    assert (second.spacing, second.patch_size, second.batch_size) == ([1.0, 0.5], [8, 16], 2)
    assert (second.previous_stage, second.next_stages) == ("first", ())
    assert plan().configuration("first").next_stages == ("second",)
    assert second.network_arguments == {"size": "B", "strides": [[1, 1], [2, 2]]}
    assert (second.strides, second.checkpointing) == ([[1, 1], [2, 2]], False)
    assert plan().lineage("second") == ["second", "first"]
    assert plan().configurations_with_network == ("first",)
    assert "inherits_from" not in second.content


def test_unknown_and_circular_configurations_are_named() -> None:
    with pytest.raises(DataError, match=r"no configuration 'secnd' in plans 'P'; did you mean 'second'\?"):
        plan().configuration("secnd")
    with pytest.raises(DataError, match="third -> third inherit in a circle"):
        plan().configuration("third")


def test_what_a_plan_lacks_is_named_where_it_is_needed_and_none_where_it_may_lack() -> None:
    foreign = Plan({"configurations": {"2d": {"pool_op_kernel_sizes": [[1, 1], [2, 2]]}}})
    planned = foreign.configuration("2d")
    with pytest.raises(DataError, match="configuration '2d' of plans '': missing 'patch_size'"):
        _ = planned.patch_size
    with pytest.raises(DataError, match=r"missing arch_kwargs\.strides"):
        _ = planned.strides
    assert (planned.known_spacing, planned.known_normalization) == (None, None)
    assert (planned.known_strides, planned.pooling) == (None, [[1, 1], [2, 2]])
    assert (planned.network_class, planned.memory_gb, planned.median_shape) == (None, None, [])
    assert not foreign.is_ours
    assert (foreign.name, foreign.orientation, foreign.weights, foreign.finetune) == ("", None, (), None)
    assert (foreign.size, foreign.memory_gb, foreign.stages, foreign.mirror_axes) == (None, None, None, [0, 1, 2])
    assert foreign.train == TrainSettings()


def test_the_memory_of_a_configuration_is_measured_if_it_was() -> None:
    estimated = plan().with_configuration("first", stunet={"memory_gb": 8.0})
    measured = plan().with_configuration("first", stunet={"memory_gb": 8.0, "measured_gb": 9.0})
    assert estimated.configuration("first").memory_gb == 8.0
    assert measured.configuration("first").memory_gb == 9.0
    assert (estimated.configuration("first").is_measured, measured.configuration("second").is_measured) == (False, True)
    assert measured.with_network("second", size="L").configuration("second").memory_gb is None  # another network


def test_values_that_were_not_set_have_their_defaults() -> None:
    assert plan().train == replace(TrainSettings(), num_epochs=5)
    assert plan(plan={"batch_size": 3, "memory_gb": 8}).constraints == replace(PlanSettings(), batch_size=3)
    assert TrainSettings.read({"num_epochs": 7, "of_tomorrow": 1}).num_epochs == 7


def test_the_defaults_are_those_of_nnunet() -> None:
    folder = Path(*importlib.util.find_spec("nnunetv2").submodule_search_locations)
    tree = ast.parse((folder / "training/nnUNetTrainer/nnUNetTrainer.py").read_text())
    theirs = {
        node.targets[0].attr: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
        and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    ours = vars(TrainSettings())
    shared = {"num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "weight_decay"}
    shared.add("oversample_foreground_percent")
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


def test_our_block_is_typed() -> None:
    weights = {"name": "W", "sha256": "0", "head": "reuse", "classes": ["background", "a"]}
    derived = plan(stages="auto", derived_from="Q", finetune="ramp", weights=weights, orientations={"LPS": 2, "RAS": 1})
    assert (derived.stages, plan().stages) == (None, 6)
    assert (derived.root, plan().root) == ("Q", "P")
    assert (derived.is_derived, plan().is_derived) == (True, False)
    assert derived.weights == (StartingWeights("W", "0", "reuse", ["background", "a"]),)
    assert derived.with_weights(derived.weights) == derived
    assert (derived.finetune, derived.orientations) == ("ramp", {"LPS": 2, "RAS": 1})


def test_plans_with_other_values_leave_the_first_as_it_was() -> None:
    first = plan(weights={"name": "W"})
    other = (
        first.with_name("Q")
        .with_ours(size="L", weights=None, derived_from="P")
        .with_configuration("first", batch_size=4)
        .with_configuration("fourth", inherits_from="first")
        .with_network("first", size="L", checkpointing=True)
    )
    assert first == plan(weights={"name": "W"})
    assert (other.name, other.size, other.weights, other.root) == ("Q", "L", (), "P")
    second = other.configuration("second")
    assert (second.batch_size, second.strides, second.checkpointing) == (4, [[1, 1], [2, 2]], True)
    assert second.network_arguments["size"] == "L"
    assert other.configuration("fourth").batch_size == 4
    assert other.content["of_tomorrow"] == 1


def test_the_document_may_be_modified_and_the_plan_stays() -> None:
    first = plan()
    first.to_json()["configurations"]["first"]["spacing"].append(3)
    assert first == plan()
