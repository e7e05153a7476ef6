"""Plan a dataset and preprocess it: check the raw files, extract the fingerprint, plan, preprocess.

planning_request.py says what can be asked for.
"""

import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import nnunet, workspace
from stunet.cluster import Shared, check_cluster, workers_on
from stunet.errors import DataError, StunetError, UsageError, closest, last_line
from stunet.kinds import FINGERPRINT, has_classes, read, read_dataset_json
from stunet.plans.files import list_planned, list_plans, plan_path, read_dataset_plan, read_plan
from stunet.plans.plan import PLANNER, Plan
from stunet.runs.listener import Listener
from stunet.runs.planner_choice import Followed, find_followed, make_plan, shown
from stunet.runs.planning_request import (
    CONFIGURATIONS,
    PlanningRequest,
    check_parts,
    complete,
    is_in_parts,
    workers_of,
)
from stunet.workers import Workers

if TYPE_CHECKING:
    from stunet.report.dataset import Look

CASCADE = "3d_cascade_fullres"
WORKERS = {"2d": 8, "3d_lowres": 8}  # upper limits, as in nnU-Net; larger images get fewer because of their memory
FEWER = 4


@dataclass(frozen=True)
class Found:
    """What the check of a dataset's files has found: warnings, and what each case is."""

    warnings: Sequence[str]
    looks: "Sequence[Look]"


@dataclass(frozen=True, kw_only=True)
class PlanningResult:
    """A planned dataset.

    Attributes:
        dataset: Full name.
        plan: What was planned; its `name` is what train() takes as `plans`. None of a part whose dataset cannot be
            planned before other parts are done.
        path: The plans file; None after a dry run.
    """

    dataset: str
    plan: Plan | None
    path: Path | None


def plan(request: PlanningRequest, listener: Listener | None = None) -> PlanningResult:
    """Plan and preprocess a dataset.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The dataset is missing or damaged.
        OutOfMemoryError: The network does not fit into the memory that is planned for, or a case into this machine's.
    """
    listener = listener or Listener()
    (dataset,), request, normalization, followed = _prepared(request, [request.dataset], listener)
    return _plan_and_preprocess(dataset, request, normalization, followed, listener)


def plan_each(request: PlanningRequest, datasets: Sequence[int | str], listener: Listener) -> list[StunetError]:
    """Plan and preprocess several datasets in place of the request's; return the errors of those that failed.

    Raises:
        UsageError: As for plan(); nothing is planned.
        DataError: A dataset is missing; nothing is planned.
    """
    names, request, normalization, followed = _prepared(request, datasets, listener)
    problems: list[StunetError] = []
    for dataset in names:
        try:
            _plan_and_preprocess(dataset, request, normalization, followed, listener)
        except StunetError as error:
            # Of the same class, which decides the exit code.
            problems.append(error if len(names) == 1 else type(error)(f"{dataset}: {error.message}", error.hint))
    return problems


def _prepared(
    request: PlanningRequest, datasets: Sequence[int | str], listener: Listener
) -> tuple[list[str], PlanningRequest, str | None, Followed]:
    """Return names of datasets, the request with its preset's values, the preset's normalization, what is followed."""
    check_parts(request)
    check_cluster(request.cluster)
    names = [_raw_dataset(dataset) for dataset in datasets]
    workspace.folder("nnUNet_preprocessed")
    request, normalization = complete(request, listener)
    _check_configurations(names, request.configurations)
    return names, request, normalization, find_followed(request, listener)


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


def _plan_and_preprocess(
    dataset: str, request: PlanningRequest, normalization: str | None, followed: Followed, listener: Listener
) -> PlanningResult:
    target = workspace.preprocessed_dataset(dataset)
    writes = not (request.dry_run or request.no_pp)
    if request.cluster and writes:
        target.mkdir(parents=True, exist_ok=True)
    shared = Shared([workspace.raw_dataset(dataset) / "dataset.json"], [target] if writes else [])
    readers = request.npfp or min(8, _cores())
    with workers_on(request.cluster, readers, shared, listener.note, listener.warn) as workers:
        return _plan_with(workers, dataset, request, normalization, followed, listener)


