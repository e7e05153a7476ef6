"""Features of many cases: which model, which images and regions, and where they go; and probes of them.

inference/features/ computes them, probing/ judges them. A case that is done, and was made from the same, is kept; one
that fails does not stop the others.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import workspace
from stunet.cluster import Shared, check_cluster, workers_on
from stunet.errors import DataError, StunetError, UsageError, closest
from stunet.files import exclusive_lock, json_differences, read_json, remove_staging, sha256_of_json, shared_lock
from stunet.parts import Part, Records, to_merge, unfinished
from stunet.probing.tables import (
    CasePoints,
    Target,
    check_cases,
    check_task,
    read_points,
    read_targets,
)
from stunet.runs.devices import choose_device, set_threads
from stunet.runs.features_cases import FeatureWriter, Task, write_case
from stunet.runs.fetching import fetch_model
from stunet.runs.listener import Listener, Progress
from stunet.runs.probes import ProbeResult, probe_all, write_probes
from stunet.workers import map_cases
from stunet.workspace import FINAL

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.features.model import Model
    from stunet.inference.features.stored import StoredFeatures

TABLE, PROBES = "features.csv", "probe.csv"
PARTS = ".parts"  # folder with what parts of a run have recorded
OF_FILES = ("image", "labels", "points")  # of what features were made from; the rest is model and options


@dataclass(frozen=True, kw_only=True)
class FeaturesRequest:
    """Features to compute: the options of stunet_features, with their defaults.

    Args:
        input: Folder with CASE_0000.nii.gz ..., an image, or a folder of DICOM files (`-i`).
        output: Folder of the features (`-o`).
        model: A model by its name in `stunet_models list`, its folder, or a file of weights; then without dataset and
            configuration.
        dataset: Number or name of the dataset that the model was trained on.
        configuration: Key of the plans' configurations.
        plans: Name of the plans; None: the only ones trained.
        trainer: Name of the trainer class; None: that of the only model there is.
        fold: Of the model; None: the lowest that was trained.
        checkpoint: File name of the checkpoint (`-chk`).
        series: Which series of a DICOM folder: its UID, number or description.
        labels: Folder with a label map of each case, or a file for a single case.
        points: CSV file with points: case, x, y, z in mm, and name.
        world: Of the points: "RAS" as in NIfTI, or "LPS" as in DICOM and ITK.
        pools: What rows of features are of: "case", "class", "point"; None: class with labels, point with points, else
            case.
        stages: Encoder stages, from 0, the finest; None: all.
        probe: CSV file with targets of the cases: case, and a column per target; also name, for targets of rows.
        targets: Columns of it; empty: all.
        task: "classification" or "regression"; None: by the values.
        seed: Of the probe: chooses its folds.
        orientation: That of the training images, such as LPS, where the model does not state it.
        step_size: Step from window to window over their size, above 0 and at most 1.
        precision: Of the network: "auto", "fp32", "bf16" or "fp16"; auto is the fastest that the device has.
        device: "cuda", "cpu" or "mps"; None: cuda where there is one, else cpu.
        threads: Threads on the CPU; None: one per physical core.
        cluster: Compute on Dask workers: "local:2", "tcp://host:8786" or "slurm:8"; None: in this process.
        overwrite: Compute all cases again, and replace what another model or other options have made.
        accept_licence: Accept the licence of weights that have to be downloaded and may not be used commercially.
        num_parts: Number of runs that share the cases (parts.py); the last to finish writes the table and the probes.
        part_id: Which of them this is, from 0.
        merge: Compute nothing; write the table and the probes.
    """

    input: Path
    output: Path
    model: str | Path | None = None
    dataset: int | str | None = None
    configuration: str | None = None
    plans: str | None = None
    trainer: str | None = None
    fold: int | str | None = None
    checkpoint: str = FINAL
    series: str | None = None
    labels: Path | None = None
    points: Path | None = None
    world: str = "RAS"
    pools: Sequence[str] | None = None
    stages: Sequence[int] | None = None
    probe: Path | None = None
    targets: Sequence[str] = ()
    task: str | None = None
    seed: int = 0
    orientation: str | None = None
    step_size: float = 0.5
    precision: str = "auto"
    device: str | None = None
    threads: int | None = None
    cluster: str | None = None
    overwrite: bool = False
    accept_licence: bool = False
    num_parts: int = 1
    part_id: int = 0
    merge: bool = False


@dataclass(frozen=True, kw_only=True)
class FeaturesResult:
    """What was computed.

    Attributes:
        folder: The folder of the features.
        files: The file of each case that succeeded, also of those that were done before, by name.
        errors: The errors of the cases that failed, by name.
        probes: The probes, if they were asked for.
    """

    folder: Path
    files: Mapping[str, Path]
    errors: Mapping[str, StunetError]
    probes: Sequence[ProbeResult] = field(default_factory=tuple)


def features(request: FeaturesRequest, listener: Listener | None = None) -> FeaturesResult:
    """Compute features of images, and probe them. A case that fails does not stop the others.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The images, labels or tables are missing or do not fit each other; or the folder holds others.
        WeightsError: The weights cannot be read, or do not say how images are preprocessed.
    """
    listener = listener or Listener()
    _check(request)
    points = read_points(request.points) if request.points else {}
    targets = read_targets(request.probe, request.targets, request.task) if request.probe else []
    from stunet.inference.features.model import Model, chosen_pools

    pools = chosen_pools(request.pools, request.labels is not None, request.points is not None)
    path = _model_path(request, listener)
    set_threads(request.threads)
    model = Model(
        path,
        fold=request.fold,
        checkpoint=request.checkpoint,
        device=choose_device(request.device),
        precision=request.precision,
        step_size=request.step_size,
        orientation=request.orientation,
    )
    stages = model.checked_stages(request.stages)
    tasks = _tasks(request, model, pools, points, targets, listener)
    classes = _classes(request)
    listener.note(f"{model.name}: stages {', '.join(map(str, stages))}; rows per {', '.join(pools)}")
    options = {"model": model.made_by, "pools": pools, "stages": stages, "classes": classes, "world": request.world}
    if not request.points:
        del options["world"]
    _make_folder(request, tasks)
    run = _Run(request, model, tasks, targets, options, listener)
    if request.num_parts > 1 or request.merge:
        return _compute_part(run)
    what = f"another process writes features into {str(request.output)!r}"
    with exclusive_lock(request.output / ".lock", what, "wait until it is done, or another folder with -o"):
        remove_staging(request.output)
        shutil.rmtree(request.output / PARTS, ignore_errors=True)  # of an earlier run in parts
        files, errors = _compute(run, tasks)
        return _write(run, files, errors)


@dataclass(frozen=True)
class _Run:
    """A computation: what is asked for, what was found, and who is told."""

    request: FeaturesRequest
    model: "Model"
    tasks: Sequence[Task]
    targets: Sequence[Target]
    options: Mapping[str, Any]
    listener: Listener


def _compute_part(run: _Run) -> FeaturesResult:
    """Compute the cases of a part; write the table and the probes if it is the last, or if they are to be merged."""
    from stunet.inference.features.stored import ENDING

    request, listener, written = run.request, run.listener, list[FeaturesResult]()
    folder = request.output / PARTS
    part = to_merge(folder, request.num_parts) if request.merge else Part(request.part_id, request.num_parts)
    names = sha256_of_json([task.case.name for task in run.tasks])
    records = Records(folder, part, {"options": dict(run.options), "cases": names})

    def merge(contents: list[Any]) -> None:
        failed = {name: DataError(*error) for content in contents for name, error in content["errors"].items()}
        files = {task.case.name: request.output / f"{task.case.name}{ENDING}" for task in run.tasks}
        kept = replace(request, overwrite=False)
        for number, task in enumerate(run.tasks):
            name = task.case.name
            if name not in failed and not _is_done(files[name], run.options, task.made_from(), kept):
                what = f"the features of case {name!r} are not there, or its files have changed since"
                raise DataError(what, f"the same command with -num_parts {part.count} -part_id {number % part.count}")
        written.append(_write(run, {name: file for name, file in files.items() if name not in failed}, failed))

    what, hint = f"another process writes features into {str(request.output)!r}", "wait until it is done"
    own = request.output / (".lock-merge" if request.merge else f".lock-part-{part.number}")
    with shared_lock(request.output / ".lock", what, hint), exclusive_lock(own, f"{what} ({part})", hint):
        if request.merge:
            records.merge(merge)
            return written[0]
        tasks = part.take(run.tasks)
        remove_staging(request.output, {f"{task.case.name}{ENDING}" for task in tasks})
        files, errors = _compute(run, tasks)
        content = {"errors": {name: [error.message, error.hint] for name, error in errors.items()}}
        if missing := records.finish(content, merge):
            listener.note(unfinished(part, missing))
    if written:
        return written[0]
    for name, error in errors.items():
        listener.featured(name, None, error)
    return FeaturesResult(folder=request.output, files=files, errors=errors)


def _write(run: _Run, files: Mapping[str, Path], errors: Mapping[str, StunetError]) -> FeaturesResult:
    """Write the table of all cases, and the probes if there are targets."""
    request, listener, targets, probes = run.request, run.listener, run.targets, list[ProbeResult]()
    for name, error in errors.items():
        listener.featured(name, None, error)
    if files:
        subjects = {task.case.name: task.subject for task in run.tasks}
        _write_table(request.output / TABLE, map(_read, files.values()), subjects)
        probes = probe_all(targets, files, subjects, errors, request.seed, listener) if targets else []
    result = FeaturesResult(folder=request.output, files=files, errors=errors, probes=probes)
    if probes:
        write_probes(request.output / PROBES, probes)
        listener.probed(result)
    return result


def _check(request: FeaturesRequest) -> None:
    if request.model and (request.dataset is not None or request.configuration or request.plans or request.trainer):
        raise UsageError("--model names a model; -d, -c, -p and -tr look one up", "leave out one of the two")
    if not request.model and (request.dataset is None or not request.configuration):
        raise UsageError("no model is named", "-d DATASET -c 3d_fullres, or --model NAME")
    check_cluster(request.cluster)
    if not 0 < request.step_size <= 1:
        raise UsageError(f"-step_size {request.step_size:g} is not above 0 and at most 1", "-step_size 0.5")
    if not request.probe and (request.targets or request.task):
        raise UsageError("--target and --task are for a probe", "--probe TARGETS.csv")
    check_task(request.task)
    if not request.input.exists():
        raise DataError(
            f"no input {str(request.input)!r}", "give a folder of images, an image or a DICOM folder with -i"
        )
    if request.output.is_file():
        raise UsageError(f"-o {str(request.output)!r} is a file", "a folder")


def _model_path(request: FeaturesRequest, listener: Listener) -> Path:
    if request.model:
        return fetch_model(str(request.model), listener, accept_licence=request.accept_licence)
    assert request.dataset is not None
    assert request.configuration is not None
    workspace.folder("nnUNet_results")
    dataset = workspace.dataset_name(request.dataset)
    return workspace.find_result(dataset, request.configuration, request.plans, request.trainer, request.checkpoint)


def _tasks(
    request: FeaturesRequest,
    model: "Model",
    pools: Sequence[str],
    points: Mapping[str, CasePoints],
    targets: Sequence[Target],
    listener: Listener,
) -> list[Task]:
    """Return the cases with what belongs to each.

    Raises:
        DataError: A table has a case that does not exist, or nothing can be done for any case.
    """
    from stunet.inference.staging import name_too_long

    cases = model.cases(request.input, request.series)
    names = [case.name for case in cases]
    if request.points:
        check_cases(points, names, request.points, request.input)
    if request.probe:
        check_cases({case for target in targets for case in target.cases}, names, request.probe, request.input)
    subjects = _subjects(request.input, cases, targets)
    labels = _labels(request, names, model.model.ending) if request.labels else {}
    tasks = []
    for case in cases:
        error: StunetError | None = case.error or name_too_long(case.name, [".safetensors"])
        if request.labels and case.name not in labels:
            what = f"case {case.name!r} has no label map in {str(request.labels)!r}"
            error = error or DataError(what, f"add {case.name}{model.model.ending}, or leave the image out")
        if pools == ["point"] and case.name not in points:
            listener.note(f"case {case.name!r} has no points and is left out")
            continue
        if request.points and case.name not in points:
            what = f"case {case.name!r} has no points in {str(request.points)!r}"
            error = error or DataError(what, "add a line, or leave the image out")
        tasks.append(Task(case, subjects[case.name], labels.get(case.name), points.get(case.name), error))
    return tasks


def _subjects(source: Path, cases: "Sequence[InputCase]", targets: Sequence[Target]) -> dict[str, str]:
    """Return whose scan each case is: by the targets, the dataset.json beside the images, DICOM, or else its name."""
    from stunet.datasets.scan_names import Place, subjects_of

    names, folder = [case.name for case in cases], source if source.is_dir() else source.parent
    found = dict(zip(names, subjects_of([Place(folder, (), name) for name in names]), strict=True))
    given = [{case.name: patient for case in cases if case.is_dicom and (patient := _patient(case))}]
    beside = folder.resolve().parent / "dataset.json"
    content = read_json(beside) if beside.is_file() else None
    said = content.get("subjects") if isinstance(content, Mapping) else None
    if isinstance(said, Mapping):  # a key of others, too
        given.append({name: str(said[name]) for name in names if isinstance(said.get(name), str | int)})
    for better in (*given, *(target.subjects for target in targets)):
        # What is said of one of a person's scans holds for those of which nothing is said.
        known = {found[name]: subject for name, subject in better.items()}
        found = {name: better.get(name, known.get(subject, subject)) for name, subject in found.items()}
    return found


def _patient(case: "InputCase") -> str | None:
    from stunet.datasets.dicom_headers import scan
    from stunet.datasets.scans import patient_of

    return next((patient_of(each) for each in scan(case.files[0]).series if each.key == case.series), None)


def _description(folder: Path) -> dict[str, Any] | None:
    from stunet.kinds import CLASSES, read_dataset_json

    return read_dataset_json(folder / "dataset.json", CLASSES) if (folder / "dataset.json").is_file() else None


def _labels(request: FeaturesRequest, names: Sequence[str], ending: str) -> dict[str, Path]:
    """Return the label map of each case that has one."""
    from stunet.datasets.listing import list_images

    assert request.labels is not None
    if request.labels.is_file():
        if len(names) != 1:
            what = f"--labels {str(request.labels)!r} is one file, and there are {len(names)} images"
            raise UsageError(what, "give the folder that holds a label map for each")
        return {names[0]: request.labels}
    if not request.labels.is_dir():
        raise DataError(f"no label maps: no folder {str(request.labels)!r}", "check the path")
    images = list_images(request.labels, ending).images
    # The model's own ending counts more than others.
    found = {each.name: each.path for each in sorted(images, key=lambda each: each.ending == ending)}
    labels = {name: found[name] for name in names if name in found}
    if not labels:
        near = closest(names[0], sorted(found))
        what = f"none of the {len(names)} cases has a label map in {str(request.labels)!r}, such as {names[0]!r}{near}"
        raise DataError(what, f"name label maps like their cases: {names[0]}{ending}")
    return labels


def _classes(request: FeaturesRequest) -> dict[str, list[int]] | None:
    """Return the values of each class as the dataset.json with the label maps, or beside their folder, names them."""
    if request.labels is None:
        return None
    folder = request.labels if request.labels.is_dir() else request.labels.parent
    description = _description(folder) or _description(folder.resolve().parent)
    if description is None:
        return None
    named = {name: list(values) if isinstance(values, list | tuple) else [values] for name, values in
             description["labels"].items()}  # fmt: skip
    return {name: values for name, values in named.items() if name != "ignore" and values != [0]} or None


def _make_folder(request: FeaturesRequest, tasks: Sequence[Task]) -> None:
    taken = {request.input.resolve()} | {path.resolve() for path in (request.labels,) if path}
    if request.output.resolve() in taken | {file.resolve().parent for task in tasks for file in task.case.files}:
        what = f"images and features would share the folder {str(request.output)!r}"
        raise DataError(what, "another folder with -o")
    request.output.mkdir(parents=True, exist_ok=True)


def _compute(run: _Run, tasks: Sequence[Task]) -> tuple[dict[str, Path], dict[str, StunetError]]:
    """Compute those of these cases that are not done; return the files and errors by case."""
    from stunet.inference.features.stored import ENDING

    request, model, options, listener = run.request, run.model, run.options, run.listener
    files: dict[str, Path] = {}
    errors: dict[str, StunetError] = {task.case.name: task.error for task in tasks if task.error}
    names = {task.case.name for task in run.tasks}
    for file in sorted(request.output.glob(f"*{ENDING}")):
        if file.name.removesuffix(ENDING) not in names:
            _check_made_by(file, options, "another folder with -o, or remove it")
    if request.overwrite:  # tables of what is replaced now
        for name in (TABLE, PROBES):
            (request.output / name).unlink(missing_ok=True)
    todo = []
    for task in tasks:
        file = task.file(request.output)
        if not task.error and _is_done(file, options, task.made_from(), request):
            files[task.case.name] = file
        elif not task.error:
            todo.append(task)
    if files:
        listener.note(f"{len(files)} of {len(tasks)} cases are done already")
    with listener.progress(f"features of {model.name}", len(todo)) as progress:
        written = _write_elsewhere if request.cluster and todo else _write_here
        for task, error in written(run, todo, progress):
            if error:
                errors[task.case.name] = error
            else:
                files[task.case.name] = task.file(request.output)
                listener.featured(task.case.name, files[task.case.name], None)
            progress.step(task.case.name)
    order = [task.case.name for task in tasks]
    return {name: files[name] for name in order if name in files}, errors


def _write_here(run: _Run, tasks: Sequence[Task], progress: Progress) -> Iterator[tuple[Task, StunetError | None]]:
    for task in tasks:
        shown = _shown(progress, task.case.name)
        yield task, write_case(run.model, task, run.request.output, run.options, run.request.world, shown)


def _write_elsewhere(run: _Run, tasks: Sequence[Task], progress: Progress) -> Iterator[tuple[Task, StunetError | None]]:
    """Yield the tasks and why they failed as the workers of a cluster finish them."""
    request, listener = run.request, run.listener
    keys = ("fold", "checkpoint", "precision", "step_size", "orientation")
    function = FeatureWriter(
        path=_model_path(request, listener),
        folder=request.output,
        options=run.options,
        world=request.world,
        arguments={key: getattr(request, key) for key in keys},
        device=request.device,
        threads=request.threads,
    )
    shared = Shared([run.model.path, *tasks[0].case.files], [request.output])
    with workers_on(request.cluster, 1, shared, listener.note, listener.warn) as workers:
        for done in map_cases(function, tasks, workers, lambda task: task.case.name):
            error = done.error or done.result
            if error and not done.error:  # of the others, the workers have told
                listener.warn(f"case {done.case.case.name!r} failed: {error.message}")
            yield done.case, error


def _shown(progress: Progress, name: str) -> Any:
    return lambda done, total: progress.part(done / total, name)


def _is_done(file: Path, options: Mapping[str, Any], made_from: Mapping[str, Any], request: FeaturesRequest) -> bool:
    """Return whether a case's features are there, made from the same files.

    Raises:
        DataError: They were made by another model, or with other options.
    """
    if request.overwrite or not file.exists():
        return False
    before = _check_made_by(file, options, "another folder with -o, or --overwrite")
    return all(before.get(key) == made_from.get(key) for key in OF_FILES)


def _check_made_by(file: Path, options: Mapping[str, Any], hint: str) -> Mapping[str, Any]:
    """Return what a case's features were made from.

    Raises:
        DataError: They were made by another model, or with other options, or are damaged.
    """
    before = _read(file).made_from
    if changed := json_differences({k: v for k, v in before.items() if k not in OF_FILES}, dict(options)):
        raise DataError(f"{str(file)!r} was made by another model or with other options: {changed[0]}", hint)
    return before


def _read(file: Path) -> "StoredFeatures":
    from stunet.inference.features.stored import read_features

    return read_features(file)


def _write_table(path: Path, stored: "Iterable[StoredFeatures]", subjects: Mapping[str, str]) -> None:
    from stunet.inference.features.stored import write_table

    write_table(path, stored, subjects)
