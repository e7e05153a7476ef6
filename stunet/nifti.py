"""Check that a NIfTI file is complete and that its voxels are numbers.

ITK does not: it reads a truncated file without an error, fills what is missing with whatever is in memory, and turns
NaN into zeros. Every file is therefore read once here before its reader gets it. Other formats are checked by their
readers.
"""

import gzip
import math
import shlex
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stunet.errors import DataError
from stunet.nifti_header import is_nifti, open_nifti

CHUNK = 1 << 20  # bytes, a multiple of all voxel sizes
NIFTI1_HEADER, NIFTI2_HEADER = 348, 540  # bytes
FLOATS = {16: "f4", 64: "f8"}  # datatype codes of nifti1.h
NOT_NUMBERS = {code: "complex numbers" for code in (32, 1792, 2048)} | {code: "colours" for code in (128, 2304)}


@dataclass(frozen=True)
class _Header:
    """Size of all voxels in bytes, their type if it can hold NaN, what they are if not numbers, and their edges."""

    size: int
    floats: np.dtype | None
    not_numbers: str | None
    spacing: tuple[float, ...]
    has_spacing: bool


def check_nifti(path: Path) -> None:
    """Read a NIfTI file to its end; do nothing for other formats.

    Raises:
        DataError: The file is missing, truncated or damaged, has no voxels or spacing, or holds anything other than
            finite numbers.
    """
    if not is_nifti(path):
        return
    try:
        with open_nifti(path) as file:
            header = _read_header(file)
            size, finite = _read_voxels(file, header.floats if header else None)
    except gzip.BadGzipFile as error:
        if str(error).startswith("Not a gzipped file"):  # after the part that has just been unpacked
            hint = f"gzip -cd {shlex.quote(str(path))} | gzip > NEW.nii.gz, if a viewer shows the complete image"
            raise DataError(f"{str(path)!r} has more data after the end of its gzip stream", hint) from None
        raise _damaged(path, str(error)) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, str(error)) from None
    if header is None:
        raise _damaged(path, "no NIfTI header")
    if header.size <= 0:
        raise DataError(f"{str(path)!r} has no voxels", "look at it in a viewer")
    if header.not_numbers:
        raise DataError(
            f"{str(path)!r} holds {header.not_numbers}, not one number per voxel", "convert it to gray values"
        )
    if not header.has_spacing:  # ITK would assume 1 mm
        spacing = " x ".join(f"{edge:g}" for edge in header.spacing)
        raise DataError(f"the voxels of {str(path)!r} are {spacing} mm large", "write the spacing into the header")
    if size < header.size:
        raise _damaged(path, f"{size} of {header.size} bytes of voxels")
    if not finite:
        raise DataError(f"{str(path)!r} holds NaN or infinity", "replace these voxels, for example with that of air")


def _damaged(path: Path, reason: str) -> DataError:
    what = f"cannot read {str(path)!r}, it is damaged or truncated: {reason}"
    return DataError(what, "copy or convert the file again")


def _read_header(file: BinaryIO | gzip.GzipFile) -> _Header | None:
    """Read the header of NIfTI-1 or -2 (nifti1.h, nifti2.h) and seek to the first voxel; None if it is neither.

    Raises:
        ValueError: The offset of the voxels is invalid.
    """
    start = file.read(NIFTI2_HEADER)
    for order in "<>":
        if start[:4] == struct.pack(f"{order}i", NIFTI1_HEADER) and len(start) >= NIFTI1_HEADER:
            rank, *shape = struct.unpack_from(f"{order}8h", start, 40)
            code, bits = struct.unpack_from(f"{order}2h", start, 70)
            spacing = struct.unpack_from(f"{order}3f", start, 80)
            (offset,) = struct.unpack_from(f"{order}f", start, 108)
        elif start[:4] == struct.pack(f"{order}i", NIFTI2_HEADER) and len(start) >= NIFTI2_HEADER:
            rank, *shape = struct.unpack_from(f"{order}8q", start, 16)
            code, bits = struct.unpack_from(f"{order}2h", start, 12)
            spacing = struct.unpack_from(f"{order}3d", start, 112)
            (offset,) = struct.unpack_from(f"{order}q", start, 168)
        else:
            continue
        if not 0 <= offset < 2**63:  # also rejects NaN
            raise ValueError(f"the voxels begin at byte {offset:g}")
        file.seek(int(offset))
        floats = np.dtype(f"{order}{FLOATS[code]}") if code in FLOATS else None
        known = all(n == 1 or 0 < abs(edge) < math.inf for n, edge in zip(shape[:rank], spacing, strict=False))
        return _Header(math.prod(shape[:rank]) * bits // 8, floats, NOT_NUMBERS.get(code), spacing, known)
    return None


def _read_voxels(file: BinaryIO | gzip.GzipFile, floats: np.dtype | None) -> tuple[int, bool]:
    """Return the number of bytes up to the file's end, and whether all voxels that are floats are finite."""
    size, finite = 0, True
    while chunk := file.read(CHUNK):
        size += len(chunk)
        if floats is not None and finite:
            complete = len(chunk) // floats.itemsize * floats.itemsize  # a truncated file may end within a voxel
            finite = bool(np.isfinite(np.frombuffer(chunk[:complete], floats)).all())
    return size, finite
