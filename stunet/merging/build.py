"""Write a union case by case to a folder with a hidden name, which gets its final name once everything is there.

An interrupted build resumes where it stopped, unless the recipe or a source has changed since (datasets/growing.py).
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from stunet import __version__, workspace
from stunet.datasets import FILE_ENDING, RawCase, write_dataset_json
from stunet.datasets.growing import GrowingFolder, hidden_until_complete, signature
from stunet.errors import DataError
from stunet.files import atomic_write, write_json
from stunet.kinds import PROVENANCE, read
from stunet.labels.annotations import Annotations
from stunet.labels.systems import apply_lookup
from stunet.merging.check import CheckedUnion, state
from stunet.merging.estimate import label_counts
from stunet.merging.findings import LARGEST_UINT8
from stunet.merging.provenance import RECORD, is_there
from stunet.merging.space import IGNORE
from stunet.merging.splits import FILE as SPLITS
from stunet.merging.union import Member, Union, case_name
from stunet.nifti_header import LABEL
from stunet.workers import map_all

NORMALISED_OTHERWISE = ("ct", "nonorm", "rescale_to_0_1", "rgb_to_0_1")  # channel names that nnU-Net knows


@dataclass(frozen=True)
class Job:
    """A case to write: its files, where they go (images None: they stay), and a table from old to new label values."""

    name: str
    case: RawCase
    label: Path
    images: tuple[Path, ...] | None
    link: bool
    lookup: np.ndarray

    @property
    def signature(self) -> str:
        """Hash of the state of the files that it is made from."""
        return signature(self.case.files)


def build(checked: CheckedUnion, workers: int = 1, on_case: Callable[[str], None] = lambda name: None) -> Path:
    """Write nnUNet_raw/NAME; do nothing if it exists already and was built from the same.

    Args:
        checked: A check without fatal findings.
        workers: Number of writing processes; each holds one label in memory.
        on_case: Called with the name of a case once it is finished, by this run or an earlier one.

    Raises:
        DataError: The name or number is taken, an interrupted build used another recipe, the disk is full, or cases
            cannot be written; all others then have been.
    """
    union = checked.union
    if union is None or checked.fatal:
        raise DataError("the union has problems", "stunet_merge check, which lists them")
    now = state(union.recipe, union.members)
    target = workspace.folder("nnUNet_raw") / union.recipe.name
    if is_there(target, now):
        return target
    with hidden_until_complete(target, now) as growing:
        part = growing.path
        for folder in ("labelsTr", "imagesTr"):
            (part / folder).mkdir(exist_ok=True)
        jobs = []
        for job in _jobs(union, part):
            if growing.is_done(job.name, job.signature):
                on_case(job.name)
            else:
                jobs.append(job)
        map_all(partial(_write_case, folder=growing), jobs, workers, lambda job: job.name, on_case)
        _finish(part, union, now)
    return target


def label_bound(values: Mapping[str, int]) -> type:
    """Return the integer type of label files with these values."""
    return np.uint8 if max(values.values()) <= LARGEST_UINT8 else np.uint16


def lookup(union: Union, source: str, labels: tuple[str, ...]) -> np.ndarray:
    """Return the table from old to new values for a case that annotates these labels; others become background."""
    meanings, ignore = union.space.meanings[source], union.space.ignores.get(source)
    table: np.ndarray = np.zeros(
        1 + max([0, *meanings, *([] if ignore is None else [ignore])]), label_bound(union.values)
    )
    for value, meaning in meanings.items():
        label = union.space.label(meaning.leaves) if meaning.leaves else None
        if label in labels:
            table[value] = union.values[str(label)]
    if ignore is not None:
        table[ignore] = union.values[IGNORE]
    return table


def write_label(source: Path, target: Path, table: np.ndarray) -> None:
    """Write a label file with every value looked up in the table, on exactly the same grid.

    Raises:
        DataError: The file holds a value that is not in the table.
    """
    image: Any = nibabel.load(source)
    array = np.asanyarray(image.dataobj)
    # Labels that are stored as floats cannot index a table.
    array = apply_lookup(table, array if array.dtype.kind in "iu" else np.rint(array).astype(np.int32))
    header = image.header.copy()
    # Otherwise nibabel would write the type of the source, which may be smaller.
    header.set_data_dtype(table.dtype)
    header["intent_code"] = LABEL
    with atomic_write(target) as part:
        nibabel.save(nibabel.Nifti1Image(array, image.affine, header), part)


def reference(path: Path) -> str:
    """Return how dataset.json refers to a file elsewhere.

    A file in $nnUNet_raw is given relative to it, so that the folder may be moved.
    """
    raw = workspace.folder("nnUNet_raw")
    return f"$nnUNet_raw/{path.relative_to(raw)}" if path.is_relative_to(raw) else str(path.absolute())


def _jobs(union: Union, part: Path) -> list[Job]:
    jobs = []
    for source, member in union.members.items():
        annotated = union.annotated[source]
        # One table per set of labels, not per case: a union may have ten thousand.
        tables = {labels: lookup(union, source, labels) for labels in set(annotated.values())}
        for case in member.cases:
            name = case_name(source, case.name)
            images = tuple(part / "imagesTr" / _image_name(name, i, path) for i, path in enumerate(case.images))
            jobs.append(
                Job(
                    name=name,
                    case=case,
                    label=part / "labelsTr" / f"{name}{FILE_ENDING}",
                    images=None if union.recipe.images == "reference" else images,
                    link=union.recipe.images == "symlink",
                    lookup=tables[annotated[case.name]],
                )
            )
    return jobs


def _image_name(name: str, channel: int, path: Path) -> str:
    return f"{name}_{channel:04d}{''.join(path.suffixes[-2:]) if path.name.endswith(FILE_ENDING) else path.suffix}"


def _write_case(job: Job, folder: GrowingFolder) -> None:
    """Write a case in a worker: the images unless they stay where they are, and the label last."""
    before = job.signature
    # Images that are referred to have no targets, and nothing is done here.
    for source, target in zip(job.case.images, job.images or (), strict=job.images is not None):
        with atomic_write(target) as part:
            if job.link:
                part.symlink_to(source.absolute())
            else:
                shutil.copyfile(source, part)
    write_label(job.case.needed_label, job.label, job.lookup)
    folder.save(job.name, before, [job.label], {})  # not the images: to hash copies takes as long as to copy them


def _finish(part: Path, union: Union, now: Mapping[str, Any]) -> None:
    """Write the files that describe the union, dataset.json last."""
    if union.recipe.images == "reference":
        # Nothing was written into it.
        (part / "imagesTr").rmdir()
    union.annotations.save(part)
    write_json(part / SPLITS, union.folds)
    write_json(part / RECORD, {"stunet": __version__, **_record(union), "state": now})
    # A dict keeps each once, in the order of the sources.
    licences = dict.fromkeys(member.licence or "unknown" for member in union.members.values())
    write_dataset_json(
        part,
        union.recipe.name[11:],
        channel_names(union),
        union.values,
        sum(len(member.cases) for member in union.members.values()),
        description=f"union of {', '.join(member.folder.name for member in union.members.values())}",
        licence="; ".join(licences),
        overwrite_image_reader_writer=union.recipe.reader,
        dataset={job.name: _entry(job) for job in _jobs(union, part)},
    )


def _entry(job: Job) -> dict[str, Any]:
    if job.images is None:
        images = [reference(path) for path in job.case.images]
    else:
        images = [f"imagesTr/{path.name}" for path in job.images]
    return {"images": images, "label": f"labelsTr/{job.label.name}"}


def channel_names(union: Union) -> dict[int, str]:
    """Return the channel names, by which nnU-Net chooses how intensities are normalised: CT, or else z-score."""
    names = next(iter(union.members.values())).rules.channels
    if union.recipe.scheme == "ct":
        return {0: "CT"} if len(names) == 1 else dict(enumerate(names))
    kinds = dict.fromkeys(member.modality(case.name) for member in union.members.values() for case in member.cases)
    shown = ["/".join(kinds)] if len(names) == 1 else names
    # With the suffix it is a name that nnU-Net does not know, and so normalises by z-score.
    return {i: f"{name} z-score" if name.casefold() in NORMALISED_OTHERWISE else name for i, name in enumerate(shown)}


def _record(union: Union) -> dict[str, Any]:
    annotations: Annotations = union.annotations
    counts = label_counts(union)
    return {
        "sources": {name: _source_record(union, name, member) for name, member in union.members.items()},
        "classes": {
            label: {"leaves": list(leaves), "cases": counts[label][0], "voxels": counts[label][1]}
            for label, leaves in annotations.labels.items()
        },
        "images": {
            case_name(source, case): scan.fingerprint
            for source, scans in union.scans.items()
            for case, scan in scans.items()
        },
    }


def _source_record(union: Union, name: str, member: Member) -> dict[str, Any]:
    meanings, provenance = union.space.meanings[name], member.folder / RECORD
    return {
        "dataset": member.folder.name,
        "licence": member.licence or None,
        "reference": member.description.get("reference"),
        "dataset.json": member.sha256,
        "cases": len(member.cases),
        "labels": {m.name: union.space.label(m.leaves) if m.leaves else None for m in meanings.values()},
        "provenance": read(provenance, PROVENANCE).get("state") if provenance.is_file() else None,
    }
