"""Predict through the stages of a model and its cases, and report on them.

inference/pipeline.py does the work; a cascade has a low-resolution stage before its own.
"""

import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.cluster import Shared, workers_on
from stunet.errors import DataError, Interrupted, StunetError
from stunet.files import exclusive_lock, shared_lock
from stunet.results.formats import DEFAULT
from stunet.runs.listener import Listener, Progress
from stunet.runs.prediction import PredictedCase, PredictionRequest
from stunet.runs.prediction_elsewhere import predict_on
from stunet.workers import Workers

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.pipeline import Outcome, Pipeline
    from stunet.inference.predictor import Predictor
    from stunet.results.run_report import RunReport

CONTINUE = "the same command with --continue_prediction: finished cases are kept"


def run_stages(
    request: PredictionRequest,
    stages: "list[Predictor]",
    cases: "list[InputCase]",
    folder: Path,
    command: Sequence[str],
    listener: Listener,
) -> list[PredictedCase]:
    """Predict stage by stage; a case that failed in one stage is not in the next.

    Args:
        request: What is asked for.
        stages: The models in their order; emptied, so that one at a time is in memory.
        cases: The cases, with the names of their results.
        folder: Where the results of the last stage go.
        command: The command line, for the report.
        listener: Told of each finished case, and of those that failed at the end.

    Raises:
        Interrupted: SIGTERM was received; finished cases are kept.
    """
    from stunet.results.run_report import RunReport

    report = RunReport(command, stages[-1].options.device, stages[-1].made_by) if request.report else None
    if request.report and request.report.resolve().parent == folder.resolve():
        _make_writable(folder)
    if report:
        _write_report(report, request, folder, None)  # fail now if it cannot be written
    errors: dict[str, StunetError] = {}
    names, ending = [case.name for case in cases], ""
    _make_writable(folder)
    try:
        read = [file for stage in stages for file in stage.model.checkpoint_files]
        read += [file for case in cases[:1] for file in case.files if file.exists()]
        shared = Shared(read, [folder])
        with (
            _reserved(request, cases, folder),
            _terminable(listener),
            workers_on(
                request.cluster, 1, shared, listener.note, listener.warn, request.max_memory, f"take {CONTINUE}"
            ) as workers,
        ):
            while stages:
                stage = stages.pop(0)
                name = stage.configuration_name
                target = folder / f"prev_stage_{name}" if stages else folder
                if stages:
                    cascade = stages[0].configuration_name
                    listener.note(f"{cascade} is a cascade: predicting {name} first, into {str(target)!r}")
                ending = _run_stage(request, stage, cases, target, not stages, workers, report, errors, listener)
                previous = stage.model.ending
                cases = [
                    replace(case, previous=target / f"{case.name}{previous}")
                    for case in cases
                    if case.name not in errors
                ]
    finally:  # even if something else ends the run
        for name, error in errors.items():
            listener.predicted(PredictedCase(name=name, file=None, error=error))
    return [
        PredictedCase(name=name, file=None if name in errors else folder / f"{name}{ending}", error=errors.get(name))
        for name in names
    ]


@contextmanager
def _reserved(request: PredictionRequest, cases: "list[InputCase]", folder: Path) -> Iterator[None]:
    """Lock the folder; parts of a run and runs for one file share it, and each locks its own name there."""
    what, hint = f"another process predicts into {str(folder)!r}", "wait until it is done, or another folder with -o"
    own = None if request.output == folder and request.num_parts == 1 else f"part-{request.part_id}"
    if request.output != folder:
        own = f"case-{cases[0].name}"  # never the name of another lock, such as that of the statistics
    if own is None:
        with exclusive_lock(folder / ".lock", what, hint):
            yield
    else:
        # The folder's own lock is shared among parts, and excludes a run for the whole folder.
        lock = folder / f".lock-{own}"
        with shared_lock(folder / ".lock", what, hint), exclusive_lock(lock, f"{what} ({own})", hint):
            yield


def _run_stage(
    request: PredictionRequest,
    stage: "Predictor",
    cases: "list[InputCase]",
    target: Path,
    last: bool,
    workers: Workers,
    report: "RunReport | None",
    errors: dict[str, StunetError],
    listener: Listener,
) -> str:
    """Predict the cases into `target`; add errors by case. Return the ending of the results."""
    from stunet.inference.pipeline import Pipeline
    from stunet.inference.products import Products
    from stunet.inference.records import check_folder_is_free, write_case_record, write_run_record

    wanted = Products()
    if last:
        form = request.format or DEFAULT
        wanted = Products(form, request.save_probabilities, request.preview, request.statistics)
    _make_writable(target)
    with listener.progress(f"predict {stage.configuration_name}", 0) as progress:
        windows = _WindowProgress(progress)
        ours = request.output in (target, target.parent)  # false for the folder around a single requested file
        # The folder around a single requested file is the user's: no records there, and nothing else is removed.
        whole_folder = ours or not last
        if whole_folder:
            check_folder_is_free(target)
        pipeline = Pipeline(stage, target, wanted, request.max_memory, windows.begin, windows.window, not whole_folder)
        # Temporary files of other parts of the same run are in use.
        pipeline.remove_leftovers(None if ours and request.num_parts == 1 else cases)
        todo = _pending(pipeline, cases, request.continue_prediction and whole_folder, listener)
        if whole_folder:
            write_run_record(target, _settings(request, target), stage.made_by, stage.result_dataset, stage.model.plan)
            pipeline.write_label_table()
        # Not known before: what is done, and still valid, is left out.
        progress.total = len(todo)
        outcomes = (
            predict_on(workers, request, pipeline, not whole_folder, listener.warn, todo)
            if request.cluster
            else pipeline.run(todo)
        )
        for outcome in _follow(pipeline, outcomes, todo, progress, report, request, errors):
            if whole_folder:
                write_case_record(target, outcome.case)
            if last:
                listener.predicted(PredictedCase(name=outcome.case.name, file=outcome.file))
    return pipeline.ending


