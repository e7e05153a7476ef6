"""Run stunet_predict through its stages and cases, and report on them.

inference/pipeline.py does the work; a cascade has a low-resolution stage before its own.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console
from stunet.errors import DataError, Interrupted, StunetError
from stunet.files import exclusive_lock, shared_lock

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.pipeline import Outcome, Pipeline
    from stunet.inference.predictor import Predictor
    from stunet.results.run_report import RunReport

CONTINUE = "the same command with --continue_prediction: finished cases are kept"


def run(args: argparse.Namespace, stages: "list[Predictor]", cases: "list[InputCase]", folder: Path) -> int:
    """Predict stage by stage; a case that failed in one stage is not in the next.

    Returns:
        The exit code.

    Raises:
        Interrupted: SIGTERM was received; finished cases are kept.
    """
    from stunet.results.run_report import RunReport

    report = RunReport(sys.argv, stages[-1].options.device, stages[-1].made_by) if args.report else None
    if report:
        report.write(args.report)  # fail now if it cannot be written
    errors: dict[str, StunetError] = {}
    _make_writable(folder)
    try:
        with _reserved(args, cases, folder), _terminable():
            while stages:
                stage = stages.pop(0)
                target = folder / f"prev_stage_{stage.name}" if stages else folder
                if stages:
                    console.note(f"{stages[0].name} is a cascade: predicting {stage.name} first, into {str(target)!r}")
                _run_stage(args, stage, cases, target, not stages, report, errors)
                ending = stage.model.ending
                cases = [
                    replace(case, previous=target / f"{case.name}{ending}") for case in cases if case.name not in errors
                ]
    finally:  # even if something else ends the run
        for name, error in errors.items():
            console.error("stunet_predict", f"case {name!r} failed: {error.message}", error.hint)
    codes = {error.exit_code for error in errors.values()}
    return 0 if not codes else codes.pop() if len(codes) == 1 else DataError.exit_code


@contextmanager
def _reserved(args: argparse.Namespace, cases: "list[InputCase]", folder: Path) -> Iterator[None]:
    """Lock the folder; parts of a run and runs for one file share it, and each locks its own name there."""
    what, hint = f"another process predicts into {str(folder)!r}", "wait until it is done, or another folder with -o"
    own = None if args.o == folder and args.num_parts == 1 else f"part-{args.part_id}"
    if args.o != folder:
        own = f"case-{cases[0].name}"  # never the name of another lock, such as that of the statistics
    if own is None:
        with exclusive_lock(folder / ".lock", what, hint):
            yield
    else:
        lock = folder / f".lock-{own}"
        with shared_lock(folder / ".lock", what, hint), exclusive_lock(lock, f"{what} ({own})", hint):
            yield


def _run_stage(
    args: argparse.Namespace,
    stage: "Predictor",
    cases: "list[InputCase]",
    target: Path,
    last: bool,
    report: "RunReport | None",
    errors: dict[str, StunetError],
) -> None:
    """Predict the cases into `target`; add errors by case."""
    from stunet.inference.output import check_free, write_record, write_source
    from stunet.inference.pipeline import Pipeline
    from stunet.inference.products import Products

    wanted = Products(args.format, args.save_probabilities, args.preview, args.statistics) if last else Products()
    _make_writable(target)
    quiet = args.disable_progress_bar
    with console.Progress(f"predict {stage.name}", 0, quiet) as progress:
        shown = _Shown(progress)
        ours = args.o in (target, target.parent)  # false for the folder around a single requested file
        whole_folder = ours or not last
        if whole_folder:
            check_free(target)
        pipeline = Pipeline(stage, target, wanted, args.max_memory, shown.begin, shown.window, not whole_folder)
        pipeline.remove_leftovers(None if ours and args.num_parts == 1 else cases)
        todo = _to_do(pipeline, cases, keep=args.continue_prediction and whole_folder)
        if whole_folder:
            write_record(target, _settings(args, target), stage.made_by, stage.result_dataset, stage.model.plan)
            pipeline.write_label_table()
        progress.total = len(todo)
        for outcome in _follow(pipeline, todo, progress, report, args, errors):
            if whole_folder:
                write_source(target, outcome.case)
            if last:
                console.result(str(outcome.file))


def _follow(
    pipeline: "Pipeline",
    cases: "list[InputCase]",
    progress: console.Progress,
    report: "RunReport | None",
    args: argparse.Namespace,
    errors: dict[str, StunetError],
) -> "Iterator[Outcome]":
    """Wait for one case after the other, and yield those that succeed."""
    from stunet.results.statistics import add_statistics

    new, measured = {case.name for case in cases}, {}
    try:
        for outcome in pipeline.run(cases):
            progress.step(outcome.case.name)
            if report:
                report.cases.append(outcome.report)
            if outcome.statistics:  # they may exist even if another requested result failed
                measured[outcome.case.name] = outcome.statistics
                add_statistics(pipeline.folder, measured, new)
            if outcome.error:
                errors[outcome.case.name] = outcome.error
            else:
                yield outcome
    finally:
        if report:
            report.write(args.report)


class _Shown:
    """Shows the windows of the current case as a fraction of the case's step of the progress."""

    def __init__(self, progress: console.Progress) -> None:
        self._progress = progress
        self._name, self._done, self._total = "", 0, 1

    def begin(self, case: "InputCase", windows: int) -> None:
        self._name, self._done, self._total = case.name, 0, windows

    def window(self) -> None:
        self._done += 1
        self._progress.part(self._done / self._total, self._name)


