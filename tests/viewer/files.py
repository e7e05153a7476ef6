"""Images, segmentations and references for the viewer's tests: blocks in the corners of oblique and flipped grids."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = 12, 14, 16  # z, y, x
SPACING = 1.5, 1.0, 2.5  # x, y, z
ORIGIN = -20.0, 33.0, 5.0
CLASSES = {"liver": 1, "spleen": 2, "tumour": 3}


def rotation(degrees: float = 0.0) -> np.ndarray:
    """A rotation about z and then x."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def image_of(array: np.ndarray, degrees: float = 0.0, orientation: str = "LPS") -> sitk.Image:
    """The array (z, y, x) of an LPS image as ITK's image, turned to another orientation, then tilted."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(rotation(degrees).ravel())
    return sitk.DICOMOrient(image, orientation) if orientation != "LPS" else image


def labels(shift: int = 0) -> np.ndarray:
    """Three blocks, of which none is symmetric to another; `shift` moves them along x."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:5, 2:6, 1 + shift : 6 + shift] = 1
    array[6:11, 8:13, 9 + shift : 14 + shift] = 2
    array[7:10, 1:4, 8 + shift : 11 + shift] = 3
    return array


def intensities(seed: int = 0) -> np.ndarray:
    """Noise, brighter where the blocks of labels() are."""
    return (np.random.default_rng(seed).normal(0, 20, SHAPE) + 50 * (labels() > 0)).astype(np.int16)


def write(image: sitk.Image, path: Path) -> Path:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, path)
    return path


def value_at(path: Path, mm_ras: "np.ndarray | tuple[float, ...] | list[float]") -> int:
    """The value of a file at a place, as ITK sees it; 0 outside."""
    image = sitk.ReadImage(path)
    index = image.TransformPhysicalPointToIndex((-mm_ras[0], -mm_ras[1], float(mm_ras[2])))
    inside = all(0 <= i < n for i, n in zip(index, image.GetSize(), strict=True))
    return int(image[index]) if inside else 0
