"""Which images does a folder hold? Everything in it that looks like one is listed: to be used, or to be named.

A listing by one ending loses files without a word: CASE.NII.GZ, CASE.nrrd, a link whose target is gone, a folder of
DICOM slices. So every command lists folders through here, and says what becomes of each image. Hidden files are none:
macOS leaves a `._CASE.nii.gz` beside each file, and ours that are being written begin with `.part-`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stunet.errors import DataError

# Of volumes that ITK or nibabel read, and others that hold one; the longest that fits counts.
VOLUMES = (
    ".nii.gz", ".nii", ".nii.zst", ".nii.bz2", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz",
    ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".tif", ".tiff",
)  # fmt: skip
PICTURES = (".png", ".bmp", ".jpg", ".jpeg")  # images only where the images that are wanted are pictures, too
DICOM = (".dcm", ".dicom", ".ima")
DIRECTORY = "DICOMDIR"  # lists DICOM files, and has their mark
HEADERS = {".img": ".hdr", ".img.gz": ".hdr"}  # a file of voxels is part of the image whose header lies beside it
# What lies beside images and is none: no need to look into it for DICOM's mark.
OTHER = {
    ".json",
    ".txt",
    ".csv",
    ".tsv",
    ".pkl",
    ".npz",
    ".npy",
    ".xml",
    ".toml",
    ".yaml",
    ".md",
    ".pdf",
    ".db",
    ".ini",
}
DEPTH = 4  # levels of sub-folders that are searched for images
SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Image:
    """A file that looks like an image.

    Attributes:
        path: Of the file.
        name: Its name without the ending.
        ending: In lower case, or as it is wanted.
        error: Why nothing can read it, whatever is in it.
    """

    path: Path
    name: str
    ending: str
    error: DataError | None = None


@dataclass(frozen=True)
class Listing:
    """What looks like an image in a folder, sorted by name.

    Attributes:
        images: Files.
        slices: DICOM files.
        series: Sub-folders with DICOM files.
        folders: Other sub-folders that hold images, or cannot be looked into.
    """

    images: list[Image] = field(default_factory=list)
    slices: list[Path] = field(default_factory=list)
    series: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def others(self, endings: Iterable[str]) -> list[Path]:
        """All that is not an image of one of these endings, or cannot be read."""
        endings = set(endings)
        files = [image.path for image in self.images if image.error or image.ending not in endings]
        return sorted([*files, *self.slices, *self.series, *self.folders])


def list_images(folder: Path, wanted: str = ".nii.gz") -> Listing:
    """What looks like an image in a folder, hidden files left out.

    Args:
        folder: Which may not exist: then there is nothing.
        wanted: The ending that is looked for; of pictures, other pictures are listed, too.

    Raises:
        DataError: The folder's path is not UTF-8.
    """
    found = Listing()
    if not folder.is_dir():
        return found
    if error := not_utf8(folder):
        raise error
    entries = {path.name: path for path in sorted(folder.iterdir()) if not is_hidden(path)}
    for name, path in entries.items():
        ending = ending_of(name, wanted)
        stem = name[: len(name) - len(ending)]
        if path.is_dir():
            kind = found.series if _has_slices(path) else found.folders
            if kind is found.series or holds_images(path, wanted):
                kind.append(path)
        elif ending and not (ending in HEADERS and any(f"{stem}{end}" in entries for end in (".hdr", ".HDR"))):
            found.images.append(Image(path, stem, ending, unusable(path)))
        elif not ending and path.is_symlink() and not path.exists():
            if path.suffix.lower() not in {*OTHER, *PICTURES}:  # to a folder of slices, perhaps
                found.images.append(Image(path, name, "", unusable(path)))
        elif not ending and is_dicom(path):
            found.slices.append(path)
    return found


def ending_of(name: str, wanted: str = ".nii.gz") -> str:
    """The ending of an image's name as it is wanted, or else in lower case; empty where it is none of an image."""
    known = (*VOLUMES, *(PICTURES if wanted.lower() in PICTURES else ()))
    if name.endswith(wanted):
        return wanted
    fitting = [ending for ending in (wanted, *known) if name.lower().endswith(ending.lower())]
    return max(fitting, key=len, default="")


def same_case(first: Path, second: Path) -> DataError:
    """The error for two files of one name, in two formats or folders: which of them is meant, nobody knows."""
    return DataError(f"{str(first)!r} and {str(second)!r} are the same case", "remove one of them")


def is_hidden(path: Path) -> bool:
    """Whether no command takes the file for a case, whatever its ending: ._CASE.nii.gz of macOS, our own .part-*."""
    return path.name.startswith(".")


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths that are not hidden, sorted."""
    return sorted(path for path in paths if not is_hidden(path))


def unusable(path: Path) -> DataError | None:
    """Why no reader can take a file, from its name and kind; None: one may try."""
    if error := not_utf8(path):
        return error
    if path.is_symlink() and not path.exists():
        hint = "fetch what it leads to (git annex get, or mount the disk), or remove the link"
        return DataError(f"{str(path)!r} is a broken link to {os.readlink(path)!r}", hint)
    if not path.exists():
        return DataError(f"no file {str(path)!r}", "check the path")
    if not path.is_file():
        return DataError(f"{str(path)!r} is neither a file nor a folder", "remove it")
    return None


def not_utf8(path: Path) -> DataError | None:
    """ITK ends the whole process at such a name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        what = f"the name {str(path)!r} is not UTF-8, which the readers of images need"
        return DataError(what, "rename it: ls shows it, and convmv -f latin1 -t utf8 FILE can")
    return None


def is_dicom(path: Path) -> bool:
    """Whether a file has an ending of DICOM, or begins as such a file does."""
    suffix = path.suffix.lower()
    if suffix in OTHER or suffix in PICTURES or path.name == DIRECTORY or not path.is_file():
        return False
    return suffix in DICOM or begins_as_dicom(path)


def begins_as_dicom(file: Path) -> bool:
    """Whether a file has DICOM's mark, `DICM` at byte 128, or begins like one that was written without it."""
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    # Group 2 or 8, an element of few, and its two letters, or a length that such a value has.
    return bool(re.match(rb"[\x02\x08]\x00[\x00\x01\x05\x08\x12\x16]\x00([A-Z]{2}|.\x00\x00\x00)", start, re.DOTALL))


def holds_images(folder: Path, wanted: str = ".nii.gz", depth: int = DEPTH) -> bool:
    """Whether images lie anywhere in a folder, or it cannot be looked into."""
    try:
        entries = [path for path in folder.iterdir() if not is_hidden(path)]
    except OSError:
        return True
    if any(not path.is_dir() and ending_of(path.name, wanted) for path in entries) or _has_slices(folder):
        return True
    return depth > 0 and any(holds_images(path, wanted, depth - 1) for path in entries if path.is_dir())


def named(paths: Iterable[Path]) -> str:
    """The first few of some files, and how many more there are; what cannot be printed is escaped."""
    names = [repr(path.name) for path in paths]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _has_slices(folder: Path) -> bool:
    try:
        return any(is_dicom(path) for path in _first_files(folder))
    except OSError:
        return False


def _first_files(folder: Path, limit: int = 8) -> Iterator[Path]:
    """A few files are enough to know a folder of slices, which may have thousands."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path))
    unknown = (path for path in files if path.suffix.lower() not in OTHER)
    yield from (path for _, path in zip(range(limit), unknown, strict=False))
