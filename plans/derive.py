"""How a plan becomes another plan: other size, memory target, number of stages or values, the same preprocessed data.

Pure functions on nnU-Net's plans dictionary. Read next: fit.py; check.py for what makes a plan valid.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stunet.errors import DataError, UsageError, closest
from stunet.networks import SIZES
from stunet.plans import memory, topology
from stunet.plans.fit import Fit, Target, corrected, fit
from stunet.plans.memory import Network

# Runs one training step of (network, configuration with patch, batch and strides) on the GPU: peak GiB.
Measure = Callable[[Network, Fit], float]

# Values of a run that live in the plan and can be set from the command line, with their types.
TRAIN_KEYS: dict[str, type] = {
    "num_epochs": int,
    "num_iterations_per_epoch": int,
    "num_val_iterations_per_epoch": int,
    "initial_lr": float,
    "momentum": float,
    "weight_decay": float,
    "oversample_foreground_percent": float,
    "seed": int,
}
PLAN_KEYS: dict[str, type] = {"batch_size": int, "patch_size": list, "checkpointing": bool}


def derive(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    *,
    size: str | None = None,
    memory_gb: float | None = None,
    stages: int | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """A plan for another size, memory target (GiB), number of stages (or 'auto') or set of values.

    Spacing, normalisation and data identifiers stay, so nothing has to be preprocessed again. The new plan's name says
    what differs: `STUNetPlans_L`, `STUNetPlans_B-num_epochs250`. The same options give the same plan.

    Args:
        plans: A plan of ours; it is not changed.
        dataset_json: nnU-Net's description of the dataset.
        size: Key of stunet.networks.SIZES; the memory target becomes that size's default unless given.
        memory_gb: GPU memory that a training step may take.
        stages: Number of stages or "auto".
        overrides: Values for TRAIN_KEYS and PLAN_KEYS.
        measure: As for the planner.

    Raises:
        UsageError: Unknown size or key, or a value of the wrong type.
        DataError: The plan was not made by stunet.
        OutOfMemoryError: Nothing of this size fits.
    """
    if "stunet" not in plans:
        raise DataError(f"plans {plans.get('plans_name')!r} were not made by stunet", "stunet_plan_and_preprocess")
    new = copy.deepcopy(dict(plans))
    block = new["stunet"]
    values = {key: _typed(key, value) for key, value in (overrides or {}).items()}
    if size is not None and size != block["size"]:
        if size not in SIZES:
            raise UsageError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        block["size"], block["memory_gb"] = size, memory_gb or memory.DEFAULT_TARGET_GB[size]
    block["memory_gb"] = memory_gb or block["memory_gb"]
    block["stages"] = stages or block["stages"]
    block["train"] |= {k: v for k, v in values.items() if k in TRAIN_KEYS}
    refit = any(block[key] != plans["stunet"][key] for key in ("size", "memory_gb", "stages"))
    if refit or "checkpointing" in values:
        for configuration in _with_network(new):
            _architecture(configuration)["size"] = block["size"]
            _set_checkpointing(configuration, values.get("checkpointing"))
        target = Target(block["memory_gb"], None if block["stages"] == "auto" else int(block["stages"]))
        fit_configurations(new, dataset_json, target, measure)
    _override_patch_and_batch(new, values)
    new["plans_name"] = _name(plans, new, values)
    if new["plans_name"] != plans["plans_name"]:
        block["derived_from"] = plans["plans_name"]
    return new


def fit_configurations(
    plans: dict, dataset_json: Mapping[str, Any], target: Target, measure: Measure | None = None
) -> None:
    """Fits patch, batch and strides of every configuration that has a network of its own, in place.

    Records the estimate (`memory_gb`), or the measurement of a probe, in each configuration's `stunet` block.
    """
    for name, configuration in plans["configurations"].items():
        if "architecture" not in configuration:
            continue  # 3d_cascade_fullres inherits
        network = describe(plans, name, dataset_json)
        fitted, block = _fit(network, configuration, dataset_json["numTraining"], target, measure)
        configuration["patch_size"], configuration["batch_size"] = fitted.patch, fitted.batch
        _architecture(configuration)["strides"] = fitted.strides
        configuration["stunet"] = {"memory_gb": round(fitted.memory_gb, 2), **block}


def _fit(
    network: Network, configuration: dict, cases: int, target: Target, measure: Measure | None
) -> tuple[Fit, dict]:
    """The fit of one configuration, and what a probe measured."""
    shape = configuration["median_image_size_in_voxels"]

    def search(correction: float) -> Fit:
        voxels = math.prod(shape) * cases
        return fit(network, configuration["spacing"], shape, voxels, replace(target, correction=correction))

    if measure is None:
        return search(1.0), {}
    fitted, measured_gb, correction = corrected(network, lambda f: measure(network, f), search, target.memory_gb)
    return fitted, {"measured_gb": round(measured_gb, 2), "correction": round(correction, 3)}


def describe(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> Network:
    """What a configuration's memory depends on; 3d_fullres counts the one-hot channels of its cascade."""
    architecture = _architecture(plans["configurations"][configuration])
    labels = dataset_json["labels"]
    foreground = [name for name in labels if name not in ("background", "ignore")]
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    cascaded = any(
        c.get("inherits_from") == configuration and "previous_stage" in c for c in plans["configurations"].values()
    )
    return Network(
        architecture["size"],
        channels + (len(foreground) if cascaded else 0),
        len(foreground) + (not regions),
        bool(architecture.get("checkpointing", False)),
    )


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["num_epochs=250", "patch_size=[64,64,64]"]` as a dictionary; values are JSON.

    Raises:
        UsageError: A pair without `=`, an unknown key, or a value of the wrong type.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r} is not of the form key=value", "--set num_epochs=250")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values[key] = _typed(key, value)
    return values


def _typed(key: str, value: Any) -> Any:
    known = TRAIN_KEYS | PLAN_KEYS
    if key not in known:
        raise UsageError(f"unknown key {key!r}{closest(key, list(known))}", f"--set takes {', '.join(known)}")
    kind = known[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: number and value == int(value) and value >= (0 if key == "seed" else 1),
        float: number and 0 <= value < math.inf,
        bool: isinstance(value, bool),
        list: isinstance(value, list) and all(isinstance(n, int) and n > 0 for n in value),
    }
    if not fits[kind]:
        raise UsageError(
            f"{key}={value!r} is not a valid {kind.__name__}",
            f"--set {key}=" + {list: "[64,64,64]", bool: "true"}.get(kind, "1"),
        )
    return kind(value)


def _override_patch_and_batch(plans: dict, values: Mapping[str, Any]) -> None:
    """Sets batch and patch of every configuration of the patch's dimension; strides follow the patch."""
    patch = values.get("patch_size")
    for configuration in _with_network(plans):
        if "batch_size" in values:
            configuration["batch_size"] = values["batch_size"]
        if patch is None or len(patch) != len(configuration["spacing"]):
            continue
        depth = plans["stunet"]["stages"]
        spacing = configuration["spacing"]
        depth = topology.supported_stages(patch, spacing) if depth == "auto" else int(depth)
        possible, strides = topology.round_up(patch, spacing, depth)
        if possible != patch:
            raise UsageError(
                f"patch_size {patch} does not fit the strides of the network",
                f"--set patch_size={json.dumps(possible, separators=(',', ':'))}",
            )
        configuration["patch_size"] = patch
        _architecture(configuration)["strides"] = strides


def _name(old: Mapping[str, Any], new: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The old name with the new size and a tag per difference, fit for a folder's name."""
    before, after = old["stunet"], new["stunet"]
    base, *tags = old["plans_name"].split("-")
    tags = [tag for tag in tags if not tag.startswith(tuple(values))]
    if before["size"] != after["size"]:
        marker = f"_{before['size']}"
        base = base.replace(marker, f"_{after['size']}", 1) if marker in base else f"{base}_{after['size']}"
    default = memory.DEFAULT_TARGET_GB[after["size"]]
    if after["memory_gb"] != before["memory_gb"] and not (
        before["size"] != after["size"] and after["memory_gb"] == default
    ):
        tags.append(f"{after['memory_gb']:g}gb")
    if after["stages"] != before["stages"]:
        tags.append(f"stages{after['stages']}")
    tags += [f"{key}{_short(value)}" for key, value in values.items()]
    return "-".join([base, *tags])


def _short(value: Any) -> str:
    return (
        "x".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}".replace("-", "m")
        if isinstance(value, float)
        else str(value)
    )


def _with_network(plans: Mapping[str, Any]) -> list[dict]:
    return [c for c in plans["configurations"].values() if "architecture" in c]


def _architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return configuration["architecture"]["arch_kwargs"]


def _set_checkpointing(configuration: dict, value: bool | None) -> None:
    if value is not None:
        _architecture(configuration)["checkpointing"] = value
