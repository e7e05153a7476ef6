"""Convert a task of the Medical Segmentation Decathlon to a raw dataset of nnU-Net v2.

A task folder holds dataset.json (version 1: labels by number, `modality`), imagesTr, labelsTr and usually imagesTs.
Several channels are the fourth axis of one file, whereas nnU-Net v2 wants one file per channel. Read next: check.py.
"""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stunet.datasets import FILE_ENDING, write_dataset_json
from stunet.datasets.conversion import dataset_folder
from stunet.datasets.listing import list_images, named
from stunet.errors import DataError, UsageError, is_out_of_memory
from stunet.files import atomic_folder, read_json
from stunet.images import read_header, read_sitk, write_sitk
from stunet.kinds import TASK
from stunet.schema import check
from stunet.workers import map_all


def convert_msd(
    source: Path,
    raw: Path,
    dataset_id: int | None = None,
    name: str | None = None,
    on_case: Callable[[str], None] | None = None,
    workers: int = 1,
) -> Path:
    """Write raw/DatasetXXX_Name from a task folder and return it.

    An interrupted run leaves nothing under that name. Three-dimensional files are hard-linked if the file system allows
    it, else copied.

    Args:
        source: The task folder, such as Task04_Hippocampus.
        raw: The folder nnUNet_raw.
        dataset_id: 1 to 999; by default the task's number.
        name: By default the task's name.
        on_case: Called with a file's name once it is done.
        workers: Number of processes, for images of four axes, which are split into channels.

    Raises:
        DataError: The task is incomplete or does not match its dataset.json, or the number is taken.
        UsageError: A number or name is needed, or is not allowed.
    """
    task = _read_task(source)
    target = dataset_folder(raw, *_number_and_name(source, dataset_id, name))
    channels = {int(index): str(channel) for index, channel in task["modality"].items()}
    files = msd_images(source)
    with atomic_folder(target) as part:
        for folder in {image.parent.name for image in files}:
            (part / folder).mkdir()
        place = partial(_place, part=part, channels=len(channels))
        map_all(place, files, workers if len(channels) > 1 else 1, lambda image: image.name, on_case)
        cases = sum(image.parent.name == "imagesTr" for image in files)
        about = {key: str(task[key]) for key in ("description", "reference", "licence", "release") if task.get(key)}
        write_dataset_json(part, target.name[11:], channels, _labels_by_name(task, source), cases, **about)
    return target


def msd_images(source: Path) -> list[Path]:
    """Return the images of a task, training before test, without the `._` files that macOS leaves in archives.

    Raises:
        DataError: There are no training images, some that dataset.json lists are missing, a label has no image, or
            other images in the same folders would be left out.
    """
    training, test, labels = (_files(source / subset) for subset in ("imagesTr", "imagesTs", "labelsTr"))
    listed = {Path(entry["image"]).name for entry in _read_task(source).get("training", [])}
    missing = sorted(listed - {path.name for path in training})
    if missing:
        text = f"{len(missing)} of {len(listed)} images in dataset.json are not in {str(source / 'imagesTr')!r}"
        raise DataError(f"{text}, first {missing[0]!r}", "unpack the archive again, or remove these from dataset.json")
    if not training:
        raise DataError(
            f"no {FILE_ENDING} files in {str(source / 'imagesTr')!r}",
            "give the task folder, such as Task04_Hippocampus",
        )
    alone = sorted({path.name for path in labels} - {path.name for path in training})
    if alone:
        what = f"{len(alone)} labels in {str(source / 'labelsTr')!r} have no image, first {alone[0]!r}"
        raise DataError(what, "unpack the archive again, or remove these labels")
    return training + test


def _files(folder: Path) -> list[Path]:
    found = list_images(folder)
    if others := found.others([FILE_ENDING]):
        what = f"{str(folder)!r} holds images that are not {FILE_ENDING}, or cannot be read: {named(others)}"
        raise DataError(what, f"convert them to {FILE_ENDING}, or remove them")
    # .NII.GZ counts as an image, but nnU-Net lists only names with exactly this ending.
    if other := next((image.path for image in found.images if not image.path.name.endswith(FILE_ENDING)), None):
        raise DataError(f"{str(other)!r} does not end with {FILE_ENDING}", "rename it")
    return [image.path for image in found.images]


def _read_task(source: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise DataError(f"no folder {str(source)!r}", "unpack the task's archive and give its folder")
    path = source / "dataset.json"
    task: dict[str, Any] = read_json(path)
    if isinstance(task, dict) and "channel_names" in task:
        raise DataError(
            f"{str(source)!r} is in nnU-Net's format already", f"move it to nnUNet_raw/DatasetXXX_{source.name}"
        )
    check(task, TASK, path, "give a Decathlon task folder")
    return task


def _number_and_name(source: Path, dataset_id: int | None, name: str | None) -> tuple[int, str]:
    match = re.fullmatch(r"Task(\d+)_(.+)", source.resolve().name)
    if match:
        dataset_id = int(match[1]) if dataset_id is None else dataset_id
        name = name or match[2]
    if dataset_id is None or name is None:
        raise UsageError(f"the folder {source.name!r} is not called TaskXX_Name", "add -d NUMBER --name NAME")
    return dataset_id, name


def _labels_by_name(task: dict[str, Any], source: Path) -> dict[str, int]:
    """Invert the labels: {"0": "background", "1": "Anterior"} -> {"background": 0, "Anterior": 1}."""
    # nnU-Net does not accept another name for 0.
    labels = {"background" if int(value) == 0 else str(name): int(value) for value, name in task["labels"].items()}
    if len(labels) < len(task["labels"]):
        raise DataError(f"two labels in {str(source / 'dataset.json')!r} have the same name", "give each its own name")
    return labels


def _place(image: Path, part: Path, channels: int) -> None:
    """Put an image and its label, if it has one, into the dataset."""
    _place_image(image, part / image.parent.name, channels)
    if image.parent.name == "imagesTr":
        _place_label(image.parents[1] / "labelsTr" / image.name, part / "labelsTr")


def _place_image(image: Path, folder: Path, channels: int) -> None:
    """Put the channels of an image into `folder` as CASE_0000.nii.gz, CASE_0001.nii.gz, ..."""
    try:
        # From the header alone: a file of three axes is linked without being read.
        size = read_header(image).size
        found = size[3] if len(size) == 4 else 1
        if found != channels:
            raise DataError(
                f"{str(image)!r} holds {found} channels; dataset.json names {channels}",
                "correct `modality` in dataset.json",
            )
        targets = [folder / f"{_case(image)}_{index:04d}{FILE_ENDING}" for index in range(channels)]
        if len(size) == 3:
            _link(image, targets[0])
            return
        volume = read_sitk(image)
    except RuntimeError as error:  # SimpleITK raises this for anything
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"cannot read {str(image)!r}: {str(error).splitlines()[-1]}", "unpack the archive again"
        ) from error
    for index, target in enumerate(targets):
        write_sitk(volume[:, :, :, index], target)


def _place_label(label: Path, folder: Path) -> None:
    if not label.is_file():
        raise DataError(
            f"no label {str(label)!r} for the image of that name", "unpack the archive again, or remove the image"
        )
    _link(label, folder / label.name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links, or another user's file
        shutil.copyfile(source, target)


def _case(image: Path) -> str:
    return image.name.removesuffix(FILE_ENDING)