def _plan_with(
    workers: Workers,
    dataset: str,
    request: PlanningRequest,
    normalization: str | None,
    followed: Followed,
    listener: Listener,
) -> PlanningResult:
    nnunet.check_nnunet()
    readers = request.npfp or min(8, _cores())
    nnunet.limit_processes()
    from stunet.plans.splits import check_splits

    # Before the files are read, which takes longest: nnU-Net would only fail after that.
    check_splits(dataset)
    planned = _planned(dataset, request) if request.plans else None
    _check_name(dataset, request)
    wants_page = request.report and not request.dry_run
    found = None
    if not is_in_parts(request):
        found = None if request.no_check else _check_files(dataset, workers, wants_page, listener)
    elif planned is None:
        from stunet.runs.planning_parts import analyse

        if not analyse(dataset, request, readers, listener):
            return PlanningResult(dataset=dataset, plan=None, path=None)
    elif not request.no_check and not request.merge:
        from stunet.runs.planning_parts import check_part

        check_part(dataset, request, readers, listener)
    if planned is None:
        # Parts of one run plan the same at the same time.
        wait = (lambda what: None) if is_in_parts(request) else None
        with _scratch(request.dry_run), workspace.planning(dataset, wait):
            planned = _plan(dataset, readers, request, normalization, followed, listener)
    path = None if request.dry_run else workspace.preprocessed_dataset(dataset) / f"{planned.name}.json"
    result = PlanningResult(dataset=dataset, plan=planned, path=path)
    listener.planned(result)
    for warning in warnings_of(planned):
        listener.warn(warning)
    if path is None:
        return result
    listener.note(f"plans: {path}")
    page = path.with_suffix(".html")
    if not is_in_parts(request):
        page.unlink(missing_ok=True)  # that of an earlier plan
    if found and wants_page:
        _write_page(dataset, planned, found, page, listener)
    cluster = workers if request.cluster else None
    if not request.no_pp and _preprocess(dataset, planned, request, listener, cluster):
        listener.note(f"next: {_training_command(dataset, planned, request)}")
    return result


def _planned(dataset: str, request: PlanningRequest) -> Plan:
    """Return the existing plan that was asked for."""
    from stunet.plans.check import check_plan

    plan = read_dataset_plan(plan_path(dataset, request.plans))
    # Of nnU-Net's configurations a small dataset has no 3d_lowres; any other that is named has to exist.
    asked = [name for name in request.configurations if name in plan.configurations or name not in CONFIGURATIONS]
    if not asked:
        what = f"the plans {request.plans!r} have no configuration {' or '.join(request.configurations)}"
        raise UsageError(what, f"-c {' '.join(plan.configurations)}")
    for name in asked:
        check_plan(plan, name)
    return plan


def _check_name(dataset: str, request: PlanningRequest) -> None:
    """Raise UsageError if plans that another program made have the name that is asked for: they would be replaced."""
    name, is_ours = request.overwrite_plans_name, request.planner == PLANNER
    if name in list_plans(dataset) and read_plan(plan_path(dataset, name)).is_planned_by_us != is_ours:
        whose = "nnU-Net's" if is_ours else "stunet's"
        raise UsageError(f"-overwrite_plans_name {name}, and plans of this name are {whose}", "another name")


def _write_page(dataset: str, plan: Plan, found: Found, path: Path, listener: Listener) -> None:
    """Write the report of the dataset; no plan may fail for it."""
    try:
        _page_of(dataset, plan, found, path)
    except Exception as error:  # noqa: BLE001 - whatever it is: the plans are there
        listener.warn(f"no page about the dataset: {last_line(error)}")
    else:
        listener.note(f"wrote {path}")


def _page_of(dataset: str, plan: Plan, found: Found, path: Path) -> None:
    from stunet.folds import FILE, read_folds
    from stunet.report import dataset as report
    from stunet.report import page

    folder, target = workspace.raw_dataset(dataset), workspace.preprocessed_dataset(dataset)
    description = read_dataset_json(folder / "dataset.json")
    folds = [vars(fold) for fold in read_folds(target / FILE)] if (target / FILE).is_file() else []
    chosen = report.Chosen(plan, folds, found.warnings, warnings_of(plan))
    page.write(report.page(dataset, description, found.looks, chosen), path)


