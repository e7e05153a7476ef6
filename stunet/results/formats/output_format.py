"""What prediction and the command line have to know about a format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from stunet.results.segmentation import Segmentation


@dataclass(frozen=True)
class Origin:
    """Where a segmentation comes from, for formats that refer to it.

    Attributes:
        path: The first file of the case, or its DICOM folder.
        series: Which series of the folder, as in datasets.dicom.read_series; None: its only one.
        write_like_image: Writes labels (D, H, W) in the file format of the model's images.
    """

    path: Path
    series: str | None
    write_like_image: "Callable[[np.ndarray, Path], None]"


@dataclass(frozen=True)
class OutputFormat:
    """A format.

    Attributes:
        name: Its name after --format.
        ending: The ending of its files, by which it is recognised after -o; empty for a folder; None: that of the
            model's images.
        title: A few words for the help.
        write: Writes a segmentation to a path that does not exist.
        needs_dicom: Whether it refers to the slices of a series, so that cases have to be DICOM folders.
        check_installed: Raises a DataError if a library is missing; called once before a run.
        check_origin: Raises a DataError if the format cannot refer to a case, given its path and series; called for
            each case before a run.
    """

    name: str
    ending: str | None
    title: str
    write: "Callable[[Segmentation, Path, Origin], object]"
    needs_dicom: bool = False
    check_installed: Callable[[], None] = lambda: None
    check_origin: Callable[[Path, str | None], None] = lambda path, series: None
