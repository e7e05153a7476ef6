"""Write a segmentation as DICOM-SEG on the grid of its series' slices, so that it can return to where they came from.

Nothing is resampled: the segmentation must lie on the grid of the series; only the direction of axes may differ.
Segments are binary, the kind that all viewers read; only classes that were found become segments. Needs the extra
`dicomseg`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from stunet import __version__
from stunet.datasets.dicom import Stack, choose, stack
from stunet.datasets.dicom_headers import numbers, quietly
from stunet.errors import DataError
from stunet.evaluation.segmentations import Geometry, check_same_grid
from stunet.files import atomic_write
from stunet.labels.systems import apply_lookup
from stunet.results.colours import colour
from stunet.results.segmentation import Segmentation

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

EXTRA = "pip install 'stunet[dicomseg]'"
SERIES_NUMBER = 900  # far from those that scanners assign
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
SHARED_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")  # the same in all slices
LABEL_LENGTH = 64  # characters of a DICOM long string
UTF8 = "ISO_IR 192"
# Type 2 attributes, which must be present but may be empty, and the values that highdicom accepts in them.
MAY_BE_EMPTY = {
    "PatientName": ".*",
    "PatientID": ".*",
    "PatientBirthDate": r"\d{8}",
    "PatientSex": "[MFO]",
    "StudyID": ".*",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2,6}(\.\d{1,6})?",
    "AccessionNumber": ".*",
}


def load_highdicom() -> ModuleType:
    """Return highdicom, which is an optional dependency; a command calls this before it begins.

    Raises:
        DataError: It is not installed.
    """
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise DataError(f"DICOM-SEG needs highdicom, which is not installed ({error})", EXTRA) from None
    return highdicom


@dataclass(frozen=True)
class ReferencedSeries:
    """The slices that a DICOM-SEG refers to.

    Attributes:
        datasets: Their headers, completed.
        stack: Their grid.
    """

    datasets: "tuple[Dataset, ...]"
    stack: Stack


def check_series(folder: Path, series: str | None = None) -> None:
    """Check, from its headers, that a DICOM-SEG can refer to a series, before it has been segmented.

    Raises:
        DataError: As in write_dicom_seg, except for the errors of a segmentation.
    """
    referenced = _read_series(folder, series)
    width, height, _ = referenced.stack.size
    # highdicom judges the headers when it makes a file, and needs a segment for it: one voxel of one slice.
    frames = np.zeros((1, height, width), np.uint8)
    frames[0, 0, 0] = 1
    _encode(folder, replace(referenced, datasets=referenced.datasets[:1]), frames, ["tissue"], "stunet", __version__)


@quietly()
def write_dicom_seg(
    segmentation: Segmentation,
    folder: Path,
    path: Path,
    algorithm: str = "stunet",
    version: str = __version__,
    series: str | None = None,
) -> None:
    """Write one DICOM-SEG file that refers to the slices of a series.

    Values that anonymisers remove are written empty; text is UTF-8.

    Args:
        segmentation: The segmentation of that series.
        folder: Folder of its slices.
        path: File to write, usually .dcm.
        algorithm: Name of the model.
        version: Version of the model.
        series: Which series of the folder, as in datasets.dicom.read_series.

    Raises:
        DataError: highdicom is missing, the grids differ, nothing is segmented, the series lacks the identifiers by
            which a DICOM-SEG refers to it, or it is enhanced.
        OSError: The file cannot be written, or the disk is full.
    """
    load_highdicom()
    referenced = _read_series(folder, series)
    labels = _on_series(segmentation, referenced.stack, folder)
    names = _present(segmentation, labels)
    if not names:
        raise DataError(
            f"nothing is segmented in {str(folder)!r}, and a DICOM-SEG needs a segment", "look at the image"
        )
    encoded = _encode(folder, referenced, _frames(segmentation, labels, names), names, algorithm, version)
    with atomic_write(path) as part:
        encoded.save_as(part)


@quietly()
def _encode(
    folder: Path, referenced: ReferencedSeries, frames: np.ndarray, names: Sequence[str], algorithm: str, version: str
) -> Any:
    """Return the file in memory; `frames` are as returned by _frames."""
    highdicom = load_highdicom()
    import pydicom

    identity = highdicom.AlgorithmIdentificationSequence(
        name=algorithm[:LABEL_LENGTH], version=version, family=pydicom.sr.codedict.codes.cid7162.ArtificialIntelligence
    )
    width, height, depth = referenced.stack.spacing
    thickness = numbers(referenced.stack.frames[0], "SliceThickness", 1)
    measures = highdicom.PixelMeasuresSequence((height, width), thickness[0] if thickness else depth, depth)
    try:
        return highdicom.seg.Segmentation(
            source_images=referenced.datasets,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(highdicom, names, identity),
            pixel_measures=measures,
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="stunet",
            manufacturer_model_name=algorithm[:LABEL_LENGTH],
            software_versions=__version__,
            device_serial_number="none",
            series_description=f"Segmentation by {algorithm}"[:LABEL_LENGTH],
            specific_character_set=UTF8,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom raises for bad headers
        raise DataError(f"cannot make a DICOM-SEG for {str(folder)!r}: {error}", "export the series again") from error


@quietly()
def _read_series(folder: Path, series: str | None) -> ReferencedSeries:
    """Return the headers of a series, completed.

    Raises:
        DataError: As in write_dicom_seg.
    """
    load_highdicom()
    import pydicom

    grid = stack(choose(folder, wanted=series))
    if grid.frames[0].header.is_enhanced:
        what = f"{str(folder)!r} is an enhanced series, all slices in a file, which --format dicom_seg does not take"
        raise DataError(what, "--format image or seg.nrrd, or convert it to single slices")
    files = [frame.header.file for frame in grid.frames]
    # force: files without DICOM's preamble are read, too.
    datasets = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    _check_identifiers(datasets, folder)
    for source in datasets:
        _complete(source, grid)
    return ReferencedSeries(tuple(datasets), grid)


def _check_identifiers(headers: "Sequence[Dataset]", folder: Path) -> None:
    if missing := [name for name in IDENTIFIERS if not all(header.get(name) for header in headers)]:
        raise DataError(
            f"slices in {str(folder)!r} have no {', '.join(missing)}, by which a DICOM-SEG refers to them",
            "anonymise so that identifiers are replaced and not removed",
        )
    for name in SHARED_IDENTIFIERS:
        if len(values := sorted({str(header.get(name)) for header in headers})) > 1:
            raise DataError(
                f"slices in {str(folder)!r} have several {name}: {', '.join(values[:2])}",
                "a folder for each, or anonymise so that all slices keep one",
            )
    if len({str(header.SOPInstanceUID) for header in headers}) < len(headers):
        raise DataError(
            f"slices in {str(folder)!r} share a SOPInstanceUID, by which a DICOM-SEG refers to them",
            "anonymise so that each slice has its own",
        )


def _complete(source: "Dataset", grid: Stack) -> None:
    """Add what highdicom requires: values that may be empty, one orientation for all slices, text in UTF-8."""
    # Text is decoded by the character set of the file; pydicom leaves some of its escape sequences in it.
    values = {name: re.sub(r"\x1b[ -/]*[0-~]", "", str(source.get(name) or "")) for name in MAY_BE_EMPTY}
    source.SpecificCharacterSet = UTF8
    for name, value in values.items():
        setattr(source, name, value if re.fullmatch(MAY_BE_EMPTY[name], value) else "")
    first = grid.frames[0]
    source.SliceThickness = source.get("SliceThickness") or grid.spacing[2]
    # highdicom refuses cosines that differ even by rounding; stack() has compared them with a tolerance.
    source.ImageOrientationPatient = list(numbers(first, "ImageOrientationPatient", 6) or ())
    source.PixelSpacing = list(numbers(first, "PixelSpacing", 2) or ())


def _on_series(segmentation: Segmentation, grid: Stack, folder: Path) -> np.ndarray:
    """Return the labels in the order of the series' slices, rows and columns.

    Raises:
        DataError: The segmentation lies on another grid.
    """
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    labels = segmentation.to_sitk()
    if labels.GetDimension() != 3:
        raise DataError(f"the segmentation is {labels.GetDimension()}D, and {str(folder)!r} is a volume")
    # Flips and reorders axes only; check_same_grid() refuses what would need resampling.
    labels = sitk.DICOMOrient(labels, orientation(grid.direction))
    place = Geometry(grid.size, grid.spacing, grid.origin, grid.direction)
    check_same_grid(Path("segmentation"), _geometry(labels), folder, place)
    return sitk.GetArrayFromImage(labels)


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _present(segmentation: Segmentation, labels_DHW: np.ndarray) -> list[str]:
    """Return the classes that have voxels."""
    found = np.zeros(np.iinfo(labels_DHW.dtype).max + 1, bool)
    for plane in labels_DHW:  # by plane, as an index takes 8 bytes per voxel
        found[plane] = True
    return [name for name in segmentation.names if found[list(segmentation.values(name))].any()]


def _frames(segmentation: Segmentation, labels_DHW: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return segment numbers from 1, (D, H, W); for regions, which may overlap, one mask each, (D, H, W, K)."""
    if segmentation.regions:
        return np.stack([np.isin(labels_DHW, segmentation.values(name)) for name in names], axis=-1)
    table = np.zeros(np.iinfo(labels_DHW.dtype).max + 1, np.min_scalar_type(len(names)))
    for number, name in enumerate(names, 1):
        table[segmentation.names[name]] = number
    return apply_lookup(table, labels_DHW)


def _descriptions(highdicom: ModuleType, names: Sequence[str], identity: Any) -> "list[SegmentDescription]":
    from stunet.results.coding import coding

    rows = []
    for number, name in enumerate(names, 1):
        codes = coding(name)
        row = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_label(name),
            segmented_property_category=codes.category,
            segmented_property_type=codes.type,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identity,
            anatomic_regions=[codes.region] if codes.region else None,
            display_color=highdicom.color.CIELabColor.from_rgb(*colour(name)),
        )
        if codes.side:
            side = [highdicom.sr.CodedConcept.from_code(codes.side)]
            if codes.region:
                row.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
            else:
                row.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
        rows.append(row)
    return rows


def _label(name: str) -> str:
    """Return a name that a DICOM long string can hold: a backslash would split it into several values."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name.replace("\\", "/"))
    return printable[:LABEL_LENGTH].strip() or "?"
