"""Rotate and scale label maps in training, in a time that does not depend on the number of labels.

nnU-Net's SpatialTransform interpolates each label of a patch separately and takes the highest score. Here, the corners
of the cell that contains a voxel vote, with the same weights and the same rounding. Images are transformed by nnU-Net's
own code, and the random numbers are the same. Read next: augmentation.py, which puts it into nnU-Net's list.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import SpatialTransform

SCALE = 1000.0  # nnU-Net's scores range from 0 to this, in float16: scores closer than float16's spacing are ties
CHUNK = 2**17  # points processed at a time
MARGIN = 2  # voxels of padding on each side, so that a cell in the padding has all its corners outside the image


class CornerVote(SpatialTransform):
    """nnU-Net's transform with faster voting for segmentations; settings that nnU-Net does not use fall back to it."""

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        known = (
            params["grid"] is not None
            and self.mode_seg == "bilinear"
            and self.border_mode_seg in ("zeros", "constant")
            and self.seg_tiebreak == "nearest"
            and not self.align_corners
            and not segmentation.is_floating_point()
        )
        if not known:
            return super()._apply_to_segmentation(segmentation, **params)
        padding = self.padding_value_seg if self.border_mode_seg == "constant" else 0
        return vote(segmentation, params["grid"], padding)


def vote(segmentation: torch.Tensor, grid: torch.Tensor, padding: float) -> torch.Tensor:
    """Return the label with the highest linearly interpolated score at each point of a grid.

    As in batchgeneratorsv2 0.3.6: scores are rounded to float16, and a tie goes to the label of the nearest voxel, or
    to the smallest of the best labels if the nearest voxel's label is not among them.

    Args:
        segmentation: (C, D, H, W) or (C, H, W), any integer type.
        grid: (d, h, w, 3) or (h, w, 2), as for torch's grid_sample without align_corners: the last axis comes first.
        padding: The label outside the image.

    Returns:
        (C, d, h, w) or (C, h, w), of the same type.
    """
    sizes = segmentation.shape[1:]
    padded = torch.nn.functional.pad(segmentation, (MARGIN, MARGIN) * len(sizes), value=padding)
    strides, mixed = padded[0].stride(), [_mixed(labels) for labels in padded]
    result = torch.empty((len(segmentation), *grid.shape[:-1]), dtype=segmentation.dtype)
    parts = (result.view(len(result), -1).split(CHUNK, dim=1), grid.reshape(-1, len(sizes)).split(CHUNK))
    for voted, coordinates in zip(*parts, strict=True):
        points = [_position(coordinates[:, -1 - axis], size) for axis, size in enumerate(sizes)]
        corner = _flat([point.floor() for point in points], sizes, strides)
        for channel, labels in enumerate(padded):
            voted[channel] = torch.take(labels, corner)
            # If all corners of a cell have one label, there is nothing to vote on.
            open_ = torch.take(mixed[channel], corner).nonzero()[:, 0]
            if open_.numel():
                found = _winners(labels.view(-1), corner[open_], [p[open_] for p in points], sizes, strides)
                voted[channel][open_] = found
    return result


def _position(coordinate: torch.Tensor, size: int) -> torch.Tensor:
    """Convert coordinates from [-1, 1] between the image's edges to voxels, in grid_sample's order of operations."""
    return ((coordinate + 1).mul_(size).sub_(1)).div_(2)


def _flat(voxels: list[torch.Tensor], sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """Return flat indices into the padded volume for voxels given per axis as floats; those far outside are clamped."""
    index = torch.full_like(voxels[0], MARGIN * sum(strides), dtype=torch.int64)
    for voxel, size, stride in zip(voxels, sizes, strides, strict=True):
        # In place, as callers pass what they have just made; `size` is the first voxel of the padding behind the image.
        index.add_(voxel.clamp_(-MARGIN, size).to(torch.int64), alpha=stride)
    return index


def _mixed(labels: torch.Tensor) -> torch.Tensor:
    """Return, at the lowest corner of each cell, whether the labels at its corners differ."""
    mixed = torch.zeros(labels.shape, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        # A copy, because the two views overlap.
        behind, ahead = mixed.narrow(axis, 0, size - 1), mixed.narrow(axis, 1, size - 1).clone()
        behind |= ahead
        behind |= labels.narrow(axis, 0, size - 1) != labels.narrow(axis, 1, size - 1)
    return mixed


def _winners(
    labels: torch.Tensor, corner: torch.Tensor, points: list[torch.Tensor], sizes: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    """Return the winning label at N points; `labels` is flat, `corner` the index of each cell's lowest corner."""
    nearest = labels[_flat([point.round() for point in points], sizes, strides)]
    shares = []
    for point in points:
        low = point.floor()
        shares.append(((low + 1).sub_(point), point - low))
    found, weights = [], []
    for offsets in product(range(2), repeat=len(points)):  # in grid_sample's order, so that rounding is the same
        found.append(labels[corner + sum(o * s for o, s in zip(offsets, strides, strict=True))])
        weight = shares[-1][offsets[-1]]
        for share, offset in zip(shares[-2::-1], offsets[-2::-1], strict=True):
            weight = weight * share[offset]
        weights.append(weight * SCALE)
    return _best(torch.stack(found), torch.stack(weights), nearest)


def _best(labels: torch.Tensor, weights: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """Return the label with the largest weight; labels and weights are (corners, N), `nearest` (N,) breaks ties."""
    low, high = torch.aminmax(labels, dim=0)
    # Two labels are the lowest and the highest; only cells with more need a score for each corner.
    of_low, of_high = _scores(torch.stack((low, high)), labels, weights)
    winner = torch.where(of_low == of_high, nearest, torch.where(of_low > of_high, low, high))
    many = ((labels != low) & (labels != high)).any(dim=0).nonzero()[:, 0]
    if many.numel():
        labels, nearest = labels[:, many], nearest[many]
        scores = _scores(labels, labels, weights[:, many])
        best = scores == scores.amax(dim=0)
        smallest = torch.where(best, labels, labels.max()).amin(dim=0)
        winner[many] = torch.where((best & (labels == nearest)).any(dim=0), nearest, smallest)
    return winner


def _scores(candidates: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weight of each candidate, summed corner by corner and rounded as in nnU-Net."""
    total = torch.zeros(candidates.shape)
    for label, weight in zip(labels, weights, strict=True):
        total.addcmul_(candidates == label, weight)
    return total.half()
