"""A folder with one binary NIfTI mask per class, as TotalSegmentator writes it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stunet.errors import DataError
from stunet.files import atomic_folder
from stunet.names import to_file_name
from stunet.results.formats.output_format import OutputFormat

if TYPE_CHECKING:
    from stunet.results.segmentation import Segmentation

LEVEL = 3  # of gzip: 6 makes masks half as large, but takes three times as long for each


def write_masks(segmentation: "Segmentation", folder: Path) -> list[Path]:
    """Write a new folder with a binary CLASS.nii.gz for every class, empty or not, as TotalSegmentator does.

    Masks of regions overlap where the regions do.

    Raises:
        DataError: The folder exists, or two classes would have the same file.
        OSError: The folder cannot be written, or the disk is full.
    """
    from stunet.results.nifti_labels import write_volume

    names = {name: f"{to_file_name(name)}.nii.gz" for name in segmentation.names}
    # On some file systems, Liver.nii.gz and liver.nii.gz are one file.
    if len({file.casefold() for file in names.values()}) < len(names):
        raise DataError(f"two classes of {folder.name!r} would share a file: {', '.join(names)}", "rename one of them")
    labels = segmentation.labels_DHW
    with atomic_folder(folder) as part:
        for name, file in names.items():
            mask = np.zeros(labels.shape, bool)
            for value in segmentation.values(name):
                mask |= labels == value
            write_volume(segmentation, mask.view(np.uint8), part / file, LEVEL)
    return [folder / file for file in names.values()]


FORMAT = OutputFormat("masks", "", "a folder of one mask per class", lambda made, path, origin: write_masks(made, path))
