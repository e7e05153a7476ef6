"""Merge many binary masks into one label map, and count where they overlap.

Each mask is read once and then discarded; only the label map and the voxels that more than one mask claims are kept, so
memory does not grow with the number of masks. Masks come in order of rank: "last" and "first" refer to this order,
never to that of the values that end up in the file. Arrays are flat, in the order of the file.
"""

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from stunet.datasets import GEOMETRY_ATOL
from stunet.errors import DataError, is_out_of_memory

OVERLAPS = ("last", "first", "smallest", "ignore")
COPY_AGAIN = "unpack or copy it again"
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)


@dataclass(frozen=True)
class Merged:
    """One label map made from masks.

    Attributes:
        ranks: (N,) unsigned integers: 0 where there is no mask, else the rank of the mask that got the voxel, from 1;
            number of masks + 1 where overlaps are ignored.
        voxels: (K,) int64: voxel count of each mask.
        overlaps: Voxel counts by pair of ranks (lower, higher).
    """

    ranks: np.ndarray
    voxels: np.ndarray
    overlaps: dict[tuple[int, int], int]


def merge(masks: Iterable[np.ndarray | None], count: int, size: int, overlap: str) -> Merged:
    """Merge masks in order of rank.

    Args:
        masks: Each (size,), where every nonzero voxel belongs to the class; None for a missing mask.
        count: Number of masks.
        size: Number of voxels.
        overlap: Which mask gets a voxel that several claim: the "last" or "first" in the order, the "smallest" in this
            case (the last of equal ones), or none, "ignore".
    """
    # + 1 for the rank of overlaps that are ignored.
    kind = np.min_scalar_type(count + 1)
    ranks = np.zeros(size, kind)
    voxels = np.zeros(count, np.int64)
    places, claims = [], []  # voxels that were already taken, and the rank that claims them, too
    for rank, mask in enumerate(masks, start=1):
        if mask is None:
            continue
        where = _inside(mask)
        voxels[rank - 1] = len(where)
        taken = ranks[where] > 0
        if taken.any():
            places.append(where[taken])
            claims.append(np.full(len(places[-1]), rank, kind))
            where = where[~taken]
        ranks[where] = rank
    if not places:
        return Merged(ranks, voxels, {})
    place, claim = np.concatenate(places), np.concatenate(claims)
    contested = np.unique(place)
    place, claim = np.concatenate([contested, place]), np.concatenate([ranks[contested], claim])
    overlaps = _count_pairs(place, claim)
    _settle(ranks, place, claim, voxels, overlap)
    return Merged(ranks, voxels, overlaps)


