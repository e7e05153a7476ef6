"""Read label files, and check that they lie on the same grid as their partner.

Files are read as the smallest integer type, and only if all their labels are known. folders.py compares two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stunet.datasets import tiff
from stunet.datasets.volumes import read_volume
from stunet.errors import DataError

GEOMETRY_TOLERANCE = 1e-3  # mm; unitless for directions
SHOWN = 5  # values that an error lists
ROUNDING = 1e-3  # labels stored with a scale, or as floats, may be this far from an integer, and are rounded to it


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a file lie, in SimpleITK's order (x, y, z)."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def read_segmentation(
    path: Path, known: frozenset[int], listed_in: str = "dataset.json"
) -> tuple[np.ndarray, Geometry]:
    """Read the labels of a file, (D, H, W) or (H, W), in the smallest integer type, and its geometry.

    Args:
        path: The file.
        known: Values that it may contain.
        listed_in: Where these are listed, for the error message.

    Raises:
        DataError: The file cannot be read, is not a 2D or 3D image of one channel, or has values that are not integers
            (within 0.001) or not in `known`.
    """
    image = read_volume(path)
    channels = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() not in (2, 3) or channels != 1:
        raise DataError(f"{str(path)!r} is not a segmentation: size {image.GetSize()}, {channels} channels")
    labels = as_labels(sitk.GetArrayViewFromImage(image), known, path, listed_in)
    return labels, Geometry(image.GetSize(), _spacing(image, path), image.GetOrigin(), image.GetDirection())


def check_same_grid(path: Path, geometry: Geometry, reference: Path, expected: Geometry) -> None:
    """Check that a file has the grid of its reference.

    Raises:
        DataError: It does not; the message gives the first difference, or states that only the order of axes differs.
    """
    if not (differs := _difference(geometry, expected)):
        return
    if _is_turned(geometry, expected):
        ours, theirs = _orientation(geometry), _orientation(expected)
        raise DataError(
            f"{str(path)!r} lies where {str(reference)!r} does, but its axes run {ours} instead of {theirs}",
            f"reorient it without resampling: SimpleITK.DICOMOrient(image, {theirs!r})",
        )
    raise DataError(
        f"{differs} {_short(getattr(geometry, differs))} of {str(path)!r} is not "
        f"{_short(getattr(expected, differs))} of {str(reference)!r}",
        "resample or copy the geometry of the image; predictions must lie on the grid of the reference",
    )


def as_labels(array: np.ndarray, known: frozenset[int], path: Path, listed_in: str = "dataset.json") -> np.ndarray:
    """Return labels that were read as any type in the smallest integer type; arguments and errors as above."""
    labels = np.empty(array.shape, np.min_scalar_type(max(known)))
    listed = np.zeros(np.iinfo(labels.dtype).max + 1, dtype=bool)
    listed[list(known)] = True
    unlisted: dict[str, float] = {}
    for target, source in zip(labels, array, strict=True):  # by slice: look-ups take 8 bytes per voxel
        rounded = np.rint(source) if source.dtype.kind == "f" else source
        with np.errstate(invalid="ignore"):  # NaN cannot be cast to an integer; the comparison finds it
            target[...] = rounded
        wrong = (target != rounded) | ~listed[target]
        if rounded is not source:
            wrong |= ~(np.abs(source - rounded) <= ROUNDING)
        unlisted |= {f"{value:.6g}": value for value in np.unique(source[wrong]).tolist()}
        if len(unlisted) > SHOWN:
            break
    if unlisted:
        shown = sorted(unlisted, key=float)[:SHOWN]
        values = ", ".join([*shown, *["..."] * (len(unlisted) > SHOWN)])
        if any(not abs(value - np.rint(value)) <= ROUNDING for value in unlisted.values()):
            raise DataError(
                f"{str(path)!r} has values that are not integers: {values}",
                "round the labels; when resampling, take the nearest neighbour",
            )
        raise DataError(
            f"{str(path)!r} has values that {listed_in} does not list: {values}",
            "give the dataset.json or the labels that belong to the files",
        )
    return labels


def _spacing(image: sitk.Image, path: Path) -> tuple[float, ...]:
    """Return the spacing (x, y, z) of an image; nnU-Net keeps a TIFF's in a JSON file next to it, in array order."""
    if path.suffix.lower() in tiff.ENDINGS and image.GetDimension() == 3:
        return tiff.read_spacing(path, is_image=False)[::-1]
    return image.GetSpacing()


def _difference(geometry: Geometry, expected: Geometry) -> str:
    """Return the name of the first field in which two geometries differ; empty if they do not."""
    for name, value in vars(expected).items():
        other = getattr(geometry, name)
        if len(value) != len(other) or not np.allclose(value, other, rtol=0, atol=GEOMETRY_TOLERANCE):
            return name
    return ""


def _is_turned(geometry: Geometry, expected: Geometry) -> bool:
    """Return whether the voxels are those of `expected` with axes flipped or in another order."""
    if not len(geometry.size) == len(expected.size) == 3:
        return False
    axes, turned_axes = (np.reshape(g.direction, (3, 3)) for g in (expected, geometry))
    turn = np.rint(np.linalg.solve(axes, turned_axes))  # column i: axis i of the file in axes of the reference
    if not np.array_equal(np.abs(turn) @ np.abs(turn).T, np.eye(3)):
        return False
    order = np.abs(turn).argmax(axis=0)
    first = np.where(turn.sum(axis=1) < 0, np.array(expected.size) - 1, 0)  # reference voxel at the file's first voxel
    origin = expected.origin + axes @ (first * expected.spacing)
    size, spacing = (tuple(np.array(values)[order]) for values in (expected.size, expected.spacing))
    return not _difference(geometry, Geometry(size, spacing, tuple(origin), tuple((axes @ turn).ravel())))


def _orientation(geometry: Geometry) -> str:
    """Return an orientation such as LPS, as DICOMOrient takes it."""
    code: str = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(geometry.direction)
    return code


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
