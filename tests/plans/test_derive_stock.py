"""Plans made from plans of nnU-Net's own planners, and plans that take another network."""

from dataclasses import replace
from typing import Any

import pytest

from stunet.architectures.base import Recognised
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import DataError, UsageError
from stunet.plans import memory, topology
from stunet.plans.blueprints import blueprints, of_weights
from stunet.plans.check import check_plan, plan_differences, training_part
from stunet.plans.demand import Demand
from stunet.plans.derive import derive, describe
from stunet.plans.plan import Plan, StartingWeights
from stunet.plans.planner import STUNetPlanner
from tests.loops import for_each
from tests.plans.conftest import DATASET

DESCRIPTION = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 100}
NAME = "3d_fullres"
WEIGHTS = (StartingWeights("MultiTalent-ResEncL", "0", "reset"),)


@pytest.fixture
def plan(fingerprint: Any) -> Plan:
    """A plan of a residual-encoder U-Net with nothing of ours, whose stages have not all the same kernels."""
    fingerprint([2.0, 0.7, 0.7], [120, 500, 500], ["liver"])
    content = STUNetPlanner(DATASET, network="resenc-m", stages=None).plan_experiment()
    del content["stunet"]
    for configuration in content["configurations"].values():
        configuration.pop("stunet", None)
    return Plan(content | {"plans_name": "nnUNetResEncUNetMPlans", "experiment_planner_used": "nnUNetPlannerResEncM"})


def ours(planned: Plan, size: str = "B") -> Plan:
    return Plan(STUNetPlanner(DATASET, size=size).plan_experiment())


def test_a_stock_plan_is_taken_as_it_is(plan: Plan) -> None:
    planned = check_plan(plan, NAME)
    assert planned.network_arguments["kernel_sizes"][0] == [1, 3, 3]
    assert training_part(plan, NAME)["train"] is None
    assert plan_differences(plan, plan) == []
    extended = plan.with_values(pretrain_info={"source": "x"}).with_configuration(NAME, note="mine")
    assert check_plan(extended, NAME).patch_size == planned.patch_size
    with pytest.raises(DataError, match="unknown key 'note'"):
        check_plan(ours(plan).with_configuration(NAME, note="mine"), NAME)


@for_each(
    ("change", "message"),
    [
        ({"conv_op": "os.system"}, "conv_op 'os.system' is not one of the classes"),
        ({"block": "os.system"}, "block 'os.system' is not one of the classes"),
        ({"n_stages": 3}, "must be 3 positive integers"),
        ({"width": 3}, "unknown key 'width'"),
    ],
)
def test_what_nnunet_would_import_or_build_is_checked(change: dict[str, Any], message: str, plan: Plan) -> None:
    with pytest.raises(DataError, match=message):
        check_plan(plan.with_network(NAME, **change), NAME)


def test_only_classes_are_imported_by_name(plan: Plan) -> None:
    architecture = plan.configuration(NAME).content["architecture"]
    for names in ([], ["conv_op"], [*architecture["_kw_requires_import"], "strides"]):
        changed = plan.with_configuration(NAME, architecture={**architecture, "_kw_requires_import": names})
        with pytest.raises(DataError, match="_kw_requires_import must be"):
            check_plan(changed, NAME)


def test_what_is_not_set_stays_as_it_was_planned(plan: Plan) -> None:
    derived = derive(plan, DESCRIPTION, overrides={"num_epochs": 5}, finetune="ramp", weights=WEIGHTS)
    assert derived.name == "nnUNetResEncUNetMPlans-ramp-MultiTalent-ResEncL-reset-epochs5"
    assert (derived.root, derived.is_derived) == (plan.name, True)
    assert derived.get("configurations") == plan.get("configurations")
    check_plan(derived, NAME)
    again = derive(derived, DESCRIPTION, overrides={"batch_size": 4})
    before, now = plan.configuration(NAME), again.configuration(NAME)
    assert (now.batch_size, now.patch_size) == (4, before.patch_size)
    assert now.network_arguments == before.network_arguments
    assert now.memory_gb is not None


