"""Read one file of an image or of labels with ITK, and say in one line what is wrong with it."""

from pathlib import Path

import SimpleITK as sitk

from stunet.datasets.listing import unusable
from stunet.errors import DataError, is_out_of_memory
from stunet.images import read_sitk
from stunet.nifti import check_nifti


def read_volume(path: Path) -> sitk.Image:
    """Read a file.

    Raises:
        DataError: It is no file, a broken link, damaged, or not an image.
    """
    if unreadable := unusable(path):
        raise unreadable
    check_nifti(path)
    try:
        return read_sitk(path)
    except RuntimeError as error:  # what ITK raises for everything
        if is_out_of_memory(error):
            raise
        raise DataError(f"{str(path)!r} is damaged, or not an image", "make the file again, or leave it out") from None