def _known_statistics(pipeline: "Pipeline") -> dict[str, Any]:
    """Return the statistics of cases that were done before, if statistics are wanted."""
    from stunet.results.statistics import read_statistics

    path = pipeline.folder / "statistics.json"
    return read_statistics(path) if pipeline.products.statistics and path.is_file() else {}


def _to_do(pipeline: "Pipeline", cases: "list[InputCase]", keep: bool) -> "list[InputCase]":
    """Return the cases to predict, and remove earlier results of these.

    Those that are done already are left out if `keep`.
    """
    from stunet.datasets.listing import visible
    from stunet.inference.output import check_record, has_other_source, remove_source

    measured = _known_statistics(pipeline) if pipeline.products.statistics else {case.name for case in cases}
    done = [case for case in cases if keep and pipeline.is_done(case) and case.name in measured]
    folder, ending = pipeline.folder, pipeline.ending
    stale = {case.name for case in done if has_other_source(folder, case, folder / f"{case.name}{ending}")}
    if stale:
        console.note(f"{len(stale)} cases again, whose input has changed since (e.g. {min(stale)!r})")
    finished = {case.name for case in done} - stale
    todo = [case for case in cases if case.name not in finished]
    kept = len(cases) - len(todo)
    new = {f"{case.name}{ending}" for case in todo}
    if kept or any(file.name not in new for file in visible(folder.glob(f"*{ending}")) if ending):
        check_record(folder, pipeline.predictor.made_by, kept > 0)
    if kept:
        console.note(f"{kept} of {len(cases)} cases are done already")
    for case in todo:
        remove_source(folder, case)
    pipeline.remove(todo)
    return todo


def _make_writable(folder: Path) -> None:
    from stunet.datasets.listing import not_utf8

    if unusable := not_utf8(folder):
        raise unusable
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write into {str(folder)!r}: {error.strerror}", "another folder with -o") from None


def _settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what nnU-Net records about a prediction in the folder of its results."""
    previous = args.prev_stage_predictions
    return {
        "list_of_lists_or_source_folder": str(args.i),
        "output_folder_or_list_of_truncated_output_files": str(folder),
        "save_probabilities": args.save_probabilities,
        "overwrite": not args.continue_prediction,
        "num_processes_preprocessing": args.npp,
        "num_processes_segmentation_export": args.nps,
        "folder_with_segs_from_prev_stage": previous and str(previous),
        "num_parts": args.num_parts,
        "part_id": args.part_id,
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM, which schedulers send before they kill, end the run like Ctrl-C, but as resumable."""
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
        console.note(f"to go on: {CONTINUE}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
