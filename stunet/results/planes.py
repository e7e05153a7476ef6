"""Cut planes through a segmentation and its image in radiological orientation, and draw them as pictures."""

from dataclasses import dataclass

import nibabel.orientations
import numpy as np
from scipy.ndimage import zoom

from stunet.results.colours import unit_colour
from stunet.results.segmentation import Segmentation

FILL = 0.4  # opacity inside a structure; its outline has 1
AXES = "LPS"  # directions in which x, y and z increase after turning
# Name of a plane by the axis that it is normal to, and the letters at its edges: left, right, top, bottom.
PLANES = {2: ("axial", "RLAP"), 1: ("coronal", "RLSI"), 0: ("sagittal", "APSI")}


@dataclass(frozen=True)
class Plane:
    """One plane; its rows run downwards.

    Attributes:
        caption: Its name and position.
        edges: The directions at the left, right, top and bottom; empty if the file does not state them.
        image: Intensities, (rows, columns).
        labels: Label values, of the same shape.
        size_mm: Height and width.
        tilt: The largest angle in degrees between an axis of the image and the patient axis it is taken for.
    """

    caption: str
    edges: tuple[str, ...]
    image: np.ndarray
    labels: np.ndarray
    size_mm: tuple[float, float]
    tilt: float


def cut(segmentation: Segmentation, image_DHW: np.ndarray) -> list[Plane]:
    """Return an axial, a coronal and a sagittal plane where most voxels are segmented, or the middle ones if none are.

    A volume of one slice yields only that plane. The arrays are turned and flipped as views; nothing is resampled.
    """
    turn, tilt = _orientation(segmentation)
    labels, image = (
        nibabel.orientations.apply_orientation(array.T, turn) for array in (segmentation.labels_DHW, image_DHW)
    )
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = segmentation.spacing[::-1]
    flat = [axis for axis in PLANES if labels.shape[axis] == 1]
    places = _fullest(labels)
    planes = []
    for axis in flat[:1] or PLANES:
        name, letters = PLANES[axis]
        across, down = (other for other in range(3) if other != axis)
        rows = slice(None) if axis == 2 else slice(None, None, -1)  # z grows upwards
        index = places[axis]
        here = (slice(None),) * axis + (index,)
        depth = labels.shape[axis]
        planes.append(
            Plane(
                caption="" if segmentation.is_2d else f"{name} {index + 1} of {depth}",
                edges=("",) * 4 if segmentation.is_2d else tuple(letters),
                image=image[here].T[rows],
                labels=labels[here].T[rows],
                size_mm=(labels.shape[down] * spacing[down], labels.shape[across] * spacing[across]),
                tilt=tilt,
            )
        )
    return planes


def overlay(plane: Plane, segmentation: Segmentation, scale: float, low: float, high: float) -> np.ndarray:
    """Draw the plane as a picture, (rows, columns, 3) from 0 to 1: grey values, coloured structures and outlines.

    Args:
        plane: One of those from cut().
        segmentation: The segmentation that it was cut from, for the names of the values.
        scale: Pixels per mm.
        low: The intensity shown black.
        high: The intensity shown white.
    """
    shape = tuple(max(1, round(size * scale)) for size in plane.size_mm)
    factors = [size / old for size, old in zip(shape, plane.labels.shape, strict=True)]
    labels = zoom(plane.labels, factors, order=0, mode="nearest", grid_mode=True)
    image = zoom(plane.image.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    grey = np.clip((image - low) / (high - low), 0, 1)
    colours = np.zeros((int(labels.max(initial=0)) + 1, 3))
    for name, value in segmentation.names.items():
        if value < len(colours):
            colours[value] = unit_colour(name)
    opacity = np.where(labels > 0, np.where(_outline(labels), 1.0, FILL), 0.0)[..., None]
    picture: np.ndarray = grey[..., None] * (1 - opacity) + colours[labels] * opacity
    return picture


def _orientation(segmentation: Segmentation) -> tuple[np.ndarray, float]:
    """Return how axes (x, y, z) become L, P, S, in nibabel's form, and by how many degrees they deviate at most."""
    if segmentation.is_2d:  # a picture, shown as it is stored
        return np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), 0.0
    affine = segmentation.affine_ras
    stored = nibabel.orientations.io_orientation(affine)
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = np.abs(cosines[stored[:, 0].astype(int), range(3)]).min()
    turn = nibabel.orientations.ornt_transform(stored, nibabel.orientations.axcodes2ornt(AXES))
    return turn, float(np.degrees(np.arccos(min(nearest, 1.0))))


def _fullest(labels_xyz: np.ndarray) -> list[int]:
    """Return, for each axis, the index of the plane with most foreground; the middle if there is none."""
    counts = [np.zeros(size, np.int64) for size in labels_xyz.shape]
    for index in range(labels_xyz.shape[2]):
        inside = labels_xyz[:, :, index] != 0
        counts[0] += inside.sum(axis=1)
        counts[1] += inside.sum(axis=0)
        counts[2][index] = inside.sum()
    return [int(count.argmax()) if count.any() else len(count) // 2 for count in counts]


def _outline(labels: np.ndarray) -> np.ndarray:
    """Return which pixels differ in value from the pixel to the right or below, together with those neighbours."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels.astype(np.int32), axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= differs
        edge[tuple(second)] |= differs
    return edge
