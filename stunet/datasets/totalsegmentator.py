"""Convert the TotalSegmentator data set to a raw dataset of nnU-Net.

Its folder holds sXXXX/ct.nii.gz (or mri.nii.gz), sXXXX/segmentations/CLASS.nii.gz (one binary mask per class), and
meta.csv with the split. presets/totalsegmentator.toml describes the releases. Masks are merged in the official order,
whatever values the classes get; see masks.py. subjects.py reads the folder; conversion.py runs the conversion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from stunet.datasets import FILE_ENDING
from stunet.datasets.conversion import Conversion, Description, SourceCase, dataset_folder, write_file
from stunet.datasets.listing import named, visible
from stunet.datasets.masks import merge, nifti_bytes, read_mask, read_nifti, total
from stunet.datasets.spacing import resample
from stunet.datasets.subjects import (
    MASKS,
    META,
    Release,
    choose_classes,
    find_release,
    read_subjects,
    unlisted_subjects,
)  # fmt: skip
from stunet.errors import DataError, first_few
from stunet.labels.annotations import FILE as ANNOTATIONS
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.names import csv_cells
from stunet.nifti import check_nifti

REPORT = "overlaps.csv"
READER = "NibabelIOWithReorient"  # as in the official converter: left-right is the same axis however the file is stored
LARGEST = 65535  # value that a label file can hold
SHOWN = 5  # names in a warning


@dataclass(frozen=True)
class Options:
    """Options of the conversion.

    Attributes:
        classes: "total", "total_v1", "total_mr", a part such as "organs", or a text file with one name per line; None:
            all classes of the release.
        order: Order of the values: "stunet" (alphabetical) or "official"; None: that of the release.
        overlap: See masks.merge.
        missing: A missing mask is an "error", or its class is "unannotated" in this case.
        absent: A missing subject of meta.csv is an "error", or left out: "skip".
        skip: Subjects to leave out.
        spacing_mm: Images and labels are resampled to this and both are written; None: images stay where they are.
        variable: Name of a variable that stands for the data set's folder in dataset.json; None: absolute paths.
    """

    classes: str | None = None
    order: str | None = None
    overlap: str = "last"
    missing: str = "error"
    absent: str = "error"
    skip: tuple[str, ...] = ()
    spacing_mm: float | None = None
    variable: str | None = None


@dataclass(frozen=True)
class MergeMasks:
    """The step of this conversion: merge the masks of a subject.

    Attributes:
        classes: Names, in the official order.
        values: Values of the classes, in the same order.
        overlap: See masks.merge; the ignore label is the highest value + 1.
        missing: As in Options.
        spacing_mm: As in Options.
    """

    classes: tuple[str, ...]
    values: tuple[int, ...]
    overlap: str
    missing: str
    spacing_mm: float | None

    def options(self) -> dict[str, Any]:
        return {
            "format": "totalsegmentator",
            "classes": dict(zip(self.classes, self.values, strict=True)),
            "overlap": self.overlap,
            "missing": self.missing,
            "spacing": self.spacing_mm,
        }

    def __call__(self, source: SourceCase, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        image_path = source.images[0]
        check_nifti(image_path)
        image: Any = nibabel.load(image_path)
        if len(image.shape) != 3:
            raise DataError(
                f"{str(image_path)!r} has the shape {image.shape}, not three axes", "look at it in a viewer"
            )
        absent = {path.name for path in source.labels if self.missing == "unannotated" and not path.is_file()}
        # A generator: merge() drops each mask before the next is read.
        masks = (
            None if path.name in absent else read_mask(path, image_path, image.shape, image.affine)
            for path in source.labels
        )
        merged = merge(masks, len(self.classes), int(np.prod(image.shape)), self.overlap)
        if not merged.voxels.any() and _all_empty(source, image.shape):
            return [], {"left_out": True}
        # The last rank is that of overlaps that are ignored; its value is that of the ignore label.
        lookup = np.array([0, *self.values, len(self.values) + 1])
        # NIfTI stores the first axis fastest, as merge() got the masks.
        labels = lookup.astype(np.min_scalar_type(lookup.max()))[merged.ranks].reshape(image.shape, order="F")
        affine, files = image.affine, []
        if self.spacing_mm is not None:
            resampled, labels, affine = resample(np.asanyarray(image.dataobj), labels, affine, self.spacing_mm)
            files.append(folder / f"images{source.subset}" / f"{source.name}_0000{FILE_ENDING}")
            write_file(files[0], nifti_bytes(resampled, affine, image))
        files.append(folder / f"labels{source.subset}" / f"{source.name}{FILE_ENDING}")
        write_file(files[-1], nifti_bytes(labels, affine, image))
        return files, self._facts(merged.overlaps, absent)

    def _facts(self, overlaps: Mapping[tuple[int, int], int], absent: set[str]) -> dict[str, Any]:
        pairs = [[self.classes[a - 1], self.classes[b - 1], n] for (a, b), n in sorted(overlaps.items())]
        return {"overlaps": pairs, "missing": [name for name in self.classes if f"{name}{FILE_ENDING}" in absent]}


@dataclass(frozen=True)
class Report:
    """Writer of overlaps.csv and, if masks are missing, of annotations.json."""

    classes: tuple[str, ...]
    training: frozenset[str]

    def __call__(self, target: Path, facts: Mapping[str, dict[str, Any]]) -> list[str]:
        kept = {name: fact for name, fact in facts.items() if not fact.get("left_out")}
        rows = total({(a, b): n for a, b, n in fact["overlaps"]} for fact in kept.values())
        lines = [";".join(map(str, csv_cells(row))) for row in [("first", "second", "voxels", "cases"), *rows]]
        write_file(target / REPORT, "".join(f"{line}\n" for line in lines).encode())
        warnings = []
        if rows:
            what = f"{len(rows)} pairs of classes overlap, most of all {rows[0][0]} and {rows[0][1]}"
            warnings.append(f"{what}: {rows[0][2]} voxels in {rows[0][3]} cases; see {REPORT}")
        if empty := [name for name in facts if name not in kept]:
            warnings.append(f"left out, because no mask has a voxel: {first_few(empty, SHOWN, ', ')}")
        missing = {name: fact["missing"] for name, fact in kept.items() if fact["missing"]}
        # It may be of an earlier run, with masks missing that are there now.
        (target / ANNOTATIONS).unlink(missing_ok=True)
        if any(name in self.training for name in missing):
            self._annotations([name for name in kept if name in self.training], missing).save(target)
            warnings.append(
                f"{len(missing)} cases lack masks: {ANNOTATIONS} says which; only a partial trainer reads it"
            )
        if test := [name for name in missing if name not in self.training]:
            warnings.append(
                f"test cases lack masks, which an evaluation counts as background: {first_few(test, SHOWN, ', ')}"
            )
        return warnings

    def _annotations(self, cases: Sequence[str], missing: Mapping[str, list[str]]) -> Annotations:
        annotated = {name: tuple(c for c in self.classes if c not in missing.get(name, ())) for name in cases}
        source = "totalsegmentator"
        sources = {source: CaseSource(self.classes)}
        return Annotations(
            self.classes, {}, sources, {name: AnnotatedCase(source, labels) for name, labels in annotated.items()}
        )


def prepare_totalsegmentator(source: Path, raw: Path, dataset_id: int, name: str, options: Options) -> Conversion:
    """Prepare the conversion of a folder of the data set; nothing is written yet.

    Args:
        source: The folder with meta.csv and the subjects.
        raw: The folder nnUNet_raw.
        dataset_id: 1 to 999.
        name: Name of the dataset.
        options: Options of the conversion.

    Raises:
        DataError: The folder is not such a data set, meta.csv or the list of classes is wrong, subjects or masks are
            missing, or the number is taken.
        UsageError: The number or name is not allowed.
    """
    target = dataset_folder(raw, dataset_id, name)
    release = find_release(source)
    classes = choose_classes(release, source, options.classes)
    subjects = read_subjects(source, release, options.absent, options.skip)
    cases = [
        SourceCase(
            subject,
            (source / subject / release.image,),
            tuple(source / subject / MASKS / f"{name}{FILE_ENDING}" for name in classes),
            split != "test",
        )
        for subject, split in subjects.items()
    ]
    _check_masks(cases, classes, options.missing)
    # STU-Net's released weights number the classes of v1 alphabetically.
    by_value = sorted(classes) if (options.order or release.order) == "stunet" else list(classes)
    labels = {"background": 0, **{name: value for value, name in enumerate(by_value, start=1)}}
    if options.overlap == "ignore":
        labels["ignore"] = len(labels)
    if max(labels.values()) > LARGEST:
        raise DataError(f"{len(classes)} classes do not fit into a label file", f"at most {LARGEST}")
    values = tuple(labels[name] for name in classes)
    validation = frozenset(subject for subject, split in subjects.items() if split == "val")
    return Conversion(
        target,
        tuple(cases),
        MergeMasks(classes, values, options.overlap, options.missing, options.spacing_mm),
        Description((release.channel,), labels, _about(release, options)),
        validation,
        (options.variable, source) if options.variable else None,
        options.spacing_mm is not None,
        # In the order of the values, which annotations.json implies by the order of its leaves.
        Report(tuple(by_value), frozenset(case.name for case in cases if case.training)),
        tuple(_warnings(release, bool(validation), unlisted_subjects(source, release, subjects, options.skip))),
        skipped=frozenset(options.skip),
    )


def _about(release: Release, options: Options) -> dict[str, str]:
    return {
        "description": f"TotalSegmentator {release.name}, {Path(options.classes or release.classes).name}, "
        f"order {options.order or release.order}, overlaps {options.overlap}",
        "reference": release.reference,
        "licence": release.licence,
        "overwrite_image_reader_writer": READER,
    }


def _warnings(release: Release, has_validation: bool, unlisted: Sequence[Path]) -> list[str]:
    warnings = []
    if unlisted:
        warnings.append(f"{len(unlisted)} subjects are left out, as {META} does not name them: {named(unlisted)}")
    if "NC" in release.licence:
        warnings.append(f"licence {release.licence}: not for commercial use, and what is made of it as well")
    if not has_validation:
        warnings.append("meta.csv has no validation subjects: folds will be nnU-Net's, or train with fold all")
    return warnings


def _check_masks(cases: Sequence[SourceCase], classes: Sequence[str], missing: str) -> None:
    """Look for all masks before the first is read, so that nobody waits hours for this error."""
    absent = {case: _absent(case) for case in cases}
    paths = [path for each in absent.values() for path in each]
    if paths and missing == "error":
        what = f"{len(paths)} masks are missing, first {str(paths[0])!r}"
        raise DataError(what, "unpack the data set again, or add --missing unannotated")
    never = set(classes)
    for case in cases:
        if case.training:
            never &= {path.name.removesuffix(FILE_ENDING) for path in absent[case]}
    if never:
        named = next(name for name in classes if name in never)
        raise DataError(f"no training case has a mask of {named!r}", "leave it out: --classes with a file of names")


def _absent(case: SourceCase) -> list[Path]:
    folder = case.labels[0].parent
    # One listing instead of a look-up for each of more than a hundred masks.
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [path for path in case.labels if path.name not in there]


def _all_empty(source: SourceCase, shape: Sequence[int]) -> bool:
    """Return whether all masks of other classes are empty, too: then nobody annotated the subject."""
    others = sorted(set(visible(source.labels[0].parent.glob(f"*{FILE_ENDING}"))) - set(source.labels))
    return not any(np.asanyarray(read_nifti(path)[0].dataobj).any() for path in others)
