"""Write the dataset.json of a raw nnU-Net dataset, and read which cases the dataset holds.

Read next: phantom.py for the smallest example of the format, check.py for what makes a dataset valid.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.datasets import tiff
from stunet.datasets.layout import pairs_command
from stunet.datasets.listing import list_images, named, unusable, visible
from stunet.errors import DataError, raise_first
from stunet.files import write_json
from stunet.kinds import FORMAT_HINT, has_classes, label_values, read_dataset_json
from stunet.names import check_name

FILE_ENDING = ".nii.gz"  # of the files we write
GEOMETRY_ATOL = 1e-3  # tolerance on origin (mm) and direction cosines; exceeds the rounding in a NIfTI header
log = logging.getLogger("stunet")


@dataclass(frozen=True)
class RawCase:
    """A training case: its image files (one per channel, or one that holds several channels), and its label file.

    A case of a dataset without labels, for self-supervised pre-training, has no label. It may have a mask instead:
    losses leave out voxels where it is above 0.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    mask: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files; the label, or the mask, is the last one."""
        return (*self.images, *(path for path in (self.label, self.mask) if path))

    @property
    def needed_label(self) -> Path:
        """The label file; raises DataError if the case has none."""
        if self.label is None:
            raise DataError(f"case {self.name!r} has no label", "a dataset with labels")
        return self.label


@dataclass(frozen=True)
class Rules:
    """What every case must satisfy: reader class, channels and allowed label values, and who requires it."""

    reader: type
    channels: tuple[str, ...]
    values: frozenset[int]
    origin: str = "dataset.json"


def write_dataset_json(
    folder: Path, name: str, channels: Mapping[int, str], labels: Mapping[str, int], cases: int, **more: Any
) -> None:
    """Write the dataset.json of a raw dataset; `more` holds further entries: description, licence, dataset."""
    content = {
        "name": name,
        "channel_names": {str(index): channel for index, channel in sorted(channels.items())},
        "labels": dict(sorted(labels.items(), key=lambda item: item[1])),
        "numTraining": cases,
        "file_ending": FILE_ENDING,
        **more,
    }
    write_json(folder / "dataset.json", content)


def read_dataset(folder: Path) -> tuple[list[RawCase], Rules]:
    """Return the training cases that nnU-Net will find in a raw dataset, and the rules they must satisfy.

    Only one image is read.

    Raises:
        DataError: dataset.json is wrong, or files are missing.
    """
    description = read_dataset_json(folder / "dataset.json")
    where = repr(str(folder / "dataset.json"))
    if "numTraining" not in description:
        raise DataError(f"{where} lacks numTraining", FORMAT_HINT)
    # Version 1 of the format, as of the Decathlon, calls them `modality`.
    channels = description.get("channel_names") or description["modality"]
    values = label_values(description["labels"], description.get("regions_class_order"))
    cases = _find_cases(folder, description, len(channels))
    # nnU-Net's own check asserts the same, and does not say which files it passed over.
    if description["numTraining"] != len(cases):
        raise DataError(
            "; ".join([
                f"numTraining is {description['numTraining']!r} in {where}, but there are {len(cases)} training cases",
                *left_out(folder, description, cases),
            ]),
            f"set numTraining to {len(cases)}, or add the cases that are missing",
        )  # fmt: skip
    reader = find_reader(description, cases[0].images[0])
    return cases, Rules(reader, tuple(str(channels[str(i)]) for i in range(len(channels))), values)


def list_cases(folder: Path, description: Mapping[str, Any]) -> list[RawCase]:
    """Return the training cases that nnU-Net will find, whether or not their files exist.

    Cases and files are those of nnU-Net's get_filenames_of_train_images_and_targets, without hidden files. That
    function forks 12 processes to list a folder, and replaces the paths in `description`.

    Args:
        folder: The raw dataset.
        description: The content of its dataset.json.

    Raises:
        DataError: A file name has no channel number, a case has a name that no dataset can have, there are no cases, or
            some have a label and some have none.
    """
    cases = (_listed_cases if "dataset" in description else _stored_cases)(folder, description)
    _check_labelled(folder, description, cases)
    return cases


def require_labels(dataset: str, cases: Sequence[RawCase]) -> None:
    """Raise DataError if a dataset is one without labels."""
    if any(case.label is None for case in cases):
        what = f"{dataset} has images without labels, which only self-supervised pre-training takes"
        raise DataError(what, "a dataset with labels")


def training_files(folder: Path, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the training cases as nnU-Net holds them; the label is None in a dataset without labels.

    Raises:
        DataError: As for list_cases(), or a file is unusable whatever it contains.
    """
    cases = list_cases(folder, description)
    raise_first([error for case in cases for path in case.files if (error := unusable(path))])
    return {
        case.name: {"images": list(map(str, case.images)), "label": case.label and str(case.label)} for case in cases
    }


