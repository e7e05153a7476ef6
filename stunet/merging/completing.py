"""How does a teacher complete what a dataset leaves open? The classes that a case does not annotate are predicted.

What is annotated stays as it is. Elsewhere the teacher's class counts where its probability reaches the threshold of
that class; where it does not, also of there being none of the missing classes, the voxel gets nnU-Net's ignore label.
The result is a dataset of its own: images by reference, labels anew, annotations.json with the completed classes, and
provenance.json with the teacher, the thresholds, and the voxels that each case got. pseudo.py says what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet import __version__, kinds
from stunet.classes import head_classes
from stunet.datasets import FILE_ENDING, Case, raise_first, write_dataset_json
from stunet.errors import DataError, OutOfMemoryError
from stunet.files import whole, write_json
from stunet.inference.cases import Case as Input
from stunet.inference.confidence import Confidence
from stunet.inference.predictor import Predictor
from stunet.inference.reading import Raw
from stunet.labels import apply
from stunet.merging.build import reference
from stunet.merging.growing import RECORD, growing
from stunet.merging.pseudo import REST, Plan
from stunet.merging.space import IGNORE
from stunet.merging.splits import FILE as SPLITS
from stunet.nifti import check_nifti
from stunet.nifti_header import has_forms, has_place
from stunet.orientation import AS_IT_IS, Turn, of_file, orientation_of, turn

DONE = "finished.jsonl"  # in the growing folder: what each finished case got


@dataclass(frozen=True)
class Completed:
    """What a case got: voxels by leaf, and those that are ignored because the teacher is not sure of them."""

    voxels: dict[str, int]
    ignored: int


def complete(
    plan: Plan,
    target: Path,
    teacher: Predictor,
    record: Mapping[str, Any],
    on_case: Callable[[str], None] = lambda name: None,
) -> Path:
    """Writes the completed dataset; a run that was stopped goes on, and nothing appears before the end.

    Args:
        plan: What is completed.
        target: nnUNet_raw/DatasetXXX_Name, which is not there.
        teacher: The model.
        record: What the teacher is, for provenance.json.
        on_case: Called with a case's name when it is done.

    Raises:
        DataError: It was begun with another teacher or dataset, or files cannot be read or are too large for the
            memory; all other cases are done then.
        OSError: The disk is full.
    """
    now = plan.state(record)
    with growing(target, now) as part:
        (part / "labelsTr").mkdir(exist_ok=True)
        finished, problems = _finished(part), []
        for case in plan.cases:
            if case.name not in finished:
                try:
                    finished[case.name] = _complete_case(plan, case, part, teacher)
                except (DataError, OutOfMemoryError) as error:
                    problems.append(type(error)(f"case {case.name!r}: {error.message}", error.hint))
                    continue
                with (part / DONE).open("a") as file:
                    file.write(json.dumps([case.name, finished[case.name].voxels, finished[case.name].ignored]) + "\n")
            on_case(case.name)
        raise_first(problems)
        _finish(plan, part, now, finished, teacher)
    return target


def combine(
    truth: np.ndarray,
    groups: np.ndarray,
    confidence: np.ndarray,
    values: Sequence[int],
    thresholds: Sequence[float],
    ignore: int,
) -> np.ndarray:
    """The completed label.

    Args:
        truth: Values of the new dataset, 0 where nothing is annotated.
        groups: Per voxel the number of the missing class that the teacher sees, from 1 on; 0 for none of them.
        confidence: Its probability of that.
        values: By number of a missing class, its value; 0 for none.
        thresholds: By the same number.
        ignore: The value of voxels that it is not sure of.
    """
    result = truth.copy()
    of_value, of_limit = np.asarray(values, truth.dtype), np.asarray(thresholds, np.float32)
    for plane, seen, sure in zip(result, groups, confidence, strict=True):
        new = np.where(sure >= of_limit[seen], of_value[seen], truth.dtype.type(ignore))
        plane[...] = np.where(plane == 0, new, plane)
    return result


def _finished(part: Path) -> dict[str, Completed]:
    """The cases whose label is there and on record; a line that a killed run left unfinished is none."""
    found = {}
    for line in (part / DONE).read_text(errors="replace").splitlines() if (part / DONE).is_file() else []:
        try:
            name, voxels, ignored = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if (part / "labelsTr" / f"{name}{FILE_ENDING}").is_file():
            found[name] = Completed(voxels, ignored)
    return found


def _complete_case(plan: Plan, case: Case, part: Path, teacher: Predictor) -> Completed:
    """Writes the label of a case, read and written as the teacher's images are, so that both lie on one grid."""
    check_nifti(case.label)  # ITK reads zeros where a packed file has lost its end
    truth, properties = teacher.writer.read_seg(str(case.label))
    label = apply(plan.lookup(), np.rint(truth[0]).astype(np.int32))
    missing = plan.missing(case.name)
    voxels, ignored = {}, 0
    if missing:
        owner = {name: number for number, leaf in enumerate(missing, start=1) for name in plan.classes[leaf]}
        groups = [owner.get(name, 0) for name in head_classes(teacher.model.dataset["labels"])]
        confidence = Confidence(groups)
        raw = teacher.read(Input(case.name, case.images))
        way = _onto_image(case.label, properties, raw)  # a reader that turns both lets their files differ
        label = way(label)
        seen = np.asarray(groups, np.min_scalar_type(len(missing)))[
            teacher.segment(teacher.preprocess(raw), probabilities=confidence)
        ]
        if seen.shape != label.shape:
            raise DataError(
                f"{str(case.label)!r} has another shape than its image", "stunet_plan_and_preprocess checks"
            )
        names = [REST, *missing]
        values = [plan.values[name] for name in names]
        limits = [plan.thresholds[name] for name in names]
        before = int((label == plan.values[IGNORE]).sum())
        label = combine(label, seen, confidence.values_DHW, values, limits, plan.values[IGNORE])
        voxels = {name: int((label == plan.values[name]).sum()) for name in missing}
        ignored = int((label == plan.values[IGNORE]).sum()) - before
        label = way.back.copied(label)
    with whole(part / "labelsTr" / f"{case.name}{FILE_ENDING}") as file:
        teacher.writer.write_seg(label, str(file), properties)
    return Completed(voxels, ignored)


