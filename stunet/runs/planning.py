"""Plan a dataset and preprocess it: check the raw files, extract the fingerprint, plan, preprocess."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stunet import nnunet, presets, workspace
from stunet.errors import DataError, StunetError, UsageError, closest
from stunet.files import write_json
from stunet.kinds import FINGERPRINT, has_classes, read, read_dataset_json
from stunet.names import name_problem
from stunet.plans.files import list_planned, list_plans, plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.runs.listener import Listener
from stunet.runs.plan_choice import model_plan
from stunet.sizes import DEFAULT, SIZES

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
CASCADE = "3d_cascade_fullres"
STAGES = 6  # of STU-Net, in the published weights too
WORKERS = {"2d": 8, "3d_lowres": 8}  # upper limits, as in nnU-Net; larger images get fewer because of their memory
FEWER = 4


@dataclass(frozen=True, kw_only=True)
class PlanningRequest:
    """A dataset to plan and preprocess: the options of stunet_plan_and_preprocess, with their defaults.

    Args:
        dataset: Number or name of a raw dataset.
        size: T, S, B, L or H; None: that of the preset, or B.
        preset: Name or .toml file of a preset, for size, memory, spacing and normalization.
        stages: Number of stages, 2 to 9, or "auto": what the patch supports; None: that of the preset, or 6.
        gpu_memory_target: GPU memory in GiB to plan for; None: the default of the size.
        overwrite_target_spacing: Spacing of 3d_fullres in mm, in the order of arrays (z, y, x); None: nnU-Net's rule.
        spacing: The same in other words: "1mm" or three numbers; "median": that of the images per axis; "none": every
            image keeps its own.
        like: Plan like another dataset: its number or name, and if it has several plans, `3:PLANS`.
        checkpointing: Compute activations again in the backward pass: larger patches, slower steps.
        probe: Measure the memory of a training step on the GPU instead of estimating it.
        plans: Preprocess as these plans say, and plan nothing; None: plan.
        overwrite_plans_name: Name of the plans; None: STUNetPlans_<size>.
        configurations: What is preprocessed; those that the plans don't have are left out. By default all or, of
            images without labels, 3d_fullres.
        np: Processes for preprocessing, one number or one per configuration; None: by cores and memory.
        npfp: Processes for checks and fingerprint; None: by cores, 8 at most.
        preprocessor_name: Name of nnU-Net's preprocessor class.
        no_check: Do not read all files once to find broken ones.
        clean: Extract the fingerprint again even if the data did not change.
        no_pp: Plan only.
        dry_run: Plan, and write nothing.
    """

    dataset: int | str
    size: str | None = None
    preset: str | None = None
    stages: int | str | None = None
    gpu_memory_target: float | None = None
    overwrite_target_spacing: Sequence[float] | None = None
    spacing: str | Sequence[str | float] | None = None
    like: int | str | None = None
    checkpointing: bool = False
    probe: bool = False
    plans: str | None = None
    overwrite_plans_name: str | None = None
    configurations: Sequence[str] = CONFIGURATIONS
    np: int | Sequence[int] | None = None
    npfp: int | None = None
    preprocessor_name: str = "DefaultPreprocessor"
    no_check: bool = False
    clean: bool = False
    no_pp: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanningResult:
    """A planned dataset.

    Attributes:
        dataset: Full name.
        plan: What was planned; its `name` is what train() takes as `plans`.
        path: The plans file; None after a dry run.
    """

    dataset: str
    plan: Plan
    path: Path | None


def plan(request: PlanningRequest, listener: Listener | None = None) -> PlanningResult:
    """Plan and preprocess a dataset.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The dataset is missing or damaged.
        OutOfMemoryError: The network does not fit into the memory that is planned for, or a case into this machine's.
    """
    listener = listener or Listener()
    (dataset,), request, normalization = _prepared(request, [request.dataset], listener)
    return _plan_and_preprocess(dataset, request, normalization, listener)


def plan_each(request: PlanningRequest, datasets: Sequence[int | str], listener: Listener) -> list[StunetError]:
    """Plan and preprocess several datasets in place of the request's; return the errors of those that failed.

    Raises:
        UsageError: As for plan(); nothing is planned.
        DataError: A dataset is missing; nothing is planned.
    """
    names, request, normalization = _prepared(request, datasets, listener)
    problems: list[StunetError] = []
    for dataset in names:
        try:
            _plan_and_preprocess(dataset, request, normalization, listener)
        except StunetError as error:
            # Of the same class, which decides the exit code.
            problems.append(error if len(names) == 1 else type(error)(f"{dataset}: {error.message}", error.hint))
    return problems


def _prepared(
    request: PlanningRequest, datasets: Sequence[int | str], listener: Listener
) -> tuple[list[str], PlanningRequest, str | None]:
    """Return the full names of the datasets, the request with its preset's values, and the preset's normalization."""
    names = [_raw_dataset(dataset) for dataset in datasets]
    workspace.folder("nnUNet_preprocessed")
    request, normalization = _completed(request, listener)
    _check_configurations(names, request.configurations)
    return names, request, normalization


def _raw_dataset(number_or_name: int | str) -> str:
    """Return the full name of a raw dataset; for a folder of pairs, raise an error with the command to convert it."""
    from stunet.datasets.layout import pairs_command

    folder = Path(str(number_or_name))
    try:
        name = workspace.dataset_name(number_or_name)
        folder = workspace.folder("nnUNet_raw") / name
        workspace.raw_dataset(name)
        return name
    except DataError as error:
        command = pairs_command(folder) if folder.is_dir() else None
        raise DataError(error.message, command or error.hint) from None


def _check_configurations(datasets: Sequence[str], configurations: Sequence[str]) -> None:
    """Reject names that are neither nnU-Net's nor those of a configuration that somebody added to the plans."""
    known = [*CONFIGURATIONS, CASCADE]
    for dataset in datasets if set(configurations) - set(known) else ():
        for name in list_plans(dataset):
            known += read_plan(plan_path(dataset, name)).configurations
    for name in configurations:
        if name not in known:
            raise UsageError(f"unknown configuration {name!r}{closest(name, known)}", f"-c takes {', '.join(known)}")


