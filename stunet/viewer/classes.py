"""Name the values of label files: from a dataset.json, or from what the files themselves say.

NIfTI files of ours, and of TotalSegmentator, have a table of names in the header; .seg.nrrd files have one as well.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from stunet.kinds import CLASSES, read
from stunet.nifti_header import is_nifti
from stunet.results.colours import RGB, colour
from stunet.results.segmentation import Segmentation, class_names

IGNORED: RGB = (128, 128, 128)
_LABEL = re.compile(r'<Label Key="(\d+)"[^>]*>(?:<!\[CDATA\[(.*?)\]\]>|(.*?))</Label>', re.DOTALL)
_SEGMENT = re.compile(r"Segment\d+_LabelValue")


@dataclass(frozen=True)
class Names:
    """What the values of label files mean.

    Attributes:
        classes: Name by value, without background.
        regions: For a dataset with regions, the values of each; they may overlap. Empty otherwise.
        ignore: The value of voxels that are not compared.
        known: Whether a dataset.json lists the values, so that others are worth a note.
    """

    classes: Mapping[int, str] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    known: bool = False

    def name(self, value: int) -> str:
        """Return the name of a value, on one line."""
        if value == self.ignore:
            return "ignored"
        return " ".join(self.classes.get(value, f"label {value}").split()) or f"label {value}"

    def colour(self, value: int) -> RGB:
        """Return red, green and blue, 0 to 255: those of the preview and of all other files."""
        return IGNORED if value == self.ignore else colour(self.classes.get(value, f"label_{value}"))


def names_of(description: Mapping[str, Any]) -> Names:
    """Return the names in a dataset.json.

    Raises:
        DataError: There are regions without regions_class_order.
    """
    names, regions = class_names(description)
    empty = np.zeros((1, 1, 1), np.uint8)
    made = Segmentation(empty, names, (1.0,) * 3, (0.0,) * 3, (1, 0, 0, 0, 1, 0, 0, 0, 1), regions)
    ignore = description["labels"].get("ignore")
    return Names(made.value_names, regions, None if ignore is None else int(ignore), known=True)


def read_names(file: Path) -> Names:
    """Return the names in the dataset.json of this path.

    Raises:
        DataError: It is missing or wrong.
    """
    return names_of(read(file, CLASSES))


def names_in(files: Sequence[Path]) -> Names:
    """Return the names that the first label file with a table of its own has; none if no file has one."""
    for file in files:
        if found := _from_nifti(file) if is_nifti(file) else _from_nrrd(file):
            return Names(found)
    return Names()


def _from_nifti(file: Path) -> dict[int, str]:
    try:
        header: Any = nibabel.load(file).header
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError):
        return {}  # reading its voxels will say what is wrong
    for extension in getattr(header, "extensions", ()):
        content = extension.get_content()
        text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
        # TotalSegmentator writes names as CDATA, in which nothing is escaped.
        if found := {int(key): raw or html.unescape(escaped) for key, raw, escaped in _LABEL.findall(text)}:
            return {value: name for value, name in found.items() if value}
    return {}


def _from_nrrd(file: Path) -> dict[int, str]:
    if not file.name.lower().endswith(".nrrd"):
        return {}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}
    found = {}
    for key in reader.GetMetaDataKeys():
        named = key.removesuffix("LabelValue") + "Name"
        if _SEGMENT.fullmatch(key) and reader.HasMetaDataKey(named) and reader.GetMetaData(key).isdecimal():
            found[int(reader.GetMetaData(key))] = reader.GetMetaData(named)
    return found
