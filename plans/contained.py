"""Which patch the scans of a dataset contain: pre-training learns nothing from padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHARE = 0.9  # of the scans


def largest_contained(shapes: Sequence[Sequence[int]], share: float = SHARE) -> list[int]:
    """Return, per axis, voxels that at least this share of shapes contain along all axes at once."""
    given = np.asarray(shapes, int)
    ordered = np.sort(given, axis=0)
    # The more scans each axis leaves out, the larger the patch; all axes together may leave out 1 - share.
    for left_out in range(int((1 - share) * len(given) + 1e-9), 0, -1):
        if (given >= ordered[left_out]).all(axis=1).mean() >= share:
            return ordered[left_out].tolist()
    return ordered[0].tolist()


def resampled_shapes(
    fingerprint: Mapping[str, Any], spacing: Sequence[float], transpose: Sequence[int], resamples: bool = True
) -> list[list[int]]:
    """Return the shape of each scan as the network sees it, of as many axes as the spacing has.

    Args:
        fingerprint: nnU-Net's.
        spacing: In mm, in the transposed order.
        transpose: The plan's.
        resamples: Whether scans are resampled to the spacing.
    """
    shapes = np.array(fingerprint["shapes_after_crop"], float)[:, list(transpose)][:, -len(spacing) :]
    if resamples:
        own = np.array(fingerprint["spacings"], float)[:, list(transpose)][:, -len(spacing) :]
        shapes = np.maximum(1, np.rint(shapes * own / np.array(spacing)))
    return shapes.astype(int).tolist()