def test_a_patch_must_fit_the_strides_which_stay(plan: Plan) -> None:
    steps = topology.divisor(plan.configuration(NAME).strides)
    derived = derive(plan, DESCRIPTION, overrides={"patch_size": [2 * step for step in steps]})
    assert derived.configuration(NAME).network_arguments == plan.configuration(NAME).network_arguments
    for patch in ([step + 1 for step in steps], steps):  # of the second the last stage would have a single voxel
        with pytest.raises(UsageError, match="does not fit the strides") as caught:
            derive(plan, DESCRIPTION, overrides={"patch_size": patch})
        text = caught.value.hint.partition("=")[2]
        check_plan(derive(plan, DESCRIPTION, overrides={"patch_size": [int(n) for n in text[1:-1].split(",")]}), NAME)


@for_each("overrides", [{"size": "L"}, {"overrides": {"checkpointing": True}}])
def test_what_only_stunet_has_is_refused(overrides: dict[str, Any], plan: Plan) -> None:
    with pytest.raises(UsageError, match="is for STU-Net, not for a ResEnc U-Net"):
        derive(plan, DESCRIPTION, **overrides)


def test_fewer_stages_take_the_deepest_away(plan: Plan) -> None:
    before = plan.configuration(NAME).network_arguments
    derived = derive(plan, DESCRIPTION, stages=3)
    now = check_plan(derived, NAME).network_arguments
    assert derived.name == "nnUNetResEncUNetMPlans-stages3"
    assert now["n_blocks_per_stage"] == [1, 3, 4]
    for key in ("strides", "kernel_sizes", "features_per_stage"):
        assert now[key] == before[key][:3]
    with pytest.raises(UsageError, match=r"stages of nnUNetResEncUNetMPlans, which is not planned here"):
        derive(plan, DESCRIPTION, stages=9)


def test_a_memory_target_fits_the_patch_to_the_strides(plan: Plan) -> None:
    before = plan.configuration(NAME)
    derived = derive(plan, DESCRIPTION, memory_gb=24)
    now = check_plan(derived, NAME)
    assert derived.name == "nnUNetResEncUNetMPlans-24gb"
    assert now.network_arguments == before.network_arguments
    assert now.memory_gb is not None
    assert 12 < now.memory_gb <= 24


def test_a_pretraining_fits_its_batch_to_the_memory_of_the_training_as_planned(plan: Plan) -> None:
    demand = Demand(encoded=(0.1, 0.1), decoded=(), compares=True)
    derived = derive(plan, DESCRIPTION, pretext="simclr", demand=demand)
    planned, now = plan.configuration(NAME), check_plan(derived, NAME)
    needed = memory.estimate(describe(plan, NAME, DESCRIPTION), planned.patch_size, planned.batch_size, planned.strides)
    assert now.patch_size == planned.patch_size
    assert now.batch_size > planned.batch_size
    assert now.memory_gb is not None
    assert now.memory_gb <= needed


def recognised(plan: Plan) -> Recognised:
    arguments = plan.configuration(NAME).network_arguments
    strides = arguments.pop("strides")
    return Recognised(RESENC, arguments, None, len(strides), 1, 4, 3, strides)


