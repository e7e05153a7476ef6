"""Find what to show: the cases of a folder of predictions, or of a dataset, with their images and references."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.datasets import RawCase, list_cases
from stunet.datasets.listing import Image, ending_of, list_images, named, visible
from stunet.errors import DataError

CHANNEL = 5  # characters of _0000


@dataclass(frozen=True)
class ViewCase:
    """A case: its files.

    Attributes:
        name: As in the dataset.
        images: One file per channel, or one that holds several, or a folder of DICOM slices; empty if there is none.
        prediction: The segmentation that is looked at.
        reference: What it is compared with.
        channels: Names of the channels, as far as they are known.
    """

    name: str
    images: tuple[Path, ...]
    prediction: Path
    reference: Path | None = None
    channels: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.images, self.prediction, *([self.reference] if self.reference else []))


def case_of_files(images: tuple[Path, ...], prediction: Path, reference: Path | None) -> ViewCase:
    """Return the case of files that are given one by one."""
    return ViewCase(case_name(prediction), images, prediction, reference)


def case_name(path: Path) -> str:
    """Return a file's name without the ending of an image."""
    return path.name[: len(path.name) - len(ending_of(path.name))] or path.name


def cases_of_folders(images: Path | None, predictions: Path, references: Path | None, ending: str) -> list[ViewCase]:
    """Return the cases of a folder of predictions, matched by name.

    Args:
        images: Folder with CASE_0000.nii.gz, CASE_0001.nii.gz, ... or CASE.nii.gz for each case.
        predictions: A folder, or one file.
        references: Folder with CASE.nii.gz for each case, or one file if there is one prediction.
        ending: The expected ending; other formats are found as well.

    Raises:
        DataError: A folder is missing, or the predictions have no images.
    """
    found = _named(images, ending) if images else {}
    partners = _names(references, ending) if references and references.is_dir() else {}
    cases = []
    for name, path in _names(predictions, ending).items():
        reference = partners.get(name) if references is None or references.is_dir() else references
        cases.append(ViewCase(name, _images(found, name), path, reference))
    return cases


def cases_of_dataset(
    raw: Path, description: Mapping[str, Any], predictions: Path | None, references: Path | None
) -> list[ViewCase]:
    """Return the cases of a dataset that have a prediction; without predictions, its labels are what is shown.

    Args:
        raw: The raw dataset.
        description: The content of its dataset.json.
        predictions: Folder or file; None: the labels of the dataset.
        references: Folder or file; None: labelsTr and labelsTs of the dataset.

    Raises:
        DataError: A folder is missing or empty, or the dataset has no labels to show.
    """
    ending = description["file_ending"]
    known: dict[str, RawCase] = {case.name: case for case in list_cases(raw, description)}
    channels = tuple((description.get("channel_names") or description["modality"]).values())
    test_images = _named(raw / "imagesTs", ending) if (raw / "imagesTs").is_dir() else {}
    test_labels = _names(raw / "labelsTs", ending, may_be_empty=True) if (raw / "labelsTs").is_dir() else {}
    chosen = _names(references, ending) if references and references.is_dir() else {}

    def images(name: str) -> tuple[Path, ...]:
        return known[name].images if name in known else _images(test_images, name)

    if predictions is None:
        labels = {case.name: case.label for case in known.values() if case.label} | test_labels
        if not labels:
            raise DataError(f"{raw.name} has no labels to show", f"stunet_view -d {raw.name[7:10]} PREDICTIONS")
        return [ViewCase(name, images(name), path, None, channels) for name, path in labels.items() if path]
    cases = []
    for name, path in _names(predictions, ending).items():
        if references:
            reference = chosen.get(name) if references.is_dir() else references
        else:
            reference = known[name].label if name in known else test_labels.get(name)
        cases.append(ViewCase(name, images(name), path, reference, channels))
    return cases


def _names(folder: Path, ending: str, may_be_empty: bool = False) -> dict[str, Path]:
    """Return the label files of a folder by name, or the one file."""
    if folder.is_file():
        return {case_name(folder): folder}
    if not folder.is_dir():
        raise DataError(f"no file or folder {str(folder)!r}", "check the path")
    found = list_images(folder, ending)
    if not found.images and not may_be_empty:
        others = [*found.slices, *found.series, *found.folders, *visible(folder.iterdir())]
        there = f" (there: {named(others)})" if others else ", which is empty"
        raise DataError(f"no segmentations in {str(folder)!r}{there}", f"a folder with CASE{ending}")
    names: dict[str, Path] = {}
    for image in _best_first(found.images, ending):
        names.setdefault(image.name, image.path)
    return dict(sorted(names.items()))


def _named(folder: Path, ending: str) -> dict[str, Path]:
    """Return the images in a folder by name, with the channel's number; folders of slices as well."""
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}", "check the path")
    found = list_images(folder, ending)
    names = {path.name: path for path in found.series}
    for image in _best_first(found.images, ending):
        names.setdefault(image.name, image.path)
    return names


def _best_first(images: Iterable[Image], ending: str) -> list[Image]:
    return sorted(images, key=lambda image: (image.ending != ending, image.path))


def _images(found: Mapping[str, Path], name: str) -> tuple[Path, ...]:
    """Return CASE_0000, CASE_0001, ..., or CASE."""
    numbered = sorted(other for other in found if other[:-CHANNEL] == name and _is_channel(other[-CHANNEL:]))
    return tuple(found[other] for other in numbered) or ((found[name],) if name in found else ())


def _is_channel(text: str) -> bool:
    return text[:1] == "_" and text[1:].isascii() and text[1:].isdecimal()
