"""Predict through the stages of a model and its cases, and report on them.

inference/pipeline.py does the work; a cascade has a low-resolution stage before its own.
"""

import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stunet.cluster import Shared, workers_on
from stunet.errors import DataError, Interrupted, StunetError
from stunet.files import exclusive_lock, shared_lock
from stunet.runs.listener import Listener, Progress
from stunet.runs.prediction import PredictedCase, PredictionRequest
from stunet.runs.prediction_elsewhere import predict_on
from stunet.runs.prediction_shared import OfPart, StageRun, Whole, gathered_by, write_report
from stunet.workers import Workers

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.index import Index
    from stunet.inference.pipeline import Outcome, Pipeline
    from stunet.inference.predictor import Predictor

CONTINUE = "the same command with --continue_prediction: finished cases are kept"


def run_stages(
    request: PredictionRequest,
    stages: "list[Predictor]",
    cases: "list[InputCase]",
    names: Sequence[str],
    folder: Path,
    command: Sequence[str],
    listener: Listener,
) -> list[PredictedCase]:
    """Predict stage by stage; a case that failed in one stage is not in the next.

    Args:
        request: What is asked for.
        stages: The models in their order; emptied, so that one at a time is in memory.
        cases: The cases, with the names of their results; of a part, its own.
        names: Of the cases of all parts, in their order.
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
    if report and not _is_part(request):
        write_report(report, request, folder, None)  # fail now if it cannot be written
    errors: dict[str, StunetError] = {}
    lost: list[InputCase] = []
    own, ending = {case.name: case.place(folder) for case in cases}, ""
    _make_writable(folder)
    try:
        read = [file for stage in stages for file in stage.model.checkpoint_files]
        read += [file for case in cases[:1] for file in case.files if file.exists()]
        shared = Shared(read, [folder])
        with (
            _reserved(request, cases, folder),
            _terminable(listener),
            workers_on(
                None if request.merge else request.cluster,
                1,
                shared,
                listener.note,
                listener.warn,
                request.max_memory,
                f"take {CONTINUE}",
            ) as workers,
        ):
            while stages:
                stage = stages.pop(0)
                name = stage.configuration_name
                target = folder / f"prev_stage_{name}" if stages else folder
                if stages:
                    cascade = stages[0].configuration_name
                    listener.note(f"{cascade} is a cascade: predicting {name} first, into {str(target)!r}")
                run = StageRun(request, stage, target, names, not stages, report, errors, listener)
                ending = _merge_stage(run) if request.merge else _run_stage(run, cases, workers, lost)
                previous = stage.model.ending
                lost += [case for case in cases if case.name in errors]
                cases = [
                    replace(case, previous=case.place(target) / f"{case.name}{previous}")
                    for case in cases
                    if case.name not in errors
                ]
    finally:  # even if something else ends the run
        for name, error in errors.items():
            listener.predicted(PredictedCase(name=name, file=None, error=error))
    if request.merge:
        return [PredictedCase(name=name, file=None, error=error) for name, error in errors.items()]
    return [
        PredictedCase(name=name, file=None if name in errors else place / f"{name}{ending}", error=errors.get(name))
        for name, place in own.items()
    ]


@contextmanager
def _reserved(request: PredictionRequest, cases: "list[InputCase]", folder: Path) -> Iterator[None]:
    """Lock the folder; parts of a run and runs for one file share it, and each locks its own name there."""
    what, hint = f"another process predicts into {str(folder)!r}", "wait until it is done, or another folder with -o"
    own = f"part-{request.part_id}" if _is_part(request) else None
    if request.merge:
        own = "merge"
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


def _is_part(request: PredictionRequest) -> bool:
    return request.num_parts > 1 or request.merge


def _run_stage(run: StageRun, cases: "list[InputCase]", workers: Workers, lost: "list[InputCase]") -> str:
    """Predict the cases into the stage's folder; add errors by case. Return the ending of the results.

    Those that were lost in an earlier stage get their line in the index, too, and keep no earlier results.
    """
    from stunet.inference.index import stamp
    from stunet.inference.pipeline import Pipeline
    from stunet.inference.records import check_folder_is_free, write_case_record

    request, target, listener = run.request, run.target, run.listener
    _make_writable(target)
    with listener.progress(f"predict {run.stage.configuration_name}", 0) as progress:
        windows = _WindowProgress(progress)
        ours = request.output in (target, target.parent)  # false for the folder around a single requested file
        # The folder around a single requested file is the user's: no records there, and nothing else is removed.
        whole_folder = ours or not run.last
        if whole_folder:
            check_folder_is_free(target)
        pipeline = Pipeline(
            run.stage, target, run.products, request.max_memory, windows.begin, windows.window, not whole_folder
        )
        # Temporary files of other parts of the same run are in use; those of an index may be in folders below.
        pipeline.remove_leftovers(None if ours and request.num_parts == 1 and not run.index else cases)
        shared = gathered_by(run, pipeline, whole_folder)
        keep, index = request.continue_prediction and whole_folder, run.index
        if index:
            todo = _pending_of_index(pipeline, cases, keep, index, shared, listener)
            pipeline.remove(lost)
            with index.begin() as log:
                for case in lost:
                    index.add(log, case, stamp(case), case.place(target), 0.0, {}, run.errors[case.name])
        else:
            todo = _pending(pipeline, cases, keep, shared, listener)
        stamps = {case.name: stamp(case) for case in todo} if index else {}  # before they are read
        shared.begin({case.name for case in todo})
        # Not known before: what is done, and still valid, is left out.
        progress.total = len(todo)
        try:
            if run.request.cluster:
                outcomes = predict_on(workers, run.request, pipeline, not whole_folder, listener.warn, todo)
            else:
                outcomes = pipeline.run(todo)
            for outcome in _logged(outcomes, index, stamps):
                progress.step(outcome.case.name)
                shared.add(outcome)
                if outcome.error:
                    run.errors[outcome.case.name] = outcome.error
                    continue
                if whole_folder and not index:
                    write_case_record(target, outcome.case)
                if run.last:
                    listener.predicted(PredictedCase(name=outcome.case.name, file=outcome.file))
        finally:
            shared.save()
        shared.finish()
    return pipeline.ending


def _logged(outcomes: "Iterator[Outcome]", index: "Index | None", stamps: Mapping[str, str]) -> "Iterator[Outcome]":
    """Record each outcome in the index, if there is one, before it is passed on."""
    if index is None:
        yield from outcomes
        return
    with index.begin() as log:
        for outcome in outcomes:
            seconds = sum(outcome.report.seconds.values())
            case = outcome.case
            index.add(log, case, stamps[case.name], outcome.file, seconds, outcome.volumes, outcome.error)
            yield outcome


def _merge_stage(run: StageRun) -> str:
    """Write what belongs to all cases of a stage from what the parts handed over; return the ending of the results."""
    from stunet.inference.pipeline import Pipeline

    pipeline = Pipeline(run.stage, run.target, run.products, run.request.max_memory)
    OfPart(run, pipeline).merge()
    return pipeline.ending


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


def _pending(
    pipeline: "Pipeline", cases: "list[InputCase]", keep: bool, shared: "Whole | OfPart", listener: Listener
) -> "list[InputCase]":
    """Return the cases to predict, and remove earlier results of these.

    Those that are done already are left out if `keep`.
    """
    from stunet.datasets.listing import visible
    from stunet.inference.records import check_run_record, is_stale, remove_case_record

    measured = shared.known if pipeline.products.statistics else {case.name for case in cases}
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


def _pending_of_index(
    pipeline: "Pipeline",
    cases: "list[InputCase]",
    keep: bool,
    index: "Index",
    shared: "Whole | OfPart",
    listener: Listener,
) -> "list[InputCase]":
    """As _pending(), by what the index says: no result is opened whose size and time are on record."""
    from stunet.inference.records import check_run_record

    known = index.known() if keep else {}
    *others, ending = pipeline.products.endings(pipeline.predictor.model)
    measured = shared.known if pipeline.products.statistics else None
    todo = []
    for case in cases:
        place = case.place(pipeline.folder)
        is_done = (
            index.is_done(known.get(case.name), case, place / f"{case.name}{ending}")
            and (measured is None or case.name in measured)
            and all((place / f"{case.name}{other}").exists() for other in others)
        )
        if not is_done:
            todo.append(case)
    kept = len(cases) - len(todo)
    check_run_record(pipeline.folder, pipeline.predictor.made_by, kept > 0)
    if kept:
        listener.note(f"{kept} of {len(cases)} cases are done already")
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