def left_out(folder: Path, description: dict[str, Any], cases: Sequence[RawCase]) -> list[str]:
    """Return warnings about files that look like images or labels of training cases but that nnU-Net does not use."""
    if "dataset" in description:
        return []
    ending = description["file_ending"]
    used = {path for case in cases for path in case.files}
    warnings = []
    for name in ("imagesTr", "labelsTr"):
        found = list_images(folder / name, ending)
        others = sorted({*found.others([]), *(image.path for image in found.images)} - used)
        if others:
            what = f"{len(others)} in {str(folder / name)!r} belong to no training case and are left out"
            warnings.append(f"{what}: {named(others)}")
    return warnings


def warn_left_out(folder: Path, description: dict[str, Any], cases: Sequence[RawCase]) -> None:
    """Log the warnings of left_out(), for commands that do not check the dataset."""
    for text in left_out(folder, description, cases):
        log.warning("warning: %s", text)


def _find_cases(folder: Path, description: dict[str, Any], channels: int) -> list[RawCase]:
    cases = list_cases(folder, description)
    if "dataset" in description:
        wanted = {case.name: list(case.images) for case in cases}
    else:
        ending = description["file_ending"]
        # If no case has more than its first file, that file may hold all channels; reading it will tell.
        single = all(len(case.images) == 1 and case.images[0].name == f"{case.name}_0000{ending}" for case in cases)
        wanted = {
            case.name: [folder / "imagesTr" / f"{case.name}_{i:04d}{ending}" for i in range(1 if single else channels)]
            for case in cases
        }
    missing = [(name, file) for name, files in wanted.items() for file in files if not file.is_file()]
    # expandvars() leaves a variable that is not set in the path as it is.
    if missing and (unset := re.search(r"\$\{?(\w+)", str(missing[0][1]))):
        what = f"{str(missing[0][1])!r} has the variable {unset[1]}, which is not set"
        raise DataError(what, f"export {unset[1]}=FOLDER")
    hint = "add the file, or remove the case"
    raise_first([DataError(f"case {name!r} lacks the image {str(file)!r}", hint) for name, file in missing])
    unlabelled = [case for case in cases if case.label and not case.label.is_file()]
    raise_first([DataError(f"case {case.name!r} has no label {str(case.label)!r}", hint) for case in unlabelled])
    unmasked = [case for case in cases if case.mask and not case.mask.is_file()]
    raise_first([DataError(f"case {case.name!r} lacks its mask {str(case.mask)!r}", hint) for case in unmasked])
    return cases


def _check_labelled(folder: Path, description: Mapping[str, Any], cases: Sequence[RawCase]) -> None:
    """Raise DataError if cases lack a label although others have one, or although dataset.json names classes."""
    lacking = [case.name for case in cases if case.label is None]
    classes = [name for name in description.get("labels", ()) if name != "background"]
    if lacking and (classes or len(lacking) < len(cases)):
        others = f"dataset.json names {classes[0]!r}" if classes else f"{len(cases) - len(lacking)} others have one"
        what = f"{len(lacking)} cases of {str(folder)!r} have no label (e.g. {lacking[0]!r}), and {others}"
        raise DataError(what, 'add the labels; a dataset without any has "labels": {"background": 0}')


