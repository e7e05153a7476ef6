"""A plan that follows another dataset's has its input and network, and mirrors and is fitted as its own data need."""

from typing import Any

import pytest

from stunet import workspace
from stunet.errors import UsageError
from stunet.files import read_json
from stunet.kinds import FINGERPRINT, read, read_dataset_json
from stunet.plans import memory
from stunet.plans.demand import Demand
from stunet.plans.derive import NAME_LENGTH, derive, describe
from stunet.plans.files import plan_path, read_plan
from stunet.plans.like import name_like, plan_like
from stunet.plans.plan import Plan
from stunet.preprocessing.checks import repair_commands

OTHER = "Dataset051_Other"
NAME = "3d_fullres"
NO_LABELS = {"background": 0}
PATCH = [8, 16, 16]


@pytest.fixture
def model(planned: str) -> Plan:
    """The phantom's plan with another patch than the fit would choose."""
    description = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
    plan = derive(
        read_plan(plan_path(planned, "STUNetPlans_T")), description, overrides={"patch_size": PATCH}, stages=3
    )
    return plan.with_ours(plan={}, derived_from=None).with_name("STUNetPlans_T")


def planned_like(model: Plan, reader: str = "SimpleITKIO", **changes: Any) -> tuple[Plan, list[str], dict[str, Any]]:
    """Plan the phantom like `model`; return the plan, the warnings, and the description of the phantom."""
    raw, folder = workspace.raw_dataset(model.dataset_name), workspace.preprocessed_dataset(model.dataset_name)
    description = {**read_dataset_json(raw / "dataset.json"), **changes}
    found = read(folder / "dataset_fingerprint.json", FINGERPRINT)
    return *plan_like(model, OTHER, description, reader, found), description


def test_axes_are_mirrored_as_the_labels_of_the_dataset_allow(model: Plan) -> None:
    assert model.mirror_axes == [0, 1]  # the phantom has two kidneys
    unlabelled = model.with_ours(mirror_axes=[0, 1, 2])
    assert planned_like(unlabelled)[0].mirror_axes == [0, 1]
    assert planned_like(model, labels=NO_LABELS)[0].mirror_axes == [0, 1, 2]
    transposed = unlabelled.with_values(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    assert planned_like(transposed)[0].mirror_axes == [1, 2]


def test_the_batch_is_fitted_to_training_on_the_labels_and_without_them_to_a_pretraining(model: Plan) -> None:
    for changes, demand in (({}, None), ({"labels": NO_LABELS}, Demand())):
        plan, _, description = planned_like(model, **changes)
        planned, network = plan.configuration(NAME), describe(plan, NAME, description)
        assert network.demand == demand
        estimate = memory.estimate(network, planned.patch_size, planned.batch_size, planned.strides)
        assert planned.memory_gb == round(estimate, 2)
    # The patch stays. If it does not fit with these labels, it still does for a pre-training.
    many = {"background": 0, **{str(n): n for n in range(1, 1500)}}
    enough = max(plan.configuration(name).memory_gb or 0 for name in plan.configurations) + 0.01
    plan, warnings, _ = planned_like(model.with_ours(memory_gb=enough), labels=many)
    assert warnings[-1].endswith("only the batch of a pre-training is fitted to it")
    assert plan.configuration(NAME).patch_size == PATCH


def test_patch_and_strides_stay_whatever_network_is_asked_for(model: Plan) -> None:
    plan, _, description = planned_like(model)
    wanted = model.configuration(NAME)
    asked: tuple[dict[str, Any], ...] = (
        {"size": "S"}, {"memory_gb": 6.0}, {"overrides": {"checkpointing": True}}, {"size": "B", "stages": 3},
    )  # fmt: skip
    methods: tuple[dict[str, Any], ...] = ({}, {"pretext": "mae", "demand": Demand()})
    for options in asked:
        for method in methods:
            derived = derive(plan, description, **options, **method).configuration(NAME)
            assert (derived.patch_size, derived.strides) == (wanted.patch_size, wanted.strides), options
            assert derived.network_arguments["size"] == options.get("size", "T")
    unmarked = plan.with_ours(like=None)
    assert derive(unmarked, description, size="S").configuration(NAME).patch_size != PATCH
    assert derive(unmarked, description, size="S", like="1:P").configuration(NAME).patch_size == PATCH
    assert derive(plan, description, stages=2).configuration(NAME).strides == wanted.strides[:2]
    for stages in (4, "auto"):
        with pytest.raises(
            UsageError, match="has the 3 stages of the plan that it is like, 998:STUNetPlans_T"
        ) as caught:
            derive(plan, description, stages=stages)
        assert caught.value.hint.startswith("--stages 3 or fewer")


def test_each_plan_that_is_followed_gives_a_name_of_its_own(model: Plan) -> None:
    names = [model.name, f"{model.name}-ramp-epochs50", f"{model.name}-ramp", f"{model.name}-{'x' * 60}", "My-T"]
    plans = [planned_like(model.with_name(name).with_ours(derived_from="STUNetPlans_T"))[0] for name in names]
    assert [plan.name for plan in plans[:3]] == [
        "STUNetPlans_T_like998", "STUNetPlans_T_like998-ramp-epochs50", "STUNetPlans_T_like998-ramp",
    ]  # fmt: skip
    assert len({plan.name for plan in plans}) == len(names)
    assert all(len(plan.name) <= NAME_LENGTH and plan.root == plan.name for plan in plans)
    assert name_like("A-b", 3) != name_like("A", 3)
    plan, _, description = planned_like(model.with_name(names[2]))
    derived = derive(plan, description, size="S")
    assert derived.name == "STUNetPlans_S_like998-ramp"
    again, _ = repair_commands(OTHER, derived, NAME)
    assert again == f"stunet_plan_and_preprocess -d 51 -c {NAME} --like 998:{names[2]}"


def test_shapes_are_those_of_the_turned_images(model: Plan) -> None:
    straight, turned = (
        planned_like(model.with_ours(orientation=orientation), labels=NO_LABELS)[0]
        for orientation in (model.orientation, str(model.orientation)[::-1])
    )
    for key in ("original_median_spacing_after_transp",):
        assert turned.get(key) == straight.get(key)[::-1]
    spacing = model.configuration(NAME).spacing
    edges = [
        [n * pitch for n, pitch in zip(plan.configuration(NAME).median_shape, spacing, strict=True)]
        for plan in (straight, turned)
    ]
    assert edges[1] == pytest.approx(edges[0][::-1], abs=max(spacing))


def test_images_are_turned_to_the_orientation_of_the_plan_whatever_the_reader_does(model: Plan) -> None:
    found = str(model.orientation)
    for orientation, reader, expected in (
        ("LPS", "NibabelIOWithReorient", ("LPS", "NibabelIO")),
        ("RAS", "NibabelIOWithReorient", ("RAS", "NibabelIOWithReorient")),
        ("RAS", "SimpleITKIO", ("RAS", "SimpleITKIO")),
        (None, "SimpleITKIO", (found, "SimpleITKIO")),  # of pictures nothing is known
    ):
        plan, _, _ = planned_like(model.with_ours(orientation=orientation), reader)
        assert (plan.orientation, plan.reader) == expected
        assert plan.orientations == {found: 6}
