"""Check whether a raw dataset can be planned and trained on; if not, report which file is wrong and what to do.

nnU-Net itself runs into most of these problems only after hours, and into some never (see nifti.py). Files are read
with the reader that nnU-Net will use. datasets/__init__.py reads dataset.json and the list of files.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.filebasedimages import ImageFileError

from stunet.datasets import GEOMETRY_ATOL, RawCase, Rules, left_out, read_dataset, tiff
from stunet.datasets.contents import Content, count_values, judge, look
from stunet.datasets.listing import unusable
from stunet.datasets.units import Values, unlike_others
from stunet.datasets.units import look as look_at_units
from stunet.errors import DataError, is_out_of_memory, raise_first
from stunet.images import Reader
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import FILE, load_annotations
from stunet.nifti import check_nifti
from stunet.parts import WHOLE, Part
from stunet.workers import Workers, map_all

# What nnU-Net's readers raise for an unreadable file: errors of ITK, zlib, nibabel, tifffile, and their own assertions.
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, zlib.error, ImageFileError)


@dataclass(frozen=True)
class ReadCase:
    """A case whose files are sound, for whoever wants to see more of them while they are in memory.

    Attributes:
        case: Its files.
        channels: (C, D, H, W).
        label: (D, H, W); None without one.
        properties: The reader's, of the label if there is one, otherwise of the first image.
        voxels: Voxels of the label by value.
    """

    case: RawCase
    channels: np.ndarray
    label: np.ndarray | None
    properties: dict[str, Any]
    voxels: dict[float, int]


def see_nothing(case: ReadCase) -> None:
    """See nothing more than the check does."""


def check_dataset(folder: Path, workers: Workers = 1, on_case: Callable[[str], None] | None = None) -> list[str]:
    """Read and check every training case of a raw dataset once.

    Args:
        folder: nnUNet_raw/DatasetXXX_Name.
        workers: Number of reading processes, or workers of a cluster.
        on_case: Called with a case's name once it has been read.

    Returns:
        Warnings about problems that would harm training.

    Raises:
        DataError: Something is wrong; the error names the first three problems and counts the others.
        OutOfMemoryError: A case does not fit into memory.
    """
    return judge_cases(folder, examine(folder, workers, on_case))


def examine(
    folder: Path,
    workers: Workers = 1,
    on_case: Callable[[str], None] | None = None,
    part: Part = WHOLE,
    see: Callable[[ReadCase], Any] = see_nothing,
) -> "dict[str, CheckedCase]":
    """Read and check the training cases of a part, as check_dataset() does; return what they hold, by name.

    `see` is called with each case in the process that has read it; it must be picklable, as must what it returns.
    """
    cases, rules = read_dataset(folder)
    own = part.take(_with_rules(folder, cases, rules))
    checked = map_all(partial(_examine, see=see), own, workers, lambda item: item[0].name, on_case)
    return {case.name: found for (case, _), found in zip(own, checked, strict=True)}


def judge_cases(folder: Path, checked: "Mapping[str, CheckedCase]") -> list[str]:
    """Return what check_dataset() warns of, from what examine() found in all cases."""
    cases, rules = read_dataset(folder)
    units = {case.name: checked[case.name].units for case in cases}
    description = read_dataset_json(folder / "dataset.json")
    names = [case.name for case in cases]
    return [
        *left_out(folder, description, cases),
        *judge(names, [checked[name].content for name in names], description),
        *(
            warning
            for channel in range(len(rules.channels))
            for warning in unlike_others({name: values[channel] for name, values in units.items() if channel in values})
        ),
    ]


@dataclass(frozen=True)
class CheckedImages:
    """The images of a case, which are sound.

    Attributes:
        channels: (C, D, H, W).
        properties: Of the reader.
        grid: Shape and spacing in array order, and where the reader knows them, origin and direction.
    """

    channels: np.ndarray
    properties: dict[str, Any]
    grid: dict[str, np.ndarray]


def read_case(case: RawCase, rules: Rules) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read and check the images and the label of a case.

    Returns:
        The channels (C, D, H, W), the label (D, H, W), and the reader's properties of the label file.

    Raises:
        DataError: Something is wrong with the case, or it has no label; the error names the first problem.
    """
    images = read_images(case, rules)
    label, properties, _ = _read_label(case, rules, images.grid)
    return images.channels, label, properties