def read_mask(path: Path, image: Path, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask, flat in the order of the file.

    Args:
        path: NIfTI, compressed or not.
        image: The image whose grid it must be on.
        shape: Shape of the image.
        affine: Affine of the image, 4x4, in mm.

    Raises:
        DataError: The file cannot be read, is on another grid, or holds negative numbers or NaN.
    """
    mask, content = read_nifti(path)
    if tuple(mask.shape) != tuple(shape):
        raise DataError(f"{str(path)!r} has the shape {mask.shape}, {image.name!r} {tuple(shape)}", COPY_AGAIN)
    if not np.allclose(mask.affine, affine, rtol=0, atol=GEOMETRY_ATOL):
        largest = float(np.abs(mask.affine - affine).max())
        what = f"the affine of {str(path)!r} differs from that of {image.name!r} by up to {largest:.4g}"
        raise DataError(what, "resample the mask onto the image's grid")
    kind = mask.get_data_dtype()
    proxy: Any = mask.dataobj
    if proxy.slope == 1 and proxy.inter == 0:  # as in every mask so far: a view of the bytes instead of a copy
        flat = np.frombuffer(content, kind, int(np.prod(shape)), proxy.offset)
    else:
        flat = np.asanyarray(mask.dataobj).ravel(order="F")
    if kind.kind != "u" and flat.size and not flat.min() >= 0:
        raise DataError(f"{str(path)!r} holds negative numbers or NaN, it is not a mask", COPY_AGAIN)
    return flat


def read_nifti(path: Path) -> tuple[nibabel.Nifti1Image, bytes]:
    """Return a NIfTI file and its uncompressed bytes; the checksum of a compressed file is verified.

    Raises:
        DataError: The file is missing, empty, truncated, damaged or not a NIfTI file.
    """
    try:
        content = path.read_bytes()
        # All of it: nibabel stops at the last voxel, and so does not see that the checksum after it is wrong.
        content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        image = nibabel.Nifti1Image.from_bytes(content)
        proxy: Any = image.dataobj
        needed = proxy.offset + image.get_data_dtype().itemsize * int(np.prod(image.shape, dtype=np.int64))
    except FileNotFoundError:
        raise DataError(f"no file {str(path)!r}", COPY_AGAIN) from None
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"cannot read {str(path)!r}, it is damaged or truncated: {reason}", COPY_AGAIN) from None
    if len(content) < needed:
        reason = f"{len(content)} of {needed} bytes" if content else "it is empty"
        raise DataError(f"cannot read {str(path)!r}, it is damaged or truncated: {reason}", COPY_AGAIN)
    return image, content


def nifti_bytes(array: np.ndarray, affine: np.ndarray, like: nibabel.Nifti1Image) -> bytes:
    """Return a compressed NIfTI file with the units and codes of another image; the same input gives the same bytes."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(array.dtype)
    image = nibabel.Nifti1Image(array, affine, header)
    image.header.set_xyzt_units(*like.header.get_xyzt_units())
    codes = [int(like.header[key]) for key in ("qform_code", "sform_code")]
    if any(codes):
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
    # Level 1: label maps are nearly as small, in a fraction of the time. No time: records compare files by SHA-256.
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def total(overlaps: Iterable[Mapping[tuple[str, str], int]]) -> list[tuple[str, str, int, int]]:
    """Sum the overlaps of many cases: return both classes, voxels and cases, those with most voxels first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for case in overlaps:
        for pair, voxels in case.items():
            entry = sums.setdefault(pair, [0, 0])
            entry[0] += voxels
            entry[1] += 1
    rows = [(first, second, voxels, cases) for (first, second), (voxels, cases) in sums.items()]
    return sorted(rows, key=lambda row: (-row[2], row))


def _inside(mask: np.ndarray) -> np.ndarray:
    """Return the indices of a mask's nonzero voxels.

    Viewing bytes as booleans is ten times faster than comparing, but requires that they are 0 and 1.
    """
    if not mask.any():
        return np.empty(0, np.intp)
    if mask.dtype.itemsize == 1 and mask.max() == 1:
        mask = mask.view(bool)
    return np.flatnonzero(mask)


def _count_pairs(place: np.ndarray, claim: np.ndarray) -> dict[tuple[int, int], int]:
    """Count, by pair of masks, the voxels that both claim."""
    order = np.lexsort((claim, place))
    place, claim = place[order], claim[order].astype(np.int64)
    # The claims of a voxel now lie side by side: distance 1 finds neighbouring pairs, 2 those with one in between, ...
    counts: dict[tuple[int, int], int] = {}
    for distance in range(1, len(place)):
        same = place[distance:] == place[:-distance]
        if not same.any():
            break
        # Both ranks in one integer, so that unique() sorts numbers instead of rows.
        pairs, found = np.unique(claim[:-distance][same] << 32 | claim[distance:][same], return_counts=True)
        for pair, number in zip(pairs.tolist(), found.tolist(), strict=True):
            key = (pair >> 32, pair & 0xFFFFFFFF)
            counts[key] = counts.get(key, 0) + number
    return counts


def _settle(ranks: np.ndarray, place: np.ndarray, claim: np.ndarray, voxels: np.ndarray, overlap: str) -> None:
    """Give every contested voxel to the mask that the policy selects; a voxel's claims come in order of rank."""
    if overlap == "ignore":
        ranks[place] = len(voxels) + 1
    elif overlap == "first":
        pass  # the first mask has them already
    else:
        # Of several values assigned to one index, numpy keeps the last: the best claim must come at the end.
        key = (claim,) if overlap == "last" else (claim, -voxels[claim.astype(np.intp) - 1])
        order = np.lexsort(key)
        ranks[place[order]] = claim[order]
