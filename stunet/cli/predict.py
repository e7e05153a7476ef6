"""stunet_predict: determine which model segments which images, and where the results go. predict_run.py runs it.

Problems are looked for before the first case; a case that fails later does not stop the others.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import console
from stunet.cli import common, predict_options, predict_run
from stunet.cli.models import ShownDownload
from stunet.errors import DataError, UsageError, WeightsError
from stunet.machine import GB

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.model import ModelFolder
    from stunet.inference.predictor import Predictor
    from stunet.labels.systems import LabelSystem

LOW = "3d_lowres"  # nnU-Net's low-resolution configuration


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return common.run(predict_options.new_parser(), _predict, argv)


def _predict(args: argparse.Namespace) -> int:
    predict_options.check(args)
    from stunet.inference.cases import find_cases
    from stunet.inference.model import open_model, unfinished_folds
    from stunet.inference.products import check_format
    from stunet.labels import systems

    system = systems.load(args.labels) if args.labels else None
    folder = _model_folder(args)
    model = open_model(_low_resolution(folder) if args.fast else folder, args.f, args.chk)
    if not args.f and (unfinished := unfinished_folds(model)):
        console.warn(f"fold {', '.join(map(str, unfinished))} is begun and has no {args.chk} yet: it is left out")
    cases = find_cases(args.i, model, args.series)[args.part_id :: args.num_parts]
    cases = check_format(args.format, cases)
    if not cases:
        console.note(f"no case is left for part {args.part_id} of {args.num_parts}")
        return 0
    if args.prev_stage_predictions:
        previous = args.prev_stage_predictions
        cases = [case if case.error else _with_previous(case, previous, model) for case in cases]
    folder, cases = _output(args, model, cases)
    _set_threads(args.threads)
    stages = _stages(args, model, system)
    if args.dry_run:
        _describe(args, stages, cases, folder)
        return 0
    return predict_run.run(args, stages, cases, folder)


def _model_folder(args: argparse.Namespace) -> Path:
    from stunet import workspace

    if args.model:
        return _named_model(args)
    workspace.folder("nnUNet_results")
    return workspace.find_result(workspace.dataset_name(args.d), args.c, args.p, args.tr, args.chk)


def _named_model(args: argparse.Namespace) -> Path:
    """Return the folder of a model of the store, downloaded if needed, or the one that is given as a path."""
    from stunet.models import registry, store

    there = store.find_installed(args.model)
    if entry := None if there else registry.look_up(args.model):
        registry.plans_of(entry)  # raises, before the download, if the model cannot predict
    with nullcontext() if args.disable_progress_bar else ShownDownload(args.model) as shown:
        path = store.find_model(args.model, offline=args.dry_run, on_bytes=shown)
    if path.is_file():
        hint = f"stunet_models import {path}"
        if there:
            hint = f"stunet_train --pretrained {there.name}, or {hint} with the --pkl of its training and a --name"
        raise WeightsError(f"{str(path)!r} is a file of weights, and prediction takes a model folder", hint)
    return path


def _with_previous(case: "InputCase", folder: Path, model: "ModelFolder") -> "InputCase":
    file = folder / f"{case.name}{model.ending}"
    if not file.is_file():
        raise DataError(
            f"no prediction of the previous stage for case {case.name!r}: no file {str(file)!r}",
            "leave out -prev_stage_predictions, and the previous stage is predicted first",
        )
    return replace(case, previous=file)


def _output(args: argparse.Namespace, model: "ModelFolder", cases: "list[InputCase]") -> "tuple[Path, list[InputCase]]":
    """Return the folder of the results, and the cases with the names of their results."""
    from stunet.inference.output import too_long
    from stunet.inference.products import Products

    def real(path: Path) -> Path:  # resolve() raises for a link to itself
        return Path(os.path.realpath(path))

    folder, taken = args.o, {args.i.resolve()}
    ending = predict_options.file_ending(folder)
    if ending is None and folder.name.endswith(model.ending) and not folder.is_dir():
        ending = model.ending
    if ending is not None:
        own = Products(args.format).endings(model)[-1]
        if len(cases) > 1:
            raise UsageError(f"-o {str(folder)!r} is one file for {len(cases)} cases", "name a folder with -o")
        if ending != own:
            what = f"-o {str(folder)!r}: this model's images end with {own}"
            raise UsageError(what, f"-o {folder.name[: -len(ending)]}{own}, or .seg.nrrd")
        cases = [replace(cases[0], name=folder.name[: -len(ending)])]
        folder = folder.parent
    else:
        taken |= {real(file).parent for case in cases for file in case.files}
    endings = Products(args.format, args.save_probabilities, args.preview).endings(model)
    cases = [replace(case, error=case.error or too_long(case.name, endings)) for case in cases]
    results = {(folder / f"{case.name}{ending}").resolve() for case in cases for ending in endings}
    inputs = {real(file) for case in cases for file in (*case.files, case.previous) if file}
    inputs |= {parent for file in inputs for parent in file.parents}  # a folder of masks would replace it
    if folder.resolve() in taken or results & inputs:
        raise DataError(f"input and results would share the folder {str(folder)!r}", "another folder with -o")
    return folder, cases


def _stages(args: argparse.Namespace, model: "ModelFolder", system: "LabelSystem | None") -> "list[Predictor]":
    """Return the model, whose results are in the labels of `system`, after those whose predictions it takes."""
    stages = [_load(args, model, system, args.roi_subset)]
    if args.prev_stage_predictions and not stages[0].previous_stage:
        raise UsageError(f"{stages[0].name} has no previous stage", "leave out -prev_stage_predictions")
    while stages[0].previous_stage and not args.prev_stage_predictions:
        stages.insert(0, _load(args, _sibling(stages[0])))
    return stages


def _load(
    args: argparse.Namespace,
    model: "ModelFolder",
    system: "LabelSystem | None" = None,
    subset: Sequence[str] | None = None,
) -> "Predictor":
    from stunet.inference.predictor import Options, Predictor

    options = Options(
        device=common.device(args.device),
        precision=args.precision,
        step_size=args.step_size,
        mirroring=not args.disable_tta,
        everything_on_device=not args.not_on_device,
        labels=system,
        roi_subset=tuple(subset or ()),
        v1_preprocessing=args.v1_preprocessing,
        orientation=args.orientation,
        verbose=args.verbose,
    )
    return Predictor(model, options)


def _set_threads(threads: int | None) -> None:
    """Set the number of threads, by default at most one per physical core.

    Some builds of torch start twice as many, which wait for each other.
    """
    import torch

    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or min(common.physical_cores(), torch.get_num_threads()))


def _low_resolution(folder: Path) -> Path:
    """Return the low-resolution model next to a model."""
    start, separator, name = folder.resolve().name.rpartition("__")
    low = folder.resolve().with_name(f"{start}{separator}{LOW}")
    if name == LOW or not low.is_dir():
        raise DataError(
            f"{str(folder)!r} has no other model of low resolution beside it: no folder {low.name!r}",
            f"leave out --fast, or train one: stunet_train DATASET {LOW} FOLD",
        )
    return low


def _sibling(cascade: "Predictor") -> "ModelFolder":
    """Return the model of the previous stage, which is next to that of the cascade."""
    from stunet.inference.model import open_model

    folder = cascade.model.folder.resolve()
    previous = folder.with_name(f"{folder.name.rpartition('__')[0]}__{cascade.previous_stage}")
    if not previous.is_dir():
        raise DataError(
            f"{cascade.name} needs predictions of {cascade.previous_stage}, and there is no model {str(previous)!r}",
            f"train {cascade.previous_stage}, or give its predictions with -prev_stage_predictions",
        )
    return open_model(previous, None, cascade.model.checkpoint)


def _describe(args: argparse.Namespace, stages: "list[Predictor]", cases: "list[InputCase]", folder: Path) -> None:
    for stage in stages:
        console.result(f"model          {stage.model.folder}")
        console.result(f"configuration  {stage.name}, patch {' x '.join(map(str, stage.patch))}")
        console.result(f"folds          {', '.join(map(str, stage.model.folds))}")
    console.result(f"orientation    {stages[-1].orientation or 'as the images have it'}")
    console.result(f"device         {stages[-1].options.device}, {stages[-1].precision}")
    console.result(f"results        {folder}")
    rows = [(case.name, ", ".join(file.name for file in case.files), _memory(stages[-1], case)) for case in cases]
    console.table(("case", "input", "memory"), rows)


def _memory(stage: "Predictor", case: "InputCase") -> str:
    from stunet.inference.cases import read_geometry

    if case.error:
        return case.error.message
    try:
        return f"{stage.memory_need(*read_geometry(case, stage.orientation)).peak / GB:.2f} GB"
    except DataError as error:
        return error.message
