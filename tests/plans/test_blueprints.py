"""nnU-Net's networks, planned by us and by nnU-Net's own planners."""

from typing import Any

import pytest

from stunet import workspace
from stunet.files import read_json
from stunet.plans import memory, topology
from stunet.plans.blueprints import STOCK_PLANS, blueprints
from stunet.plans.check import check_plan
from stunet.plans.derive import describe
from stunet.plans.plan import Plan
from stunet.plans.planner import STUNetPlanner
from stunet.plans.stock import plan_as_stock
from stunet.preprocessing.checks import repair_commands
from stunet.runs.planner_choice import not_turned
from tests.loops import for_each
from tests.plans.conftest import DATASET

LARGE = [1.0, 0.8, 0.8], [400, 512, 512]
FLAT = [5.0, 1.56, 1.56], [10, 96, 80]


def description() -> dict[str, Any]:
    return read_json(workspace.raw_dataset(DATASET) / "dataset.json")


@for_each("name", ["plain", "resenc-m", "resenc-l", "resenc-xl"])
def test_a_network_is_planned_within_its_memory_on_the_data_of_all_others(name: str, fingerprint: Any) -> None:
    fingerprint(*LARGE, ["liver"])
    blueprint = blueprints()[name]
    plan = Plan(STUNetPlanner(DATASET, network=name, stages=None).plan_experiment())
    other = Plan(STUNetPlanner(DATASET, size="S").plan_experiment())
    assert (plan.name, plan.network, plan.size) == (f"STUNetPlans_{blueprint.tag}", name, None)
    for configuration in plan.configurations:
        planned = check_plan(plan, configuration)
        assert planned.network_class == blueprint.architecture.class_name
        assert planned.memory_gb is not None
        assert 0.7 * blueprint.target_gb < planned.memory_gb <= blueprint.target_gb
        keys = ("data_identifier", "spacing", "normalization_schemes", "median_image_size_in_voxels")
        assert all(planned.get(key) == other.configuration(configuration).get(key) for key in keys)
        assert planned.strides == topology.strides_by_patch(planned.patch_size, planned.spacing)
    network = describe(plan, "3d_fullres", description())
    strides = plan.configuration("3d_fullres").strides
    built = blueprint.architecture.build(network.channels, network.classes, network.arguments)
    assert memory.parameters(network, strides) == sum(each.numel() for each in built.parameters())
    assert repair_commands(DATASET, plan, "2d")[0].endswith(f"-c 2d --network {name}")


@for_each("planner", list(STOCK_PLANS))
@for_each("data", [FLAT, ([1.0, 1.0, 1.0], [36, 50, 35])])
def test_what_follows_from_the_patch_is_what_nnunets_planner_writes(
    planner: str, data: tuple[list[float], list[int]], fingerprint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    fingerprint(*data, ["organ"])
    plan = plan_as_stock(planner, DATASET)
    assert (plan.name, plan.get("experiment_planner_used")) == (STOCK_PLANS[planner], planner)
    assert not plan.is_ours
    tags = {each.tag: each for each in blueprints().values()}
    blueprint = tags.get(planner.removeprefix("nnUNetPlanner"), tags["Plain"])
    for name in plan.configurations:
        planned = check_plan(plan, name)
        strides = topology.strides_by_patch(planned.patch_size, planned.spacing)
        kernels = topology.kernels_for(strides, planned.spacing)
        usual = blueprint.architecture.usual(len(planned.spacing))
        assert blueprint.architecture.laid_out(usual, strides, kernels) == planned.network_arguments
    assert repair_commands(DATASET, plan, "2d")[0].endswith(f"-c 2d -pl {planner}")


def test_other_data_than_usual_have_folders_of_their_own(fingerprint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    fingerprint(*FLAT, ["organ"])
    usual = plan_as_stock("nnUNetPlannerResEncM", DATASET)
    assert usual.configuration("2d").data_identifier == "nnUNetPlans_2d"
    for more in ({"spacing": [5.0, 2.0, 2.0]}, {"preprocessor": "Other"}):
        other = plan_as_stock("nnUNetPlannerResEncM", DATASET, name="Mine", **more)
        for name in other.configurations:
            assert other.configuration(name).data_identifier == f"Mine_{name}"
    assert "-overwrite_plans_name Mine, with the options of its planning" in repair_commands(DATASET, other, "2d")[0]


def test_images_that_nnunets_plans_do_not_turn_are_warned_of() -> None:
    plan = Plan({"image_reader_writer": "SimpleITKIO", "experiment_planner_used": "ExperimentPlanner"})
    assert not_turned(plan, {"LPS": 3}) is None
    assert not_turned(plan.with_values(image_reader_writer="NibabelIOWithReorient"), {"LPS": 3, "RAS": 1}) is None
    warning = not_turned(plan, {"LPS": 3, "RAS": 1}) or ""
    assert "run in 2 ways (3 LPS, 1 RAS): ExperimentPlanner turns none, and STUNetPlanner all to one" in warning
