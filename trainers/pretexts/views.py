"""Boxes in patches, each drawn for its sample, and what lies in them; (B, C, D, H, W) in and out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stunet.trainers.pretexts.draws import Draws, uniform


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


def corners(draws: Draws, room: Tensor, *shape: int) -> Tensor:
    """Draw the first voxel of boxes that can move by `room` (axes,) or (B, axes) voxels; (B, *shape, axes), int64."""
    room = room[(..., *(None,) * len(shape), slice(None))]
    drawn = uniform(draws, 0, 1, *shape, room.shape[-1])
    return (drawn * (room + 1)).long().minimum(room)


def bounds(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first voxel of the box around the valid ones, and the one after its last: (B, axes) each, on the CPU.

    Args:
        valid: (B, 1, D, H, W), bool; a sample without any has a box without voxels.
    """
    lows, highs = [], []
    for axis in range(2, valid.ndim):
        planes = valid.transpose(1, axis).flatten(2).any(2)
        before, after = (each.int().cumsum(1).eq(0).sum(1) for each in (planes, planes.flip(1)))
        lows.append(before)
        highs.append((valid.shape[axis] - after).maximum(before))
    return torch.stack(lows, 1).cpu(), torch.stack(highs, 1).cpu()


def inside(valid: Tensor, size: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw a box of this size inside the one around the valid voxels.

    Returns:
        The first voxel of each, (B, axes), and whether there is room, (B,), bool. Along axes that have none, the box
        lies anywhere in the patch.
    """
    lows, highs = bounds(valid)
    sides, shape = torch.tensor(size), torch.tensor(valid.shape[2:])
    fits = highs - lows >= sides
    room = torch.where(fits, highs - lows, shape) - sides
    return lows * fits + corners(draws, room), fits.all(1)