def read_images(case: RawCase, rules: Rules) -> CheckedImages:
    """Read and check the images of a case.

    Raises:
        DataError: A file is missing or damaged, holds NaN, lies on another grid, or there are too few or many channels.
    """
    reader = Reader(rules.reader.__name__)
    # Before any file is read: at a name that is not UTF-8, ITK ends the whole process.
    for path in case.files:
        if error := unusable(path):
            raise error
    # Without the file that states the spacing, nnU-Net would take 1 x 1 x 1 mm.
    if rules.reader.__name__ == tiff.READER:
        tiff.read_spacing(case.images[0], is_image=True)
        for path in case.files[len(case.images) :]:
            tiff.read_spacing(path, is_image=False)
    grid: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    arrays = []
    for path in case.images:
        # Before it is read: ITK reads zeros where a compressed file has lost its end.
        check_nifti(path)
        array, properties = _read(reader.read_images, [str(path)], path)
        arrays.append(array)
        found = _grid(array, properties)
        _check_same_grid(case, grid or found, found, path)
        grid, about = grid or found, about or properties
        if not np.isfinite(array).all():
            raise DataError(f"{str(path)!r} holds NaN or infinity", "replace these values, for example by those of air")
    channels = sum(map(len, arrays))
    if channels != len(rules.channels):
        hint = "correct the names of channels, or add the files that are missing (CASE_0000, CASE_0001, ...)"
        names = f"{len(rules.channels)}: {', '.join(rules.channels)}"
        raise DataError(f"case {case.name!r} has {channels} channels, {rules.origin} names {names}", hint)
    # Most cases have one file, which need not be copied.
    return CheckedImages(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), about, grid)