def _listed_cases(folder: Path, description: Mapping[str, Any]) -> list[RawCase]:
    """Return the cases under `dataset` in dataset.json; files are relative paths, absolute paths or use a variable."""

    def path(text: str) -> Path:
        # As in nnU-Net. Links stay: DataLad moves their targets. An absolute path stays as it is given, since LINK/..
        # is the folder above the link's target, not the folder that holds the link.
        expanded = os.path.expandvars(text)
        return Path(expanded if os.path.isabs(expanded) else os.path.abspath(folder / expanded))

    if not description["dataset"]:
        raise DataError(f"no training cases: dataset is {{}} in {str(folder / 'dataset.json')!r}", FORMAT_HINT)
    for name in description["dataset"]:
        check_name(name, "case", repr(str(folder / "dataset.json")))
    listed = description["dataset"].items()
    cases = []
    for name, entry in listed:
        images = tuple(map(path, entry["images"]))
        if "label" in entry:
            cases.append(RawCase(name, images, path(entry["label"])))
        else:
            cases.append(RawCase(name, images, None, path(entry["mask"]) if entry.get("mask") else None))
    return cases


def _stored_cases(folder: Path, description: Mapping[str, Any]) -> list[RawCase]:
    """Return the cases in imagesTr: CASE_0000.nii.gz, CASE_0001.nii.gz, ..., with labelsTr/CASE.nii.gz.

    Where dataset.json names no class and there is no labelsTr, they have no labels.
    """
    images, ending = folder / "imagesTr", description["file_ending"]
    files = visible(images.glob("*"))
    fitting = [path for path in files if path.name.endswith(ending) and not path.is_dir()]
    if not fitting:
        other = f" (there: {files[0].name!r})" if files else ""
        hint = pairs_command(folder, description) or f"CASE_0000{ending} in imagesTr and CASE{ending} in labelsTr"
        raise DataError(f"no training cases: no {ending} files in {str(images)!r}{other}", hint)
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    cases: dict[str, list[Path]] = {}
    wrong = []
    for path in fitting:
        if match := pattern.fullmatch(path.name):
            check_name(match[1], "case", repr(str(path)))
            cases.setdefault(match[1], []).append(path)
        else:
            hint = f"give the channel's number: {path.name.removesuffix(ending)}_0000{ending}"
            wrong.append(DataError(f"{str(path)!r} does not end in _0000{ending}", hint))
    if wrong and not cases and (command := pairs_command(folder, description)):
        raise DataError(wrong[0].message, command)
    raise_first(wrong)
    labels = folder / "labelsTr"
    labelled = has_classes(description) or labels.is_dir()
    return [
        RawCase(name, tuple(paths), labels / f"{name}{ending}" if labelled else None)
        for name, paths in sorted(cases.items())
    ]


def find_reader(description: dict[str, Any], image: Path) -> type:
    """Return the reader class that nnU-Net will use: the one dataset.json names, or the first that can read `image`.

    Raises:
        DataError: No reader can read it, or dataset.json names one that does not exist.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    if error := unusable(image):
        raise error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # nnU-Net prints a traceback for each reader that fails
            reader = determine_reader_writer_from_dataset_json(description, str(image), verbose=False)
    except RuntimeError:
        # Tiff3DIO fails at a wrong spacing as at a damaged file; this raises what is wrong with it.
        if image.suffix.lower() in tiff.ENDINGS and tiff.spacing_file(image, is_image=True).is_file():
            tiff.read_spacing(image, is_image=True)
        hint = "copy the file again, or correct file_ending in dataset.json"
        raise DataError(f"none of nnU-Net's readers can read {str(image)!r}", hint) from None
    # If nnU-Net does not know the name, it takes the first reader that can read the file.
    wanted = description.get("overwrite_image_reader_writer", "None")
    if wanted not in ("None", reader.__name__):
        hint = "SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient, NaturalImage2DIO or Tiff3DIO"
        raise DataError(f"overwrite_image_reader_writer in dataset.json names no reader of nnU-Net: {wanted!r}", hint)
    return reader
