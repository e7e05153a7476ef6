"""Predict: which model segments which images, and where the results go. prediction_stages.py runs it.

Problems are looked for before the first case; a case that fails later does not stop the others.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import workspace
from stunet.cluster import check_cluster
from stunet.errors import DataError, StunetError, UsageError, WeightsError
from stunet.parts import Part
from stunet.results.formats import DEFAULT, FORMATS
from stunet.runs.devices import choose_device, set_threads
from stunet.runs.fetching import fetch_model
from stunet.runs.listener import Listener
from stunet.workspace import FINAL

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.model import ModelFolder
    from stunet.inference.predictor import Predictor
    from stunet.labels.systems import LabelSystem

MOST_DIGITS = 4  # of a hash, which makes 65,536 folders
LOW = "3d_lowres"  # nnU-Net's low-resolution configuration
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class PredictionRequest:
    """Images to segment: the options of stunet_predict, with their defaults.

    Args:
        input: Folder with CASE_0000.nii.gz ..., an image, a folder of DICOM files, or a list of images: a .txt or .csv
            file, as inference/lists.py describes it (`-i`).
        output: Folder of the results; for one input also a file (`-o`).
        model: A model by its name in `stunet_models list`, or its folder; then without dataset and configuration.
        dataset: Number or name of the dataset that the model was trained on.
        configuration: Key of the plans' configurations.
        plans: Name of the plans; None: the only ones trained.
        trainer: Name of the trainer class; None: that of the only model there is.
        folds: Folds to average; None: those that were trained.
        checkpoint: File name of the checkpoint (`-chk`).
        series: Which series of a DICOM folder: its UID, number or description.
        labels: Label system of the results, by name or as a .toml file; None: the model's labels.
        roi_subset: The classes to keep; empty: all.
        v1_preprocessing: Resample before normalising, as nnU-Net v1 did.
        orientation: That of the training images, such as LPS, where the model does not state it.
        step_size: Step from tile to tile over their size, above 0 and at most 1.
        disable_tta: Without mirroring: up to 8 times faster, less accurate.
        precision: Of the network: "auto", "fp32", "bf16" or "fp16"; auto is the fastest that the device has.
        fast: Use the model's 3d_lowres configuration instead.
        save_probabilities: Also write each case's probabilities.
        continue_prediction: Skip cases whose result is there.
        prev_stage_predictions: Segmentations of a cascade's previous stage; None: they are predicted first.
        num_parts: Number of runs that share the cases (parts.py); the last to finish writes what belongs to all.
        part_id: Which of them this is, from 0.
        merge: Predict nothing; write what belongs to all cases from what the parts recorded.
        device: "cuda", "cpu" or "mps"; None: cuda where there is one, else cpu.
        not_on_device: Keep logits in the machine's memory instead of the GPU's.
        max_memory: Memory in GB (10^9 bytes) that this process may take; None: 90 % of what there is.
        threads: Threads on the CPU; None: one per physical core.
        format: Of the results, a key of FORMATS; None: what the name of the output ends with, or "image".
        statistics: Also write volume and mean intensity per class.
        preview: Also write a picture of each case.
        report: A JSON file for times per stage, memory, versions and hashes; or a page for readers, with volumes and
            previews where these are asked for, if it ends with .html.
        index: Also write a table of all cases, with status, seconds, volumes and hashes, and one of those that failed,
            and go by these records, without opening results; always for a list of images.
        shard: Put the results into folders named by this many digits of a hash of the cases' names; 0: no folders.
        cluster: Predict on Dask workers: "local:2", "tcp://host:8786" or "slurm:8", each with `max_memory` and
            `threads`; None: in this process.
        npp: Recorded as nnU-Net does, without effect: one thread preprocesses.
        nps: Recorded as nnU-Net does, without effect: this process writes the results.
        verbose: Let nnU-Net print what it does.
        accept_licence: Accept the licence of weights that have to be downloaded and may not be used commercially.
        dry_run: Tell the listener what would be predicted, and write nothing.
    """

    input: Path
    output: Path
    model: str | Path | None = None
    dataset: int | str | None = None
    configuration: str | None = None
    plans: str | None = None
    trainer: str | None = None
    folds: Sequence[int | str] | None = None
    checkpoint: str = FINAL
    series: str | None = None
    labels: str | None = None
    roi_subset: Sequence[str] = ()
    v1_preprocessing: bool = False
    orientation: str | None = None
    step_size: float = 0.5
    disable_tta: bool = False
    precision: str = "auto"
    fast: bool = False
    save_probabilities: bool = False
    continue_prediction: bool = False
    prev_stage_predictions: Path | None = None
    num_parts: int = 1
    part_id: int = 0
    merge: bool = False
    device: str | None = None
    not_on_device: bool = False
    max_memory: float | None = None
    threads: int | None = None
    format: str | None = None
    statistics: bool = False
    preview: bool = False
    report: Path | None = None
    index: bool = False
    shard: int = 0
    cluster: str | None = None
    npp: int | None = None
    nps: int | None = None
    verbose: bool = False
    accept_licence: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictedCase:
    """A case: its name, and its segmentation or the error why there is none."""

    name: str
    file: Path | None
    error: StunetError | None = None


@dataclass(frozen=True, kw_only=True)
class PredictionResult:
    """What was predicted.

    Attributes:
        folder: The folder of the results.
        cases: Every case in the order of its input, also those that were done before; none after a dry run.
    """

    folder: Path
    cases: Sequence[PredictedCase]

    @property
    def errors(self) -> Mapping[str, StunetError]:
        """The errors of the cases that failed, by name."""
        return {case.name: case.error for case in self.cases if case.error}


@dataclass(frozen=True, kw_only=True)
class PredictionOutline:
    """What would be predicted.

    Attributes:
        stages: The models in their order; a cascade has several.
        cases: The cases, with the names of their results.
        folder: The folder of the results.
    """

    stages: "Sequence[Predictor]"
    cases: "Sequence[InputCase]"
    folder: Path


def predict(request: PredictionRequest, listener: Listener | None = None) -> PredictionResult:
    """Segment images. A case that fails does not stop the others: its error is in the result.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The model, the images or what they need are missing or damaged.
        WeightsError: The weights cannot be read, or belong to another network.
        Interrupted: SIGTERM was received; finished cases are kept.
    """
    listener = listener or Listener()
    request = _checked(request)
    from stunet.inference.cases import find_cases
    from stunet.inference.lists import is_list, listed_cases
    from stunet.inference.model import open_model, unfinished_folds
    from stunet.inference.products import check_format
    from stunet.labels import systems

    request = replace(request, index=request.index or request.shard > 0 or is_list(request.input))
    if request.index and _file_ending(request.output):
        what = f"-o {str(request.output)!r} is one file, and a list or an index is of a folder of results"
        raise UsageError(what, "name a folder with -o")
    system = systems.load(request.labels) if request.labels else None
    folder = _model_folder(request, listener)
    model = open_model(_low_resolution(folder) if request.fast else folder, request.folds, request.checkpoint)
    if not request.folds and (unfinished := unfinished_folds(model)):
        names = ", ".join(map(str, unfinished))
        listener.warn(f"fold {names} has no {request.checkpoint} yet: it is left out")
    find = listed_cases if is_list(request.input) else find_cases
    cases = check_format(request.format or DEFAULT, find(request.input, model, request.series))
    if previous := request.prev_stage_predictions:
        cases = [case if case.error else _with_previous(case, previous, model) for case in cases]
    folder, cases = _output(request, model, cases)
    all_names, part = [case.name for case in cases], Part(request.part_id, request.num_parts)
    cases = [] if request.merge else part.take(cases)
    if not cases and not request.merge:
        listener.warn(f"{part} has no case: there are {len(all_names)} in all; -num_parts 1 takes them")
    set_threads(request.threads)
    stages = _stages(request, model, system)
    if request.dry_run:
        listener.would_predict(PredictionOutline(stages=stages, cases=cases, folder=folder))
        return PredictionResult(folder=folder, cases=())
    from stunet.runs.prediction_stages import run_stages

    done = run_stages(request, stages, cases, all_names, folder, sys.argv, listener)
    return PredictionResult(folder=folder, cases=done)


def _checked(request: PredictionRequest) -> PredictionRequest:
    """Return the request with its format, after checking its options together, before anything is read.

    Raises:
        UsageError: Two options contradict each other, or a value is out of range.
    """
    if request.model and (request.dataset is not None or request.configuration or request.plans or request.trainer):
        raise UsageError("--model names a model; -d, -c, -p and -tr look one up", "leave out one of the two")
    request = replace(request, format=_format(request))
    if not request.model and (request.dataset is None or not request.configuration):
        raise UsageError("no model is named", "-d DATASET -c 3d_fullres, or --model NAME")
    for option, given in (("labels", request.labels), ("roi_subset", request.roi_subset)):
        if given and request.save_probabilities:
            raise UsageError(
                f"--save_probabilities has all of the model's classes, not those of --{option}", "one of the two"
            )
    check_cluster(request.cluster)
    if request.fast and request.prev_stage_predictions:
        raise UsageError("--fast has no previous stage", "leave out -prev_stage_predictions")
    if not 0 < request.step_size <= 1:
        raise UsageError(f"-step_size {request.step_size:g} is not above 0 and at most 1", "-step_size 0.5")
    part = Part(request.part_id, request.num_parts)
    if (request.merge or not part.is_whole) and _file_ending(request.output):
        raise UsageError(f"-o {str(request.output)!r} is one file, which parts cannot share", "name a folder with -o")
    if not 0 <= request.shard <= MOST_DIGITS:
        raise UsageError(f"--shard {request.shard}", f"a number from 1 to {MOST_DIGITS}, of digits: 2 are 256 folders")
    return request


def _format(request: PredictionRequest) -> str:
    """Return the format of the results: that of the output if it is a file, which must agree with what is asked for."""
    if request.format not in (None, *FORMATS):
        raise UsageError(f"--format {request.format!r}", f"one of {', '.join(FORMATS)}")
    ending = _file_ending(request.output)
    if ending is None:
        return request.format or DEFAULT
    meant = formats_by_ending().get(ending, DEFAULT)
    if request.format not in (None, meant):
        raise UsageError(
            f"-o {str(request.output)!r} is not a file of --format {request.format}", "a folder with -o, or no --format"
        )
    return meant


def formats_by_ending() -> dict[str, str]:
    """Return the formats that the ending of a file as output implies."""
    return {each.ending: name for name, each in FORMATS.items() if each.ending}


def _file_ending(output: Path) -> str | None:
    """Return the ending of the output if it is a file, which implies the format; None for a folder."""
    if output.is_dir():
        return None
    return next((ending for ending in (*formats_by_ending(), *IMAGES) if output.name.lower().endswith(ending)), None)


def _model_folder(request: PredictionRequest, listener: Listener) -> Path:
    if request.model:
        return _named_model(request, str(request.model), listener)
    assert request.dataset is not None and request.configuration is not None  # noqa: PT018 - _checked() requires them
    workspace.folder("nnUNet_results")
    dataset = workspace.dataset_name(request.dataset)
    return workspace.find_result(dataset, request.configuration, request.plans, request.trainer, request.checkpoint)


def _named_model(request: PredictionRequest, name: str, listener: Listener) -> Path:
    """Return the folder of a model of the store, downloaded if needed, or the one that is given as a path."""
    from stunet.models import registry, store

    there = store.find_installed(name)
    if entry := None if there else registry.look_up(name):
        registry.check_complete(entry)  # before the download
    path = fetch_model(name, listener, request.dry_run, request.accept_licence)
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


def _output(
    request: PredictionRequest, model: "ModelFolder", cases: "list[InputCase]"
) -> "tuple[Path, list[InputCase]]":
    """Return the folder of the results, and the cases with the names of their results."""
    from stunet.inference.index import FAILED, INDEX
    from stunet.inference.products import Products
    from stunet.inference.staging import name_too_long

    def real(path: Path) -> Path:  # resolve() raises for a link to itself
        return Path(os.path.realpath(path))

    folder, taken = request.output, {request.input.resolve()}
    ending = _file_ending(folder)
    # Also a file in a format that is not among IMAGES, if it is that of the model's images.
    if ending is None and folder.name.endswith(model.ending) and not folder.is_dir():
        ending = model.ending
    if ending is not None:
        own = Products(request.format or DEFAULT).endings(model)[-1]
        if len(cases) > 1:
            raise UsageError(f"-o {str(folder)!r} is one file for {len(cases)} cases", "name a folder with -o")
        if ending != own:
            what = f"-o {str(folder)!r}: this model's images end with {own}"
            raise UsageError(what, f"-o {folder.name[: -len(ending)]}{own}, or .seg.nrrd")
        cases = [replace(cases[0], name=folder.name[: -len(ending)])]
        folder = folder.parent
    else:
        taken |= {real(file).parent for case in cases for file in case.files}
    endings = Products(request.format or DEFAULT, request.save_probabilities, request.preview).endings(model)
    cases = [
        replace(case, error=case.error or name_too_long(case.name, endings), shard=_shard(case, request.shard))
        for case in cases
    ]
    if request.index:  # of very many cases, folders are compared and not files
        if request.input.resolve() in {(folder / name).resolve() for name in (INDEX, FAILED)}:
            raise DataError(f"{str(request.input)!r} is a file that this run overwrites", "a copy of it with -i")
        read = (file for case in cases for file in (*case.files, case.previous) if file)
        sources = {real(folder) for folder in {file.parent for file in read}}
        if sources & {real(place) for place in {case.place(folder) for case in cases}}:
            raise DataError(f"input and results would share the folder {str(folder)!r}", "another folder with -o")
        return folder, cases
    results = {(folder / f"{case.name}{ending}").resolve() for case in cases for ending in endings}
    inputs = {real(file) for case in cases for file in (*case.files, case.previous) if file}
    inputs |= {parent for file in inputs for parent in file.parents}  # a folder of masks would replace it
    if folder.resolve() in taken or results & inputs:
        raise DataError(f"input and results would share the folder {str(folder)!r}", "another folder with -o")
    return folder, cases


def _shard(case: "InputCase", digits: int) -> str:
    """Return the name of a folder by a hash of the case's name; empty without digits."""
    return hashlib.sha256(os.fsencode(case.name)).hexdigest()[:digits]


