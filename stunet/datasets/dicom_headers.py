"""Find the series in a folder of DICOM files, and read what their headers state about each frame.

A legacy file is one frame. An enhanced file holds many, and records in functional groups, shared or per frame, where
they lie; `value` reads both. Read next: dicom.py, which chooses a series and makes a volume of its frames.
"""

import contextlib
import functools
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.uid import UID, MediaStorageDirectoryStorage

from stunet.datasets.listing import DICOM, begins_as_dicom
from stunet.errors import DataError

WITHOUT_UID = "without UID:"  # prefix of the keys of series without a SeriesInstanceUID
EXPORT_AGAIN = "export the series again with its geometry, or convert it with a tool that asks for it"
COPY_AGAIN = "copy the file again, or take it out of the folder"
NO_IMAGES = {"SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "PR", "KO", "REG", "DOC", "FID", "PLAN"}
IMAGES = ("original", "derived", "localizer")  # kinds with one gray value per pixel
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # its multi-frame variants append a further number
# The functional group that holds an attribute in an enhanced file (DICOM PS3.3, C.7.6.16).
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
}
# Attributes that can tell apart images at one position, in the order in which a user would think of them.
DISTINCTIONS = (
    "StackID", "EchoTime", "EffectiveEchoTime", "EchoNumbers", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "ConvolutionKernel", "ImageType", "SeriesDescription",
    "AcquisitionTime",
)  # fmt: skip
# Attributes that describe the pixels. Whatever is not WANTED is skipped, which is several times faster.
OF_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip
WANTED = [
    "SpecificCharacterSet", "SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *OF_PIXELS, *GROUPS,
    *DISTINCTIONS,
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The header of a file, and the offset in bytes at which its pixels begin."""

    file: Path
    content: pydicom.Dataset
    end: int

    @property
    def frames(self) -> int:
        return _whole_number(self, "NumberOfFrames", 1)

    @property
    def is_enhanced(self) -> bool:
        return "PerFrameFunctionalGroupsSequence" in self.content

    @property
    def kind(self) -> str:
        """Kind of image: original, derived or localizer.

        `colour` and `object`, such as a report or structures, are not images to segment.
        """
        get, sop = self.content.get, str(self.content.get("SOPClassUID") or "")
        is_image = "Image Storage" in UID(sop).name or not sop
        if str(get("Modality", "")) in NO_IMAGES or ("Rows" not in self.content and not is_image):
            return "object"
        if _whole_number(self, "SamplesPerPixel", 1) != 1 or get("PhotometricInterpretation") == "PALETTE COLOR":
            return "colour"
        words = [word.upper() for word in _texts(get("ImageType"))]
        if "LOCALIZER" in words:
            return "localizer"
        return "derived" if sop.startswith(SECONDARY_CAPTURE) or words[:1] == ["DERIVED"] else "original"


@dataclass(frozen=True)
class Frame:
    """One slice: a file, and the index of the frame in it, from 0."""

    header: Header
    number: int

    @property
    def name(self) -> str:
        """Name for messages."""
        which = f" (frame {self.number + 1})" if self.header.frames > 1 else ""
        return f"{self.header.file.name!r}{which}"


@dataclass(frozen=True)
class Series:
    """The files of a folder with the same SeriesInstanceUID; localizers form a series of their own.

    Attributes:
        headers: Sorted by file name.
        kind: As in Header; `original` if any file is, else the alphabetically first kind of its files.
        key: Distinguishes it from all other series of the folder; contains the UID if there is one.
    """

    headers: tuple[Header, ...]
    kind: str
    key: str

    @property
    def folder(self) -> Path:
        return self.headers[0].file.parent

    @property
    def modality(self) -> str:
        return self._text("Modality")

    @property
    def is_image(self) -> bool:
        return self.kind in IMAGES

    @property
    def size(self) -> int:
        """Number of frames."""
        return sum(header.frames for header in self.headers)

    def is_called(self, name: str) -> bool:
        """Return whether `name` is its key, UID, number or description."""
        known = (self.key, *(self._text(key) for key in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription")))
        return bool(name.strip()) and name.strip().casefold() in {text.casefold() for text in known}

    def __str__(self) -> str:
        number, description = self._text("SeriesNumber"), self._text("SeriesDescription")
        named = " ".join(word for word in (number, repr(description) if description else "") if word)
        kind = "" if self.kind == "original" else f" {self.kind}"
        images = f"{self.size} image{'s' * (self.size != 1)}" if self.is_image else "no images to segment"
        uid = self._text("SeriesInstanceUID")
        return (
            f"series {named or 'without a name'} ({self.modality or 'no modality'}{kind}, {images}{uid and ', '}{uid})"
        )

    def _text(self, key: str) -> str:
        return " ".join(_texts(self.headers[0].content.get(key)))


@dataclass
class Scan:
    """The contents of a folder, without its subfolders.

    Attributes:
        series: In the order of their file names.
        damaged: Reason by file, for files that must be part of a series but cannot be read.
        others: Files that are unrelated to DICOM.
    """

    series: list[Series] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings about values that break the rules of DICOM.

    Such values are common; those that matter are checked where they are used.
    """
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scan(folder: Path) -> Scan:
    """Read the headers of all files in a folder."""
    # With size and time, so that a file that was copied again is not taken from the cache.
    stats = ((file, file.stat() if file.exists() else file.lstat()) for file in files_of(folder))
    return _scan(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


def files_of(folder: Path) -> list[Path]:
    """Return the files and broken links in a folder, without hidden ones and the index of a disc, sorted by name."""
    names = (path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name != "DICOMDIR")
    # A broken link stays: it is a slice that would be missing silently.
    return [path for path in names if path.is_file() or not path.exists()]


@functools.lru_cache(maxsize=2)  # each case is scanned for its series, its size, and twice for its image
@quietly()
def _scan(files: tuple[tuple[Path, int, int], ...]) -> Scan:
    found, headers = Scan(), []
    for file, _, _ in files:
        if not begins_as_dicom(file):
            found.others.append(file)
            continue
        try:
            with file.open("rb") as stream:
                # force: files without the preamble of 128 bytes are read, too.
                content = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=WANTED)
                end = stream.tell()
            # The index of a disc under another name than DICOMDIR.
            if content.get("SOPClassUID") == MediaStorageDirectoryStorage:
                continue
            header = Header(file, content, end)
            is_image = header.kind in IMAGES
            if header.frames < 1 or (is_image and not ("Rows" in content and "Columns" in content)):
                raise ValueError("it ends within its header")
            headers.append(header)
        except DataError as error:
            found.damaged[file] = error.message
        except Exception as error:  # noqa: BLE001  # pydicom raises all kinds for a damaged file
            found.damaged[file] = str(error).strip() or type(error).__name__
    _name_damaged(found, [header.file for header in headers])
    grouped: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        grouped[_key(header)].append(header)
    for key, members in grouped.items():
        kinds = {header.kind for header in members}
        kind = "original" if "original" in kinds else sorted(kinds)[0]
        found.series.append(Series(tuple(members), kind, key))
    return found


def value(frame: Frame, name: str) -> Any:
    """Return an attribute: the frame's own, else that shared by all frames, else the file's; None if missing or empty.

    Raises:
        DataError: The attribute cannot be read.
    """
    content = frame.header.content
    places = [content]
    try:
        if group := GROUPS.get(name):
            own = content.get("PerFrameFunctionalGroupsSequence") or []
            shared = content.get("SharedFunctionalGroupsSequence") or []
            # A slice, not an index: a file may have fewer items than frames.
            sequences = [item.get(group) for item in (*own[frame.number : frame.number + 1], *shared[:1])]
            places = [*(sequence[0] for sequence in sequences if sequence), content]
        for place in places:
            found = place.get(name)
            if found is not None and found != "" and found != []:
                return found
    except Exception as error:  # noqa: BLE001  # pydicom raises all kinds for a value that breaks the rules
        raise DataError(f"cannot read {name} of {where(frame)}: {error}", EXPORT_AGAIN) from None
    return None


def numbers(frame: Frame, name: str, count: int) -> tuple[float, ...] | None:
    """Return an attribute that consists of `count` finite numbers; None if it is missing.

    Raises:
        DataError: The value is something else.
    """
    found = value(frame, name)
    if found is None:
        return None
    try:
        read = tuple(float(number) for number in (found if count > 1 else [found]))
        if len(read) == count and all(map(math.isfinite, read)):
            return read
    except (TypeError, ValueError):
        pass
    what = "a number" if count == 1 else f"{count} numbers"
    raise DataError(f"{name} of {where(frame)} is {str(found)!r}, not {what}", EXPORT_AGAIN)


def where(frame: Frame) -> str:
    """Return the names of a frame and its folder, for messages."""
    return f"{frame.name} in {str(frame.header.file.parent)!r}"


def _key(header: Header) -> str:
    """Return the key of the file's series.

    Anonymisers may empty the UID; then number, description and modality take its place.
    """
    get = header.content.get
    uid = str(get("SeriesInstanceUID") or "")
    named = " ".join(str(get(key) or "") for key in ("SeriesNumber", "SeriesDescription", "Modality"))
    return (uid or f"{WITHOUT_UID} {named}") + (" localizer" if header.kind == "localizer" else "")


def _name_damaged(found: Scan, good: list[Path]) -> None:
    """Move files that are named like slices but hold none, such as empty ones, to `damaged`."""
    # Files of a series usually differ only in the numbers in their names.
    patterns = {re.sub(r"\d+", "#", file.name) for file in good if re.search(r"\d", file.name)}
    for file in list(found.others):
        if file.suffix.lower() in DICOM or re.sub(r"\d+", "#", file.name) in patterns:
            found.others.remove(file)
            if not file.exists():
                found.damaged[file] = "it is a broken link"
            else:
                found.damaged[file] = "it does not begin as a DICOM file" if file.stat().st_size else "it is empty"


def _whole_number(header: Header, name: str, default: int) -> int:
    found = header.content.get(name)
    if found in (None, ""):
        return default
    try:
        return int(found)
    except (TypeError, ValueError):
        raise DataError(f"{name} is {str(found)!r}", COPY_AGAIN) from None


def _texts(found: Any) -> list[str]:
    if found is None:
        return []
    return [str(part) for part in ([found] if isinstance(found, str) else list(found) if _is_list(found) else [found])]


def _is_list(found: Any) -> bool:
    return isinstance(found, list | tuple | pydicom.multival.MultiValue)