def _completed(request: PlanningRequest, listener: Listener) -> tuple[PlanningRequest, str | None]:
    """Return the request with the values of its preset and the defaults, after checking it; and the normalization.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
    """
    from stunet.plans.settings import check_value, parse_stages

    # Before presets and defaults fill the request in: only what was given contradicts -p.
    if request.plans and (other := [option for option, given in _planning_options(request).items() if given]):
        raise UsageError(f"-p {request.plans} takes plans as they are, and {other[0]} plans", "one of them")
    request, normalization = _with_spacing(request), None
    if request.preset:
        preset = presets.load(request.preset)
        if preset.note:
            listener.note(f"{request.preset}: {preset.note}")
        size, memory_gb, stages = preset.complete(request.size, request.gpu_memory_target, request.stages)
        spacing = request.overwrite_target_spacing
        if spacing is None and request.spacing is None and preset.spacing:
            spacing = [float(pitch) for pitch in preset.spacing]
        normalization = presets.NORMALIZATIONS.get(preset.normalization or "")
        given = {key: check_value(key, value) for key, value in preset.set.items()}
        request = replace(
            request,
            size=size,
            gpu_memory_target=memory_gb,
            stages=stages,
            overwrite_target_spacing=spacing,
            checkpointing=request.checkpointing or given.get("checkpointing", False),
        )
    request = replace(request, size=request.size or DEFAULT, stages=parse_stages(request.stages) or STAGES)
    if request.size not in SIZES:
        raise UsageError(
            f"--size {request.size!r}{closest(str(request.size), list(SIZES))}", f"one of {', '.join(SIZES)}"
        )
    _check(request)
    return request, normalization


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
    if words in (["median"], ["none"]):
        return replace(request, spacing=words[0])
    if words == ["1mm"]:
        words = ["1", "1", "1"]
    try:
        numbers = [float(word.removesuffix("mm")) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        what = f"--spacing {' '.join(words)} is neither three numbers in mm nor 1mm, median or none"
        raise UsageError(what, "--spacing 1mm")
    return replace(request, spacing=None, overwrite_target_spacing=numbers)


def _check(request: PlanningRequest) -> None:
    if request.like is not None:
        options = {key: value for key, value in _planning_options(request).items() if key not in ("--like", "--no_pp")}
        # Size and stages have their defaults by now.
        other = [key for key, value in options.items() if value and key not in ("--size", "--stages")]
        if other:
            raise UsageError(f"--like takes another dataset's plan as it is, and {other[0]} plans", "one of them")
    if request.probe:
        # Here and not above, because it takes seconds that other mistakes must not wait for.
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--probe needs a CUDA device, and torch finds none", "leave it out: the estimate is used")
    name, spacing = request.overwrite_plans_name or "", request.overwrite_target_spacing or ()
    if name and (problem := name_problem(name)):
        raise UsageError(f"-overwrite_plans_name {name!r} {problem}", "a name such as MyPlans")
    for flag, numbers in (("-np", _workers(request)), ("-npfp", () if request.npfp is None else (request.npfp,))):
        if min(numbers, default=1) < 1:
            raise UsageError(f"{flag} {min(numbers)} must be 1 or more", f"{flag} 1")
    if "__" in name:
        raise UsageError(f"-overwrite_plans_name {name!r}: nnU-Net splits folder names at '__'", "one '_'")
    if not all(0 < pitch < math.inf for pitch in spacing):
        asked = " ".join(f"{pitch:g}" for pitch in spacing)
        raise UsageError(f"-overwrite_target_spacing {asked}: mm must be positive", "1.5 1.5 1.5")
    if len(_workers(request)) not in (0, 1, len(request.configurations)):
        raise UsageError(
            f"-np has {len(_workers(request))} values for {len(request.configurations)} configurations",
            "one value, or one per configuration",
        )


def _workers(request: PlanningRequest) -> tuple[int, ...]:
    """Return the numbers of processes that are asked for: none, one, or one per configuration."""
    if isinstance(request.np, int):
        return (request.np,)
    return tuple(request.np or ())


def _planning_options(request: PlanningRequest) -> dict[str, Any]:
    """Return the options that define how to plan, by their flags."""
    names = ("size", "preset", "stages", "checkpointing", "probe", "no_pp", "spacing", "like")
    of_nnunet = ("gpu_memory_target", "overwrite_target_spacing", "overwrite_plans_name")
    return {f"--{name}": getattr(request, name) for name in names} | {
        f"-{name}": getattr(request, name) for name in of_nnunet
    }


def _plan_and_preprocess(
    dataset: str, request: PlanningRequest, normalization: str | None, listener: Listener
) -> PlanningResult:
    nnunet.check_nnunet()
    readers = request.npfp or min(8, _cores())
    nnunet.limit_processes()
    from stunet.plans.splits import check_splits

    # Before the files are read, which takes longest: nnU-Net would only fail after that.
    check_splits(dataset)
    planned = _planned(dataset, request) if request.plans else None
    if not request.no_check:
        _check_files(dataset, readers, listener)
    model = None if request.like is None else _to_follow(request.like)  # before dry runs change the folder
    if planned is None:
        with _scratch(request.dry_run), workspace.planning(dataset):
            planned = _plan(dataset, readers, request, normalization, model, listener)
    path = None if request.dry_run else workspace.preprocessed_dataset(dataset) / f"{planned.name}.json"
    result = PlanningResult(dataset=dataset, plan=planned, path=path)
    listener.planned(result)
    for warning in warnings_of(result.plan):
        listener.warn(warning)
    if path is None:
        return result
    listener.note(f"plans: {path}")
    if not request.no_pp:
        _preprocess(dataset, planned, request, listener)
        listener.note(f"next: {_training_command(result, request.preset)}")
    return result


def _planned(dataset: str, request: PlanningRequest) -> Plan:
    """Return the existing plan that was asked for."""
    from stunet.plans.check import check_plan

    plan = read_plan(plan_path(dataset, request.plans))
    # Of nnU-Net's configurations a small dataset has no 3d_lowres; any other that is named has to exist.
    asked = [name for name in request.configurations if name in plan.configurations or name not in CONFIGURATIONS]
    if not asked:
        what = f"the plans {request.plans!r} have no configuration {' or '.join(request.configurations)}"
        raise UsageError(what, f"-c {' '.join(plan.configurations)}")
    for name in asked:
        check_plan(plan, name)
    return plan


def _check_files(dataset: str, workers: int, listener: Listener) -> None:
    from stunet.datasets import read_dataset
    from stunet.datasets.check import check_dataset

    folder = workspace.raw_dataset(dataset)
    with listener.progress(f"check {dataset}", len(read_dataset(folder)[0])) as progress:
        warnings = check_dataset(folder, workers, progress.step)
    for warning in warnings:
        listener.warn(warning)


@contextmanager
def _scratch(wanted: bool) -> Iterator[None]:
    """Use a temporary folder in place of nnUNet_preprocessed, if wanted."""
    if not wanted:
        yield
        return
    before = os.environ["nnUNet_preprocessed"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_preprocessed"] = folder  # where nnU-Net's planner looks
        try:
            yield
        finally:
            os.environ["nnUNet_preprocessed"] = before


def _plan(
    dataset: str,
    workers: int,
    request: PlanningRequest,
    normalization: str | None,
    model: tuple[Plan, Mapping[str, Any]] | None,
    listener: Listener,
) -> Plan:
    from stunet.plans.fingerprint import extract_fingerprint
    from stunet.plans.planner import MEDIAN, NATIVE, STUNetPlanner
    from stunet.plans.probe import measure_step

    listener.note("extract the fingerprint, plan")
    # The number of cases is known with the first one; with an up-to-date fingerprint there is none.
    with listener.progress("fingerprint", 0) as progress:

        def step(name: str, cases: int) -> None:
            progress.total = cases
            progress.step(name)

        fingerprint = extract_fingerprint(dataset, workers, request.clean, step)
    if model is not None:
        return _plan_like(*model, dataset, fingerprint, listener)
    planner = STUNetPlanner(
        dataset,
        request.gpu_memory_target,
        request.preprocessor_name,
        request.overwrite_plans_name,
        request.overwrite_target_spacing,
        size=request.size or DEFAULT,
        stages=None if request.stages in (None, "auto") else int(request.stages),
        checkpointing=request.checkpointing,
        normalization=normalization,
        spacing={"median": MEDIAN, "none": NATIVE}.get(str(request.spacing)),
        measure=measure_step if request.probe else None,
    )
    return Plan(planner.plan_experiment())


def _to_follow(like: int | str) -> tuple[Plan, Mapping[str, Any]]:
    """Return the plan that a dataset is planned like, and the dataset.json that belongs to it."""
    from stunet.preprocessing.like import model_to_follow

    return model_to_follow(*model_plan(like))


def _plan_like(
    model: Plan, model_description: Mapping[str, Any], dataset: str, fingerprint: Path, listener: Listener
) -> Plan:
    """Plan a dataset like another one's plan, and write the plan beside its fingerprint."""
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


def _preprocess(dataset: str, plan: Plan, request: PlanningRequest, listener: Listener) -> None:
    from stunet.preprocessing.dataset import pending_cases, preprocess, stale_cases

    asked, wanted = _workers(request), request.configurations
    if wanted is CONFIGURATIONS and not has_classes(read_dataset_json(workspace.raw_dataset(dataset) / "dataset.json")):
        # A pre-training takes one, and images without labels are many.
        wanted = [next(name for name in ("3d_fullres", "2d") if name in plan.configurations)]
        listener.note(f"{wanted[0]} is preprocessed; -c names others")
    for position, name in enumerate(wanted):
        if name not in plan.configurations and name in CONFIGURATIONS:
            continue  # this dataset needs no 3d_lowres, or has no third dimension
        if asked:
            workers = asked[position if len(asked) > 1 else 0]
        else:
            workers = _fitting(dataset, plan, name, min(WORKERS.get(name, FEWER), _cores()), listener)
        todo = len(pending_cases(dataset, plan, [name]))
        for reason in stale_cases(dataset, plan, [name]):
            listener.note(reason)
        with listener.progress(f"preprocess {name}", todo) as progress:
            preprocess(dataset, plan, [name], workers, progress.step)


def _fitting(dataset: str, plan: Plan, name: str, wanted: int, listener: Listener) -> int:
    """Return how many processes the memory can hold, up to `wanted`; the listener is told if that is fewer."""
    from stunet.preprocessing.worker import fitting_workers

    configuration = plan.configuration(name)
    path = workspace.preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    if not path.is_file():  # the plans were copied here, so the size of the cases is unknown
        return 1
    fingerprint = read(path, FINGERPRINT)
    channels = len(configuration.normalization)
    workers = fitting_workers(wanted, fingerprint, configuration.spacing, channels)
    if workers < wanted:
        listener.note(f"{workers} of {wanted} processes at a time, for the memory")
    return workers


def _training_command(result: PlanningResult, preset: str | None) -> str:
    """Return the command that trains what was planned."""
    plan, number = result.plan, workspace.dataset_number(result.dataset)
    first = "3d_fullres" if "3d_fullres" in plan.configurations else "2d"
    # Both commands find the plans by themselves if they are the only ones that were planned.
    chosen = "" if list_planned(result.dataset) == [plan.name] else f" -p {plan.name}"
    pretrain = f"stunet_pretrain -d {number}" + (f" -c {first}" if first != "3d_fullres" else "") + chosen
    if not has_classes(read_dataset_json(workspace.raw_dataset(result.dataset) / "dataset.json")):
        return pretrain
    fold = _first_fold(result.dataset, plan, first)
    train = f"stunet_train {number} {first} {fold}{chosen}" + (f" --preset {preset}" if preset else "")
    return f"{pretrain}, or on its labels {train}" if plan.like else train


def _first_fold(dataset: str, plan: Plan, configuration: str) -> int | str:
    """Return the fold to begin with: 0, or 'all' if there are too few cases to make folds."""
    from stunet.folds import ALL
    from stunet.preprocessing.folds import find_fold

    try:
        find_fold(dataset, plan, configuration, 0)
    except DataError:
        return ALL
    return 0


def warnings_of(plan: Plan) -> list[str]:
    """Return what a user should know about how the images are turned and mirrored."""
    found = []
    counts = plan.orientations
    if len(counts) > 1:
        shown = ", ".join(f"{count} {code}" for code, count in counts.items())
        turned = sum(counts.values()) - counts.get(plan.orientation or "", 0)
        found.append(
            f"the axes of the images run in {len(counts)} ways ({shown}): {turned} are turned to "
            f"{plan.orientation} in preprocessing, as every image is in prediction"
        )
    fixed = [axis for axis in range(3) if axis not in plan.mirror_axes]
    if fixed:
        found.append(
            f"left and right classes: axis {', '.join(map(str, fixed))} is not mirrored, in training and at test time"
        )
    return found


def _cores() -> int:
    return os.cpu_count() or 1