def _onto_image(label: Path, properties: Mapping[str, Any], raw: Raw) -> Turn:
    """What turns a label with these properties to the orientation of its image's file, if both say how they lie."""
    if not has_forms(label) or not has_place(raw.properties.get("nifti")):
        return AS_IT_IS
    image = orientation_of(of_file(raw.properties, raw.on_file_grid.shape[1:]))
    own = orientation_of(properties)
    return turn(own, image) if own and image else AS_IT_IS


def _finish(
    plan: Plan, part: Path, now: Mapping[str, Any], finished: Mapping[str, Completed], teacher: Predictor
) -> None:
    plan.after.save(part)
    if (plan.folder / SPLITS).is_file():
        write_json(part / SPLITS, kinds.read(plan.folder / SPLITS, kinds.SPLITS))
    cases = {name: {"voxels": entry.voxels, "ignored": entry.ignored} for name, entry in finished.items()}
    write_json(part / RECORD, {"stunet": __version__, "cases": cases, "state": now})
    (part / DONE).unlink(missing_ok=True)
    taken = {"name", "channel_names", "modality", "labels", "numTraining", "file_ending", "dataset", "description"}
    more = {key: value for key, value in plan.description.items() if key not in taken}
    dataset = {
        case.name: {"images": [reference(path) for path in case.images], "label": f"labelsTr/{case.name}{FILE_ENDING}"}
        for case in plan.cases
    }
    channels = plan.description.get("channel_names") or plan.description["modality"]
    about = f"{plan.folder.name}, completed by a teacher: {', '.join(plan.classes)}"
    name = part.name.removeprefix(".part-")[11:]
    numbered = {int(number): channel for number, channel in channels.items()}
    write_dataset_json(part, name, numbered, plan.values, len(plan.cases), description=about, dataset=dataset, **more)
