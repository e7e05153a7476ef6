"""Derive a plan from another: other network, size, memory target, number of stages or values, same preprocessed data.

Plans never change; every function here returns a new one. Read next: fit.py; settings.py for what can be set; check.py
for what makes a plan valid.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stunet import architectures
from stunet.errors import DataError, OutOfMemoryError, UsageError
from stunet.names import check_name
from stunet.plans import memory, settings, topology
from stunet.plans.blueprints import TAGS, Blueprint
from stunet.plans.check import check_plan
from stunet.plans.demand import Demand
from stunet.plans.fit import Fit, MemoryTarget, corrected, fit, largest_batch
from stunet.plans.memory import Network
from stunet.plans.plan import ENCODER_ALONE, Plan, StartingWeights
from stunet.sizes import SIZES
from stunet.workspace import dataset_number

NAME_LENGTH = 72  # characters: nnU-Net joins two plans' names in one folder name, which is limited to 255

# Runs one training step of a network with this patch, batch and strides on the GPU and returns its peak GiB.
Measure = Callable[[Network, Fit], float]


def derive(
    plan: Plan,
    dataset_json: Mapping[str, Any],
    *,
    size: str | None = None,
    network: Blueprint | None = None,
    memory_gb: float | None = None,
    stages: int | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    finetune: str | None = None,
    weights: Sequence[StartingWeights] = (),
    pretext: str | None = None,
    demand: Demand | None = None,
    datasets: Sequence[str] | None = None,
    encoders: int | None = None,
    like: str | None = None,
    name: str | None = None,
) -> Plan:
    """Return a plan for another size, memory target (GiB), number of stages (or 'auto'), set of values or start.

    Spacing, normalisation and data identifiers stay the same, so nothing has to be preprocessed again. The new plan's
    name states what differs from the one that was planned: `STUNetPlans_L`, `STUNetPlans_B-ramp-totalseg-epochs250`.
    Values that were set before stay set. Of a plan that follows another dataset's, patch and strides stay, too.

    Args:
        plan: A plan, of stunet or of nnU-Net's own planners. What of these is not set stays as it was planned.
        dataset_json: nnU-Net's description of the dataset.
        size: Key of stunet.sizes.SIZES; the memory target becomes that size's default unless it was set.
        network: Another network than the plan's; None: that one, in this size.
        memory_gb: GPU memory that a training step may take.
        stages: Number of stages or "auto".
        overrides: Values as in settings.py.
        finetune: Name of a strategy (trainers/finetune/strategies.py).
        weights: What training starts from; with the classes of a head that is used whole, `dataset_json` has those of
            the network.
        pretext: Name of a method of pre-training (trainers/pretexts/methods.py); needs its demand.
        demand: What the method asks for; the patch stays as it was planned, and the batch is fitted to the memory.
        datasets: Full names of further datasets that a pre-training draws from.
        encoders: Number of encoders; without it, as many as there are `weights` if several, or as planned.
        like: The plan that this one has to be like, as `3:PLANS`; None: as planned.
        name: What the new plan's name ends with, in place of what differs.

    Raises:
        UsageError: Unknown size or key, a value that is invalid or does not fit, or a network that has no such value.
        DataError: The plan is inconsistent.
        OutOfMemoryError: Nothing of this size fits.
    """
    _check(plan, dataset_json)
    given = {key: settings.check_value(key, value) for key, value in (overrides or {}).items()}
    set_for_plan = dict(plan.set_for_plan)
    set_for_training = {**plan.set_for_training, **{k: value for k, value in given.items() if k in settings.TRAIN}}
    if network:
        size, target_gb = network.size, network.target_gb or plan.memory_gb
    elif size is None or size == plan.size:
        size, target_gb = plan.size, plan.memory_gb
    elif size in SIZES:
        _check_has(plan, "size", f"--size {size}")
        target_gb = SIZES[size].target_gb
    else:
        raise UsageError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    # What is planned like this already does not count as set: an equal plan would get another name. Another network
    # has defaults of its own, which may differ from what is asked for although the plan's values do not.
    if memory_gb is not None and {memory_gb} != {plan.memory_gb, target_gb}:
        set_for_plan["memory_gb"] = memory_gb
    usual = network.stages if network else plan.stages or "auto"
    if (stages := settings.parse_stages(stages)) is not None and {stages} != {plan.stages or "auto", usual}:
        set_for_plan["stages"] = stages
    set_for_plan |= {key: value for key, value in given.items() if key in settings.PLAN}
    new = plan.with_ours(
        plan=set_for_plan,
        train=set_for_training,
        size=size,
        network=(None if network.size else network.name) if network else plan.network,
        memory_gb=set_for_plan.get("memory_gb", target_gb),
        stages=set_for_plan.get("stages", network.stages if network else _stages(plan)),
        finetune=finetune or plan.finetune,
        pretext=pretext or plan.pretext,
        datasets=(list(datasets) if datasets is not None else plan.more_datasets) or None,
        like=plan.like or like,
    )
    # In any case, to be where it was in the block.
    new = new.with_weights(weights or plan.weights)
    other_classes = any(each.classes is not None for each in weights)
    other_network = (new.size, new.memory_gb, new.stages) != (plan.size, plan.memory_gb, plan.stages)
    if network:
        other_network = True
        new = with_network(new, network)
    if new.constraints.checkpointing:
        _check_has(new, "checkpointing", "checkpointing=true")
    if encoders or len(weights) > 1:
        new, before = _with_encoders(new, encoders or len(weights)), new
        other_network |= new != before
    # The search runs only where the memory of a step changes: --set num_epochs must not move patch or batch.
    other_step = other_network or other_classes or "checkpointing" in given
    if other_step:
        new = _with_network_of(new)
        # A plan that is like another one keeps its strides, and networks whose weights depend on them as well.
        other_stages = "stages" in set_for_plan if network else new.stages != plan.stages
        if other_stages and (new.like or _keeps_strides(new)):
            new = _with_stages(new)
        if not new.like and new.memory_gb is not None:
            keeps = network is None or network.found is not None
            new = fit_configurations(new, dataset_json, target_of(new), keeps=keeps)
    new = _with_patch_and_batch(new, dataset_json, demand)
    if other_step and new.like and demand is None:
        new = with_batch_for(new, dataset_json)
    if demand and (other_network or new.pretext != plan.pretext or given.keys() & {"patch_size", "checkpointing"}):
        new = with_batch_for(new, dataset_json, demand)
    if name and name != name.strip("_"):
        raise UsageError(f"--name {name!r} begins or ends with '_', at which nnU-Net splits names", name.strip("_"))
    called = check_name(f"{plan.root}-{name}" if name else _name(new, plan.root), "plans name")
    new = new.with_name(called).with_ours(derived_from=None)
    return new if called == plan.root else new.with_ours(derived_from=plan.root)  # the last entry of the block


def _check(plan: Plan, dataset_json: Mapping[str, Any]) -> None:
    """Reject what check_plan() rejects in any configuration, and plans that lack what only deriving needs."""
    for name in plan.configurations:
        configuration = check_plan(plan, name)
        if len(configuration.median_shape) != len(configuration.spacing):
            raise DataError(
                f"{name}: median_image_size_in_voxels must be {len(configuration.spacing)} numbers",
                "stunet_plan_and_preprocess -d ... --no_pp",
            )
    missing = [key for key in ("memory_gb", "stages") if plan.is_planned_by_us and not plan.states(key)]
    missing += ["numTraining of dataset.json"] * ("numTraining" not in dataset_json)
    if missing:
        what = f"plans {plan.name!r}: missing {', '.join(missing)}"
        raise DataError(what, "stunet_plan_and_preprocess -d ... --no_pp")


def _check_has(plan: Plan, argument: str, option: str) -> None:
    """Reject a value of which the networks of a plan know nothing."""
    for name in plan.configurations_with_network:
        planned = plan.configuration(name)
        architecture = architectures.of_class(planned.network_class, name)
        if argument not in architecture.required | architecture.optional:
            label = architecture.label(planned.network_arguments)
            what = f"{option} is for STU-Net, not for a {label}"
            raise UsageError(what, "leave it out, or --network stunet-b for an STU-Net on the same data")


def target_of(plan: Plan) -> MemoryTarget:
    """Return what the networks of a plan are fitted into; it must state its memory."""
    assert plan.memory_gb is not None
    return MemoryTarget(plan.memory_gb, plan.stages)


def fit_configurations(
    plan: Plan,
    dataset_json: Mapping[str, Any],
    target: MemoryTarget,
    measure: Measure | None = None,
    keeps: bool = False,
) -> Plan:
    """Fit patch, batch and strides of every configuration that has a network of its own.

    Each configuration's `stunet` block records the estimate (`memory_gb`) and, with a probe, its measurement.

    Args:
        plan: The plan.
        dataset_json: nnU-Net's description of the dataset.
        target: What to fit into.
        measure: Runs a training step; None: the estimate decides.
        keeps: Keep the strides of networks whose weights depend on them.
    """
    for name in plan.configurations_with_network:
        network = describe(plan, name, dataset_json)
        strides = plan.configuration(name).strides if keeps and network.architecture.depth_by_patch else None
        fitted, measured = _fit(network, plan, name, dataset_json["numTraining"], target, measure, strides)
        plan = plan.with_network(name, **fitted.arguments).with_configuration(
            name,
            patch_size=fitted.patch,
            batch_size=fitted.batch,
            stunet={"memory_gb": round(fitted.memory_gb, 2), **measured},
        )
    return plan


def _fit(
    network: Network,
    plan: Plan,
    name: str,
    cases: int,
    target: MemoryTarget,
    measure: Measure | None,
    strides: topology.Strides | None,
) -> tuple[Fit, dict[str, float]]:
    """Return the fit of one configuration, and what a probe measured."""
    configuration = plan.configuration(name)
    voxels = _voxels(plan, name, cases)
    shape: Sequence[float] = configuration.median_shape
    if network.demand:
        shape = plan.contained_shapes.get(name, shape)

    def search(correction: float) -> Fit:
        return fit(network, configuration.spacing, shape, voxels, replace(target, correction=correction), strides)

    if measure is None:
        return search(1.0), {}
    fitted, measured_gb, correction = corrected(network, lambda f: measure(network, f), search, target.memory_gb)
    return fitted, {"measured_gb": round(measured_gb, 2), "correction": round(correction, 3)}


def _voxels(plan: Plan, name: str, cases: int) -> float:
    """Return the voxels of the dataset, which limit the batch; for slices nnU-Net counts those of the volumes, too."""
    shape = plan.configuration(name).median_shape
    if len(shape) == 2 and "3d_fullres" in plan.configurations:  # slices of volumes
        shape = plan.configuration("3d_fullres").median_shape
    return math.prod(shape) * cases


def describe(plan: Plan, configuration: str, dataset_json: Mapping[str, Any], demand: Demand | None = None) -> Network:
    """Return what a configuration's memory depends on, with the one-hot channels of a cascade that inherits from it.

    Without `demand`, that of training to segment, or of the default pre-training if the dataset has no labels.
    """
    planned = plan.configuration(configuration)
    labels = dataset_json["labels"]
    foreground = [name for name in labels if name not in ("background", "ignore")]
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    # Both names are nnU-Net's; `modality` is that of version 1.
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    if demand or not (foreground or regions):
        network = Network(planned.network_arguments, channels, channels, demand=demand or Demand())
        return replace(network, architecture=architectures.of_class(planned.network_class))
    cascades = [name for name in plan.configurations if "previous_stage" in plan.own_values(name)]
    cascaded = any(configuration in plan.lineage(name) for name in cascades)
    return Network(
        planned.network_arguments,
        channels + (len(foreground) if cascaded else 0),
        # Regions have a sigmoid each, and no background.
        len(foreground) + (not regions),
        regions,
        architectures.of_class(planned.network_class),
    )


def _with_network_of(plan: Plan) -> Plan:
    """Return the plan with its size, and the checkpointing that was set, in every configuration that knows of it."""
    for name in plan.configurations_with_network:
        arguments: dict[str, Any] = {"size": plan.size} if plan.size else {}
        optional = architectures.of_class(plan.configuration(name).network_class, name).optional
        if plan.constraints.checkpointing is not None and "checkpointing" in optional:
            arguments["checkpointing"] = plan.constraints.checkpointing
        plan = plan.with_network(name, **arguments)
    return plan


def _stages(plan: Plan) -> int | str | None:
    """Return the number of stages as a plan states it; None if it does not."""
    return plan.stages or ("auto" if plan.states("stages") else None)


def _keeps_strides(plan: Plan) -> bool:
    """Return whether the weights of a plan's networks depend on their strides."""
    classes = {plan.configuration(name).network_class for name in plan.configurations_with_network}
    return any(architectures.of_class(each).depth_by_patch for each in classes)


