"""Plans made from plans: what stays, what changes, and what the name says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stunet.cli import plan_and_preprocess, train
from stunet.errors import DataError, OutOfMemoryError, UsageError
from stunet.files import json_differences
from stunet.networks import STUNet
from stunet.plans import memory, settings
from stunet.plans.check import check_plan, training_part
from stunet.plans.demand import Demand
from stunet.plans.derive import derive, describe, fit_configurations
from stunet.plans.fit import MemoryTarget
from stunet.plans.plan import Plan, StartingWeights
from stunet.preprocessing.checks import repair_commands
from stunet.sizes import SIZES, Size
from stunet.weights.recognition import recognise
from tests.loops import for_each

INTENSITIES = {"mean": 40.0, "std": 90.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 100}


def configuration(spacing: list[float], shape: list[int], **more: Any) -> dict[str, Any]:
    network = {
        "network_class_name": "stunet.networks.STUNet",
        "arch_kwargs": {"size": "B", "strides": []},
        "_kw_requires_import": [],
    }
    resampling = {f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")}
    kwargs = {f"{key}_kwargs": {} for key in resampling}
    return {
        "data_identifier": "STUNetPlans_x",
        "preprocessor_name": "DefaultPreprocessor",
        "median_image_size_in_voxels": shape,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": network,
        **resampling,
        **kwargs,
        **more,
    }


@pytest.fixture
def plan() -> Plan:
    """A plan for size B with all configurations of a cascade."""
    content = {
        "dataset_name": "Dataset003_Liver",
        "plans_name": "STUNetPlans_B",
        "original_median_spacing_after_transp": [1.0, 0.8, 0.8],
        "original_median_shape_after_transp": [400, 512, 512],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "STUNetPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "configurations": {
            "2d": configuration([0.8, 0.8], [512, 512]),
            "3d_lowres": configuration([2.5, 2.0, 2.0], [160, 205, 205], next_stage="3d_cascade_fullres"),
            "3d_fullres": configuration([1.0, 0.8, 0.8], [400, 512, 512]),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "stunet": {
            "version": "0",
            "size": "B",
            "memory_gb": 10.0,
            "stages": 6,
            "mirror_axes": [0, 1, 2],
            "plan": {},
            "train": {},
        },
    }
    return fit_configurations(Plan(content), DATASET, MemoryTarget(10.0, 6))


def memory_gb(plan: Plan) -> float:
    found = plan.configuration("3d_fullres").memory_gb
    assert found is not None
    return found


def test_a_size_is_one_line_in_one_table(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "M", Size(48, 2, 20.0))
    derived = derive(plan, DATASET, size="M")
    assert (derived.name, derived.memory_gb) == ("STUNetPlans_M", 20.0)
    planned = check_plan(derived, "3d_fullres")
    assert planned.memory_gb is not None
    assert 15 < planned.memory_gb <= 20
    with torch.device("meta"):
        network = STUNet(1 + 2, 3, **planned.network_arguments)  # two one-hot channels of the cascade
    assert network.conv_blocks_context[0][1].conv1.weight.shape[:2] == (48, 48)  # type: ignore[index, union-attr]
    count = memory.parameters(describe(derived, "3d_fullres", DATASET), planned.strides)
    assert count == sum(parameter.numel() for parameter in network.parameters())
    assert derive(derived, DATASET, size="B").name == "STUNetPlans_B"
    planned_for_it = derived.with_name("STUNetPlans_M").with_ours(derived_from=None)
    assert repair_commands("Dataset003_Liver", planned_for_it, "3d_fullres")[0].endswith("--size M")
    assert recognise(network.state_dict(), Path("x")).size == "M"
    for command in (train, plan_and_preprocess):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "{T,S,B,L,H,M}" in capsys.readouterr().out


def test_deriving_for_a_size_equals_planning_for_it(plan: Plan) -> None:
    planned = plan
    for name in plan.configurations_with_network:
        planned = planned.with_network(name, size="L")
    planned = fit_configurations(planned, DATASET, MemoryTarget(32.0, 6))
    derived = derive(plan, DATASET, size="L")
    assert derived.name == "STUNetPlans_L"
    assert derived.root == "STUNetPlans_B"
    assert derived.get("configurations") == planned.get("configurations")
    assert derive(derived, DATASET, size="B").get("configurations") == plan.get("configurations")


def test_preprocessed_data_stay_valid(plan: Plan) -> None:
    derived = derive(plan, DATASET, size="S", stages="auto", memory_gb=24)
    for name in ("2d", "3d_lowres", "3d_fullres"):
        before, after = plan.configuration(name), derived.configuration(name)
        assert all(before.get(k) == after.get(k) for k in ("data_identifier", "spacing", "normalization_schemes"))
    assert derived.name == "STUNetPlans_S-24gb-stagesauto"


def test_deriving_changes_nothing_in_the_given_plan(plan: Plan) -> None:
    before = plan.to_json()
    derive(plan, DATASET, size="S", overrides={"num_epochs": 5, "patch_size": [64, 64, 64]})
    assert plan == Plan(before)


def test_overrides_stand_in_the_plan_and_in_its_name(plan: Plan) -> None:
    values = {"num_epochs": 250, "initial_lr": 1e-3, "batch_size": 4, "patch_size": [64, 128, 128]}
    derived = derive(plan, DATASET, overrides=values)
    assert derived.name == "STUNetPlans_B-epochs250-lr0.001-bs4-patch64x128x128"
    assert derived.set_for_training == {"num_epochs": 250, "initial_lr": 1e-3}
    fullres = check_plan(derived, "3d_cascade_fullres")
    assert (fullres.batch_size, fullres.patch_size) == (4, [64, 128, 128])
    assert derived.configuration("2d").patch_size == plan.configuration("2d").patch_size
    assert fullres.strides[-1] == [1, 2, 2]


def test_a_value_that_is_set_again_stands_once_in_the_name(plan: Plan) -> None:
    once = derive(plan, DATASET, overrides={"num_epochs": 5, "seed": 1})
    assert derive(once, DATASET, overrides={"num_epochs": 7}).name == "STUNetPlans_B-epochs7-seed1"


def test_a_name_that_is_too_long_keeps_how_training_starts(plan: Plan) -> None:
    weights = StartingWeights("a_rather_long_name.759ba9", "0" * 64, "reset")
    values = {"num_epochs": 250, "initial_lr": 1e-3, "batch_size": 4, "seed": 1, "weight_decay": 1e-5}
    name = derive(plan, DATASET, overrides=values, finetune="encoder-frozen", weights=[weights]).name
    assert name.startswith("STUNetPlans_B-encoder-frozen-a_rather_long_name.759ba9-reset-")
    assert len(name) <= 72
    official = StartingWeights("STU-Net-B.totalseg", "0" * 64, "slice")
    assert derive(plan, DATASET, finetune="full", weights=[official]).name == "STUNetPlans_B-full-totalseg"


def test_checkpointing_gives_a_larger_patch(plan: Plan) -> None:
    derived = derive(plan, DATASET, overrides={"checkpointing": True})
    before, after = plan.configuration("3d_fullres"), derived.configuration("3d_fullres")
    assert after.network_arguments["checkpointing"] is True
    assert memory_gb(derived) <= 10
    assert [n >= m for n, m in zip(after.patch_size, before.patch_size, strict=True)] == [True] * 3
    assert after.patch_size != before.patch_size


def test_micro_batches_need_the_memory_of_their_samples_only(plan: Plan) -> None:
    def needs(**overrides: Any) -> float:
        return memory_gb(derive(plan, DATASET, overrides=overrides))

    assert needs(batch_size=8, accumulation=4) == needs(batch_size=2) < needs(batch_size=8)
    overrides = {"batch_size": 8, "accumulation": 4, "precision": "bf16"}
    assert derive(plan, DATASET, overrides=overrides).name == "STUNetPlans_B-acc4-bf16-bs8"


def test_nothing_to_change_gives_the_same_plan(plan: Plan) -> None:
    assert derive(plan, DATASET) == plan


@for_each(
    ("overrides", "message"),
    [
        ({"num_epoch": 5}, "did you mean 'num_epochs'"),
        ({"num_epochs": 0}, "num_epochs=0 is not a valid int"),
        ({"num_epochs": "many"}, "is not a valid int"),
        ({"initial_lr": -1.0}, "is not a valid float"),
        ({"patch_size": [64, 0, 64]}, "is not a valid list"),
        ({"patch_size": [60, 64, 64]}, "does not fit the strides"),
        ({"checkpointing": 1}, "is not a valid bool"),
        ({"num_epochs": float("inf")}, "is not a valid int"),
        ({"initial_lr": float("nan")}, "is not a valid float"),
        ({"momentum": 1.5}, "is not a valid float"),
        ({"oversample_foreground_percent": 33}, "is not a valid float"),
        ({"precision": "fp8"}, "precision='fp8' is not a valid str"),
        ({"accumulation": 0}, "accumulation=0 is not a valid int"),
    ],
    fresh="plan",
)
def test_bad_overrides_are_refused(plan: Plan, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        derive(plan, DATASET, overrides=overrides)
    assert "--set" in caught.value.hint


def test_a_size_that_does_not_fit_is_an_error(plan: Plan) -> None:
    with pytest.raises(OutOfMemoryError, match="STU-Net-H needs"):
        derive(plan, DATASET, size="H", memory_gb=12)


def test_plans_of_others_are_refused(plan: Plan) -> None:
    content = plan.to_json()
    del content["stunet"]
    with pytest.raises(DataError, match="were not made by stunet"):
        derive(Plan(content), DATASET, size="S")


def test_overrides_are_read_as_json() -> None:
    assert settings.parse(["num_epochs=2.5e2", "patch_size=[64,64,64]", "checkpointing=true"]) == {
        "num_epochs": 250,
        "patch_size": [64, 64, 64],
        "checkpointing": True,
    }
    with pytest.raises(UsageError, match="not of the form key=value"):
        settings.parse(["num_epochs"])


def test_class_counts_follow_the_labels(plan: Plan) -> None:
    assert describe(plan, "3d_lowres", DATASET).classes == 3
    assert describe(plan, "3d_fullres", DATASET).channels == 3  # the image and the one-hot labels of 3d_lowres
    ignoring = {**DATASET, "labels": {**DATASET["labels"], "ignore": 3}}
    assert describe(plan, "3d_lowres", ignoring).classes == 3
    regions = {**DATASET, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert describe(plan, "3d_lowres", regions).classes == 2


def edited(plan: Plan, path: str, value: Any) -> Plan:
    *keys, last = path.split("/")
    place = content = plan.to_json()
    for key in keys:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return Plan(content)


@for_each(
    ("path", "value", "message"),
    [
        ("plans_nam", "x", "unknown key 'plans_nam'; did you mean 'plans_name'"),
        ("plans_name", "STUNet__B", "contains '__'"),
        ("stunet/train", {"num_epoch": 3}, "unknown key 'num_epoch'"),
        ("stunet/mirror_axes", None, "missing 'mirror_axes'"),
        ("stunet/mirror_axes", [3], r"stunet.mirror_axes\[0\]: expected an integer from 0 to 2, got 3"),
        ("transpose_forward", [0, 0, 1], "not an order of axes"),
        ("configurations/3d_fullres/bach_size", 2, "unknown key 'bach_size'; did you mean 'batch_size'"),
        (
            "configurations/3d_fullres/batch_size",
            0,
            "3d_fullres.batch_size: expected an integer from 1 to",
        ),
        ("configurations/3d_fullres/spacing", None, "missing 'spacing'"),
        (
            "configurations/3d_fullres/spacing",
            [1, 0, 1],
            r"configurations.3d_fullres.spacing\[1\]: expected a number above 0",
        ),
        ("configurations/3d_fullres/patch_size", [100, 128, 128], "the product of the strides"),
        (
            "configurations/3d_fullres/architecture/network_class_name",
            "torch.nn.Linear",
            "is not stunet.networks.STUNet",
        ),
        ("configurations/3d_fullres/architecture/arch_kwargs/size", "XL", "unknown size 'XL'"),
        ("configurations/3d_fullres/architecture/arch_kwargs/strides", [[2, 2, 2], [2, 2, 2]], "must begin with"),
        (
            "configurations/3d_fullres/architecture/arch_kwargs/strides",
            [[1, 1], [2, 2]],
            "entries of 3 positive integers",
        ),
        ("configurations/3d_fullres/architecture/arch_kwargs/kernel", 3, "unknown key 'kernel'"),
        ("configurations/3d_cascade_fullres/inherits_from", "3d_ful", "no configuration '3d_ful'"),
        ("configurations/3d_cascade_fullres/inherits_from", "3d_cascade_fullres", "in a circle"),
    ],
    fresh="plan",
)
def test_plans_edited_by_hand_are_checked(plan: Plan, path: str, value: Any, message: str) -> None:
    check_plan(plan, "3d_cascade_fullres")
    with pytest.raises(DataError, match=message) as caught:
        check_plan(edited(plan, path, value), "3d_cascade_fullres")
    assert "\n" not in caught.value.message


def test_what_was_set_stays_set_for_another_size(plan: Plan) -> None:
    small = derive(plan, DATASET, overrides={"batch_size": 4, "patch_size": [64, 64, 64], "num_epochs": 5})
    large = derive(small, DATASET, size="L")
    assert large.name == "STUNetPlans_L-epochs5-bs4-patch64x64x64"
    fullres = large.configuration("3d_fullres")
    assert (fullres.batch_size, fullres.patch_size) == (4, [64, 64, 64])
    assert large.root == "STUNetPlans_B"
    assert derive(large, DATASET, memory_gb=24, stages=5).name == (
        "STUNetPlans_L-epochs5-bs4-patch64x64x64-24gb-stages5"
    )


def test_the_estimate_is_that_of_the_values_that_were_set(plan: Plan) -> None:
    derived = derive(plan, DATASET, overrides={"batch_size": 16})
    assert memory_gb(derived) > 4 * memory_gb(plan)


def test_what_is_so_already_changes_nothing(plan: Plan) -> None:
    assert derive(plan, DATASET, size="B", stages="6", memory_gb=10) == plan
    with pytest.raises(UsageError, match="neither a number from 2 to 9 nor 'auto'"):
        derive(plan, DATASET, stages="six")


@for_each(
    ("root", "derived"),
    [
        ("STUNetPlans_B_1.5x1.5x1.5mm", "STUNetPlans_L_1.5x1.5x1.5mm"),
        ("STUNetPlans_B_1.5x1.5x1.5mm_z", "STUNetPlans_L_1.5x1.5x1.5mm_z"),
        ("STUNetPlans_B_z", "STUNetPlans_L_z"),
        ("My_Brain", "My_Brain_L"),
        ("My-Plan_B", "My-Plan_L"),
    ],
    fresh="plan",
)
def test_only_the_size_in_a_name_is_replaced(plan: Plan, root: str, derived: str) -> None:
    assert derive(plan.with_name(root), DATASET, size="L").name == derived


def test_a_name_that_would_be_too_long_is_a_hash_of_the_values(plan: Plan) -> None:
    many = {"num_epochs": 10, "num_iterations_per_epoch": 100, "initial_lr": 0.001, "momentum": 0.95, "seed": 12345}
    many |= {"patch_size": [128, 128, 128], "weight_decay": 0.0001, "batch_size": 3}
    name = derive(plan, DATASET, overrides=many).name
    assert name.startswith("STUNetPlans_B-")
    assert len(name) == len("STUNetPlans_B-") + 8
    assert derive(plan, DATASET, overrides=many).name == name
    assert derive(plan, DATASET, overrides={**many, "seed": 1}).name != name


def test_configurations_of_the_users_own_follow(plan: Plan) -> None:
    network = plan.own_values("3d_fullres")["architecture"]
    plan = plan.with_configuration("mine", inherits_from="3d_fullres", batch_size=8)
    plan = plan.with_configuration("other", inherits_from="3d_cascade_fullres", architecture=network)
    derived = derive(plan, DATASET, size="S", overrides={"batch_size": 3})
    assert derived.configuration("mine").batch_size == 3
    assert derived.configuration("other").network_arguments["size"] == "S"
    for name in derived.configurations:
        check_plan(derived, name)
    assert plan.lineage("other") == ["other", "3d_cascade_fullres", "3d_fullres"]


def test_slices_of_volumes_are_counted_for_the_batch_in_two_dimensions(plan: Plan) -> None:
    flat = Plan({**plan.content, "configurations": {"2d": plan.own_values("2d")}})
    few = {**DATASET, "numTraining": 20}
    flat, full = (fit_configurations(each, few, MemoryTarget(10.0, 6)) for each in (flat, plan))
    assert flat.configuration("2d").batch_size == 2  # a twentieth of 20 slices of 512 x 512 at most
    assert full.configuration("2d").batch_size > 10  # 20 volumes of 400 slices


def test_a_run_depends_on_its_own_configuration_only(plan: Plan) -> None:
    before = training_part(plan, "3d_fullres")
    other = plan.with_configuration("2d", batch_size=999).with_ours(version="9")
    assert json_differences(before, training_part(other, "3d_fullres")) == []
    other = other.with_ours(train={"seed": 4})
    assert json_differences(before, training_part(other, "3d_fullres")) == ["train.seed: nothing -> 4"]


def test_a_plan_for_a_pretraining_keeps_the_patch_and_fits_the_batch(plan: Plan) -> None:
    base = plan
    mae = derive(base, DATASET, pretext="mae", demand=Demand())
    more, compares = ["Dataset051_More", "Dataset003_Target"], Demand((0.5, 0.5), (), compares=True)
    simclr = derive(base, DATASET, pretext="simclr", demand=compares, datasets=more)
    patch = base.configuration("3d_fullres").patch_size
    for derived in (mae, simclr):
        check_plan(derived, "3d_fullres")
        assert derived.configuration("3d_fullres").patch_size == patch
        assert (derived.configuration("3d_fullres").memory_gb or 99) <= base.memory_gb
    assert (mae.pretext, mae.name) == ("mae", f"{base.name}-mae")
    assert simclr.name == f"{base.name}-simclr-with51and3"
    assert simclr.more_datasets == more
    assert simclr.configuration("3d_fullres").batch_size > mae.configuration("3d_fullres").batch_size
    # What is set stays set, and what is not set does not move.
    small = derive(mae, DATASET, pretext="mae", demand=Demand(), overrides={"batch_size": 3})
    longer = derive(small, DATASET, pretext="mae", demand=Demand(), overrides={"num_epochs": 5})
    assert longer.configuration("3d_fullres").batch_size == 3
    assert longer.name == f"{base.name}-mae-epochs5-bs3"
    with pytest.raises(OutOfMemoryError, match=r"mae needs [0-9.]+ GB with a patch") as caught:
        derive(base, DATASET, pretext="mae", demand=Demand(), overrides={"patch_size": [256, 256, 256]})
    assert "a smaller --set patch_size" in caught.value.hint
