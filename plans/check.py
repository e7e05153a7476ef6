"""Whether a plan fits together: what a hand edited, or made by something else, is refused for, and why.

nnU-Net reads a plan without checking; what does not fit fails hours later or computes something else.
"""

import math
from collections.abc import Mapping
from typing import Any

from stunet.errors import DataError, closest, short
from stunet.networks import SIZES
from stunet.orientation import is_orientation
from stunet.plans import values
from stunet.plans.resolve import resolve

NETWORK = "stunet.networks.STUNet"

_PLAN_KEYS = {
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
    "image_reader_writer", "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    "label_manager", "foreground_intensity_properties_per_channel", "stunet", "continue_training",
}  # fmt: skip
_BLOCK_KEYS = {
    "version", "size", "memory_gb", "stages", "mirror_axes", "plan", "train", "derived_from", "finetune", "weights",
    "orientation", "orientations",
}  # fmt: skip
_WEIGHTS_KEYS = {"name", "sha256", "head", "classes"}
_REQUIRED = {
    "data_identifier", "preprocessor_name", "batch_size", "patch_size", "spacing", "normalization_schemes",
    "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg", "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs", "architecture",
}  # fmt: skip
_CONFIGURATION_KEYS = _REQUIRED | {
    "median_image_size_in_voxels", "batch_dice", "stunet", "inherits_from", "previous_stage", "next_stage",
}  # fmt: skip
_ARCHITECTURE_KEYS = {"size", "strides", "deep_supervision", "checkpointing"}


def check_plans(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Checks a plan and one of its configurations, and returns the configuration with what it inherits.

    Raises:
        DataError: Something is missing, unknown, or does not fit; one line that names it.
    """
    name = plans.get("plans_name")
    _check_keys(plans, _PLAN_KEYS, _PLAN_KEYS - {"stunet", "continue_training"}, f"plans {name!r}")
    if "stunet" not in plans:
        raise DataError(f"plans {name!r} were not made by stunet", "stunet_plan_and_preprocess -d ...")
    _require("__" not in str(name), f"the plans name {name!r} contains '__', which nnU-Net splits folder names at")
    block = plans["stunet"]
    _check_keys(block, _BLOCK_KEYS, {"size", "mirror_axes", "plan", "train"}, "the 'stunet' block")
    _check_keys(block["train"], set(values.TRAIN), set(), "the 'train' values of the 'stunet' block")
    _check_keys(block["plan"], {*values.PLAN, "memory_gb", "stages"}, set(), "the 'plan' values of the 'stunet' block")
    if "weights" in block:
        required = _WEIGHTS_KEYS - {"classes"}
        _check_keys(block["weights"], _WEIGHTS_KEYS, required, "the 'weights' of the 'stunet' block")
    _require(set(block["mirror_axes"]) <= {0, 1, 2}, f"mirror_axes {block['mirror_axes']!r} must be axes 0, 1 and 2")
    orientation = block.get("orientation", "LPS")
    _require(isinstance(orientation, str) and is_orientation(orientation), f"orientation {orientation!r} is not one")
    _require(
        sorted(plans["transpose_forward"]) == [0, 1, 2],
        f"transpose_forward {plans['transpose_forward']!r} is no order of axes",
    )
    resolved = resolve(plans, configuration)
    _check_keys(resolved, _CONFIGURATION_KEYS, _REQUIRED, f"configuration {configuration!r}")
    _check_network(resolved, configuration)
    return resolved


def _check_network(configuration: Mapping[str, Any], name: str) -> None:
    architecture = configuration["architecture"]
    _require(
        architecture.get("network_class_name") == NETWORK,
        f"{name}: network {architecture.get('network_class_name')!r} is not {NETWORK}",
    )
    kwargs = architecture["arch_kwargs"]
    _check_keys(kwargs, _ARCHITECTURE_KEYS, {"size", "strides"}, f"{name}: arch_kwargs")
    _require(kwargs["size"] in SIZES, f"{name}: unknown size {kwargs['size']!r}; known: {', '.join(SIZES)}")
    patch, spacing, strides = configuration["patch_size"], configuration["spacing"], kwargs["strides"]
    ndim = len(patch)
    _require(
        ndim in (2, 3) and len(spacing) == ndim, f"{name}: patch_size {patch} and spacing {spacing} differ in dimension"
    )
    _require(all(pitch > 0 for pitch in spacing), f"{name}: spacing {spacing} must be positive")
    fits = len(strides) >= 2 and all(
        len(stride) == ndim and all(isinstance(s, int) and s >= 1 for s in stride) for stride in strides
    )
    _require(fits, f"{name}: strides {strides} must be two or more entries of {ndim} positive integers")
    _require(set(strides[0]) == {1}, f"{name}: strides must begin with {[1] * ndim}, not {strides[0]}")
    divisor = [math.prod(axis) for axis in zip(*strides, strict=True)]
    divisible = all(n >= d and n % d == 0 for n, d in zip(patch, divisor, strict=True))
    _require(divisible, f"{name}: patch_size {patch} is not divisible by the product of the strides, {divisor}")
    _require(
        isinstance(configuration["batch_size"], int) and configuration["batch_size"] >= 1,
        f"{name}: batch_size {configuration['batch_size']!r} must be 1 or more",
    )


def _check_keys(content: Mapping[str, Any], known: set[str], required: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}{closest(key, sorted(known))}", "correct or remove it")
    missing = sorted(required - set(content))
    _require(not missing, f"{where}: missing {', '.join(map(repr, missing))}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message, "correct the plans file, or make it anew: stunet_plan_and_preprocess -d ... --no_pp")


def difference(one: Any, other: Any, where: str = "plans") -> str | None:
    """Where two JSON documents differ first, as `plans.stunet.size: 'B' and 'L'`; None where they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            if key not in one or key not in other:
                return f"{where}.{key} is in one of them only"
            if found := difference(one[key], other[key], f"{where}.{key}"):
                return found
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return next(
            (
                found
                for i, (a, b) in enumerate(zip(one, other, strict=True))
                if (found := difference(a, b, f"{where}[{i}]"))
            ),
            None,
        )
    return None if one == other else f"{where}: {short(one)} and {short(other)}"


def of_a_run(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The part of a plan that decides what a training of the configuration computes."""
    resolved = {key: value for key, value in resolve(plans, configuration).items() if key != "stunet"}
    block = plans.get("stunet", {})
    common = {key: plans.get(key) for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}
    return {**common, **resolved, **{key: block.get(key) for key in ("train", "mirror_axes", "finetune", "weights")}}
