"""stunet_predict: which model segments which images, and where the results go. inference/predictor.py does the work.

What can be wrong is looked for before the first case; a case that fails later does not stop the others.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console, labels
from stunet.cli import common
from stunet.errors import DataError, Interrupted, StunetError, UsageError

if TYPE_CHECKING:
    from stunet.inference.cases import Case, Model
    from stunet.inference.predictor import Predictor

DESCRIPTION = "Segment images with a trained model; options of nnUNetv2_predict keep their names and meaning."
EXAMPLES = """examples:
  stunet_predict -i imagesTs -o out -d 3 -c 3d_fullres
  stunet_predict -i scan.nii.gz -o scan_seg.nii.gz --model STUNetTrainer__STUNetPlans__3d_fullres
  stunet_predict -i dicom_folder -o out -d 3 -c 3d_fullres -f 0 --disable_tta
"""
CONTINUE = "the same command with --continue_prediction: finished cases are kept"


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    return common.run(_parser(), _predict, argv)


def _parser() -> argparse.ArgumentParser:
    parser = common.new_parser("stunet_predict", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("-i", required=True, type=Path, metavar="IN", help="folder with CASE_0000.nii.gz ..., an image or DICOM folder")
    add("-o", required=True, type=Path, metavar="OUT", help="folder of the results; for one input also a file")
    add("-d", metavar="DATASET", help="dataset that the model was trained on: number or name")
    add("-c", metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres")
    add("-p", metavar="PLANS", help="plans (default: the only ones trained)")
    add("-tr", metavar="TRAINER", help="trainer (default: STUNetTrainer)")
    add("--model", metavar="DIR|NAME", help="a model's folder, or its name as of stunet_models list, instead of -d -c")
    add("--labels", metavar="NAME|FILE", help="label system of the results: amos, btcv ... (docs), or a .toml file")
    add("--v1_preprocessing", action="store_true", help="resample before normalising, as nnU-Net v1 did")
    add("-f", nargs="+", type=_fold, metavar="FOLD", help="folds to average, or all (default: those that were trained)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="name of the checkpoint (default: %(default)s)")
    add(
        "-step_size", type=float, default=0.5, metavar="X", help="step from tile to tile over their size (default: 0.5)"
    )
    add("--disable_tta", action="store_true", help="no mirroring: up to 8 times faster, less accurate")
    add("--save_probabilities", action="store_true", help="also write each case's probabilities (.npz, .pkl)")
    add("--continue_prediction", action="store_true", help="skip cases whose result is there (default: overwrite)")
    previous = (
        "segmentations of a cascade's previous stage (default: predicted first, into OUT/prev_stage_CONFIGURATION)"
    )
    add("-prev_stage_predictions", type=Path, metavar="DIR", help=previous)
    add("-num_parts", type=int, default=1, metavar="N", help="share the cases between N runs (default: 1)")
    add("-part_id", type=int, default=0, metavar="N", help="which of them this is, from 0")
    add("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    add("--not_on_device", action="store_true", help="keep logits in the machine's memory instead of the GPU's")
    add("-npp", type=int, metavar="N", help="accepted as in nnU-Net, without effect: one thread preprocesses")
    add("-nps", type=int, metavar="N", help="accepted as in nnU-Net, without effect: this process writes the results")
    add("--disable_progress_bar", action="store_true", help="show no progress")
    add("--dry_run", action="store_true", help="say what would be predicted, and write nothing")
    return parser


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return text if text == "all" else int(text)


def _predict(args: argparse.Namespace) -> int:
    _check(args)
    from stunet.inference.cases import find_cases, open_model

    model = open_model(_model_folder(args), args.f, args.chk)
    cases = find_cases(args.i, model)[args.part_id :: args.num_parts]
    if not cases:
        console.note(f"no case is left for part {args.part_id} of {args.num_parts}")
        return 0
    if args.prev_stage_predictions:
        cases = [_with_previous(case, args.prev_stage_predictions, model) for case in cases]
    folder, cases = _output(args, model, cases)
    stages = _stages(args, model, len(cases))
    if args.dry_run:
        _describe(stages, cases, folder)
        return 0
    with _terminable():
        return _run(args, stages, cases, folder)


def _check(args: argparse.Namespace) -> None:
    if args.model and (args.d or args.c or args.p or args.tr):
        raise UsageError("--model names a model; -d, -c, -p and -tr look one up", "leave out one of the two")
    if not args.model and not (args.d and args.c):
        raise UsageError("no model is named", "-d DATASET -c 3d_fullres, or --model DIR")
    if not 0 < args.step_size <= 1:
        raise UsageError(f"-step_size {args.step_size:g} is not above 0 and at most 1", "-step_size 0.5")
    if not 0 <= args.part_id < args.num_parts:
        raise UsageError(f"-part_id {args.part_id} with -num_parts {args.num_parts}", "count the parts from 0")


def _model_folder(args: argparse.Namespace) -> Path:
    from stunet import workspace
    from stunet.models import store

    if args.model:
        return store.find_model(args.model)
    workspace.folder("nnUNet_results")
    return workspace.find_result(workspace.dataset_name(args.d), args.c, args.p, args.tr or workspace.TRAINER)


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


def _stages(args: argparse.Namespace, model: "Model", count: int) -> "list[Predictor]":
    """The model, and before it those whose predictions it takes as input."""
    stages = [_load(args, model, count, labels.load(args.labels) if args.labels else None)]
    if args.prev_stage_predictions and not stages[0].previous_stage:
        raise UsageError(f"{stages[0].name} has no previous stage", "leave out -prev_stage_predictions")
    while stages[0].previous_stage and not args.prev_stage_predictions:
        stages.insert(0, _load(args, _sibling(stages[0]), count))
    return stages


def _load(
    args: argparse.Namespace, model: "Model", count: int, system: labels.LabelSystem | None = None
) -> "Predictor":
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
        todo = cases
        if stages or folder == args.o:
            todo = _to_do(args, stage, cases, target)
            write_record(target, _settings(args, target), stage.made_by, stage.result_dataset, stage.model.plans)
        errors |= _predict_stage(args, stage, todo, target, show=not stages)
        ending = stage.model.ending
        cases = [replace(case, previous=target / f"{case.name}{ending}") for case in cases if case.name not in errors]
    for name, error in errors.items():
        console.error("stunet_predict", f"case {name!r} failed: {error.message}", error.hint)
    return DataError.exit_code if errors else 0


def _to_do(args: argparse.Namespace, stage: "Predictor", cases: "list[Case]", target: Path) -> "list[Case]":
    """All cases, or with --continue_prediction those whose results are not there yet."""
    from stunet.inference.output import check_record

    todo = [case for case in cases if not (args.continue_prediction and stage.is_done(case, target))]
    if len(todo) < len(cases):
        check_record(target, stage.made_by)
        console.note(f"{len(cases) - len(todo)} of {len(cases)} cases are done already")
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
