"""How does a segmentation get back to where its series came from? As DICOM-SEG on the grid of its slices.

Nothing is resampled: the segmentation must lie on the grid of the series, at most with axes that run the other way.
Segments are binary, the kind that all viewers read; only what was found is a segment. Needs the extra `dicomseg`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from stunet import __version__
from stunet.datasets.dicom import read_series, series_files
from stunet.errors import DataError
from stunet.evaluation.segmentations import Geometry, check_place
from stunet.files import whole
from stunet.labels import apply
from stunet.results.colours import colour
from stunet.results.segmentation import Segmentation

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

EXTRA = "pip install 'stunet[dicomseg]'"
SERIES_NUMBER = 900  # far from those of scanners
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
LABEL_LENGTH = 64  # characters of a DICOM long string


def load_highdicom() -> ModuleType:
    """highdicom, which is an extra; a command calls this before it begins.

    Raises:
        DataError: It is not installed.
    """
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise DataError(f"DICOM-SEG needs highdicom, which is not installed ({error})", EXTRA) from None
    return highdicom


def write_dicom_seg(
    segmentation: Segmentation, series: Path, path: Path, algorithm: str = "stunet", version: str = __version__
) -> None:
    """Writes one DICOM-SEG file that refers to the slices of a series.

    Args:
        segmentation: Of that series.
        series: The folder of its slices; the largest series is taken, as when it was read.
        path: Of the file, usually .dcm.
        algorithm: Name of the model.
        version: Of the model.

    Raises:
        DataError: highdicom is missing, the grids differ, nothing is segmented, the series is one enhanced file, or it
            lacks attributes that a DICOM-SEG takes over.
        OSError: The file cannot be written, or the disk is full.
    """
    highdicom = load_highdicom()
    import pydicom

    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in series_files(series)]
    _check_sources(sources, series)
    labels, (depth, height, width) = _on_series(segmentation, series)
    names = _present(segmentation, labels)
    if not names:
        raise DataError(
            f"nothing is segmented in {str(series)!r}, and a DICOM-SEG needs a segment", "look at the image"
        )
    identity = highdicom.AlgorithmIdentificationSequence(
        name=algorithm[:LABEL_LENGTH], version=version, family=pydicom.sr.codedict.codes.cid7162.ArtificialIntelligence
    )
    for source in sources:  # not all have a thickness, and highdicom asks for it
        source.SliceThickness = source.get("SliceThickness") or depth
    measures = highdicom.PixelMeasuresSequence((height, width), sources[0].SliceThickness, depth)
    try:
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=_frames(segmentation, labels, names),
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
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom raises for any bad header
        raise DataError(f"cannot make a DICOM-SEG for {str(series)!r}: {error}", "export the series again") from error
    with whole(path) as part:
        made.save_as(part)


def _check_sources(sources: "Sequence[Dataset]", series: Path) -> None:
    if "NumberOfFrames" in sources[0]:
        raise DataError(f"{str(series)!r} is an enhanced series, all slices in a file", "convert it to single slices")
    if missing := [name for name in IDENTIFIERS if not all(source.get(name) for source in sources)]:
        raise DataError(
            f"slices in {str(series)!r} have no {', '.join(missing)}, by which a DICOM-SEG refers to them",
            "anonymise so that identifiers are replaced and not removed",
        )


def _on_series(segmentation: Segmentation, series: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """The labels in the order of the slices of the series and of their rows and columns, and the spacing (D, H, W).

    Raises:
        DataError: The segmentation lies on another grid.
    """
    image = read_series(series)
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    labels = segmentation.to_sitk()
    if labels.GetDimension() != image.GetDimension():
        raise DataError(f"the segmentation is {labels.GetDimension()}D, and {str(series)!r} is a volume")
    labels = sitk.DICOMOrient(labels, orientation(image.GetDirection()))
    check_place(Path("segmentation"), _geometry(labels), series, _geometry(image))
    return sitk.GetArrayFromImage(labels), image.GetSpacing()[::-1]


def _geometry(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _present(segmentation: Segmentation, labels_DHW: np.ndarray) -> list[str]:
    """The classes that have voxels."""
    found = np.zeros(np.iinfo(labels_DHW.dtype).max + 1, bool)
    for plane in labels_DHW:  # an index takes 8 bytes per voxel
        found[plane] = True
    return [name for name in segmentation.names if found[list(segmentation.values(name))].any()]


def _frames(segmentation: Segmentation, labels_DHW: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Numbers of segments from 1, (D, H, W); for regions, which overlap, a mask each, (D, H, W, K)."""
    if segmentation.regions:
        return np.stack([np.isin(labels_DHW, segmentation.values(name)) for name in names], axis=-1)
    table = np.zeros(np.iinfo(labels_DHW.dtype).max + 1, np.min_scalar_type(len(names)))
    for number, name in enumerate(names, 1):
        table[segmentation.names[name]] = number
    return apply(table, labels_DHW)


def _descriptions(highdicom: ModuleType, names: Sequence[str], identity: Any) -> "list[SegmentDescription]":
    from stunet.results.coding import coding

    rows = []
    for number, name in enumerate(names, 1):
        codes = coding(name)
        row = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LABEL_LENGTH],
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
