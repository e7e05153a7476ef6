"""List the images in a folder: everything that looks like one, to be used or to be reported as left out.

Listing by one ending loses files silently: CASE.NII.GZ, CASE.nrrd, a link whose target is gone, a folder of DICOM
slices. So every command lists folders through this module, and reports what becomes of each image. Hidden files do not
count: macOS leaves a `._CASE.nii.gz` next to each file, and our own unfinished files begin with `.part-`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stunet.errors import DataError, first_few

# Endings of volumes that ITK or nibabel can read, and of others that hold a volume; the longest match counts.
VOLUMES = (
    ".nii.gz", ".nii", ".nii.zst", ".nii.bz2", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz",
    ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".tif", ".tiff",
)  # fmt: skip
PICTURES = (".png", ".bmp", ".jpg", ".jpeg")  # count as images only if the wanted images are pictures, too
DICOM = (".dcm", ".dicom", ".ima")
DIRECTORY = "DICOMDIR"  # an index of DICOM files, which has their marker
HEADERS = {".img": ".hdr", ".img.gz": ".hdr"}  # a file of voxels is part of the image whose header is next to it
# Files that often lie next to images but are not images: no need to look for the DICOM marker in them.
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
DEPTH = 4  # levels of subfolders that are searched for images


@dataclass(frozen=True)
class Image:
    """A file that looks like an image.

    Attributes:
        path: Path of the file.
        name: Its name without the ending.
        ending: In lower case, or exactly as wanted.
        error: Why nothing can read it, whatever it contains.
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
        series: Subfolders with DICOM files.
        folders: Other subfolders that hold images, or cannot be listed.
    """

    images: list[Image] = field(default_factory=list)
    slices: list[Path] = field(default_factory=list)
    series: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def others(self, endings: Iterable[str]) -> list[Path]:
        """Return everything that is not an image with one of these endings, or cannot be read."""
        endings = set(endings)
        files = [image.path for image in self.images if image.error or image.ending not in endings]
        return sorted([*files, *self.slices, *self.series, *self.folders])


def list_images(folder: Path, wanted: str = ".nii.gz") -> Listing:
    """List what looks like an image in a folder, except for hidden files.

    Args:
        folder: A folder; if it does not exist, nothing is listed.
        wanted: The ending that is looked for; if it is that of a picture, other pictures are listed, too.

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
            if path.suffix.lower() not in {*OTHER, *PICTURES}:  # it may lead to a folder of slices
                found.images.append(Image(path, name, "", unusable(path)))
        elif not ending and is_dicom(path):
            found.slices.append(path)
    return found


def ending_of(name: str, wanted: str = ".nii.gz") -> str:
    """Return the ending of an image's name: as wanted, or else in lower case; empty if it is not that of an image."""
    known = (*VOLUMES, *(PICTURES if wanted.lower() in PICTURES else ()))
    if name.endswith(wanted):
        return wanted
    fitting = [ending for ending in (wanted, *known) if name.lower().endswith(ending.lower())]
    return max(fitting, key=len, default="")


def same_case(first: Path, second: Path) -> DataError:
    """Return the error for two files of one name, in two formats or folders: which one is intended is unknown."""
    return DataError(f"{str(first)!r} and {str(second)!r} are the same case", "remove one of them")


def is_hidden(path: Path) -> bool:
    """Return whether commands ignore a file, whatever its ending: ._CASE.nii.gz of macOS, our own .part-*."""
    return path.name.startswith(".")


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are not hidden, sorted."""
    return sorted(path for path in paths if not is_hidden(path))


def unusable(path: Path) -> DataError | None:
    """Return why no reader can read a file, judging by its name and type; None: a reader may try."""
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
    """Return the error for a path that is not UTF-8, at which ITK would end the whole process; None if it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        what = f"the name {str(path)!r} is not UTF-8, which the readers of images need"
        return DataError(what, "rename it: ls shows it, and convmv -f latin1 -t utf8 FILE can")
    return None


def is_dicom(path: Path) -> bool:
    """Return whether a file has a DICOM ending, or begins like a DICOM file."""
    suffix = path.suffix.lower()
    if suffix in OTHER or suffix in PICTURES or path.name == DIRECTORY or not path.is_file():
        return False
    return suffix in DICOM or begins_as_dicom(path)


def begins_as_dicom(file: Path) -> bool:
    """Return whether a file has the DICOM marker, `DICM` at byte 128, or begins like a file written without it."""
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    # Group 2 or 8, one of a few elements, then the two letters of its VR, or a length that such a value has.
    return bool(re.match(rb"[\x02\x08]\x00[\x00\x01\x05\x08\x12\x16]\x00([A-Z]{2}|.\x00\x00\x00)", start, re.DOTALL))


def holds_images(folder: Path, wanted: str = ".nii.gz", depth: int = DEPTH) -> bool:
    """Return whether images lie in a folder, `depth` levels deep at most, or it cannot be listed."""
    try:
        entries = [path for path in folder.iterdir() if not is_hidden(path)]
    except OSError:
        return True
    if any(not path.is_dir() and ending_of(path.name, wanted) for path in entries) or _has_slices(folder):
        return True
    return depth > 0 and any(holds_images(path, wanted, depth - 1) for path in entries if path.is_dir())


def named(paths: Iterable[Path]) -> str:
    """Return the names of the first few files and how many more there are; unprintable characters are escaped."""
    return first_few([repr(path.name) for path in paths], separator=", ")


def _has_slices(folder: Path) -> bool:
    try:
        return any(is_dicom(path) for path in _first_files(folder))
    except OSError:
        return False


def _first_files(folder: Path, limit: int = 8) -> Iterator[Path]:
    """Yield a few files: enough to recognise a folder of slices, which may have thousands."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path))
    unknown = (path for path in files if path.suffix.lower() not in OTHER)
    yield from (path for _, path in zip(range(limit), unknown, strict=False))