def _check_files(dataset: str, workers: Workers, wants_page: bool, listener: Listener) -> Found:
    """Return what the check of all files has found; the listener has been told of the warnings."""
    from stunet.datasets import read_dataset
    from stunet.datasets.check import examine, judge_cases, see_nothing
    from stunet.report.dataset import observer

    folder = workspace.raw_dataset(dataset)
    names = [case.name for case in read_dataset(folder)[0]]
    with listener.progress(f"check {dataset}", len(names)) as progress:
        see = observer(names, read_dataset_json(folder / "dataset.json")) if wants_page else see_nothing
        checked = examine(folder, workers, progress.step, see=see)
    found = Found(judge_cases(folder, checked), [case.seen for case in checked.values()])
    for warning in found.warnings:
        listener.warn(warning)
    return found


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
    followed: Followed,
    listener: Listener,
) -> Plan:
    from stunet.plans.fingerprint import extract_fingerprint

    listener.note("extract the fingerprint, plan")
    # The number of cases is known with the first one; with an up-to-date fingerprint there is none.
    with listener.progress("fingerprint", 0) as progress:

        def step(name: str, cases: int) -> None:
            progress.total = cases
            progress.step(name)

        fingerprint = extract_fingerprint(dataset, workers, request.clean, step)
    return make_plan(dataset, fingerprint, request, normalization, followed, listener)


def _preprocess(
    dataset: str, plan: Plan, request: PlanningRequest, listener: Listener, cluster: Workers | None
) -> bool:
    """Preprocess, or do what a part does of that; return whether all cases are done."""
    from stunet.parts import Part, unfinished
    from stunet.preprocessing.dataset import merge_parts, pending_cases, preprocess, stale_cases

    asked, wanted = workers_of(request), request.configurations
    if wanted is CONFIGURATIONS and not has_classes(read_dataset_json(workspace.raw_dataset(dataset) / "dataset.json")):
        # A pre-training takes one, and images without labels are many.
        wanted = [next(name for name in ("3d_fullres", "2d") if name in plan.configurations)]
        listener.note(f"{wanted[0]} is preprocessed; -c names others")
    part, missing = Part(request.part_id, request.num_parts), ""
    for position, name in enumerate(wanted):
        if name not in plan.configurations and name in CONFIGURATIONS:
            continue  # this dataset needs no 3d_lowres, or has no third dimension
        if request.merge:
            merge_parts(dataset, plan, [name], request.num_parts)
            continue
        workers: Workers
        if cluster is not None:
            workers = cluster
        elif asked:
            workers = asked[position if len(asked) > 1 else 0]
        else:
            workers = _fitting(dataset, plan, name, min(WORKERS.get(name, FEWER), _cores()), listener)
        todo = len(pending_cases(dataset, plan, [name], part))
        for reason in stale_cases(dataset, plan, [name], part):
            listener.note(reason)
        with listener.progress(f"preprocess {name}", todo) as progress:
            missing = preprocess(dataset, plan, [name], workers, progress.step, part=part) or missing
    if missing:
        listener.note(unfinished(part, missing))
    return not missing


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


def _training_command(dataset: str, plan: Plan, request: PlanningRequest) -> str:
    """Return the command that trains what was planned."""
    number = workspace.dataset_number(dataset)
    first = "3d_fullres" if "3d_fullres" in plan.configurations else "2d"
    # Both commands find the plans by themselves if they are the only ones that were planned.
    chosen = "" if list_planned(dataset) == [plan.name] else f" -p {plan.name}"
    chosen += f" --pretrained {shlex.quote(str(request.pretrained))}" if request.pretrained else ""
    pretrain = f"stunet_pretrain -d {number}" + (f" -c {first}" if first != "3d_fullres" else "") + chosen
    if not has_classes(read_dataset_json(workspace.raw_dataset(dataset) / "dataset.json")):
        return pretrain
    fold = _first_fold(dataset, plan, first)
    train = f"stunet_train {number} {first} {fold}{chosen}" + (f" --preset {request.preset}" if request.preset else "")
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
        turned = sum(counts.values()) - counts.get(plan.orientation or "", 0)
        found.append(
            f"the axes of the images run in {len(counts)} ways ({shown(counts)}): {turned} are turned to "
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
