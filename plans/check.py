"""Validate plans: reject, with a reason, what was edited by hand or made by something else and is inconsistent.

nnU-Net reads a plan without checking it; an inconsistent plan fails hours later or computes something else. Plans of
nnU-Net's own planners are checked alike, but keys that other programs add to them are left alone.
"""

from collections.abc import Mapping
from typing import Any

from stunet import architectures
from stunet.errors import DataError, closest
from stunet.files import json_differences
from stunet.plans.grid import CONFIGURATION_KEYS, problems
from stunet.plans.plan import HINT, Configuration, Plan
from stunet.plans.schema import PLANS
from stunet.schema import check

_PLAN_KEYS = {
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
    "image_reader_writer", "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    "label_manager", "foreground_intensity_properties_per_channel", "stunet", "continue_training",
}  # fmt: skip
_REQUIRED = {*CONFIGURATION_KEYS, "data_identifier", "batch_size"}
_CONFIGURATION_KEYS = _REQUIRED | {
    "median_image_size_in_voxels", "batch_dice", "stunet", "inherits_from", "previous_stage", "next_stage",
}  # fmt: skip


def check_plan(plan: Plan, configuration: str) -> Configuration:
    """Check a plan and one of its configurations; return the configuration.

    Raises:
        DataError: Something is missing, unknown, or inconsistent; a single line names it.
    """
    content, name = plan.content, plan.get("plans_name")
    check(content, PLANS, f"plans {name!r}", HINT)
    required = _PLAN_KEYS - {"stunet", "continue_training"}
    _check_keys(content, _PLAN_KEYS if plan.is_planned_by_us else {*content}, required, f"plans {name!r}")
    _require("__" not in plan.name, f"the plans name {name!r} contains '__', which nnU-Net splits folder names at")
    planned = plan.configuration(configuration)
    known = _CONFIGURATION_KEYS if plan.is_planned_by_us else {*planned.content}
    _check_keys(planned.content, known, _REQUIRED, f"configuration {configuration!r}")
    arguments = planned.network_arguments
    architecture = architectures.of_class(planned.network_class, configuration)
    if plan.is_ours:
        ours = content["stunet"]
        required = {"plan", "train", *({"mirror_axes"} if plan.is_planned_by_us else ())}
        # Only what is missing: unknown keys of the block were rejected with PLANS above.
        _check_keys(ours, set(ours), required | (architecture.required & {"size"}), "the 'stunet' block")
    elif "size" in architecture.required:
        raise DataError(f"plans {name!r} were not made by stunet", "stunet_plan_and_preprocess -d ...")
    required = {*architecture.required, "strides"}
    _check_keys(arguments, required | architecture.optional, required, f"{configuration}: arch_kwargs")
    wrong = architecture.problem(arguments)
    _require(wrong is None, f"{configuration}: {wrong}")
    for key in ("checkpointing", "deep_supervision"):
        _require(
            isinstance(arguments.get(key, False), bool), f"{configuration}: arch_kwargs.{key} must be true or false"
        )
    classes = {key for key in architecture.imports if arguments.get(key) is not None}
    listed = set((planned.get("architecture") or {}).get("_kw_requires_import") or ())
    _require(  # nnU-Net imports whatever these arguments name
        classes <= listed <= {*architecture.imports} & {*arguments},
        f"{configuration}: _kw_requires_import must be {sorted(classes)}, not {sorted(listed)}",
    )
    weights, encoders = len(plan.weights), arguments.get("encoders", 1)
    _require(
        weights in (0, 1, encoders),
        f"{configuration}: the plan starts from {weights} weights, and its network has {encoders} encoder(s)",
    )
    problem = next(problems(plan, planned, arguments["strides"]), None)
    _require(problem is None, f"{configuration}: {problem}")
    return planned


def _check_keys(content: Mapping[str, Any], known: set[str], required: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}{closest(key, sorted(known))}", "correct or remove it")
    missing = sorted(required - set(content))
    _require(not missing, f"{where}: missing {', '.join(map(repr, missing))}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message, HINT)


def plan_differences(before: Plan, now: Plan) -> list[str]:
    """Return how two plans differ, but for what decides nothing or what one of them, of an earlier version, lacks."""
    return json_differences(_comparable(before, now), _comparable(now, before), "plans")


def _comparable(plan: Plan, other: Plan) -> dict[str, Any]:
    left_out = {"derived_from", "version", "fingerprint", "like", "planned_with"}
    left_out |= {key for key in ("orientation", "orientations") if not other.states(key)}
    ours = {key: value for key, value in (plan.get("stunet") or {}).items() if key not in left_out}
    return {**plan.content, "stunet": ours}


def training_part(plan: Plan, configuration: str) -> dict[str, Any]:
    """Return the part of a plan that determines what a training of the configuration computes, to be compared."""
    # A configuration's own block holds the memory of a step, on which no result depends.
    planned = {key: value for key, value in plan.configuration(configuration).content.items() if key != "stunet"}
    common = {key: plan.get(key) for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}
    ours = plan.get("stunet") or {}
    return {
        **common,
        **planned,
        **{key: ours.get(key) for key in ("train", "mirror_axes", "finetune", "weights", "pretext", "datasets")},
    }
