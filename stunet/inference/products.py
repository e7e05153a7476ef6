"""Which files does a case become, and how are they written so that they are there whole or not at all?

The segmentation is one file in the model's format, with names and colours in its header where that is NIfTI; or what
another program reads better. Beside it stand what else was asked for. output.py says what made them.
"""

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, StunetError, UsageError
from stunet.files import NAME_MAX, remove
from stunet.inference.cases import Case, Model
from stunet.inference.output import part_of_case, whole_case
from stunet.inference.probabilities import PLAIN, compress
from stunet.names import file_name
from stunet.nifti import check_nifti
from stunet.nifti_header import is_nifti
from stunet.orientation import for_nnunet
from stunet.results.segmentation import Segmentation
from stunet.results.write import write_masks, write_nifti, write_seg_nrrd

# Endings by format; the model's own format has the ending of its images, and a folder of masks has none.
FORMATS: Mapping[str, str | None] = {"image": None, "seg.nrrd": ".seg.nrrd", "masks": "", "dicom_seg": ".dcm"}
# What a library raises about one product, after which the others are written; not OSError, which is the disk's.
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
        format: Of the segmentation, one of FORMATS.
        probabilities: Also those of all classes, as nnU-Net writes them.
        preview: Also a picture.
        statistics: Volumes and intensities; not a file of the case, but of the run.
    """

    format: str = "image"
    probabilities: bool = False
    preview: bool = False
    statistics: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}", f"--format {', '.join(FORMATS)}")

    def endings(self, model: Model) -> list[str]:
        """The endings of the files of a finished case; the segmentation is last."""
        ending = FORMATS[self.format]
        return [
            *(PROBABILITIES if self.probabilities else ()),
            *([".json"] if model.has_spacing_files and self.format == "image" else []),
            *([PREVIEW] if self.preview else []),
            model.ending if ending is None else ending,
        ]

    def is_done(self, case: Case, folder: Path, model: Model) -> bool:
        """Whether all files of a case are there, and the segmentation is whole."""
        paths = [folder / f"{case.name}{ending}" for ending in self.endings(model)]
        try:
            check_nifti(paths[-1])
        except DataError:
            return False
        return all(path.exists() for path in paths)

    def remove(
        self, cases: Sequence[Case], folder: Path, model: Model, classes: Iterable[str], shared: bool = False
    ) -> None:
        """Removes the files of cases, so that a run that ends early leaves none that something else has made.

        Args:
            cases: Whose files.
            folder: Of the results.
            model: Whose results these are.
            classes: All names that it can give to a mask.
            shared: The folder also holds files of others: only what is asked for now is removed.

        Raises:
            DataError: A folder that masks would replace holds something else; nothing is removed then.
        """
        masks = {f"{file_name(name)}{MASK}" for name in classes}
        endings = {*self.endings(model), *(() if shared else (*PROBABILITIES, PREVIEW))}
        names = [f"{case.name}{ending}" for case in cases for ending in endings]
        paths = [folder / name for name in names if len(os.fsencode(name)) <= NAME_MAX]  # others cannot be there
        for path in paths:
            if other := next((p for p in path.glob("*") if p.name not in masks), None):
                what = f"the folder {str(path)!r} holds {other.name!r}, which is not a mask of this model"
                raise DataError(what, "another folder with -o")
        for path in paths:
            remove(path)


def write(
    segmentation: Segmentation,
    properties: Mapping[str, Any],
    image_DHW: np.ndarray | None,
    case: Case,
    folder: Path,
    products: Products,
    model: Model,
    writer: Any,
    shared: bool = False,
) -> tuple[list[Path], StunetError | None]:
    """Writes the files of a case; its probabilities stand in probabilities_part() already, and are compressed here.

    Where one cannot be made the others are; for a segmentation in another format that of the model stands in, unless
    it would take the place of an input, or of any file where the folder is shared.

    Args:
        segmentation: On the grid of the case's files.
        properties: nnU-Net's, of the case's files, as orientation.of_file() gives them.
        image_DHW: The first channel, for a preview.
        case: Whose files name the results.
        folder: Of the results.
        products: What is written.
        model: Whose results these are.
        writer: images.Reader of the model's files, which turns nothing.
        shared: The folder also holds files of others.

    Returns:
        The files, and why one that was asked for is not among them.

    Raises:
        OSError: The disk is full or the folder cannot be written; no file appears then.
    """
    from stunet.inference.failures import reason  # loads torch, which usage errors do without

    endings = products.endings(model)
    errors: list[StunetError] = []
    with whole_case(folder, case.name, endings) as part:
        if products.probabilities:
            compress(Path(f"{part}{PROBABILITIES[0]}"))
            of_nnunet = for_nnunet(properties, model.plans["image_reader_writer"])
            Path(f"{part}.pkl").write_bytes(pickle.dumps(of_nnunet))
        if products.preview:
            try:
                _write_preview(segmentation, image_DHW, Path(f"{part}{PREVIEW}"), case, model)
            except FAILURES as error:
                errors.append(reason(error))
                endings.remove(PREVIEW)
        wanted, own = endings[-1], model.ending
        try:
            _write_segmentation(segmentation, properties, case, Path(f"{part}{wanted}"), products.format, writer)
        except FAILURES as error:
            if products.format == "image":
                raise
            known, instead = reason(error), [".json", own] if model.has_spacing_files else [own]
            if taken := next((end for end in instead if not _is_free(case, folder, end, shared)), None):
                message = f"{known.message} (the segmentation is not kept, as {case.name + taken!r} is there already)"
                raise type(known)(message, known.hint) from error
            _write_segmentation(segmentation, properties, case, Path(f"{part}{own}"), "image", writer)
            endings[-1:] = instead
            message = f"{known.message} (the segmentation is kept as {case.name + own!r})"
            errors.append(type(known)(message, known.hint))
    return [folder / f"{case.name}{ending}" for ending in endings], errors[-1] if errors else None


def _is_free(case: Case, folder: Path, ending: str, shared: bool) -> bool:
    """Whether a file that nobody has asked for may be written."""
    path = folder / f"{case.name}{ending}"
    if shared:
        return not os.path.lexists(path)
    inputs = {os.path.realpath(file) for file in (*case.files, case.previous) if file}
    return os.path.realpath(path) not in inputs


def _write_preview(
    segmentation: Segmentation, image_DHW: np.ndarray | None, path: Path, case: Case, model: Model
) -> None:
    from stunet.results.preview import write_preview  # matplotlib takes a second

    if image_DHW is None:
        raise DataError(f"no image for the preview of {case.name!r}")
    write_preview(segmentation, image_DHW, path, model.channels[0].upper() == "CT", case.name)


def endings_of_parts(model: Model) -> list[str]:
    """The endings of all temporary files that a case may have had."""
    formats = [ending for ending in FORMATS.values() if ending is not None]
    return [*PROBABILITIES, PLAIN, PREVIEW, ".json", model.ending, *formats]


def probabilities_part(case: Case, folder: Path) -> Path:
    """Where the probabilities of a case stand until write() compresses them."""
    return folder / f"{part_of_case(case.name)}{PLAIN}"


def _write_segmentation(
    segmentation: Segmentation, properties: Mapping[str, Any], case: Case, path: Path, format_: str, writer: Any
) -> None:
    if format_ == "seg.nrrd":
        write_seg_nrrd(segmentation, path)
    elif format_ == "masks":
        write_masks(segmentation, path)
    elif format_ == "dicom_seg":
        from stunet.results.dicom_seg import write_dicom_seg

        write_dicom_seg(segmentation, case.files[0], path, series=case.series)
    elif is_nifti(path):
        write_nifti(segmentation, path)
    else:
        writer.write_seg(segmentation.labels_DHW, str(path), properties)
