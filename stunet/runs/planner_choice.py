"""Choose how a dataset is planned: from its own fingerprint, as another dataset was planned, or for weights.

planning.py checks the files before, and preprocesses after.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import workspace
from stunet.files import write_json
from stunet.kinds import FINGERPRINT, read, read_dataset_json
from stunet.orientation import REORIENTS
from stunet.plans.plan import PLANNER, Plan
from stunet.runs.fetching import fetch_model
from stunet.runs.listener import Listener
from stunet.runs.plan_choice import model_plan
from stunet.runs.planning_request import AS_PRETRAINED, MEDIAN, NONE, PlanningRequest

if TYPE_CHECKING:
    from stunet.trainers.finetune.start import Start


@dataclass(frozen=True)
class Followed:
    """What a planning follows, if anything: another dataset's plan, with its dataset.json, or weights."""

    plan: Plan | None = None
    description: Mapping[str, Any] | None = None
    start: "Start | None" = None


def find_followed(request: PlanningRequest, listener: Listener) -> Followed:
    """Return what a request asks to follow, read before anything is written.

    Raises:
        DataError: There is no such dataset or plan.
        WeightsError: The weights cannot be read.
    """
    if request.like is not None:
        from stunet.preprocessing.like import model_to_follow

        return Followed(*model_to_follow(*model_plan(request.like)))
    if not request.follows_weights:
        return Followed()
    # A dry run downloads nothing.
    path = fetch_model(str(request.pretrained), listener, request.dry_run, request.accept_licence)
    from stunet.trainers.finetune.start import Start

    start = Start(path)
    # Reads it: a broken file is to be told before the fingerprint takes its time.
    listener.note(f"{request.pretrained}: {start.weights.network}")
    return Followed(start=start)


def make_plan(
    dataset: str,
    fingerprint: Path,
    request: PlanningRequest,
    normalization: str | None,
    followed: Followed,
    listener: Listener,
) -> Plan:
    """Plan a dataset, and write the plan beside its fingerprint."""
    if followed.plan is not None:
        return _plan_like(followed.plan, followed.description or {}, dataset, fingerprint, listener)
    if followed.start is not None:
        return _plan_for(followed.start, dataset, request, listener)
    given = (
        request.gpu_memory_target,
        request.preprocessor_name,
        request.overwrite_plans_name,
        request.overwrite_target_spacing,
    )
    if request.planner != PLANNER:
        from stunet.plans.fingerprint import ORIENTATIONS
        from stunet.plans.stock import plan_as_stock

        plan = plan_as_stock(request.planner, dataset, *given)
        if warning := not_turned(plan, read(fingerprint, FINGERPRINT).get(ORIENTATIONS) or {}):
            listener.warn(warning)
        return plan
    from stunet.plans.planner import STUNetPlanner

    planner = STUNetPlanner(
        dataset,
        *given,
        network=request.network,
        stages=None if request.stages in (None, "auto") else int(request.stages),
        checkpointing=request.checkpointing,
        normalization=normalization,
        spacing=_kept(request),
        measure=_measure(request),
    )
    return Plan(planner.plan_experiment())


def _plan_like(
    model: Plan, model_description: Mapping[str, Any], dataset: str, fingerprint: Path, listener: Listener
) -> Plan:
    from stunet.plans.fingerprint import orientations
    from stunet.plans.like import plan_like
    from stunet.preprocessing.like import channel_warning

    raw, folder = workspace.raw_dataset(dataset), fingerprint.parent
    description = read_dataset_json(raw / "dataset.json")
    found = read(fingerprint, FINGERPRINT)
    plan, warnings = plan_like(model, dataset, description, orientations(dataset)[0], found)
    other = channel_warning(dataset, description, model.dataset_name, model_description)
    for warning in [*warnings, *([other] if other else [])]:
        listener.warn(warning)
    write_json(folder / "dataset.json", description)
    write_json(folder / f"{plan.name}.json", plan.to_json())
    return plan


def _plan_for(start: "Start", dataset: str, request: PlanningRequest, listener: Listener) -> Plan:
    """Plan a dataset for weights, and tell what of the images is theirs."""
    from stunet.models.known_input import known_input
    from stunet.plans.fingerprint import orientations, target_orientation
    from stunet.plans.pretrained import PretrainedPlanner
    from stunet.trainers.finetune.start import name_of

    given, name = Path(str(request.pretrained)), request.overwrite_plans_name
    # Without the path: plans are passed on.
    words = ["--pretrained", given.name if given.exists() else str(given), "--spacing", *_spacing(request)]
    words += ["-overwrite_plans_name", name] if name else []
    # Of weights that are not in the registry, others may share the name.
    called = name_of(start, given.exists() or start.weights.entry is None)
    known = known_input(start.weights, called, target_orientation(*orientations(dataset)))
    planner = PretrainedPlanner(
        dataset,
        known,
        spacing=request.overwrite_target_spacing or _kept(request),
        memory_gb=request.gpu_memory_target,
        preprocessor=request.preprocessor_name,
        name=name,
        checkpointing=request.checkpointing,
        measure=_measure(request),
        options=shlex.join(words),
    )
    for text in planner.changes():
        listener.note(text)
    for text in planner.normalized().warnings:
        listener.warn(text)
    return Plan(planner.plan_experiment())


def _kept(request: PlanningRequest) -> str | None:
    """Return the planner's word for a spacing that the images have already."""
    from stunet.plans import planner

    return {MEDIAN: planner.MEDIAN, NONE: planner.NATIVE}.get(str(request.spacing))


def _measure(request: PlanningRequest) -> "Callable[..., float] | None":
    from stunet.plans.probe import measure_step

    return measure_step if request.probe else None


def _spacing(request: PlanningRequest) -> list[str]:
    """Return what stands behind --spacing."""
    numbers = request.overwrite_target_spacing
    return [f"{pitch:g}" for pitch in numbers] if numbers else [str(request.spacing or AS_PRETRAINED)]


def not_turned(plan: Plan, counts: Mapping[str, int]) -> str | None:
    """Return a warning that a plan of nnU-Net's turns no image, if those of its dataset run in several ways."""
    if len(counts) < 2 or plan.reader.endswith(REORIENTS):
        return None
    return (
        f"the axes of the images run in {len(counts)} ways ({shown(counts)}): {plan.get('experiment_planner_used')} "
        f"turns none, and {PLANNER} all to one"
    )


def shown(counts: Mapping[str, int]) -> str:
    """Return numbers of images by orientation, for messages."""
    return ", ".join(f"{count} {code}" for code, count in counts.items())
