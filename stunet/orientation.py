"""Orientations: which way the axes of an image run, and how to turn it so that they run as a model expects.

The orientation of an image is three letters, one per axis of its file (x, y, z), for the side of the patient that the
axis runs towards: L or R, P or A, S or I. ITK's identity is LPS, nibabel's is RAS, and both name axes in this way. An
array has the axes in the opposite order, (D, H, W). A turn flips and reorders axes; it never resamples.

If one of nnU-Net's reorienting readers turns an image, its properties describe the turned grid and record what it was
before: `original_orientation` (ITK), or `original_affine` next to `reoriented_affine` (nibabel). turn_image() records
it in the same way, so that nnU-Net writes results for our data to the right place, and file_properties() undoes both.
Read next: images.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.errors import UsageError
from stunet.names import SIDES, is_orientation

REORIENTS, REORIENTED = "WithReorient", "RAS"  # suffix of nnU-Net's readers that turn images, and what they turn to
FLAT_THICKNESS = 999  # times the spacing: how readers mark the single slice of a 2D image
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0])  # nibabel's world is RAS, that of ITK and DICOM is LPS


@dataclass(frozen=True)
class Turn:
    """The axis of the original array for each axis of the turned one, and whether it is flipped; both (D, H, W)."""

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return a turned view of (..., D, H, W)."""
        if self.order == (0, 1, 2) and not any(self.flips):
            return array
        first = array.ndim - 3
        array = array.transpose(*range(first), *(first + axis for axis in self.order))
        one, two, three = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array[..., one, two, three]

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """Return a contiguous turned copy, or the array itself if there is nothing to turn."""
        result = self(array)
        return array if result is array else np.ascontiguousarray(result)

    @property
    def back(self) -> "Turn":
        """The inverse turn."""
        order = tuple(int(axis) for axis in np.argsort(self.order))
        return Turn(order, tuple(self.flips[axis] for axis in order))

    @property
    def matrix(self) -> np.ndarray:
        """The turn as a matrix; column i is axis i of the turned file (x, y, z) in axes of the file."""
        matrix = np.zeros((3, 3))
        for axis, (old, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[2 - old, 2 - axis] = -1 if flip else 1
        return matrix


NO_TURN = Turn((0, 1, 2), (False,) * 3)


def parse_orientation(text: str) -> str:
    """Return an orientation that the user typed, in capitals.

    Raises:
        UsageError: It is not one.
    """
    code = text.upper()
    if not is_orientation(code):
        raise UsageError(f"{text!r} is not an orientation", "one letter of LR, PA and SI for each axis: LPS, RAS, LAS")
    return code


def orientation_code(axes_lps: Any) -> str:
    """Return the orientation of an image by its axes in LPS, columns of any length; if oblique, the nearest one."""
    import nibabel.orientations  # here, because it imports scipy, and commands use this module to check orientations

    affine = np.eye(4)
    affine[:3, :3] = LPS_OF_RAS @ np.reshape(axes_lps, (3, 3))
    return "".join(nibabel.orientations.aff2axcodes(affine))


def left_right_axis(orientation: str | None) -> int:
    """Return the array axis (D, H, W) that runs between left and right; if unknown, the last one, as in pictures."""
    return 2 if orientation is None else 2 - next(i for i, letter in enumerate(orientation) if letter in SIDES[0])


def turn(own: str, wanted: str) -> Turn:
    """Return what turns an array from the orientation `own` to the orientation `wanted`."""
    order, flips = [], []
    for letter in wanted[::-1]:  # in the order of the array's axes
        side = next(side for side in SIDES if letter in side)
        (axis,) = (i for i, own_letter in enumerate(own[::-1]) if own_letter in side)
        order.append(axis)
        flips.append(own[::-1][axis] != letter)
    return Turn(tuple(order), tuple(flips))


def orientation_of(properties: Mapping[str, Any]) -> str | None:
    """Return the orientation of the array that nnU-Net's reader properties belong to; None if the file has none."""
    if itk := properties.get("sitk_stuff"):
        size = len(itk["origin"])
        return None if size < 3 else orientation_code(np.reshape(itk["direction"], (size, size))[:3, :3])
    if stuff := properties.get("nibabel_stuff"):
        return orientation_code(
            LPS_OF_RAS @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))[:3, :3]
        )
    return None


