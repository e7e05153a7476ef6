"""Validate plans: reject, with a reason, what was edited by hand or made by something else and is inconsistent.

nnU-Net reads a plan without checking it; an inconsistent plan fails hours later or computes something else.
"""

from collections.abc import Mapping
from typing import Any

from stunet.errors import DataError, closest
from stunet.plans.grid import CONFIGURATION_KEYS, problems
from stunet.plans.resolve import resolve
from stunet.plans.schema import PLANS
from stunet.schema import check
from stunet.sizes import SIZES

NETWORK = "stunet.networks.STUNet"

_PLAN_KEYS = {
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
    "image_reader_writer", "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    "label_manager", "foreground_intensity_properties_per_channel", "stunet", "continue_training",
}  # fmt: skip
_REQUIRED = {*CONFIGURATION_KEYS, "data_identifier", "batch_size"}
_CONFIGURATION_KEYS = _REQUIRED | {
    "median_image_size_in_voxels", "batch_dice", "stunet", "inherits_from", "previous_stage", "next_stage",
}  # fmt: skip
_ARCHITECTURE_KEYS = {"size", "strides", "deep_supervision", "checkpointing"}
_HINT = "correct the plans file, or make it again: stunet_plan_and_preprocess -d ... --no_pp"


def check_plans(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Check a plan and one of its configurations; return the configuration with the values it inherits.

    Raises:
        DataError: Something is missing, unknown, or inconsistent; a single line names it.
    """
    check(plans, PLANS, f"plans {plans.get('plans_name')!r}", _HINT)
    name = plans.get("plans_name")
    _check_keys(plans, _PLAN_KEYS, _PLAN_KEYS - {"stunet", "continue_training"}, f"plans {name!r}")
    if "stunet" not in plans:
        raise DataError(f"plans {name!r} were not made by stunet", "stunet_plan_and_preprocess -d ...")
    _require(
        "__" not in plans["plans_name"], f"the plans name {name!r} contains '__', which nnU-Net splits folder names at"
    )
    _check_keys(plans["stunet"], set(plans["stunet"]), {"size", "mirror_axes", "plan", "train"}, "the 'stunet' block")
    resolved = resolve(plans, configuration)
    _check_keys(resolved, _CONFIGURATION_KEYS, _REQUIRED, f"configuration {configuration!r}")
    architecture, kwargs = resolved["architecture"], resolved["architecture"]["arch_kwargs"]
    _require(
        architecture["network_class_name"] == NETWORK,
        f"{configuration}: network {architecture['network_class_name']!r} is not {NETWORK}",
    )
    _check_keys(kwargs, _ARCHITECTURE_KEYS, {"size", "strides"}, f"{configuration}: arch_kwargs")
    _require(
        isinstance(kwargs["size"], str) and kwargs["size"] in SIZES,
        f"{configuration}: unknown size {kwargs['size']!r}; known: {', '.join(SIZES)}",
    )
    for key in ("checkpointing", "deep_supervision"):
        _require(isinstance(kwargs.get(key, False), bool), f"{configuration}: arch_kwargs.{key} must be true or false")
    problem = next(problems(plans, resolved, kwargs["strides"]), None)
    _require(problem is None, f"{configuration}: {problem}")
    return resolved


def _check_keys(content: Mapping[str, Any], known: set[str], required: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}{closest(key, sorted(known))}", "correct or remove it")
    missing = sorted(required - set(content))
    _require(not missing, f"{where}: missing {', '.join(map(repr, missing))}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message, _HINT)


def of_a_run(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return the part of a plan that determines what a training of the configuration computes."""
    resolved = {key: value for key, value in resolve(plans, configuration).items() if key != "stunet"}
    block = plans.get("stunet", {})
    common = {key: plans.get(key) for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}
    return {**common, **resolved, **{key: block.get(key) for key in ("train", "mirror_axes", "finetune", "weights")}}
