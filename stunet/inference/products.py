"""Write the files of a case so that each is there whole or not at all.

The segmentation is one file in the model's format, with names and colours in its header if that is NIfTI, or a format
that another program reads better. Next to it are the other products that were requested. records.py records what
made them.
"""

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, StunetError, UsageError
from stunet.files import NAME_MAX, remove
from stunet.inference.cases import InputCase
from stunet.inference.engine.probabilities import PLAIN, compress
from stunet.inference.model import ModelFolder
from stunet.inference.staging import atomic_case, staging_of_case
from stunet.names import to_file_name
from stunet.nifti import check_nifti
from stunet.orientation import for_nnunet
from stunet.results.formats import DEFAULT, FORMATS
from stunet.results.formats.output_format import Origin
from stunet.results.segmentation import Segmentation

# What libraries raise about one product, after which the others are still written; not OSError, which is the disk's.
FAILURES = (
    StunetError, RuntimeError, MemoryError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
)  # fmt: skip
MASK = ".nii.gz"
PREVIEW = "_preview.png"
PROBABILITIES = (".npz", ".pkl")


@dataclass(frozen=True)
class Products:
    """What is written for each case.

    Args:
        format: Format of the segmentation, one of FORMATS.
        probabilities: Also write the probabilities of all classes, as nnU-Net does.
        preview: Also write a picture.
        statistics: Measure volumes and intensities; written once per run, not per case.
        volumes: Measure volumes for an index.
    """

    format: str = DEFAULT
    probabilities: bool = False
    preview: bool = False
    statistics: bool = False
    volumes: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}", f"--format {', '.join(FORMATS)}")

    def endings(self, model: ModelFolder) -> list[str]:
        """Return the endings of the files of a finished case; the segmentation is last."""
        ending = FORMATS[self.format].ending
        return [
            *(PROBABILITIES if self.probabilities else ()),
            *([".json"] if model.has_spacing_files and self.format == DEFAULT else []),
            *([PREVIEW] if self.preview else []),
            model.ending if ending is None else ending,
        ]

    def is_done(self, case: InputCase, folder: Path, model: ModelFolder) -> bool:
        """Return whether all files of a case exist, and the segmentation is whole."""
        paths = [case.place(folder) / f"{case.name}{ending}" for ending in self.endings(model)]
        try:
            check_nifti(paths[-1])
        except DataError:
            return False
        return all(path.exists() for path in paths)

    def remove(
        self, cases: Sequence[InputCase], folder: Path, model: ModelFolder, classes: Iterable[str], shared: bool = False
    ) -> None:
        """Remove the files of cases, so that a run that ends early leaves none that something else has made.

        Args:
            cases: The cases whose files are removed.
            folder: Folder of the results.
            model: The model that the results are of.
            classes: All names that the model can give to a mask.
            shared: Whether the folder also holds other files: if so, only what is requested now is removed.

        Raises:
            DataError: A folder that masks would replace holds something else; nothing is removed then.
        """
        masks = {f"{to_file_name(name)}{MASK}" for name in classes}
        endings = {*self.endings(model), *(() if shared else (*PROBABILITIES, PREVIEW))}
        paths = [case.place(folder) / f"{case.name}{ending}" for case in cases for ending in endings]
        paths = [path for path in paths if len(os.fsencode(path.name)) <= NAME_MAX]  # longer ones cannot exist
        # All are checked before any is removed.
        for path in paths:
            if other := next((p for p in path.glob("*") if p.name not in masks), None):
                what = f"the folder {str(path)!r} holds {other.name!r}, which is not a mask of this model"
                raise DataError(what, "another folder with -o")
        for path in paths:
            remove(path)


def check_format(name: str, cases: Sequence[InputCase]) -> list[InputCase]:
    """Return the cases, with an error for those of which no file of this format can be made.

    Raises:
        UsageError: The format refers to the slices of a series, and a case is an image.
        DataError: A library for the format is missing.
    """
    made = FORMATS[name]
    images = [case.name for case in cases if not case.is_dicom and not case.error]
    if made.needs_dicom and images:
        raise UsageError(
            f"--format {name} refers to the slices of a series, and {images[0]!r} is not a DICOM folder",
            f"--format {DEFAULT}, or give the DICOM folder with -i",
        )
    made.check_installed()
    checked = []
    for case in cases:
        try:
            if not case.error:
                made.check_origin(case.files[0], case.series)
            checked.append(case)
        except DataError as error:
            checked.append(replace(case, error=error))
    return checked


