"""Where labels and points of an image are on the grid of its preprocessed array.

Labels are not resampled: preprocessing for training would take the class that wins a vote, and a structure thinner than
the network's voxels loses. Each voxel of the label map counts at the network's voxel that its centre lies in instead.
engine/pooling.py averages there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stunet.errors import DataError
from stunet.inference.reading import InputImage
from stunet.orientation import LPS_OF_RAS, affine_of

WORLDS = ("RAS", "LPS")  # the directions in which coordinates in mm increase
LARGEST = 2**16 - 1  # value of a label


@dataclass(frozen=True)
class NetworkGrid:
    """The voxels of a preprocessed image in the image that it was made from.

    Attributes:
        forward: The order of axes in which the plan wants the image.
        box: Per axis, what is left of the image after cropping.
        shape: Of the preprocessed image.
    """

    forward: Sequence[int]
    box: Sequence[slice]
    shape: Sequence[int]

    @classmethod
    def of(cls, properties: Mapping[str, Any], forward: Sequence[int], shape: Sequence[int]) -> "NetworkGrid":
        """Return the grid of an image with these properties from preprocessing."""
        return cls(forward, [slice(*map(int, bounds)) for bounds in properties["bbox_used_for_cropping"]], shape)

    def cropped(self, labels_DHW: np.ndarray) -> np.ndarray:
        """Return the part of labels, over the whole image, that the preprocessed image shows, with its axes."""
        return labels_DHW.transpose(self.forward)[tuple(self.box)]

    def places(self) -> list[NDArray[np.int64]]:
        """Return, per axis, the preprocessed image's voxel that the centre of each voxel of the cropped image is in."""
        return [self._place(np.arange(box.stop - box.start), axis) for axis, box in enumerate(self.box)]

    def voxels(self, at_N3: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the preprocessed image's voxels in which places in the image are, and which are in what is left of it.

        Args:
            at_N3: (D, H, W) in voxels of the image; whole numbers are centres of voxels.
        """
        moved, lengths = self._moved(at_N3)
        inside = ((moved >= -0.5) & (moved < lengths - 0.5)).all(axis=1)
        return np.stack([self._place(at, axis) for axis, at in enumerate(moved.T)], axis=1), np.asarray(inside)

    def between(self, at_N3: np.ndarray) -> NDArray[np.float64]:
        """Return where places in the image are in the preprocessed one, (N, 3): whole numbers are centres of voxels.

        Args:
            at_N3: (D, H, W) in voxels of the image. What was cropped lies beyond -0.5 or shape - 0.5.
        """
        moved, lengths = self._moved(at_N3)
        return np.asarray((moved + 0.5) * self.shape / lengths - 0.5)

    def _moved(self, at_N3: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return places in the cropped image, with its axes, and its shape."""
        moved = at_N3[:, list(self.forward)] - [box.start for box in self.box]
        return np.asarray(moved, np.float64), np.array([box.stop - box.start for box in self.box])

    def _place(self, at: np.ndarray, axis: int) -> NDArray[np.int64]:
        # Resampling keeps the outer edges: voxel i covers from i to i + 1 of n, whatever n is.
        old, new = self.box[axis].stop - self.box[axis].start, self.shape[axis]
        return np.clip(np.floor((at + 0.5) * new / old).astype(np.int64), 0, new - 1)


def as_labels(labels: np.ndarray, what: str) -> np.ndarray:
    """Return label values in the smallest unsigned integers, (D, H, W) as given.

    Raises:
        DataError: They are no whole numbers from 0 to LARGEST.
    """
    low, high = (labels.min(), labels.max()) if labels.size else (0, 0)
    if not (low >= 0 and high <= LARGEST):  # also NaN
        raise DataError(f"{what}: label values from {low:g} to {high:g}", f"whole numbers from 0 to {LARGEST}")
    small = labels.astype(np.uint8 if high < 256 else np.uint16)
    if not all(np.array_equal(one, other) for one, other in zip(small, labels, strict=True)):
        raise DataError(f"{what}: label values that are no whole numbers", "a label map, not an image or probabilities")
    return small


def to_voxels(points_N3: np.ndarray, raw: InputImage, world: str) -> np.ndarray:
    """Return where points in mm are in an image, (D, H, W) in voxels of its array.

    Args:
        points_N3: (x, y, z) in mm.
        raw: The image, in the model's orientation; its affine also has oblique axes.
        world: "RAS": x increases to the right, y to the front, z to the head, as in NIfTI; "LPS": x to the left, y to
            the back, as in DICOM, ITK and files of 3D Slicer.

    Raises:
        DataError: The image does not say where it lies.
    """
    affine = affine_of(raw.properties)
    if affine is None:
        raise DataError(f"{raw.files} does not say where its voxels lie in mm", "an image with an affine")
    in_ras = points_N3 @ LPS_OF_RAS if world == "LPS" else points_N3
    at = np.linalg.solve(affine[:3, :3], (in_ras - affine[:3, 3]).T).T
    return at[:, ::-1]