def _stages(request: PredictionRequest, model: "ModelFolder", system: "LabelSystem | None") -> "list[Predictor]":
    """Return the model, whose results are in the labels of `system`, after those whose predictions it takes."""
    stages = [_load(request, model, system, request.roi_subset)]
    if request.prev_stage_predictions and not stages[0].previous_stage:
        raise UsageError(f"{stages[0].configuration_name} has no previous stage", "leave out -prev_stage_predictions")
    while stages[0].previous_stage and not request.prev_stage_predictions:
        stages.insert(0, _load(request, _sibling(stages[0])))
    return stages


def _load(
    request: PredictionRequest,
    model: "ModelFolder",
    system: "LabelSystem | None" = None,
    subset: Sequence[str] | None = None,
) -> "Predictor":
    from stunet.inference.predictor import Options, Predictor

    options = Options(
        device=choose_device(request.device),
        precision=request.precision,
        step_size=request.step_size,
        mirroring=not request.disable_tta,
        everything_on_device=not request.not_on_device,
        labels=system,
        roi_subset=tuple(subset or ()),
        v1_preprocessing=request.v1_preprocessing,
        orientation=request.orientation,
        verbose=request.verbose,
    )
    return Predictor(model, options)


def _low_resolution(folder: Path) -> Path:
    """Return the low-resolution model next to a model."""
    start, separator, name = folder.resolve().name.rpartition("__")
    # Resolved, because the folder may be given as "." or as a link, whose name says nothing.
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

    folder, name = cascade.model.folder.resolve(), cascade.configuration_name
    previous = folder.with_name(f"{folder.name.rpartition('__')[0]}__{cascade.previous_stage}")
    if not previous.is_dir():
        raise DataError(
            f"{name} needs predictions of {cascade.previous_stage}, and there is no model {str(previous)!r}",
            f"train {cascade.previous_stage}, or give its predictions with -prev_stage_predictions",
        )
    return open_model(previous, None, cascade.model.checkpoint)
