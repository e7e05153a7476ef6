"""Evaluate: measure how good predictions are. evaluation/ does the work, its metrics.py defines the numbers."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import files, workspace
from stunet.cluster import Shared, check_cluster, workers_on
from stunet.errors import DataError, UsageError, first_few
from stunet.files import sha256_of_json
from stunet.kinds import DATASET, read
from stunet.parts import Part, Records, to_merge, unfinished
from stunet.runs.listener import Listener
from stunet.workers import Workers, raise_failed

if TYPE_CHECKING:
    from stunet.evaluation.folders import CasePair, Labels

MAX_PROCESSES = 8  # default; each process holds two volumes


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Predictions to compare with references: the options of stunet_evaluate, with their defaults.

    Args:
        gt_folder: References: a folder or a file; None: those of the dataset.
        pred_folder: Predictions: a folder or a file.
        dataset: Number or name of the dataset whose labels to take (`-d`): labelsTr, labelsTs or gt_segmentations.
        djfile: The dataset.json; None: the one beside predictions or references, or above these.
        output: The summary (`-o`); None: summary.json in the folder of predictions, none for a single file.
        np: Processes; None: one per core, 8 at most.
        chill: Leave out files without a partner, and damaged ones.
        tolerance: Distance in mm at which surfaces still agree, for NSD.
        labels: Label system of the references, by name or as a .toml file; None: labels are those of the dataset.json.
        csv: Also write one row per case and class here.
        report: Also write a page for readers here, which ends with .html.
        num_parts: Number of runs that share the cases (parts.py); the last to finish writes the files.
        part_id: Which of them this is, from 0.
        merge: Compare nothing; write the files from what the parts have measured.
        cluster: Compare the cases on Dask workers: "local:2", "tcp://host:8786" or "slurm:8"; None: in `np` processes.
    """

    gt_folder: Path | None
    pred_folder: Path
    dataset: int | str | None = None
    djfile: Path | None = None
    output: Path | None = None
    np: int | None = None
    chill: bool = False
    tolerance: float = 1.0
    labels: str | None = None
    csv: Path | None = None
    report: Path | None = None
    num_parts: int = 1
    part_id: int = 0
    merge: bool = False
    cluster: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What was measured.

    Attributes:
        metrics: Content of the summary: like nnU-Net's summary.json, with further metrics and class names; empty of a
            part that was not the last.
        output: The summary's file; None if none was written.
        left_out: Why cases were left out, by name; "" for files without a partner.
    """

    metrics: Mapping[str, Any]
    output: Path | None
    left_out: Mapping[str, str]

    @property
    def dice(self) -> float:
        """The mean Dice over the classes."""
        return float(self.metrics["foreground_mean"]["Dice"])


def evaluate(request: EvaluationRequest, listener: Listener | None = None) -> EvaluationResult:
    """Compare predictions with references, and write the summary.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: Files are missing, damaged, or do not fit each other; with `chill`, only if no case is left.
        OutOfMemoryError: A case does not fit into memory.
    """
    listener = listener or Listener()
    _check(request)
    output = request.output or (None if request.pred_folder.is_file() else request.pred_folder / "summary.json")
    labels, ending = _labels(request)
    reference = request.gt_folder or _dataset_references(str(request.dataset), request.pred_folder, ending)

    from stunet.datasets.listing import named
    from stunet.evaluation import folders as evaluation

    cases, unpaired = evaluation.pair(reference, request.pred_folder, ending, request.chill)
    if unpaired:
        names = named(map(Path, unpaired))
        listener.warn(f"{len(unpaired)} files without a partner or content are left out: {names}")
    run = _Run(request, output, reference, cases, labels, tuple(unpaired), listener)
    if request.num_parts > 1 or request.merge:
        return _evaluate_part(run)
    bad: dict[str, str] = {}
    leave_out = (lambda case, error: bad.update({case.name: error.message})) if request.chill else None
    with run.workers(cases) as workers, listener.progress("evaluate", len(cases)) as progress:
        metrics = evaluation.evaluate(cases, labels, request.tolerance, workers, progress.step, leave_out)
    return _write(run, metrics, bad)


@dataclass(frozen=True)
class _Run:
    """An evaluation: what is asked for, what was found, and who is told."""

    request: EvaluationRequest
    output: Path | None
    reference: Path
    cases: "Sequence[CasePair]"
    labels: "Labels"
    unpaired: Sequence[str]
    listener: Listener

    def workers(self, cases: "Sequence[CasePair]") -> AbstractContextManager[Workers]:
        """Provide processes, or workers of a cluster, that compare these cases."""
        processes = min(MAX_PROCESSES, os.cpu_count() or 1) if self.request.np is None else self.request.np
        shared = Shared(read=[file for case in cases[:1] for file in (case.reference, case.prediction)])
        return workers_on(self.request.cluster, processes, shared, self.listener.note, self.listener.warn)


def _evaluate_part(run: _Run) -> EvaluationResult:
    """Compare the cases of a part; write the files of all if it is the last, or if they are to be merged."""
    from stunet.evaluation import folders as evaluation

    request, listener, written = run.request, run.listener, list[EvaluationResult]()
    if run.output is None:
        raise UsageError("a single file cannot be shared between parts", "folders, or no -num_parts")
    folder = run.output.with_name(f".parts-{run.output.stem}")
    part = to_merge(folder, request.num_parts) if request.merge else Part(request.part_id, request.num_parts)
    names = [[case.name, str(case.reference), str(case.prediction)] for case in run.cases]
    agreed = {
        "cases": sha256_of_json(names),
        "labels": run.labels.names,
        "values": [[key, *values] for key, values in run.labels.classes.items()],
        "ignore": run.labels.ignore,
        "known": sorted(run.labels.known),
        "lookup": None if run.labels.lookup is None else run.labels.lookup.tolist(),
        "label_system": request.labels,
        "tolerance": request.tolerance,
        "chill": request.chill,
    }
    records = Records(folder, part, agreed)

    def merge(contents: list[Any]) -> None:
        for number, content in enumerate(contents):
            own, stamps = part.of(number, run.cases), content["stamps"]
            if changed := [case.name for case in own if stamps.get(case.name) != _stamps(case)]:
                what = f"files of {len(changed)} cases have changed since part {number} measured them"
                hint = f"the same command with -num_parts {part.count} -part_id {number}"
                raise DataError(f"{what} (e.g. {changed[0]!r})", hint)
        measured = {name: values for content in contents for name, values in content["measured"].items()}
        bad = {name: message for content in contents for name, message in content["left_out"].items()}
        if not measured:
            raise DataError(f"no case is left: {first_few(list(bad.values()))}", "other files")
        able = [case for case in run.cases if case.name in measured]
        metrics = evaluation.summarise(able, measured, run.labels, request.tolerance)
        written.append(_write(run, metrics, {case.name: bad[case.name] for case in run.cases if case.name in bad}))

    if request.merge:
        records.merge(merge)
        return written[0]
    own = part.take(run.cases)
    stamps = {case.name: _stamps(case) for case in own}  # before they are read
    with run.workers(own) as workers, listener.progress("evaluate", len(own)) as progress:
        measured, failed = evaluation.measure(own, run.labels, request.tolerance, workers, progress.step)
    raise_failed(outcome for outcome in failed if not (request.chill and outcome.bad_files))
    bad = {outcome.case.name: outcome.error.message for outcome in failed if outcome.error}
    missing = records.finish({"measured": measured, "left_out": bad, "stamps": stamps}, merge)
    if missing:
        listener.note(unfinished(part, missing))
    return written[0] if written else EvaluationResult(metrics={}, output=None, left_out=bad)


def _stamps(case: "CasePair") -> list[list[int]]:
    """Return size in bytes and time of change in ns of both files."""
    return [[stat.st_size, stat.st_mtime_ns] for stat in (case.reference.stat(), case.prediction.stat())]


def _write(run: _Run, metrics: dict[str, Any], bad: Mapping[str, str]) -> EvaluationResult:
    """Tell of the summary, and write it and what else is asked for."""
    from stunet.evaluation import folders as evaluation

    request, listener, output = run.request, run.listener, run.output
    for name, message in bad.items():
        listener.warn(f"case {name!r} is left out: {message}")
    if request.labels:
        metrics["label_system"] = request.labels
    left_out = dict.fromkeys(run.unpaired, "") | dict(bad)
    result = EvaluationResult(metrics=metrics, output=output, left_out=left_out)
    listener.evaluated(result)
    if output:
        files.write_json(_with_folder(output), metrics)
        listener.note(f"wrote {output}")
    if request.csv:
        cases = [case for case in run.cases if case.name not in bad]
        evaluation.write_csv(metrics, cases, _with_folder(request.csv))
        listener.note(f"wrote {request.csv}")
    if request.report:
        _write_report(request, run.reference, metrics, left_out, _with_folder(request.report))
        listener.note(f"wrote {request.report}")
    return result


def _write_report(
    request: EvaluationRequest, reference: Path, metrics: Mapping[str, Any], left_out: Mapping[str, str], path: Path
) -> None:
    from stunet.report import evaluation, page

    # With a label system, predictions have other values than references, and slices would compare them as they are.
    dataset = {} if request.labels else _read_dataset(_dataset_file(request))
    images = _raw_images(reference) if dataset else {}
    found = evaluation.page(metrics, request.pred_folder, reference, dataset, images, left_out, request.djfile)
    page.write(found, path)


def _raw_images(references: Path) -> dict[str, list[Path]]:
    """Return the files of the first channel by case, for references in labelsTr or labelsTs of a raw dataset."""
    folder = _folder(references)
    images = folder.with_name(folder.name.replace("labels", "images", 1))
    if images == folder or not images.is_dir():
        return {}
    found = sorted(path for path in images.iterdir() if re.search(r"_0000\.[\w.]+$", path.name))
    return {re.sub(r"_0000\.[\w.]+$", "", path.name): [path] for path in found}


def _check(request: EvaluationRequest) -> None:
    if request.gt_folder is None and request.dataset is None:
        raise UsageError("only one folder is given", "stunet_evaluate GT PRED, or stunet_evaluate -d ID PRED")
    check_cluster(request.cluster)
    if request.np is not None and request.np < 1:
        raise UsageError(f"-np {request.np}: at least one process is needed", "-np 1")
    if not isfinite(request.tolerance) or request.tolerance < 0:
        raise UsageError(f"--tolerance {request.tolerance} is not a distance in mm", "--tolerance 1")
    if request.report and request.report.suffix.lower() != ".html":
        hint = f"--report {request.report / 'report.html'}"
        raise UsageError(f"--report {str(request.report)!r} does not end with .html", hint)
    if request.output and request.output.suffix != ".json":
        raise UsageError(f"-o {str(request.output)!r} does not end with .json", f"-o {request.output / 'summary.json'}")
    for path in filter(None, (request.gt_folder, request.pred_folder)):
        if not path.exists():
            raise DataError(f"no file or folder {str(path)!r}", "check the path")


def _labels(request: EvaluationRequest) -> "tuple[Labels, str]":
    """Return the labels and the ending of the file names."""
    from stunet.evaluation import folders as evaluation
    from stunet.labels import systems

    if not request.labels:
        file = _dataset_file(request)
        dataset = _read_dataset(file)
        return evaluation.labels_of(dataset, file), dataset["file_ending"]
    system = systems.load(request.labels)
    file = request.djfile or _folder(request.pred_folder) / "dataset.json"
    if not request.djfile and not file.is_file():
        return evaluation.labels_of_system(system), ".nii.gz"
    dataset = _read_dataset(file)
    evaluation.labels_of(dataset, file)  # raises an error if they are wrong
    return evaluation.labels_of_system(system, dataset["labels"]), dataset["file_ending"]


def _read_dataset(file: Path) -> dict[str, Any]:
    dataset: dict[str, Any] = read(file, DATASET)
    return dataset


def _dataset_file(request: EvaluationRequest) -> Path:
    if request.djfile:
        return request.djfile
    if request.dataset is not None:
        name = workspace.dataset_name(request.dataset)
        places = [workspace.folder("nnUNet_raw") / name, workspace.preprocessed_dataset(name)]
    else:
        assert request.gt_folder is not None  # _check() requires one of the two
        predictions, references = _folder(request.pred_folder), _folder(request.gt_folder)
        # Above the references is the dataset of a labelsTr; resolved, because it may be a link.
        places = [predictions, references, references.resolve().parent]
    for place in places:
        if (place / "dataset.json").is_file():
            return place / "dataset.json"
    raise DataError(f"no dataset.json in {', '.join(repr(str(p)) for p in places)}", "-djfile /path/to/dataset.json")


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _dataset_references(dataset: str, predictions: Path, ending: str) -> Path:
    """Return a dataset's first folder of labels that has the name of a prediction, whatever their endings."""
    from stunet.datasets.listing import ending_of, visible

    def names(files: Iterable[Path]) -> set[str]:
        ends = ((file.name, len(ending_of(file.name, ending))) for file in visible(files))
        return {name[:-length] for name, length in ends if length}

    name = workspace.dataset_name(dataset)
    raw = workspace.folder("nnUNet_raw") / name
    wanted = names([predictions] if predictions.is_file() else predictions.iterdir())
    folders = [raw / "labelsTr", raw / "labelsTs", workspace.preprocessed_dataset(name) / "gt_segmentations"]
    for folder in folders:
        # One common name is enough: pair() says which files have no partner.
        if wanted & names(folder.glob("*")):
            return folder
    raise DataError(
        f"no reference of {name} has the name of a prediction in {str(predictions)!r}",
        f"stunet_evaluate GT {predictions}, with the folder of the references",
    )


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