def _follow(
    pipeline: "Pipeline",
    outcomes: "Iterator[Outcome]",
    cases: "list[InputCase]",
    progress: Progress,
    report: "RunReport | None",
    request: PredictionRequest,
    errors: dict[str, StunetError],
) -> "Iterator[Outcome]":
    """Wait for one case after the other, and yield those that succeed."""
    from stunet.results.statistics import add_statistics

    new, measured = {case.name for case in cases}, {}
    try:
        for outcome in outcomes:
            progress.step(outcome.case.name)
            if report:
                report.cases.append(outcome.report)
            if outcome.statistics:  # they may exist even if another requested result failed
                measured[outcome.case.name] = outcome.statistics
                # By name, in whatever order cases are done.
                add_statistics(pipeline.folder, dict(sorted(measured.items())), new)
            if outcome.error:
                errors[outcome.case.name] = outcome.error
            else:
                yield outcome
    finally:
        if report:
            _write_report(report, request, pipeline.folder, pipeline.predictor.model.folder)


def _write_report(report: "RunReport", request: PredictionRequest, folder: Path, model: Path | None) -> None:
    """Write what has been recorded so far: as a page for readers if its file ends with .html, else as JSON."""
    assert request.report is not None
    if request.report.suffix.lower() != ".html":
        report.write(request.report)
        return
    from stunet.inference.products import PREVIEW
    from stunet.report import page, prediction

    try:
        page.write(prediction.page(report.to_json(), folder, model, PREVIEW), request.report)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        what = f"cannot write the report {str(request.report)!r}: {error.strerror}"
        raise DataError(what, "name another file") from None


class _WindowProgress:
    """Shows the windows of the current case, as a share of the case's step and with their numbers."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._name, self._done, self._total = "", 0, 1

    def begin(self, case: "InputCase", windows: int) -> None:
        self._name, self._done, self._total = case.name, 0, windows

    def window(self) -> None:
        self._done += 1
        self._progress.part(self._done / self._total, f"{self._name}, window {self._done} of {self._total}")


def _known_statistics(pipeline: "Pipeline") -> dict[str, Any]:
    """Return the statistics of cases that were done before, if statistics are wanted."""
    from stunet.results.statistics import read_statistics

    path = pipeline.folder / "statistics.json"
    return read_statistics(path) if pipeline.products.statistics and path.is_file() else {}


def _pending(pipeline: "Pipeline", cases: "list[InputCase]", keep: bool, listener: Listener) -> "list[InputCase]":
    """Return the cases to predict, and remove earlier results of these.

    Those that are done already are left out if `keep`.
    """
    from stunet.datasets.listing import visible
    from stunet.inference.records import check_run_record, is_stale, remove_case_record

    measured = _known_statistics(pipeline) if pipeline.products.statistics else {case.name for case in cases}
    done = [case for case in cases if keep and pipeline.is_done(case) and case.name in measured]
    folder, ending = pipeline.folder, pipeline.ending
    stale = {case.name for case in done if is_stale(folder, case, folder / f"{case.name}{ending}")}
    if stale:
        listener.note(f"{len(stale)} cases again, whose input has changed since (e.g. {min(stale)!r})")
    finished = {case.name for case in done} - stale
    todo = [case for case in cases if case.name not in finished]
    kept = len(cases) - len(todo)
    new = {f"{case.name}{ending}" for case in todo}
    if kept or any(file.name not in new for file in visible(folder.glob(f"*{ending}")) if ending):
        check_run_record(folder, pipeline.predictor.made_by, kept > 0)
    if kept:
        listener.note(f"{kept} of {len(cases)} cases are done already")
    for case in todo:
        remove_case_record(folder, case)
    pipeline.remove(todo)
    return todo


def _make_writable(folder: Path) -> None:
    from stunet.datasets.listing import not_utf8

    if unusable := not_utf8(folder):
        raise unusable
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Writing is the only sure test: permission bits say nothing of a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write into {str(folder)!r}: {error.strerror}", "another folder with -o") from None


def _settings(request: PredictionRequest, folder: Path) -> dict[str, Any]:
    """Return what nnU-Net records about a prediction in the folder of its results."""
    previous = request.prev_stage_predictions
    return {
        "list_of_lists_or_source_folder": str(request.input),
        "output_folder_or_list_of_truncated_output_files": str(folder),
        "save_probabilities": request.save_probabilities,
        "overwrite": not request.continue_prediction,
        "num_processes_preprocessing": request.npp,
        "num_processes_segmentation_export": request.nps,
        "folder_with_segs_from_prev_stage": previous and str(previous),
        "num_parts": request.num_parts,
        "part_id": request.part_id,
    }


@contextmanager
def _terminable(listener: Listener) -> Iterator[None]:
    """Make SIGTERM, which schedulers send before they kill, end the run like Ctrl-C, but as resumable.

    Only the main thread can handle signals; in another one, a program that uses the Python API keeps its own handling.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Interrupted("stopped by a signal", CONTINUE) from None
        listener.note(f"to go on: {CONTINUE}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