def affine_of(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Return the affine from voxels (x, y, z) of the properties' array to mm in RAS, (4, 4); None for 2D and arrays."""
    if itk := properties.get("sitk_stuff"):
        return _affine_ras(itk) if len(itk["origin"]) > 2 else None
    stuff = properties.get("nibabel_stuff")
    return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"])) if stuff else None


def largest_shift(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance in mm between where two affines map the same corner of an array (D, H, W)."""
    x, y, z = (length - 1 for length in shape[::-1])
    corners = np.array([[0, 0, 0, 1], [x, 0, 0, 1], [0, y, 0, 1], [0, 0, z, 1], [x, y, z, 1]])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def turn_image(
    array: np.ndarray, properties: Mapping[str, Any], wanted: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return an image in the wanted orientation, and its properties; the same array if there is nothing to turn.

    Args:
        array: (C, D, H, W).
        properties: From a reader that does not reorient; they are not modified.
        wanted: An orientation, or None: that of the file.
    """
    own = orientation_of(properties)
    # Colours leave two numbers, because nnU-Net takes a fourth axis for channels; reading.py refuses them.
    if wanted is None or own is None or own == wanted or len(properties["spacing"]) != 3:
        return array, dict(properties)
    way = turn(own, wanted)
    result = {**properties, "spacing": [properties["spacing"][axis] for axis in way.order]}
    if itk := properties.get("sitk_stuff"):
        of_space = _three_axes(itk)
        moved = _moved(of_space, way, array.shape[1:])
        result["sitk_stuff"] = {**moved, "original_orientation": own, "original": of_space}
    else:
        affine = np.asarray(properties["nibabel_stuff"]["original_affine"])
        turned = turned_affine(affine, way, array.shape[1:])
        result["nibabel_stuff"] = {"original_affine": affine, "reoriented_affine": turned}
    return way.contiguous(array), result


def turned_affine(affine: np.ndarray, way: Turn, shape: Sequence[int]) -> np.ndarray:
    """Return the affine of the turned array, (4, 4); `shape` (D, H, W) is that of the file, as is `affine`."""
    move = np.eye(4)
    # From a voxel of the turned array to the same voxel in the file, and from there to mm.
    move[:3, :3], move[:3, 3] = way.matrix, _first_voxel(way, shape)
    return affine @ move


def way_back(properties: Mapping[str, Any]) -> Turn:
    """Return what turns an array with these properties back to the axes of its file."""
    now, before = orientation_of(properties), _before(properties)
    return NO_TURN if now is None or before is None else turn(now, before)


def file_properties(properties: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Return the properties of the file, as given by a reader that does not reorient.

    Args:
        properties: Those of an image that our reader, or one of nnU-Net's, may have turned.
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
    """Return ITK's geometry without the channel axis of an image with four axes."""
    size = len(itk["origin"])
    direction = np.reshape(itk["direction"], (size, size))[:3, :3]
    return {
        "spacing": tuple(itk["spacing"][:3]),
        "origin": tuple(itk["origin"][:3]),
        "direction": tuple(direction.ravel().tolist()),
    }


def _moved(itk: Mapping[str, Any], way: Turn, shape: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Return ITK's geometry of the turned image; `shape` (D, H, W) is the one before."""
    spacing, axes = np.array(itk["spacing"]), np.reshape(itk["direction"], (3, 3))
    # ITK's origin is the centre of the first voxel, and a flip makes another voxel the first.
    origin = np.array(itk["origin"]) + (axes * spacing) @ _first_voxel(way, shape)
    return {
        "spacing": tuple(itk["spacing"][2 - axis] for axis in way.order[::-1]),
        "origin": tuple(origin.tolist()),
        "direction": tuple((axes @ way.matrix).ravel().tolist()),
    }


def for_nnunet(properties: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a file's properties for nnU-Net's writers, such that the reorienting ones do not turn anything."""
    result = {key: value for key, value in properties.items() if key != "nifti"}
    if kind.startswith("Nibabel") and (itk := result.pop("sitk_stuff", None)):  # from a DICOM series
        result["nibabel_stuff"] = {"original_affine": _affine_ras(itk)}
        properties = dict(result)
    if not kind.endswith("WithReorient"):
        return result
    if itk := properties.get("sitk_stuff"):
        result["sitk_stuff"] = {**itk, "original_orientation": orientation_of(properties)}
    elif stuff := properties.get("nibabel_stuff"):  # the writer turns from RAS to that of original_affine
        result["nibabel_stuff"] = {"reoriented_affine": stuff["original_affine"], "original_affine": np.eye(4)}
    return result


def _affine_ras(itk: Mapping[str, Any]) -> np.ndarray:
    """Return nibabel's affine, (4, 4), for ITK's geometry."""
    itk, affine = _three_axes(itk), np.eye(4)
    affine[:3, :3] = LPS_OF_RAS @ np.reshape(itk["direction"], (3, 3)) * itk["spacing"]
    affine[:3, 3] = LPS_OF_RAS @ itk["origin"]
    return affine


def _before(properties: Mapping[str, Any]) -> str | None:
    """Return the orientation that a turned image's file has; None if its reader does not turn images."""
    if "original_orientation" in properties.get("sitk_stuff", {}):
        code = str(properties["sitk_stuff"]["original_orientation"])
        return None if code == "INVALID" else code  # ITK's code for a direction that it cannot name
    stuff = properties.get("nibabel_stuff", {})
    return (
        orientation_code(LPS_OF_RAS @ np.asarray(stuff["original_affine"])[:3, :3])
        if "reoriented_affine" in stuff
        else None
    )


def _first_voxel(way: Turn, shape: Sequence[int]) -> np.ndarray:
    """Return where the first voxel of the turned array lies in the array of this shape, (x, y, z)."""
    index = np.zeros(3)
    for old, flip in zip(way.order, way.flips, strict=True):
        index[2 - old] = shape[old] - 1 if flip else 0
    return index
