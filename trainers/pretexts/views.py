"""Crops, turns and grids of patches, each drawn for its sample: (B, C, D, H, W) in and out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stunet.trainers.pretexts.draws import Draws, integers


def cut(images: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a box out of each sample.

    Args:
        images: (B, C, D, H, W).
        corners: (B, 3), the first voxel of each box.
        size: Voxels per axis.

    Returns:
        (B, C, *size)
    """
    boxes = []
    for image, corner in zip(images, corners.tolist(), strict=True):
        boxes.append(image[(..., *(slice(a, a + n) for a, n in zip(corner, size, strict=True)))])
    return torch.stack(boxes)


def corners(draws: Draws, room: Sequence[int]) -> Tensor:
    """Draw the first voxel of a box that can move by `room` voxels along each axis; (B, axes)."""
    return torch.stack([integers(draws, n + 1) for n in room], 1)


def crop(images: Tensor, size: Sequence[int], draws: Draws) -> Tensor:
    """Cut a box of this size out of each sample, at a random place."""
    return cut(images, corners(draws, [n - m for n, m in zip(images.shape[2:], size, strict=True)]), size)


def side_of(shape: Sequence[int], fraction: float) -> list[int]:
    """Return this fraction of each axis, at least one voxel."""
    return [max(1, math.floor(n * fraction)) for n in shape]
