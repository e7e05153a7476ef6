"""Plans made from plans: what stays, what changes, and what the name says."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stunet.cli import plan_and_preprocess, train
from stunet.errors import DataError, OutOfMemoryError, UsageError
from stunet.files import json_differences
from stunet.networks import STUNet
from stunet.plans import memory, settings
from stunet.plans.check import check_plans, of_a_run
from stunet.plans.derive import derive, describe, fit_configurations
from stunet.plans.fit import Target
from stunet.plans.resolve import lineage, resolve
from stunet.provenance import commands
from stunet.sizes import SIZES, Size
from stunet.weights.architecture import recognise
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
def plans() -> dict[str, Any]:
    """A plan for size B with all configurations of a cascade."""
    plans = {
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
    fit_configurations(plans, DATASET, Target(10.0, 6))
    return json.loads(json.dumps(plans))


def test_a_size_is_one_line_in_one_table(
    plans: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "M", Size(48, 2, 20.0))
    derived = derive(plans, DATASET, size="M")
    assert (derived["plans_name"], derived["stunet"]["memory_gb"]) == ("STUNetPlans_M", 20.0)
    resolved = check_plans(derived, "3d_fullres")
    fits = resolved["stunet"]["memory_gb"]
    assert 15 < fits <= 20
    arguments = resolved["architecture"]["arch_kwargs"]
    with torch.device("meta"):
        network = STUNet(1 + 2, 3, **arguments)  # two one-hot channels of the cascade
    assert network.conv_blocks_context[0][1].conv1.weight.shape[:2] == (48, 48)  # type: ignore[index, union-attr]
    count = memory.parameters(describe(derived, "3d_fullres", DATASET), arguments["strides"])
    assert count == sum(parameter.numel() for parameter in network.parameters())
    assert derive(derived, DATASET, size="B")["plans_name"] == "STUNetPlans_B"
    assert commands("Dataset003_Liver", derived, "3d_fullres")[0].endswith("--size M")
    assert recognise(network.state_dict(), Path("x")).size == "M"
    for command in (train, plan_and_preprocess):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "{T,S,B,L,H,M}" in capsys.readouterr().out


def test_deriving_for_a_size_equals_planning_for_it(plans: dict[str, Any]) -> None:
    planned = copy.deepcopy(plans)
    for each in planned["configurations"].values():
        if "architecture" in each:
            each["architecture"]["arch_kwargs"]["size"] = "L"
    fit_configurations(planned, DATASET, Target(32.0, 6))
    derived = derive(plans, DATASET, size="L")
    assert derived["plans_name"] == "STUNetPlans_L"
    assert derived["stunet"]["derived_from"] == "STUNetPlans_B"
    assert derived["configurations"] == planned["configurations"]
    assert derive(derived, DATASET, size="B")["configurations"] == plans["configurations"]


def test_preprocessed_data_stay_valid(plans: dict[str, Any]) -> None:
    derived = derive(plans, DATASET, size="S", stages="auto", memory_gb=24)
    for name in ("2d", "3d_lowres", "3d_fullres"):
        before, after = plans["configurations"][name], derived["configurations"][name]
        assert all(before[key] == after[key] for key in ("data_identifier", "spacing", "normalization_schemes"))
    assert derived["plans_name"] == "STUNetPlans_S-24gb-stagesauto"


def test_deriving_changes_nothing_in_the_given_plan(plans: dict[str, Any]) -> None:
    before = copy.deepcopy(plans)
    derive(plans, DATASET, size="S", overrides={"num_epochs": 5, "patch_size": [64, 64, 64]})
    assert plans == before


def test_overrides_stand_in_the_plan_and_in_its_name(plans: dict[str, Any]) -> None:
    values = {"num_epochs": 250, "initial_lr": 1e-3, "batch_size": 4, "patch_size": [64, 128, 128]}
    derived = derive(plans, DATASET, overrides=values)
    assert derived["plans_name"] == "STUNetPlans_B-epochs250-lr0.001-bs4-patch64x128x128"
    assert derived["stunet"]["train"] == {"num_epochs": 250, "initial_lr": 1e-3}
    fullres = check_plans(derived, "3d_cascade_fullres")
    assert (fullres["batch_size"], fullres["patch_size"]) == (4, [64, 128, 128])
    assert derived["configurations"]["2d"]["patch_size"] == plans["configurations"]["2d"]["patch_size"]
    assert fullres["architecture"]["arch_kwargs"]["strides"][-1] == [1, 2, 2]


def test_a_value_that_is_set_again_stands_once_in_the_name(plans: dict[str, Any]) -> None:
    once = derive(plans, DATASET, overrides={"num_epochs": 5, "seed": 1})
    assert derive(once, DATASET, overrides={"num_epochs": 7})["plans_name"] == "STUNetPlans_B-epochs7-seed1"


def test_a_name_that_is_too_long_keeps_how_training_starts(plans: dict[str, Any]) -> None:
    weights = {"name": "a_rather_long_name.759ba9", "sha256": "0" * 64, "head": "reset"}
    values = {"num_epochs": 250, "initial_lr": 1e-3, "batch_size": 4, "seed": 1, "weight_decay": 1e-5}
    name = derive(plans, DATASET, overrides=values, finetune="encoder-frozen", weights=weights)["plans_name"]
    assert name.startswith("STUNetPlans_B-encoder-frozen-a_rather_long_name.759ba9-reset-")
    assert len(name) <= 72
    official = {**weights, "name": "STU-Net-B.totalseg", "head": "slice"}
    assert derive(plans, DATASET, finetune="full", weights=official)["plans_name"] == "STUNetPlans_B-full-totalseg"


def test_checkpointing_gives_a_larger_patch(plans: dict[str, Any]) -> None:
    derived = derive(plans, DATASET, overrides={"checkpointing": True})
    before, after = plans["configurations"]["3d_fullres"], derived["configurations"]["3d_fullres"]
    assert after["architecture"]["arch_kwargs"]["checkpointing"] is True
    assert after["stunet"]["memory_gb"] <= 10
    assert [n >= m for n, m in zip(after["patch_size"], before["patch_size"], strict=True)] == [True] * 3
    assert after["patch_size"] != before["patch_size"]


def test_micro_batches_need_the_memory_of_their_samples_only(plans: dict[str, Any]) -> None:
    def memory_gb(**overrides: Any) -> float:
        return derive(plans, DATASET, overrides=overrides)["configurations"]["3d_fullres"]["stunet"]["memory_gb"]

    assert memory_gb(batch_size=8, accumulation=4) == memory_gb(batch_size=2) < memory_gb(batch_size=8)
    overrides = {"batch_size": 8, "accumulation": 4, "precision": "bf16"}
    assert derive(plans, DATASET, overrides=overrides)["plans_name"] == "STUNetPlans_B-acc4-bf16-bs8"


def test_nothing_to_change_gives_the_same_plan(plans: dict[str, Any]) -> None:
    assert derive(plans, DATASET) == plans


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
    fresh="plans",
)
def test_bad_overrides_are_refused(plans: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        derive(plans, DATASET, overrides=overrides)
    assert "--set" in caught.value.hint


def test_a_size_that_does_not_fit_is_an_error(plans: dict[str, Any]) -> None:
    with pytest.raises(OutOfMemoryError, match="STU-Net-H needs"):
        derive(plans, DATASET, size="H", memory_gb=12)


def test_plans_of_others_are_refused(plans: dict[str, Any]) -> None:
    del plans["stunet"]
    with pytest.raises(DataError, match="were not made by stunet"):
        derive(plans, DATASET, size="S")


def test_overrides_are_read_as_json() -> None:
    assert settings.parse(["num_epochs=2.5e2", "patch_size=[64,64,64]", "checkpointing=true"]) == {
        "num_epochs": 250,
        "patch_size": [64, 64, 64],
        "checkpointing": True,
    }
    with pytest.raises(UsageError, match="not of the form key=value"):
        settings.parse(["num_epochs"])


def test_class_counts_follow_the_labels(plans: dict[str, Any]) -> None:
    assert describe(plans, "3d_lowres", DATASET).classes == 3
    assert describe(plans, "3d_fullres", DATASET).channels == 3  # the image and the one-hot labels of 3d_lowres
    ignoring = {**DATASET, "labels": {**DATASET["labels"], "ignore": 3}}
    assert describe(plans, "3d_lowres", ignoring).classes == 3
    regions = {**DATASET, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert describe(plans, "3d_lowres", regions).classes == 2


def edited(plans: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *keys, last = path.split("/")
    place = plans
    for key in keys:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return plans


@for_each(
    ("path", "value", "message"),
    [
        ("plans_nam", "x", "unknown key 'plans_nam'; did you mean 'plans_name'"),
        ("plans_name", "STUNet__B", "contains '__'"),
        ("stunet/train", {"num_epoch": 3}, "unknown key 'num_epoch'"),
        ("stunet/mirror_axes", None, "missing 'mirror_axes'"),
        ("stunet/mirror_axes", [3], r"stunet.mirror_axes\[0\]: expected an integer from 0 to 2, got 3"),
        ("transpose_forward", [0, 0, 1], "no order of axes"),
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
    fresh="plans",
)
def test_plans_edited_by_hand_are_checked(plans: dict[str, Any], path: str, value: Any, message: str) -> None:
    check_plans(plans, "3d_cascade_fullres")
    with pytest.raises(DataError, match=message) as caught:
        check_plans(edited(plans, path, value), "3d_cascade_fullres")
    assert "\n" not in caught.value.message


def test_a_configuration_has_what_it_inherits(plans: dict[str, Any]) -> None:
    resolved = resolve(plans, "3d_cascade_fullres")
    assert resolved["previous_stage"] == "3d_lowres"
    assert resolved["spacing"] == [1.0, 0.8, 0.8]


def test_what_was_set_stays_set_for_another_size(plans: dict[str, Any]) -> None:
    small = derive(plans, DATASET, overrides={"batch_size": 4, "patch_size": [64, 64, 64], "num_epochs": 5})
    large = derive(small, DATASET, size="L")
    assert large["plans_name"] == "STUNetPlans_L-epochs5-bs4-patch64x64x64"
    fullres = large["configurations"]["3d_fullres"]
    assert (fullres["batch_size"], fullres["patch_size"]) == (4, [64, 64, 64])
    assert large["stunet"]["derived_from"] == "STUNetPlans_B"
    assert derive(large, DATASET, memory_gb=24, stages=5)["plans_name"] == (
        "STUNetPlans_L-epochs5-bs4-patch64x64x64-24gb-stages5"
    )


def test_the_estimate_is_that_of_the_values_that_were_set(plans: dict[str, Any]) -> None:
    derived = derive(plans, DATASET, overrides={"batch_size": 16})
    before = plans["configurations"]["3d_fullres"]["stunet"]["memory_gb"]
    assert derived["configurations"]["3d_fullres"]["stunet"]["memory_gb"] > 4 * before


def test_what_is_so_already_changes_nothing(plans: dict[str, Any]) -> None:
    assert derive(plans, DATASET, size="B", stages="6", memory_gb=10) == plans
    with pytest.raises(UsageError, match="neither a number from 2 to 9 nor 'auto'"):
        derive(plans, DATASET, stages="six")


@for_each(
    ("root", "derived"),
    [
        ("STUNetPlans_B_1.5x1.5x1.5mm", "STUNetPlans_L_1.5x1.5x1.5mm"),
        ("STUNetPlans_B_1.5x1.5x1.5mm_z", "STUNetPlans_L_1.5x1.5x1.5mm_z"),
        ("STUNetPlans_B_z", "STUNetPlans_L_z"),
        ("My_Brain", "My_Brain_L"),
        ("My-Plan_B", "My-Plan_L"),
    ],
    fresh="plans",
)
def test_only_the_size_in_a_name_is_replaced(plans: dict[str, Any], root: str, derived: str) -> None:
    plans["plans_name"] = root
    assert derive(plans, DATASET, size="L")["plans_name"] == derived


def test_a_name_that_would_be_too_long_is_a_hash_of_the_values(plans: dict[str, Any]) -> None:
    many = {"num_epochs": 10, "num_iterations_per_epoch": 100, "initial_lr": 0.001, "momentum": 0.95, "seed": 12345}
    many |= {"patch_size": [128, 128, 128], "weight_decay": 0.0001, "batch_size": 3}
    name = derive(plans, DATASET, overrides=many)["plans_name"]
    assert name.startswith("STUNetPlans_B-")
    assert len(name) == len("STUNetPlans_B-") + 8
    assert derive(plans, DATASET, overrides=many)["plans_name"] == name
    assert derive(plans, DATASET, overrides={**many, "seed": 1})["plans_name"] != name


def test_configurations_of_the_users_own_follow(plans: dict[str, Any]) -> None:
    network = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 8}
    plans["configurations"]["other"] = {"inherits_from": "3d_cascade_fullres", "architecture": network}
    derived = derive(plans, DATASET, size="S", overrides={"batch_size": 3})
    assert derived["configurations"]["mine"]["batch_size"] == 3
    assert derived["configurations"]["other"]["architecture"]["arch_kwargs"]["size"] == "S"
    for name in derived["configurations"]:
        check_plans(derived, name)
    assert lineage(plans, "other") == ["other", "3d_cascade_fullres", "3d_fullres"]


def test_slices_of_volumes_are_counted_for_the_batch_in_two_dimensions(plans: dict[str, Any]) -> None:
    flat = copy.deepcopy(plans)
    for name in ("3d_lowres", "3d_fullres", "3d_cascade_fullres"):
        del flat["configurations"][name]
    fit_configurations(flat, {**DATASET, "numTraining": 20}, Target(10.0, 6))
    fit_configurations(plans, {**DATASET, "numTraining": 20}, Target(10.0, 6))
    assert flat["configurations"]["2d"]["batch_size"] == 2  # a twentieth of 20 slices of 512 x 512 at most
    assert plans["configurations"]["2d"]["batch_size"] > 10  # 20 volumes of 400 slices


def test_a_run_depends_on_its_own_configuration_only(plans: dict[str, Any]) -> None:
    before = copy.deepcopy(of_a_run(plans, "3d_fullres"))
    plans["configurations"]["2d"]["batch_size"] += 1
    plans["stunet"]["version"] = "9"
    assert json_differences(before, of_a_run(plans, "3d_fullres")) == []
    plans["stunet"]["train"]["seed"] = 4
    assert json_differences(before, of_a_run(plans, "3d_fullres")) == ["train.seed: nothing -> 4"]
