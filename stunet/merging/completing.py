"""Complete a dataset with a teacher, which predicts the classes that a case does not annotate.

Annotated voxels stay as they are. Elsewhere, a voxel gets the teacher's class if its probability reaches the threshold
of that class ("none of the missing classes" has a threshold, too), and nnU-Net's ignore label otherwise. The result is
a separate dataset: images by reference, new labels, annotations.json with the completed classes, and provenance.json
with the teacher, the thresholds, and the voxels that each case got. pseudo.py determines what is missing.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stunet import __version__, kinds
from stunet.datasets import FILE_ENDING, RawCase, write_dataset_json
from stunet.datasets.growing import (
    GrowingFolder,
    appear,
    begin_hidden,
    hidden_until_complete,
    sharing,
    signature,
)
from stunet.errors import DataError, OutOfMemoryError
from stunet.files import atomic_write, write_json
from stunet.inference.cases import InputCase
from stunet.inference.engine.confidence import Confidence
from stunet.inference.predictor import Predictor
from stunet.inference.reading import InputImage
from stunet.labels.names import head_classes
from stunet.labels.systems import apply_lookup
from stunet.merging.build import reference
from stunet.merging.provenance import RECORD
from stunet.merging.pseudo import REST, Completion
from stunet.merging.space import IGNORE
from stunet.merging.splits import FILE as SPLITS
from stunet.nifti import check_nifti
from stunet.nifti_header import file_has_orientation, header_has_orientation
from stunet.orientation import NO_TURN, Turn, file_properties, orientation_of, turn
from stunet.parts import Part, Records, to_merge
from stunet.workers import map_all


def complete(
    plan: Completion,
    target: Path,
    teacher: Predictor,
    record: Mapping[str, Any],
    on_case: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write the completed dataset; an interrupted run resumes, and nothing appears before the end.

    Args:
        plan: What is completed.
        target: nnUNet_raw/DatasetXXX_Name, which does not exist.
        teacher: The model.
        record: Description of the teacher, for provenance.json.
        on_case: Called with a case's name once it is finished, by this run or an earlier one.

    Raises:
        DataError: It was begun with another teacher or dataset, the disk is full, or files cannot be read; then all
            other cases are done.
        OutOfMemoryError: Cases do not fit into memory; all others are done.
    """
    now = plan.state(record)
    with hidden_until_complete(target, now) as folder:
        (folder.path / "labelsTr").mkdir(exist_ok=True)
        _complete_cases(plan.cases, plan, folder, teacher, on_case)
        _finish(plan, folder, target.name[11:], now)
    return target


def complete_part(
    plan: Completion,
    target: Path,
    teacher: Predictor,
    record: Mapping[str, Any],
    part: Part,
    on_case: Callable[[str], None] = lambda name: None,
) -> str:
    """Complete the cases of a part, as complete(); the last part writes the dataset.

    Returns:
        Which parts are missing, in words; empty if none is.

    Raises:
        DataError, OutOfMemoryError: As for complete().
    """
    now = plan.state(record)
    records = Records(_place_of_records(target), part, now)
    with sharing(target, f"part-{part.number}"):
        with records.locked():
            folder = begin_hidden(target, now, alone=False)
            (folder.path / "labelsTr").mkdir(exist_ok=True)
            records.save({})
        _complete_cases(part.take(plan.cases), plan, folder, teacher, on_case)
        missing = records.finish({}, lambda contents: _merge(plan, target, now))
    if not missing:
        shutil.rmtree(records.folder, ignore_errors=True)
    return missing


def merge_parts(plan: Completion, target: Path, record: Mapping[str, Any], count: int) -> None:
    """Write the dataset whose cases `count` parts have completed, 1: as many as left records.

    Raises:
        DataError: Parts are missing, or a case has changed since.
    """
    now, place = plan.state(record), _place_of_records(target)
    records = Records(place, to_merge(place, count), now)
    with sharing(target, "merge"):
        records.merge(lambda contents: _merge(plan, target, now))
    shutil.rmtree(place, ignore_errors=True)


def _place_of_records(target: Path) -> Path:
    return target.with_name(f".parts-{target.name}")


def _merge(plan: Completion, target: Path, now: Mapping[str, Any]) -> None:
    folder = begin_hidden(target, now)
    if changed := [case.name for case in plan.cases if not folder.is_done(case.name, _signature(case))]:
        what = f"{len(changed)} cases are not as their parts have completed them (e.g. {changed[0]!r})"
        raise DataError(what, "run the parts again")
    _finish(plan, folder, target.name[11:], now)
    appear(folder, target)


def _complete_cases(
    cases: Sequence[RawCase],
    plan: Completion,
    folder: GrowingFolder,
    teacher: Predictor,
    on_case: Callable[[str], None],
) -> None:
    """Complete those of these cases that are not done."""
    pending = []
    for case in cases:
        if folder.is_done(case.name, _signature(case)):
            on_case(case.name)
        else:
            pending.append(case)
    # In this process, whatever the number of cores: the teacher is on the GPU and uses all of it.
    work = partial(_complete_case, plan=plan, folder=folder, teacher=teacher)
    map_all(work, pending, 1, lambda case: case.name, on_case)


