"""Derive a plan from another: different size, memory target, number of stages or values, same preprocessed data.

Pure functions on nnU-Net's plans dictionary. Read next: fit.py; settings.py for what can be set; check.py for what
makes a plan valid.
"""

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stunet.errors import DataError, UsageError
from stunet.names import check_name
from stunet.plans import memory, settings, topology
from stunet.plans.check import check_plans
from stunet.plans.fit import Fit, Target, corrected, fit
from stunet.plans.memory import Network
from stunet.plans.resolve import lineage, resolve
from stunet.sizes import SIZES

NAME_LENGTH = 72  # characters: nnU-Net joins two plans' names in one folder name, which is limited to 255

# Runs one training step of a network with this patch, batch and strides on the GPU and returns its peak GiB.
Measure = Callable[[Network, Fit], float]


def derive(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    *,
    size: str | None = None,
    memory_gb: float | None = None,
    stages: int | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    finetune: str | None = None,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a plan for another size, memory target (GiB), number of stages (or 'auto'), set of values or start.

    Spacing, normalisation and data identifiers stay the same, so nothing has to be preprocessed again. The new plan's
    name states what differs from the one that was planned: `STUNetPlans_L`, `STUNetPlans_B-ramp-totalseg-epochs250`.
    Values that were set before stay set.

    Args:
        plans: A plan made by stunet; it is not modified.
        dataset_json: nnU-Net's description of the dataset.
        size: Key of stunet.sizes.SIZES; the memory target becomes that size's default unless it was set.
        memory_gb: GPU memory that a training step may take.
        stages: Number of stages or "auto".
        overrides: Values as in settings.py.
        finetune: Name of a strategy (trainers/finetune/strategies.py).
        weights: What training starts from: `name`, `sha256` of the file, and `head`: "slice", "reset", or "reuse" with
            the `classes` of a head that is used whole; `dataset_json` then has the classes of the network.

    Raises:
        UsageError: Unknown size or key, or a value that is invalid or does not fit.
        DataError: The plan was not made by stunet.
        OutOfMemoryError: Nothing of this size fits.
    """
    _check(plans, dataset_json)
    new = copy.deepcopy(dict(plans))
    block, before = new["stunet"], plans["stunet"]
    given = {key: settings.checked(key, value) for key, value in (overrides or {}).items()}
    set_for_plan = block.setdefault("plan", {})
    if memory_gb is not None and memory_gb != block["memory_gb"]:
        set_for_plan["memory_gb"] = memory_gb
    if (stages := settings.parse_stages(stages)) is not None and stages != block["stages"]:
        set_for_plan["stages"] = stages
    set_for_plan |= {key: value for key, value in given.items() if key in settings.PLAN}
    block["train"] |= {key: value for key, value in given.items() if key in settings.TRAIN}
    if size is not None and size != block["size"]:
        if size not in SIZES:
            raise UsageError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        block["size"], block["memory_gb"] = size, SIZES[size].target_gb
    block |= {key: value for key, value in (("finetune", finetune), ("weights", weights)) if value}
    block["memory_gb"] = set_for_plan.get("memory_gb", block["memory_gb"])
    block["stages"] = set_for_plan.get("stages", block["stages"])
    wider = "classes" in (weights or {})
    if any(block[key] != before[key] for key in ("size", "memory_gb", "stages")) or "checkpointing" in given or wider:
        _set_network(new, block["size"], set_for_plan.get("checkpointing"))
        fit_configurations(new, dataset_json, target_of(block))
    _set_patch_and_batch(new, dataset_json)
    root = before.get("derived_from", plans["plans_name"])
    new["plans_name"] = check_name(_name(root, block), "plans name")
    block.pop("derived_from", None)
    if new["plans_name"] != root:
        block["derived_from"] = root
    return new


def _check(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Reject what check_plans() rejects in any configuration, and plans that lack what only deriving needs."""
    for name in plans["configurations"]:
        resolved = check_plans(plans, name)
        if len(resolved.get("median_image_size_in_voxels", ())) != len(resolved["spacing"]):
            raise DataError(
                f"{name}: median_image_size_in_voxels must be {len(resolved['spacing'])} numbers",
                "stunet_plan_and_preprocess -d ... --no_pp",
            )
    missing = [key for key in ("memory_gb", "stages") if key not in plans["stunet"]]
    missing += ["numTraining of dataset.json"] * ("numTraining" not in dataset_json)
    if missing:
        what = f"plans {plans['plans_name']!r}: missing {', '.join(missing)}"
        raise DataError(what, "stunet_plan_and_preprocess -d ... --no_pp")


def target_of(block: Mapping[str, Any]) -> Target:
    """Return the target that a plan's `stunet` block states."""
    return Target(block["memory_gb"], None if block["stages"] == "auto" else block["stages"])


def fit_configurations(
    plans: dict, dataset_json: Mapping[str, Any], target: Target, measure: Measure | None = None
) -> None:
    """Fit patch, batch and strides of every configuration that has a network of its own, in place.

    Each configuration's `stunet` block records the estimate (`memory_gb`) and, with a probe, its measurement.
    """
    for name, configuration in _with_network(plans).items():
        network = describe(plans, name, dataset_json)
        fitted, block = _fit(network, plans, name, dataset_json["numTraining"], target, measure)
        configuration["patch_size"], configuration["batch_size"] = fitted.patch, fitted.batch
        configuration["architecture"]["arch_kwargs"]["strides"] = fitted.strides
        configuration["stunet"] = {"memory_gb": round(fitted.memory_gb, 2), **block}


def _fit(
    network: Network, plans: Mapping[str, Any], name: str, cases: int, target: Target, measure: Measure | None
) -> tuple[Fit, dict]:
    """Return the fit of one configuration, and what a probe measured."""
    configuration = resolve(plans, name)
    shape, spacing = configuration["median_image_size_in_voxels"], configuration["spacing"]
    volume = shape
    if len(shape) == 2 and "3d_fullres" in plans["configurations"]:  # slices of volumes
        volume = resolve(plans, "3d_fullres")["median_image_size_in_voxels"]

    def search(correction: float) -> Fit:
        return fit(network, spacing, shape, math.prod(volume) * cases, replace(target, correction=correction))

    if measure is None:
        return search(1.0), {}
    fitted, measured_gb, correction = corrected(network, lambda f: measure(network, f), search, target.memory_gb)
    return fitted, {"measured_gb": round(measured_gb, 2), "correction": round(correction, 3)}


def describe(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> Network:
    """Return what a configuration's memory depends on, with the one-hot channels of a cascade that inherits from it."""
    architecture = resolve(plans, configuration)["architecture"]["arch_kwargs"]
    labels = dataset_json["labels"]
    foreground = [name for name in labels if name not in ("background", "ignore")]
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    cascades = [name for name, c in plans["configurations"].items() if "previous_stage" in c]
    cascaded = any(configuration in lineage(plans, name) for name in cascades)
    return Network(
        architecture["size"],
        channels + (len(foreground) if cascaded else 0),
        len(foreground) + (not regions),
        bool(architecture.get("checkpointing", False)),
        regions,
    )


def _set_network(plans: Mapping[str, Any], size: str, checkpointing: bool | None) -> None:
    for configuration in _with_network(plans).values():
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["size"] = size
        if checkpointing is not None:
            kwargs["checkpointing"] = checkpointing


def _set_patch_and_batch(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Set the chosen patch (if it has the right dimension) and batch, and estimate their memory again."""
    chosen, accumulation = plans["stunet"]["plan"], plans["stunet"]["train"].get("accumulation", 1)
    for name, configuration in plans["configurations"].items():
        if "batch_size" in chosen and "batch_size" in configuration:
            configuration["batch_size"] = chosen["batch_size"]
        patch, spacing = chosen.get("patch_size"), resolve(plans, name)["spacing"]
        if patch and len(patch) == len(spacing) and "patch_size" in configuration:
            configuration["patch_size"] = patch
            if "architecture" in configuration:
                configuration["architecture"]["arch_kwargs"]["strides"] = _strides(plans, patch, spacing)
    if {"batch_size", "patch_size"} & set(chosen) or accumulation > 1:
        for name, configuration in _with_network(plans).items():
            resolved = resolve(plans, name)
            strides = resolved["architecture"]["arch_kwargs"]["strides"]
            network = describe(plans, name, dataset_json)
            batch = -(-resolved["batch_size"] // accumulation)
            estimate = memory.estimate(network, resolved["patch_size"], batch, strides)
            configuration["stunet"] = {"memory_gb": round(estimate, 2)}


def _strides(plans: Mapping[str, Any], patch: list[int], spacing: list[float]) -> topology.Strides:
    stages = plans["stunet"]["stages"]
    depth = topology.supported_stages(patch, spacing) if stages == "auto" else stages
    possible, strides = topology.round_up(patch, spacing, depth)
    if possible != patch:
        hint = json.dumps(possible, separators=(",", ":"))
        raise UsageError(f"patch_size {patch} does not fit the strides of the network", f"--set patch_size={hint}")
    return strides


def _name(root: str, block: Mapping[str, Any]) -> str:
    """Return the name of the original plan, with the size and a tag for each value that was set."""
    size = block["size"]
    if not re.search(rf"_{size}(?=_|$)", root):
        pattern = rf"_({'|'.join(SIZES)})(?=(_[0-9.x]+mm)?(_z|_ct)?$)"
        root = re.sub(pattern, f"_{size}", root) if re.search(pattern, root) else f"{root}_{size}"
    weights = block.get("weights")
    start = [block["finetune"]] if "finetune" in block else []
    if weights:  # STU-Net-B.totalseg becomes totalseg: the name contains the size already
        start += [weights["name"].removeprefix(f"STU-Net-{size}.")] + [weights["head"]] * (weights["head"] != "slice")
    tags = [settings.tag(key, value) for key, value in {**block["train"], **block["plan"]}.items()]
    name = "-".join([root, *start, *tags])
    if len(name) <= NAME_LENGTH:
        return name
    return "-".join([root, *start, hashlib.sha1("-".join(tags).encode()).hexdigest()[:8]])


def _with_network(plans: Mapping[str, Any]) -> dict[str, dict]:
    """Return the configurations that have a network of their own; a cascade inherits its network."""
    return {name: c for name, c in plans["configurations"].items() if "architecture" in c}
