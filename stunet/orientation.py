"""Which way do the axes of an image run, and how is it turned so that they run as a model knows them?

The orientation of an image is three letters, one for each axis of its file (x, y, z), of the side of the patient that the
axis runs towards: L or R, P or A, S or I. LPS is what ITK calls the identity, RAS what nibabel does; both name axes so. An
array has the axes in the opposite order, (D, H, W). A turn flips and reorders axes, it never resamples.

Where nnU-Net's reorienting readers turn an image, its properties describe the turned grid and say what it was before:
`original_orientation` (ITK) or `original_affine` beside `reoriented_affine` (nibabel). turned() says it in the same way,
so that nnU-Net writes results of our data to the right place, and of_file() undoes both. Read next: images.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel.orientations
import numpy as np

from stunet.errors import UsageError

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0])  # nibabel's world is RAS, that of ITK and DICOM is LPS
SIDES = ("LR", "PA", "SI")


@dataclass(frozen=True)
class Turn:
    """Which axis of an array each axis of the turned one is, and whether it is flipped; both (D, H, W)."""

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """A view of (..., D, H, W)."""
        first = array.ndim - 3
        array = array.transpose(*range(first), *(first + axis for axis in self.order))
        return array[(..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))]

    @property
    def back(self) -> "Turn":
        """What undoes it."""
        order = tuple(int(axis) for axis in np.argsort(self.order))
        return Turn(order, tuple(self.flips[axis] for axis in order))

    @property
    def matrix(self) -> np.ndarray:
        """Column i: axis i of the turned file (x, y, z) in axes of the file."""
        matrix = np.zeros((3, 3))
        for axis, (old, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[2 - old, 2 - axis] = -1 if flip else 1
        return matrix


def checked(text: str) -> str:
    """An orientation that somebody typed.

    Raises:
        UsageError: It is not one.
    """
    code = text.upper()
    if sorted(next((i for i, side in enumerate(SIDES) if letter in side), -1) for letter in code) != [0, 1, 2]:
        raise UsageError(f"{text!r} is not an orientation", "one letter of LR, PA and SI for each axis: LPS, RAS, LAS")
    return code


def code_of(axes_lps: Any) -> str:
    """The orientation of an image by its axes (columns, of any length) in LPS, as ITK has them; the nearest, if oblique."""
    affine = np.eye(4)
    affine[:3, :3] = LPS_OF_RAS @ np.reshape(axes_lps, (3, 3))
    return "".join(nibabel.orientations.aff2axcodes(affine))


def turn(own: str, wanted: str) -> Turn:
    """What brings an array of the orientation `own` to the orientation `wanted`."""
    order, flips = [], []
    for letter in wanted[::-1]:  # of the array's axes
        side = next(side for side in SIDES if letter in side)
        (axis,) = (i for i, own_letter in enumerate(own[::-1]) if own_letter in side)
        order.append(axis)
        flips.append(own[::-1][axis] != letter)
    return Turn(tuple(order), tuple(flips))


def orientation_of(properties: Mapping[str, Any]) -> str | None:
    """The orientation of the array that properties of nnU-Net's readers belong to; None where the file has none."""
    if itk := properties.get("sitk_stuff"):
        size = len(itk["origin"])
        return None if size < 3 else code_of(np.reshape(itk["direction"], (size, size))[:3, :3])
    if stuff := properties.get("nibabel_stuff"):
        return code_of(LPS_OF_RAS @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))[:3, :3])
    return None


def turned(
    array: np.ndarray, properties: Mapping[str, Any], wanted: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """An image in the wanted orientation, and its properties; the same objects where nothing has to be turned.

    Args:
        array: (C, D, H, W).
        properties: Of a reader that does not reorient; they stay as they are.
        wanted: An orientation, or None: that of the file.
    """
    own = orientation_of(properties)
    if wanted is None or own is None or own == wanted:
        return array, dict(properties)
    way = turn(own, wanted)
    result = {**properties, "spacing": [properties["spacing"][axis] for axis in way.order]}
    if itk := properties.get("sitk_stuff"):
        of_space = _three_axes(itk)
        moved = _moved(of_space, way, array.shape[1:])
        result["sitk_stuff"] = {**moved, "original_orientation": own, "original": of_space}
    else:
        affine = np.asarray(properties["nibabel_stuff"]["original_affine"])
        move = np.eye(4)
        move[:3, :3], move[:3, 3] = way.matrix, _first_voxel(way, array.shape[1:])
        result["nibabel_stuff"] = {"original_affine": affine, "reoriented_affine": affine @ move}
    return np.ascontiguousarray(way(array)), result


def way_back(properties: Mapping[str, Any]) -> Turn:
    """What brings an array with these properties back to the axes of its file."""
    now, before = orientation_of(properties), _before(properties)
    return Turn((0, 1, 2), (False,) * 3) if now is None or before is None else turn(now, before)


def of_file(properties: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """The properties of the file: those that a reader gives that does not reorient.

    Args:
        properties: Of an image that our reader, or one of nnU-Net's, may have turned.
        shape: (D, H, W) of the file.
    """
    if _before(properties) is None:
        return dict(properties)
    way = way_back(properties)
    result = {**properties, "spacing": [properties["spacing"][axis] for axis in way.order]}
    if itk := properties.get("sitk_stuff"):
        before = [shape[axis] for axis in way.back.order]
        result["sitk_stuff"] = itk.get("original") or _moved(_three_axes(itk), way, before)
    else:
        result["nibabel_stuff"] = {"original_affine": properties["nibabel_stuff"]["original_affine"]}
    return result


def _three_axes(itk: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """ITK's geometry without the axis of the channels that an image of four has."""
    size = len(itk["origin"])
    direction = np.reshape(itk["direction"], (size, size))[:3, :3]
    return {
        "spacing": tuple(itk["spacing"][:3]),
        "origin": tuple(itk["origin"][:3]),
        "direction": tuple(direction.ravel().tolist()),
    }


def _moved(itk: Mapping[str, Any], way: Turn, shape: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """ITK's geometry of the turned image; `shape` (D, H, W) is that before."""
    spacing, axes = np.array(itk["spacing"]), np.reshape(itk["direction"], (3, 3))
    origin = np.array(itk["origin"]) + (axes * spacing) @ _first_voxel(way, shape)
    return {
        "spacing": tuple(itk["spacing"][2 - axis] for axis in way.order[::-1]),
        "origin": tuple(origin.tolist()),
        "direction": tuple((axes @ way.matrix).ravel().tolist()),
    }


def _before(properties: Mapping[str, Any]) -> str | None:
    """The orientation of the file of an image that was read by a reader that turns; None for other readers."""
    if "original_orientation" in properties.get("sitk_stuff", {}):
        code = str(properties["sitk_stuff"]["original_orientation"])
        return None if code == "INVALID" else code  # ITK's for a direction that it cannot name
    stuff = properties.get("nibabel_stuff", {})
    return code_of(LPS_OF_RAS @ np.asarray(stuff["original_affine"])[:3, :3]) if "reoriented_affine" in stuff else None


def _first_voxel(way: Turn, shape: Sequence[int]) -> np.ndarray:
    """Where the first voxel of the turned array lies in the array of this shape, (x, y, z)."""
    index = np.zeros(3)
    for old, flip in zip(way.order, way.flips, strict=True):
        index[2 - old] = shape[old] - 1 if flip else 0
    return index
