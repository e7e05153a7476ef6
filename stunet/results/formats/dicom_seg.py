"""DICOM-SEG, on the slices of the case's series; results/dicom_seg.py makes it, with highdicom."""

from pathlib import Path
from typing import TYPE_CHECKING

from stunet.results.formats.output_format import Origin, OutputFormat

if TYPE_CHECKING:
    from stunet.results.segmentation import Segmentation


def _write(segmentation: "Segmentation", path: Path, origin: Origin) -> None:
    from stunet.results.dicom_seg import write_dicom_seg

    write_dicom_seg(segmentation, origin.path, path, series=origin.series)


def _check_installed() -> None:
    from stunet.results.dicom_seg import load_highdicom

    load_highdicom()


def _check_origin(path: Path, series: str | None) -> None:
    from stunet.results.dicom_seg import check_series

    check_series(path, series)


FORMAT = OutputFormat(
    "dicom_seg",
    ".dcm",
    "DICOM-SEG",
    _write,
    needs_dicom=True,
    check_installed=_check_installed,
    check_origin=_check_origin,
)