def write(
    segmentation: Segmentation,
    properties: Mapping[str, Any],
    image_DHW: np.ndarray | None,
    case: InputCase,
    folder: Path,
    products: Products,
    model: ModelFolder,
    writer: Any,
    shared: bool = False,
) -> tuple[list[Path], StunetError | None]:
    """Write the files of a case; its probabilities are in probabilities_part() already, and are compressed here.

    If one file cannot be made, the others still are. A segmentation that fails in another format is written in the
    model's own, unless that would replace an input or, in a shared folder, any file.

    Args:
        segmentation: On the grid of the case's files.
        properties: nnU-Net's, of the case's files, as orientation.file_properties() returns them.
        image_DHW: The first channel, for a preview.
        case: The case whose files name the results.
        folder: Folder of the results, in or below which those of the case are.
        products: What is written.
        model: The model that the results are of.
        writer: images.Reader of the model's files, which does not reorient.
        shared: Whether the folder also holds other files.

    Returns:
        The files, and why a requested one is not among them.

    Raises:
        OSError: The disk is full or the folder is not writable; no file appears then.
    """
    from stunet.inference.failures import reason  # loads torch, which usage errors should not have to wait for

    endings, folder = products.endings(model), case.place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    errors: list[StunetError] = []
    with atomic_case(folder, case.name, endings) as part:
        if products.probabilities:
            compress(Path(f"{part}{PROBABILITIES[0]}"))
            # nnUNetv2_ensemble writes with these properties, and its writer must not turn the result once more.
            of_nnunet = for_nnunet(properties, model.plan.reader)
            Path(f"{part}.pkl").write_bytes(pickle.dumps(of_nnunet))
        if products.preview:
            try:
                _write_preview(segmentation, image_DHW, Path(f"{part}{PREVIEW}"), case, model)
            except FAILURES as error:
                errors.append(reason(error))
                endings.remove(PREVIEW)
        wanted, fallback = endings[-1], model.ending
        try:
            _write_segmentation(segmentation, properties, case, Path(f"{part}{wanted}"), products.format, writer)
        except FAILURES as error:
            if products.format == DEFAULT:  # there is no simpler format to fall back on
                raise
            known, instead = reason(error), [".json", fallback] if model.has_spacing_files else [fallback]
            if taken := next((end for end in instead if not _is_free(case, folder, end, shared)), None):
                message = f"{known.message} (the segmentation is not kept, as {case.name + taken!r} is there already)"
                raise type(known)(message, known.hint) from error
            _write_segmentation(segmentation, properties, case, Path(f"{part}{fallback}"), DEFAULT, writer)
            endings[-1:] = instead
            message = f"{known.message} (the segmentation is kept as {case.name + fallback!r})"
            errors.append(type(known)(message, known.hint))
    return [folder / f"{case.name}{ending}" for ending in endings], errors[-1] if errors else None


def _is_free(case: InputCase, folder: Path, ending: str, shared: bool) -> bool:
    """Return whether a file that nobody requested may be written."""
    path = folder / f"{case.name}{ending}"
    if shared:
        return not os.path.lexists(path)
    inputs = {os.path.realpath(file) for file in (*case.files, case.previous) if file}
    return os.path.realpath(path) not in inputs


def _write_preview(
    segmentation: Segmentation, image_DHW: np.ndarray | None, path: Path, case: InputCase, model: ModelFolder
) -> None:
    from stunet.results.preview import write_preview  # importing matplotlib takes a second

    if image_DHW is None:
        raise DataError(f"no image for the preview of {case.name!r}")
    write_preview(segmentation, image_DHW, path, model.channels[0].upper() == "CT", case.name)


def endings_of_parts(model: ModelFolder) -> list[str]:
    """Return the endings of all temporary files that a case may have had."""
    # All formats: the killed run may have had other options.
    formats = [each.ending for each in FORMATS.values() if each.ending is not None]
    return [*PROBABILITIES, PLAIN, PREVIEW, ".json", model.ending, *formats]


def probabilities_part(case: InputCase, folder: Path) -> Path:
    """Return where the probabilities of a case are kept until write() compresses them."""
    folder = case.place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{staging_of_case(case.name)}{PLAIN}"


def _write_segmentation(
    segmentation: Segmentation, properties: Mapping[str, Any], case: InputCase, path: Path, format_: str, writer: Any
) -> None:
    def write_like_image(labels_DHW: np.ndarray, target: Path) -> None:
        writer.write_seg(labels_DHW, str(target), properties)

    FORMATS[format_].write(segmentation, path, Origin(case.files[0], case.series, write_like_image))
