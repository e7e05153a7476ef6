"""Find points, in mm, in the array of a case that a plan has preprocessed. points.py draws points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stunet.inference.features.regions import NetworkGrid
from stunet.orientation import affine_of


def to_grid(
    world: np.ndarray, properties: Mapping[str, Any], transpose: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Return where points lie in a preprocessed image.

    Args:
        world: (P, 3) mm in RAS; for images without a geometry, voxels (x, y, z).
        properties: Of the preprocessed case, as nnU-Net writes them.
        transpose: `transpose_forward` of the plan.
        shape: (D, H, W) of the preprocessed image.

    Returns:
        (P, 3) float64 in voxels (D, H, W), 0 being the centre of the first. Points that were cropped lie beyond
        -0.5 or shape - 0.5.
    """
    affine = affine_of(properties)
    voxels = np.asarray(world, float)
    if affine is not None:
        voxels = np.linalg.solve(affine[:3, :3], (voxels - affine[:3, 3]).T).T
    return NetworkGrid.of(properties, transpose, shape).between(voxels[:, ::-1])
