"""What is asked for when a dataset is planned: the options, what they leave open, and which exclude each other.

planning.py does what is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stunet import presets
from stunet.errors import UsageError, closest
from stunet.names import name_problem
from stunet.parts import Part
from stunet.plans.blueprints import STOCK_PLANS, blueprints
from stunet.plans.plan import PLANNER
from stunet.runs.listener import Listener
from stunet.sizes import DEFAULT, SIZES

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
OF_DATASET, AS_PRETRAINED, MEDIAN, NONE = "dataset", "pretrained", "median", "none"  # words for --spacing
STAGES = 6  # of STU-Net, in the published weights too


@dataclass(frozen=True, kw_only=True)
class PlanningRequest:
    """A dataset to plan and preprocess: the options of stunet_plan_and_preprocess, with their defaults.

    Args:
        dataset: Number or name of a raw dataset.
        network: Network to plan: "stunet-b", "resenc-m", "resenc-l", "resenc-xl", "plain" (plans/blueprints.py); None:
            STU-Net.
        size: Size of STU-Net: T, S, B, L or H; None: that of the preset, or B.
        preset: Name or .toml file of a preset, for size, memory, spacing and normalization.
        stages: Number of stages, 2 to 9, or "auto": what the patch supports; None: that of the preset, or 6. nnU-Net's
            networks have as many as the patch supports, at most this number.
        gpu_memory_target: GPU memory in GiB to plan for; None: the default of the network.
        overwrite_target_spacing: Spacing of 3d_fullres in mm, in the order of arrays (z, y, x); None: nnU-Net's rule.
        spacing: The same in other words: "1mm" or three numbers; "median": that of the images per axis; "none": every
            image keeps its own; "dataset": nnU-Net's rule; "pretrained": that of the weights.
        pretrained: Plan for pre-trained weights, the name of a model, a file or a folder: their network, and unless
            `spacing` is "dataset" their normalization; their spacing if no other is given.
        accept_licence: Accept the licence of weights that have to be downloaded and may not be used commercially.
        like: Plan like another dataset: its number or name, and if it has several plans, `3:PLANS`.
        checkpointing: Compute activations again in the backward pass: larger patches, slower steps.
        probe: Measure the memory of a training step on the GPU instead of estimating it.
        plans: Preprocess as these plans say, and plan nothing; None: plan.
        planner: "STUNetPlanner", or one of nnU-Net's, whose plans are left as they are (plans/stock.py).
        overwrite_plans_name: Name of the plans; None: STUNetPlans_<size>, or as the planner calls them.
        configurations: What is preprocessed; those that the plans don't have are left out. By default all or, of
            images without labels, 3d_fullres.
        np: Processes for preprocessing, one number or one per configuration; None: by cores and memory.
        npfp: Processes for checks and fingerprint; None: by cores, 8 at most.
        preprocessor_name: Name of nnU-Net's preprocessor class.
        no_check: Do not read all files once to find broken ones.
        clean: Extract the fingerprint again even if the data did not change.
        no_pp: Plan only.
        dry_run: Plan, and write nothing.
        report: Write a page about the dataset beside its plans, of what the check has seen; parts write none.
        cluster: Check and preprocess the cases on Dask workers: "local:2", "tcp://host:8786" or "slurm:8"; None: in
            processes here.
        num_parts: Number of runs that share the cases (planning_parts.py).
        part_id: Which of them this is, from 0.
        merge: Do no case; write what belongs to all cases from what the parts have done.
    """

    dataset: int | str
    network: str | None = None
    size: str | None = None
    preset: str | None = None
    stages: int | str | None = None
    gpu_memory_target: float | None = None
    overwrite_target_spacing: Sequence[float] | None = None
    spacing: str | Sequence[str | float] | None = None
    pretrained: str | Path | None = None
    accept_licence: bool = False
    like: int | str | None = None
    checkpointing: bool = False
    probe: bool = False
    plans: str | None = None
    planner: str = PLANNER
    overwrite_plans_name: str | None = None
    configurations: Sequence[str] = CONFIGURATIONS
    np: int | Sequence[int] | None = None
    npfp: int | None = None
    preprocessor_name: str = "DefaultPreprocessor"
    no_check: bool = False
    clean: bool = False
    no_pp: bool = False
    dry_run: bool = False
    report: bool = True
    cluster: str | None = None
    num_parts: int = 1
    part_id: int = 0
    merge: bool = False

    @property
    def follows_weights(self) -> bool:
        """Whether images are given to the network as weights know them."""
        return self.pretrained is not None and self.spacing != OF_DATASET


def is_in_parts(request: PlanningRequest) -> bool:
    """Return whether a request is for a part of the cases, or merges what parts have done."""
    return request.num_parts > 1 or request.merge


def check_parts(request: PlanningRequest) -> None:
    """Raise UsageError if parts do not exist, or are asked for what only a run for all cases can do."""
    Part(request.part_id, request.num_parts)
    for option in ("dry_run", "clean") if is_in_parts(request) else ():
        if getattr(request, option):
            raise UsageError(f"--{option} is for all cases at once", f"-num_parts 1 with --{option}, or leave it out")


def complete(request: PlanningRequest, listener: Listener) -> tuple[PlanningRequest, str | None]:
    """Return the request with the values of its preset and the defaults, after checking it; and the normalization.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
    """
    from stunet.plans.settings import check_value, parse_stages

    # Before presets and defaults fill the request in: only what was given contradicts -p, -pl, --like or --network.
    given = [option for option, value in _planning_options(request).items() if value]
    if request.plans and given:
        raise UsageError(f"-p {request.plans} takes plans as they are, and {given[0]} plans", "one of them")
    if request.planner != PLANNER:
        return _for_nnunet(request, given), None
    if request.like is not None and (other := [option for option in given if option not in ("--like", "--no_pp")]):
        raise UsageError(f"--like takes another dataset's plan as it is, and {other[0]} plans", "one of them")
    _check_network(request)
    request, normalization = _with_spacing(request), None
    named = [f"--{key}" for key in ("network", "size", "preset", "stages") if getattr(request, key)]
    if request.follows_weights and named:
        what = f"--pretrained plans the network of the weights, and {named[0]} another"
        raise UsageError(what, "one of them; with --spacing dataset both")
    if request.preset:
        preset = presets.load(request.preset)
        if preset.note:
            listener.note(f"{request.preset}: {preset.note}")
        size, memory_gb, stages = preset.complete(request.size, request.gpu_memory_target, request.stages)
        spacing = request.overwrite_target_spacing
        if spacing is None and request.spacing is None and preset.spacing:
            spacing = [float(pitch) for pitch in preset.spacing]
        normalization = presets.NORMALIZATIONS.get(preset.normalization or "")
        values = {key: check_value(key, value) for key, value in preset.set.items()}
        request = replace(
            request,
            size=size,
            gpu_memory_target=memory_gb,
            stages=stages,
            overwrite_target_spacing=spacing,
            checkpointing=request.checkpointing or values.get("checkpointing", False),
        )
    network = request.network or f"stunet-{request.size or DEFAULT}".lower()
    blueprint = blueprints()[network]
    own = "auto" if blueprint.architecture.depth_by_patch else STAGES
    request = replace(request, network=network, size=blueprint.size, stages=parse_stages(request.stages) or own)
    _check(request)
    return request, normalization


def _check_network(request: PlanningRequest) -> None:
    """Reject a network that is not known, named twice, or does not have what is asked for.

    Raises:
        UsageError: The first problem.
    """
    known = blueprints()
    for option, value, names in (("--size", request.size, [*SIZES]), ("--network", request.network, [*known])):
        if value is not None and value not in names:
            raise UsageError(f"{option} {value!r}{closest(str(value), names)}", f"one of {', '.join(names)}")
    if request.network is None:
        return
    for option, value in (("--size", request.size), ("--preset", request.preset)):
        if value:
            raise UsageError(f"--network {request.network} and {option} {value} both name a network", "one of them")
    architecture = known[request.network].architecture
    if request.checkpointing and "checkpointing" not in architecture.optional:
        raise UsageError(f"--checkpointing is for STU-Net, not for a {architecture.title}", "leave it out")


def _for_nnunet(request: PlanningRequest, given: Sequence[str]) -> PlanningRequest:
    """Return a request for one of nnU-Net's planners, whose plans hold nothing of ours.

    Raises:
        UsageError: It is not one of them, or they have no such option.
    """
    if request.planner not in STOCK_PLANS:
        names = [PLANNER, *STOCK_PLANS]
        raise UsageError(
            f"-pl {request.planner!r}{closest(request.planner, names)}",
            f"one of {', '.join(names)}; nnUNetv2_plan_experiment for others, and -p with its plans here",
        )
    theirs = {"-gpu_memory_target", "-overwrite_target_spacing", "-overwrite_plans_name", "--no_pp"}
    if other := [option for option in given if option not in theirs]:
        raise UsageError(f"-pl {request.planner} is nnU-Net's planner, which knows no {other[0]}", "one of them")
    other_data = ["-overwrite_target_spacing"] if request.overwrite_target_spacing else []
    other_data += ["-preprocessor_name"] if request.preprocessor_name != PlanningRequest.preprocessor_name else []
    if other_data and not request.overwrite_plans_name:
        name = STOCK_PLANS[request.planner]
        what = f"{other_data[0]} makes other data than those of {name}, which they would replace"
        raise UsageError(what, "-overwrite_plans_name with another name")
    _check(request)
    return request


def _with_spacing(request: PlanningRequest) -> PlanningRequest:
    """Return the request with numbers in `overwrite_target_spacing`, and nothing or a word in `spacing`.

    Raises:
        UsageError: It is neither numbers nor one of the words, or given twice.
    """
    given = request.spacing
    if given is None:
        return request
    if request.overwrite_target_spacing:
        raise UsageError("--spacing and -overwrite_target_spacing say the same", "one of them")
    words = [given] if isinstance(given, str) else [str(word) for word in given]
    if words == [AS_PRETRAINED] and request.pretrained is None:
        raise UsageError("--spacing pretrained is that of weights, and none are given", "add --pretrained")
    if words in ([OF_DATASET], [AS_PRETRAINED], [MEDIAN], [NONE]):
        return replace(request, spacing=words[0])
    if words == ["1mm"]:
        words = ["1", "1", "1"]
    try:
        numbers = [float(word.removesuffix("mm")) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        known = f"1mm, {', '.join((MEDIAN, NONE, OF_DATASET, AS_PRETRAINED))}"
        what = f"--spacing {' '.join(words)} is neither three numbers in mm nor one of {known}"
        raise UsageError(what, "--spacing 1mm")
    return replace(request, spacing=None, overwrite_target_spacing=numbers)


def _check(request: PlanningRequest) -> None:
    if request.probe:
        # Here and not above, because it takes seconds that other mistakes must not wait for.
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--probe needs a CUDA device, and torch finds none", "leave it out: the estimate is used")
    name, spacing = request.overwrite_plans_name or "", request.overwrite_target_spacing or ()
    if name and (problem := name_problem(name)):
        raise UsageError(f"-overwrite_plans_name {name!r} {problem}", "a name such as MyPlans")
    for flag, numbers in (("-np", workers_of(request)), ("-npfp", () if request.npfp is None else (request.npfp,))):
        if min(numbers, default=1) < 1:
            raise UsageError(f"{flag} {min(numbers)} must be 1 or more", f"{flag} 1")
    if "__" in name:
        raise UsageError(f"-overwrite_plans_name {name!r}: nnU-Net splits folder names at '__'", "one '_'")
    if not all(0 < pitch < math.inf for pitch in spacing):
        asked = " ".join(f"{pitch:g}" for pitch in spacing)
        raise UsageError(f"-overwrite_target_spacing {asked}: mm must be positive", "1.5 1.5 1.5")
    if len(workers_of(request)) not in (0, 1, len(request.configurations)):
        raise UsageError(
            f"-np has {len(workers_of(request))} values for {len(request.configurations)} configurations",
            "one value, or one per configuration",
        )


def workers_of(request: PlanningRequest) -> tuple[int, ...]:
    """Return the numbers of processes that are asked for: none, one, or one per configuration."""
    if isinstance(request.np, int):
        return (request.np,)
    return tuple(request.np or ())


def _planning_options(request: PlanningRequest) -> dict[str, Any]:
    """Return the options that define how to plan, by their flags."""
    names = ("network", "size", "preset", "stages", "checkpointing", "probe", "no_pp", "spacing", "like", "pretrained")
    of_nnunet = ("gpu_memory_target", "overwrite_target_spacing", "overwrite_plans_name")
    return {f"--{name}": getattr(request, name) for name in names} | {
        f"-{name}": getattr(request, name) for name in of_nnunet
    }