def with_network(plan: Plan, network: Blueprint) -> Plan:
    """Return the plan with another network; patches become divisible by its strides.

    The network of weights is for the configurations with as many axes, and the others are left out.
    """
    architecture, found = network.architecture, network.found
    names = [name for name in plan.configurations if not found or found.ndim == len(plan.configuration(name).spacing)]
    plan = plan.with_values(configurations={name: plan.own_values(name) for name in names})
    for name in plan.configurations_with_network:
        planned = plan.configuration(name)
        patch, ndim = planned.patch_size, len(planned.spacing)
        stages = found.stages if found else None if architecture.depth_by_patch else topology.DEFAULT_STAGES
        strides, kernels = found.strides if found else None, None
        if strides is None:
            strides = topology.rule_for(architecture.depth_by_patch)(patch, planned.spacing, stages)
            strides += [[1] * ndim] * ((stages or 0) - len(strides))
            kernels = None if found else topology.kernels_for(strides, planned.spacing)
        given = found.planned if found else network.arguments(ndim)
        arguments = architecture.laid_out(given, strides, kernels)
        plan = plan.with_network_class(name, architecture.class_name, arguments, architecture.imports)
        steps = topology.divisor(arguments["strides"])
        plan = plan.with_configuration(name, patch_size=[-(-n // d) * d for n, d in zip(patch, steps, strict=True)])
    return plan


def _with_encoders(plan: Plan, encoders: int) -> Plan:
    """Return the plan with so many encoders in the network of every configuration."""
    for name in plan.configurations_with_network:
        planned = plan.configuration(name)
        architecture = architectures.of_class(planned.network_class, name)
        other, arguments = architectures.with_encoders(architecture, planned.network_arguments, encoders)
        plan = plan.with_network_class(name, other.class_name, arguments, other.imports)
    return plan


def _with_stages(plan: Plan) -> Plan:
    """Return a plan whose strides stay, with the first of them where it is for fewer stages.

    Raises:
        UsageError: More are asked for, whose strides nobody planned.
    """
    most = {name: len(plan.configuration(name).strides) for name in plan.configurations_with_network}
    if plan.stages is None or plan.stages > max(most.values()):
        name, number = max(most.items(), key=lambda item: item[1])
        of = f"the plan that it is like, {plan.like}" if plan.like else f"{plan.root}, which is not planned here"
        raise UsageError(f"{name} has the {number} stages of {of}", f"--stages {number} or fewer, or plans of its own")
    for name in most:
        planned = plan.configuration(name)
        architecture = architectures.of_class(planned.network_class, name)
        kept = architecture.laid_out(planned.network_arguments, planned.strides[: plan.stages])
        plan = plan.with_network(name, **kept)
    return plan


def _with_patch_and_batch(plan: Plan, dataset_json: Mapping[str, Any], demand: Demand | None) -> Plan:
    """Return the plan with the patch (where it has the right dimension) and batch that were set, and their memory.

    Only a configuration's own values are replaced: what it inherits is replaced where it comes from.
    """
    patch, batch, accumulation = plan.constraints.patch_size, plan.constraints.batch_size, plan.train.accumulation
    for name in plan.configurations:
        own, spacing = plan.own_values(name), plan.configuration(name).spacing
        if batch is not None and "batch_size" in own:
            plan = plan.with_configuration(name, batch_size=batch)
        if patch is not None and len(patch) == len(spacing) and "patch_size" in own:
            plan = plan.with_configuration(name, patch_size=patch)
            if "architecture" in own:
                plan = plan.with_network(name, strides=_strides(plan, name, patch))
    # Otherwise the planner's estimate, or what a probe measured, still holds.
    if batch is None and patch is None and accumulation == 1:
        return plan
    for name in plan.configurations_with_network:
        planned, network = plan.configuration(name), describe(plan, name, dataset_json, demand)
        # Only one micro-batch at a time is in memory, and rounding up gives the largest.
        share = -(-planned.batch_size // accumulation)
        estimate = memory.estimate(network, planned.patch_size, share, planned.strides)
        # This also drops the measurement of a probe, which was of another patch or batch.
        plan = plan.with_configuration(name, stunet={"memory_gb": round(estimate, 2)})
    return plan


def with_batch_for(plan: Plan, dataset_json: Mapping[str, Any], demand: Demand | None = None) -> Plan:
    """Return the plan with the largest batch that the memory allows, unless one was set, and its memory.

    Without `demand`, the memory is that of training to segment; see describe().

    Raises:
        OutOfMemoryError: Not even the smallest batch fits.
    """
    accumulation = plan.train.accumulation
    for name in plan.configurations_with_network:
        network, planned = describe(plan, name, dataset_json, demand), plan.configuration(name)
        patch, strides, batch = planned.patch_size, planned.strides, plan.constraints.batch_size
        # Without a target, that of a training as it was planned.
        trained = describe(plan, name, dataset_json), patch, planned.batch_size, strides
        target = MemoryTarget(plan.memory_gb or memory.estimate(*trained), plan.stages)
        if batch is None:
            batch = largest_batch(network, patch, strides, _voxels(plan, name, dataset_json["numTraining"]), target)
        needed = memory.estimate(network, patch, -(-batch // accumulation), strides)
        if plan.constraints.batch_size is None and plan.memory_gb is not None and needed > plan.memory_gb:
            raise OutOfMemoryError(
                f"{name}: {plan.pretext or 'training'} needs {needed:.1f} GB with a patch of {patch}; the target is "
                f"{plan.memory_gb:g} GB",
                f"a smaller --set patch_size, or -gpu_memory_target {math.ceil(needed)}",
            )
        plan = plan.with_configuration(name, batch_size=batch, stunet={"memory_gb": round(needed, 2)})
    return plan


def _strides(plan: Plan, configuration: str, patch: Sequence[int]) -> topology.Strides:
    """Return the strides for a patch that was set; networks whose weights depend on strides keep theirs.

    Raises:
        UsageError: The patch is not divisible by them, or the last stage is left with a single voxel.
    """
    planned = plan.configuration(configuration)
    if architectures.of_class(planned.network_class, configuration).depth_by_patch:
        strides, steps = planned.strides, topology.divisor(planned.strides)
        possible = [-(-n // step) * step for n, step in zip(patch, steps, strict=True)]
        possible = topology.larger_than_one(possible, strides)
    else:
        possible, strides = topology.round_up(patch, planned.spacing, plan.stages)
    if possible != list(patch):
        hint = json.dumps(possible, separators=(",", ":"))
        raise UsageError(f"patch_size {patch} does not fit the strides of the network", f"--set patch_size={hint}")
    return strides


def _name(plan: Plan, root: str) -> str:
    """Return the name of the original plan, with the size and a tag for each value that was set."""
    size, tag = plan.size, plan.size or TAGS.get(plan.network or "")
    if tag and not re.search(rf"_{tag}(?=_|$)", root):
        # The planner puts the tag before those for spacing, normalization and likeness; any other _L is a user's.
        own = "|".join([*SIZES, *TAGS.values()])
        pattern = rf"_({own})(?=(_[0-9.x]+mm|_median|_native)?(_z|_ct)?(_like([0-9]+(-.*)?|-.+))?$)"
        root = re.sub(pattern, f"_{tag}", root) if re.search(pattern, root) else f"{root}_{tag}"
    start = [plan.pretext] if plan.pretext else []
    start += ["with" + "and".join(str(dataset_number(name)) for name in plan.more_datasets)] * bool(plan.more_datasets)
    start += [plan.finetune] if plan.finetune else []
    for weights in plan.weights:
        # Of several weights it is always the encoder alone.
        several = [ENCODER_ALONE] if len(plan.weights) > 1 else []
        # STU-Net-B.totalseg becomes totalseg: the name contains the size already.
        name = weights.name.removeprefix(f"STU-Net-{size}.")
        start += [name, *(tag for tag in weights.tags(bool(plan.pretext)) if tag not in several)]
    tags = [settings.tag(key, value) for key, value in {**plan.set_for_training, **plan.set_for_plan}.items()]
    name = "-".join([root, *start, *tags])
    if len(name) <= NAME_LENGTH:
        return name
    # Only the values become a hash: how training starts stays readable in the names of result folders.
    return "-".join([root, *start, hashlib.sha1("-".join(tags).encode()).hexdigest()[:8]])
