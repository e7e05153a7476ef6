"""Resample an image and its label map to another voxel size as nnU-Net's preprocessing does, with its voxel centres.

The number of voxels is the extent divided by the spacing, rounded; the affine records the exact voxel size that
results, so preprocessing at the same spacing has nothing left to resample.
"""

from collections.abc import Sequence

import numpy as np

from stunet.errors import DataError

ANISOTROPIC = 3.0  # ratio of spacings above which nothing is interpolated between slices (nnU-Net's ANISO_THRESHOLD)


def new_grid(shape: Sequence[int], affine: np.ndarray, spacing_mm: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the grid with isotropic voxels of about `spacing_mm` over the same extent."""
    old = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = tuple(max(1, round(float(n * pitch / spacing_mm))) for n, pitch in zip(shape, old, strict=True))
    step = np.array(shape) / wanted  # in old voxels
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = step / 2 - 0.5
    return wanted, affine @ scale


def resample(
    image: np.ndarray, labels: np.ndarray, affine: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample an image and its labels; return both and the affine of the new grid. Integers stay integers.

    Args:
        image: In the order of a NIfTI file: (W, H, D).
        labels: In the same order.
        affine: 4x4, in mm.
        spacing_mm: Approximate spacing of the new grid.

    Raises:
        DataError: The image is not three-dimensional.
    """
    from stunet.resampling import resample_image, resample_labels  # imports torch

    if image.ndim != 3:
        raise DataError(f"an image of the shape {image.shape} cannot be resampled", "one channel per file")
    shape, moved = new_grid(image.shape, affine, spacing_mm)
    old = np.linalg.norm(affine[:3, :3], axis=0)
    coarse = np.flatnonzero(old == old.max())
    apart = 2 - int(coarse[0]) if old.max() / old.min() > ANISOTROPIC and len(coarse) == 1 else None
    # Transposed to nnU-Net's array order, (D, H, W), on which the result of ties between labels depends.
    result = resample_image(np.asarray(image, np.float32).T[None], shape[::-1], apart)[0].T
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max).astype(image.dtype)
    return result, resample_labels(labels.T, shape[::-1], apart).T, moved