def test_plans_take_another_network_on_the_same_data(plan: Plan) -> None:
    base, network = ours(plan), recognised(plan)
    derived = derive(base, DESCRIPTION, network=of_weights(network), weights=WEIGHTS)
    assert derived.name == "STUNetPlans_ResEnc-MultiTalent-ResEncL-reset"
    assert (derived.size, derived.network, derived.root) == (None, "resenc", "STUNetPlans_B")
    assert "2d" not in derived.configurations
    planned = check_plan(derived, NAME)
    assert planned.network_arguments == plan.configuration(NAME).network_arguments
    assert planned.data_identifier == base.configuration(NAME).data_identifier
    assert planned.memory_gb is not None
    assert planned.memory_gb <= 10
    # And back, also from a plan of nnU-Net's, where strides and depth are STU-Net's again.
    size = Recognised(STUNET, {"size": "L"}, "L", 6, 1, 4, 3)
    for start, name in ((derived, "STUNetPlans_L"), (plan, "nnUNetResEncUNetMPlans_L")):
        back = derive(start, DESCRIPTION, network=of_weights(size))
        assert (back.name.partition("-")[0], back.size, back.memory_gb) == (name, "L", 32.0)
        assert len(check_plan(back, NAME).strides) == 6


def test_a_stock_plan_that_takes_another_network_keeps_its_batch_and_about_its_patch(plan: Plan) -> None:
    network = replace(recognised(plan), architecture=PLAIN_UNET)
    arguments = dict(network.arguments)
    arguments["n_conv_per_stage"] = arguments.pop("n_blocks_per_stage")
    isotropic = [[1, 1, 1], *[[2, 2, 2]] * (network.stages - 1)]
    known = of_weights(replace(network, arguments=arguments, strides=isotropic))
    derived = derive(plan, DESCRIPTION, network=known)
    before, now = plan.configuration(NAME), check_plan(derived, NAME)
    assert (derived.name, now.batch_size) == ("nnUNetResEncUNetMPlans_Plain", before.batch_size)
    assert all(0 <= n - m < 2**5 for n, m in zip(now.patch_size, before.patch_size, strict=True))
    unknown = derive(plan, DESCRIPTION, network=of_weights(replace(network, arguments=arguments, strides=None)))
    assert len(check_plan(unknown, NAME).strides) == network.stages


@for_each("name", ["plain", "resenc-l"])
def test_deriving_for_a_network_equals_planning_for_it(name: str, plan: Plan) -> None:
    planned = Plan(STUNetPlanner(DATASET, network=name, stages=None).plan_experiment())
    other = "resenc-m" if name == "plain" else "stunet-s"
    for start in (ours(plan), Plan(STUNetPlanner(DATASET, network=other, stages=None).plan_experiment())):
        derived = derive(start, DESCRIPTION, network=blueprints()[name])
        assert (derived.name, derived.root) == (planned.name, start.name)
        assert plan_differences(derived, planned) == []
        back = derive(derived, DESCRIPTION, network=blueprints()["stunet-b"])
        assert plan_differences(back, ours(plan)) == []
    stock = derive(plan, DESCRIPTION, network=blueprints()[name])
    assert stock.name == f"nnUNetResEncUNetMPlans_{blueprints()[name].tag}"
    assert stock.get("configurations") == planned.get("configurations")


def test_what_is_asked_for_counts_also_where_it_is_the_value_of_the_network_before(plan: Plan) -> None:
    base, known = ours(plan), blueprints()
    assert (base.memory_gb, base.stages) == (10, 6)
    derived = derive(base, DESCRIPTION, network=known["resenc-l"], memory_gb=10, stages=6)
    planned = check_plan(derived, NAME)
    assert (derived.name, derived.memory_gb, derived.stages) == ("STUNetPlans_ResEncL-10gb-stages6", 10, 6)
    assert planned.memory_gb is not None
    assert planned.memory_gb <= 10
    assert len(planned.strides) <= 6
    assert derive(base, DESCRIPTION, size="S", memory_gb=10).memory_gb == 10
    back = derive(plan, DESCRIPTION, network=known["stunet-b"], stages="auto")
    assert (back.stages, back.name) == (None, "nnUNetResEncUNetMPlans_B-stagesauto")
    off = derive(base, DESCRIPTION, overrides={"checkpointing": False})
    check_plan(derive(off, DESCRIPTION, network=known["plain"]), NAME)