def combine(
    truth: np.ndarray,
    groups: np.ndarray,
    confidence: np.ndarray,
    values: Sequence[int],
    thresholds: Sequence[float],
    ignore: int,
) -> np.ndarray:
    """Return the completed label.

    Args:
        truth: Values of the new dataset, 0 where nothing is annotated.
        groups: Per voxel, the number of the missing class that the teacher predicts, from 1; 0 for none of them.
        confidence: The teacher's probability of that prediction.
        values: Value by number of a missing class; 0 for none of them.
        thresholds: Threshold by the same number.
        ignore: The value of voxels that the teacher is not sure of.
    """
    result = truth.copy()
    of_value, of_limit = np.asarray(values, truth.dtype), np.asarray(thresholds, np.float32)
    # Plane by plane: of a whole volume, the look-ups would be several copies.
    for plane, seen, sure in zip(result, groups, confidence, strict=True):
        new = np.where(sure >= of_limit[seen], of_value[seen], truth.dtype.type(ignore))
        plane[...] = np.where(plane == 0, new, plane)
    return result


def _signature(case: RawCase) -> str:
    return signature(case.files)


def _complete_case(case: RawCase, plan: Completion, folder: GrowingFolder, teacher: Predictor) -> None:
    """Write the label of a case, and record how many voxels each leaf got and how many are ignored."""
    before = _signature(case)
    target = folder.path / "labelsTr" / f"{case.name}{FILE_ENDING}"
    try:
        facts = _write_label(case, plan, target, teacher)
    except (DataError, OutOfMemoryError) as error:
        raise type(error)(f"case {case.name!r}: {error.message}", error.hint) from error
    folder.save(case.name, before, [target], facts)


def _write_label(case: RawCase, plan: Completion, target: Path, teacher: Predictor) -> dict[str, Any]:
    """Write the label, read and written like the teacher's images, so that both are on one grid; return the counts."""
    own = case.needed_label
    check_nifti(own)  # ITK reads zeros where a compressed file has lost its end
    truth, properties = teacher.writer.read_seg(str(own))
    label = apply_lookup(plan.lookup(), np.rint(truth[0]).astype(np.int32))
    missing = plan.missing(case.name)
    voxels, ignored = {}, 0
    if missing:
        owner = {name: number for number, leaf in enumerate(missing, start=1) for name in plan.classes[leaf]}
        groups = [owner.get(name, 0) for name in head_classes(teacher.model.dataset["labels"])]
        confidence = Confidence(groups)
        raw = teacher.read(InputCase(case.name, case.images))
        way = _onto_image(own, properties, raw)  # a reader that reorients both allows different files
        label = way(label)
        seen = np.asarray(groups, np.min_scalar_type(len(missing)))[
            teacher.segment(teacher.preprocess(raw), probabilities=confidence)
        ]
        if seen.shape != label.shape:
            raise DataError(f"{str(own)!r} has another shape than its image", "stunet_plan_and_preprocess checks")
        names = [REST, *missing]
        values = [plan.values[name] for name in names]
        limits = [plan.thresholds[name] for name in names]
        # What the dataset itself ignores does not count as the teacher's doubt.
        before = int((label == plan.values[IGNORE]).sum())
        label = combine(label, seen, confidence.values_DHW, values, limits, plan.values[IGNORE])
        voxels = {name: int((label == plan.values[name]).sum()) for name in missing}
        ignored = int((label == plan.values[IGNORE]).sum()) - before
        label = way.back.contiguous(label)
    with atomic_write(target) as file:
        teacher.writer.write_seg(label, str(file), properties)
    return {"voxels": voxels, "ignored": ignored}


def _onto_image(label: Path, properties: Mapping[str, Any], raw: InputImage) -> Turn:
    """Return the turn of a label to the orientation of its image's file, if both record their orientation."""
    if not file_has_orientation(label) or not header_has_orientation(raw.properties.get("nifti")):
        return NO_TURN
    image = orientation_of(file_properties(raw.properties, raw.on_file_grid.shape[1:]))
    own = orientation_of(properties)
    return turn(own, image) if own and image else NO_TURN


def _finish(plan: Completion, folder: GrowingFolder, name: str, now: Mapping[str, Any]) -> None:
    part = folder.path
    plan.after.save(part)
    if (plan.folder / SPLITS).is_file():
        write_json(part / SPLITS, kinds.read(plan.folder / SPLITS, kinds.SPLITS))
    cases = {case.name: folder.record(case.name)["facts"] for case in plan.cases}
    write_json(part / RECORD, {"stunet": __version__, "cases": cases, "state": now})
    # What write_dataset_json() writes itself; the rest, such as the licence, is kept.
    taken = {"name", "channel_names", "modality", "labels", "numTraining", "file_ending", "dataset", "description"}
    more = {key: value for key, value in plan.description.items() if key not in taken}
    dataset = {
        case.name: {"images": [reference(path) for path in case.images], "label": f"labelsTr/{case.name}{FILE_ENDING}"}
        for case in plan.cases
    }
    channels = plan.description.get("channel_names") or plan.description["modality"]
    about = f"{plan.folder.name}, completed by a teacher: {', '.join(plan.classes)}"
    numbered = {int(number): channel for number, channel in channels.items()}
    write_dataset_json(part, name, numbered, plan.values, len(plan.cases), description=about, dataset=dataset, **more)
