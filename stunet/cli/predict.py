"""stunet_predict: which model segments which images, and where the results go. inference/predictor.py does the work.

What can be wrong is looked for before the first case; a case that fails later does not stop the others.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console
from stunet.cli import common, predict_options
from stunet.cli.models import ShownDownload
from stunet.errors import DataError, Interrupted, StunetError, UsageError, WeightsError

if TYPE_CHECKING:
    from stunet.inference.cases import Case, Model
    from stunet.inference.predictor import Predictor
    from stunet.labels import LabelSystem

CONTINUE = "the same command with --continue_prediction: finished cases are kept"


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    return common.run(predict_options.new_parser(), _predict, argv)


def _predict(args: argparse.Namespace) -> int:
    predict_options.check(args)
    from stunet import labels
    from stunet.inference.cases import find_cases, open_model

    system = labels.load(args.labels) if args.labels else None
    model = open_model(_model_folder(args), args.f, args.chk)
    cases = find_cases(args.i, model)[args.part_id :: args.num_parts]
    if not cases:
        console.note(f"no case is left for part {args.part_id} of {args.num_parts}")
        return 0
    if args.prev_stage_predictions:
        cases = [_with_previous(case, args.prev_stage_predictions, model) for case in cases]
    folder, cases = _output(args, model, cases)
    stages = _stages(args, model, len(cases), system)
    if args.dry_run:
        _describe(stages, cases, folder)
        return 0
    with _terminable():
        return _run(args, stages, cases, folder)


def _model_folder(args: argparse.Namespace) -> Path:
    from stunet import workspace

    if args.model:
        return _named_model(args)
    workspace.folder("nnUNet_results")
    return workspace.find_result(workspace.dataset_name(args.d), args.c, args.p, args.tr or workspace.TRAINER)


def _named_model(args: argparse.Namespace) -> Path:
    """The folder of a model of the store, which may have to be downloaded, or the one that is given as a path."""
    from stunet.models import registry, store

    there = store.find_installed(args.model)
    if entry := None if there else registry.look_up(args.model):
        registry.plans_of(entry)  # or an error, before the download, for what cannot predict
    with nullcontext() if args.disable_progress_bar else ShownDownload(args.model) as shown:
        path = store.find_model(args.model, offline=args.dry_run, on_bytes=shown)
    if path.is_file():
        hint = f"stunet_models import {path}"
        if there:
            hint = f"stunet_train --pretrained {there.name}, or {hint} with the --pkl of its training and a --name"
        raise WeightsError(f"{str(path)!r} is a file of weights, and prediction takes a model folder", hint)
    return path


def _with_previous(case: "Case", folder: Path, model: "Model") -> "Case":
    file = folder / f"{case.name}{model.ending}"
    if not file.is_file():
        raise DataError(
            f"no prediction of the previous stage for case {case.name!r}: no file {str(file)!r}",
            "leave out -prev_stage_predictions, and the previous stage is predicted first",
        )
    return replace(case, previous=file)


def _output(args: argparse.Namespace, model: "Model", cases: "list[Case]") -> "tuple[Path, list[Case]]":
    """The folder of the results, and the cases under the names of their results."""
    folder = args.o
    if folder.name.endswith(model.ending) and not folder.is_dir():
        if len(cases) > 1:
            raise UsageError(f"-o {str(folder)!r} is one file for {len(cases)} cases", "name a folder with -o")
        cases = [replace(cases[0], name=folder.name.removesuffix(model.ending))]
        folder = folder.parent
    inputs = {file.resolve() for case in cases for file in case.files} | {args.i.resolve()}
    results = {(folder / f"{case.name}{model.ending}").resolve() for case in cases}
    if folder.resolve() in inputs or results & inputs:
        raise DataError(f"input and results would share the folder {str(folder)!r}", "another folder with -o")
    return folder, cases


def _stages(args: argparse.Namespace, model: "Model", count: int, system: "LabelSystem | None") -> "list[Predictor]":
    """The model, whose results are in the labels of `system`, and before it those that it takes predictions of."""
    stages = [_load(args, model, count, system)]
    if args.prev_stage_predictions and not stages[0].previous_stage:
        raise UsageError(f"{stages[0].name} has no previous stage", "leave out -prev_stage_predictions")
    while stages[0].previous_stage and not args.prev_stage_predictions:
        stages.insert(0, _load(args, _sibling(stages[0]), count))
    return stages


def _load(args: argparse.Namespace, model: "Model", count: int, system: "LabelSystem | None" = None) -> "Predictor":
    from stunet.inference.predictor import Options, Predictor

    options = Options(
        device=common.device(args.device),
        step_size=args.step_size,
        mirroring=not args.disable_tta,
        everything_on_device=not args.not_on_device,
        save_probabilities=args.save_probabilities,
        labels=system,
        v1_preprocessing=args.v1_preprocessing,
        show_tiles=count == 1 and not args.disable_progress_bar and sys.stderr.isatty(),
        verbose=args.verbose,
    )
    return Predictor(model, options)


def _sibling(cascade: "Predictor") -> "Model":
    """The model of the previous stage, which stands beside that of the cascade."""
    from stunet.inference.cases import open_model

    folder = cascade.model.folder.resolve()
    previous = folder.with_name(f"{folder.name.rpartition('__')[0]}__{cascade.previous_stage}")
    if not previous.is_dir():
        raise DataError(
            f"{cascade.name} needs predictions of {cascade.previous_stage}, and there is no model {str(previous)!r}",
            f"train {cascade.previous_stage}, or give its predictions with -prev_stage_predictions",
        )
    return open_model(previous, None, cascade.model.checkpoint)


def _describe(stages: "list[Predictor]", cases: "list[Case]", folder: Path) -> None:
    for stage in stages:
        console.result(f"model          {stage.model.folder}")
        console.result(f"configuration  {stage.name}, patch {' x '.join(map(str, stage.patch))}")
        console.result(f"folds          {', '.join(map(str, stage.model.folds))}")
    console.result(f"device         {stages[-1].options.device}")
    console.result(f"results        {folder}")
    rows = [(case.name, ", ".join(file.name for file in case.files), _memory(stages[-1], case)) for case in cases]
    console.table(("case", "input", "memory for logits"), rows)


def _memory(stage: "Predictor", case: "Case") -> str:
    from stunet.inference.cases import geometry

    if case.is_dicom:
        return "unknown"
    try:
        return f"{stage.peak_gb(*geometry(case)):.2f} GB"
    except DataError as error:
        return error.message


def _run(args: argparse.Namespace, stages: "list[Predictor]", cases: "list[Case]", folder: Path) -> int:
    """Predicts stage by stage; a case that failed in one is not in the next."""
    from stunet.inference.output import write_record

    errors: dict[str, StunetError] = {}
    while stages:
        stage = stages.pop(0)
        target = folder / f"prev_stage_{stage.name}" if stages else folder
        if stages:
            console.note(f"{stages[0].name} is a cascade: predicting {stage.name} first, into {str(target)!r}")
        _make_writable(target)
        stage.remove_leftovers(target, cases if args.num_parts > 1 else None)
        whole_folder = bool(stages) or folder == args.o
        todo = _to_do(stage, cases, target, keep=args.continue_prediction and whole_folder)
        if whole_folder:
            write_record(target, _settings(args, target), stage.made_by, stage.result_dataset, stage.model.plans)
        errors |= _predict_stage(args, stage, todo, target, show=not stages)
        ending = stage.model.ending
        cases = [replace(case, previous=target / f"{case.name}{ending}") for case in cases if case.name not in errors]
    for name, error in errors.items():
        console.error("stunet_predict", f"case {name!r} failed: {error.message}", error.hint)
    return DataError.exit_code if errors else 0


def _to_do(stage: "Predictor", cases: "list[Case]", target: Path, keep: bool) -> "list[Case]":
    """The cases without those that are done, if these are to be kept; earlier results of what is to do are removed."""
    from stunet.inference.output import check_record

    todo = [case for case in cases if not (keep and stage.is_done(case, target))]
    kept = len(cases) - len(todo)
    new = {f"{case.name}{stage.model.ending}" for case in todo}
    if kept or any(file.name not in new for file in target.glob(f"*{stage.model.ending}")):
        check_record(target, stage.made_by, kept > 0)
    if kept:
        console.note(f"{kept} of {len(cases)} cases are done already")
    for case in todo:
        stage.remove(case, target)
    return todo


def _predict_stage(
    args: argparse.Namespace, stage: "Predictor", cases: "list[Case]", target: Path, show: bool
) -> dict[str, StunetError]:
    """Predicts the cases, and returns the errors by case; `show` puts each result's path on stdout."""
    errors = {}
    quiet = args.disable_progress_bar or stage.options.show_tiles
    with console.Progress(f"predict {stage.name}", len(cases), quiet) as progress:
        for outcome in stage.predict(cases, target):
            progress.step(outcome.case.name)
            if outcome.error:
                errors[outcome.case.name] = outcome.error
            elif show:
                console.result(str(outcome.file))
    return errors


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write into {str(folder)!r}: {error.strerror}", "another folder with -o") from None


def _settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What nnU-Net says about a prediction in the folder of its results."""
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
    """SIGTERM, which schedulers send before they kill, ends the run like Ctrl-C, but as resumable."""
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