def read_mask(case: RawCase, rules: Rules, grid: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Read and check a mask (D, H, W) of a case, which must lie on the grid of its images.

    Raises:
        DataError: It does not, is damaged or holds NaN.
    """
    mask, _ = _read_map(case, rules, grid, path)
    if not np.isfinite(mask).all():
        raise DataError(f"{str(path)!r} holds NaN or infinity", "a mask is 0, or more where voxels do not count")
    return mask


def _read_label(
    case: RawCase, rules: Rules, grid: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any], dict[float, int]]:
    """Return the label (D, H, W), the reader's properties of its file, and the voxel counts by value."""
    label, properties = _read_map(case, rules, grid, case.needed_label)
    return label, properties, _check_values(label, rules, case.needed_label)


def _read_map(
    case: RawCase, rules: Rules, grid: dict[str, np.ndarray], path: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a file with one value per voxel, on the grid of the images."""
    check_nifti(path)
    array, properties = _read(Reader(rules.reader.__name__).read_seg, str(path), path)
    if len(array) != 1:
        hint = "one value per voxel: of one-hot channels the number of the largest, of colours one channel"
        kind = "a mask" if path == case.mask else "a label map"
        raise DataError(f"{str(path)!r} has {len(array)} channels, and {kind} has one", hint)
    _check_same_grid(case, grid, _grid(array, properties), path)
    return array[0], properties


def _with_rules(folder: Path, cases: list[RawCase], rules: Rules) -> list[tuple[RawCase, Rules]]:
    """Pair each case with its rules.

    If the dataset has annotations, only 0, the ignore label and the values that a case annotates are allowed in it.
    """
    annotations = load_annotations(folder)
    if annotations is None:
        return [(case, rules) for case in cases]
    unknown = [case.name for case in cases if case.name not in annotations.cases]
    hint = "build the dataset again: stunet_merge build"
    raise_first([DataError(f"{FILE} does not say what case {name!r} annotates", hint) for name in unknown])
    values = annotations.values
    free = {0, *(rules.values - set(values.values()))}  # background and the ignore label
    annotated = [frozenset({*free, *map(values.__getitem__, annotations.cases[case.name].labels)}) for case in cases]
    return [
        (c, replace(rules, values=v, origin=f"{FILE}, for this case,")) for c, v in zip(cases, annotated, strict=True)
    ]


class CheckedCase(NamedTuple):
    """The contents of a case, value summaries of its CT channels by channel number, and what was asked to be seen."""

    content: Content
    units: dict[int, Values]
    seen: Any

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, in which keys are text; without what was seen."""
        content = self.content
        counts = {"voxels": [*content.voxels.items()], "cut": [*content.cut.items()], "constant": content.constant}
        return {**counts, "units": [[channel, *astuple(values)] for channel, values in self.units.items()]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CheckedCase":
        """Return what to_json() described."""
        content = Content(dict(found["voxels"]), dict(found["cut"]), tuple(found["constant"]))
        return cls(content, {channel: Values(*values) for channel, *values in found["units"]}, None)


def _examine(checked: tuple[RawCase, Rules], see: Callable[[ReadCase], Any]) -> CheckedCase:
    case, rules = checked
    images = read_images(case, rules)
    image, label, properties = images.channels, None, images.properties
    voxels: dict[float, int] = {}
    if case.label is not None:
        label, properties, voxels = _read_label(case, rules, images.grid)
    elif case.mask is not None:
        check_leaves_voxels(read_mask(case, rules, images.grid, case.mask), case.mask)
    names = enumerate(rules.channels)
    # By this name, in any case, nnU-Net chooses CTNormalization, which takes HU for granted.
    units = {channel: look_at_units(image[channel]) for channel, name in names if name.casefold() == "ct"}
    return CheckedCase(look(image, label, voxels), units, see(ReadCase(case, image, label, properties, voxels)))


def check_leaves_voxels(mask_DHW: np.ndarray, path: Path) -> None:
    """Raise DataError if a mask leaves no voxel for losses, as one that was meant the other way round may."""
    if (mask_DHW > 0).all():
        hint = "a mask is above 0 where voxels do not count, and 0 where they do"
        raise DataError(f"the mask {str(path)!r} leaves out every voxel", hint)


def _read(read: Callable[[Any], Any], argument: Any, path: Path) -> Any:
    """Return read(argument); turn every kind of read failure into one error that names the file."""
    try:
        return read(argument)
    except UNREADABLE as error:
        # That is not the file's fault: workers.py tries the case again, alone.
        if is_out_of_memory(error):
            raise
        # ITK's messages start with its own source files; the reason is at the end.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "copy the file again, or remove the case"
        raise DataError(f"cannot read {str(path)!r}, it is damaged or truncated: {lines[-1]}", hint) from error


def _grid(array: np.ndarray, properties: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return shape and spacing in array order (D, H, W); origin and direction in the reader's order, if known."""
    grid = {"shape": np.array(array.shape[1:]), "spacing": np.array(properties["spacing"])}
    if itk := properties.get("sitk_stuff"):
        ndim = len(itk["origin"])  # 4 for a file with several channels
        grid["origin"] = np.array(itk["origin"])[:3]
        grid["direction"] = np.reshape(itk["direction"], (ndim, ndim))[:3, :3]
    elif nifti := properties.get("nibabel_stuff"):
        # A reader that reorients returns the array on this grid, not on that of the file.
        affine = nifti.get("reoriented_affine", nifti["original_affine"])
        grid["origin"] = affine[:3, 3]
        grid["direction"] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return grid


def _check_same_grid(case: RawCase, grid: dict[str, np.ndarray], other: dict[str, np.ndarray], path: Path) -> None:
    """Compare the grid of a file with that of the case, as nnU-Net does.

    nnU-Net only warns if origin or direction differ; here that is an error, as it displaces the label as well.
    """
    for key, expected in grid.items():
        value = other[key]
        # 1e-8 is numpy's default, with which nnU-Net compares spacings.
        atol = GEOMETRY_ATOL if key in ("origin", "direction") else 1e-8
        if value.shape != expected.shape or not np.allclose(value, expected, atol=atol):
            both = f"{np.round(value, 4).tolist()}, of {case.images[0].name!r} {np.round(expected, 4).tolist()}"
            hint = "bring the files of a case onto one grid, with SimpleITK's Resample or CopyInformation"
            raise DataError(f"{key} of {str(path)!r} is {both}", hint)


def _check_values(label: np.ndarray, rules: Rules, path: Path) -> dict[float, int]:
    """Return a label's voxel counts by value; raise DataError if a value is not in the rules."""
    if not np.isfinite(label).all():
        raise DataError(f"{str(path)!r} holds NaN or infinity", "labels are integers")
    voxels = count_values(label)
    wrong = sorted(voxels.keys() - rules.values)
    if wrong:
        shown = ", ".join(f"{value:g}" for value in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        if any(value != int(value) for value in wrong):
            hint = "round the labels; when resampling, take the nearest neighbour"
            raise DataError(f"{str(path)!r} holds values that are not integers: {shown}", hint)
        hint = f"add them to the labels of {rules.origin}, or correct the file"
        known = f"{rules.origin} knows {_listed(rules.values)}"
        raise DataError(f"{str(path)!r} holds the values {shown}; {known}", hint)
    return voxels


def _listed(values: frozenset[int]) -> str:
    ordered = sorted(values)
    return f"0 to {ordered[-1]}" if len(ordered) == ordered[-1] + 1 else ", ".join(map(str, ordered))
