"""How are labels rotated and scaled in training, in a time that does not grow with their number?

nnU-Net's SpatialTransform interpolates every label of a patch on its own and takes the highest score. Here the corners
of the cell that a voxel falls into vote with the same weights, rounded in the same way. Images are rotated by nnU-Net's
own code, and the random numbers are the same. Read next: base.py, which puts this transform into the augmentation.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import GaussianBlurTransform, SpatialTransform

SCALE = 1000.0  # nnU-Net's scores lie between 0 and this, in float16: what is closer than its spacing there is a tie
CHUNK = 2**17  # points that are looked at together
MARGIN = 2  # voxels of padding on each side: a cell that lies between them is outside with all corners


class CornerVote(SpatialTransform):
    """nnU-Net's transform with a faster way for segmentations; settings that nnU-Net does not use keep the old one."""

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


class Blur(GaussianBlurTransform):
    """nnU-Net's blur without its trials: each process times convolution and FFT, so that rounding depends on the load.

    For the kernels of training the convolution takes less time at every size of patch.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "benchmark": False})


def vote(segmentation: torch.Tensor, grid: torch.Tensor, padding: float) -> torch.Tensor:
    """The label with the highest linearly interpolated score at each point of a grid.

    As batchgeneratorsv2 0.3.6: scores are rounded to float16, ties are settled by the nearest voxel, or by the smallest
    of the best labels where the nearest voxel's is not among them.

    Args:
        segmentation: (C, D, H, W) or (C, H, W), any integer type.
        grid: (d, h, w, 3) or (h, w, 2), as torch's grid_sample takes it without align_corners: the last axis first.
        padding: The label outside.

    Returns:
        (C, d, h, w) or (C, h, w) of the same type.
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
            open_ = torch.take(mixed[channel], corner).nonzero()[:, 0]
            if open_.numel():
                found = _winners(labels.view(-1), corner[open_], [p[open_] for p in points], sizes, strides)
                voted[channel][open_] = found
    return result


def _position(coordinate: torch.Tensor, size: int) -> torch.Tensor:
    """From -1 to 1 between the image's edges to voxels, in grid_sample's order of operations."""
    return ((coordinate + 1).mul_(size).sub_(1)).div_(2)


def _flat(voxels: list[torch.Tensor], sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """Index into the padded volume of voxels that are given per axis as floats; those far outside move nearer."""
    index = torch.full_like(voxels[0], MARGIN * sum(strides), dtype=torch.int64)
    for voxel, size, stride in zip(voxels, sizes, strides, strict=True):
        index.add_(voxel.clamp_(-MARGIN, size).to(torch.int64), alpha=stride)
    return index


def _mixed(labels: torch.Tensor) -> torch.Tensor:
    """Whether the corners of a cell differ, at its lowest corner."""
    mixed = torch.zeros(labels.shape, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        behind, ahead = mixed.narrow(axis, 0, size - 1), mixed.narrow(axis, 1, size - 1).clone()
        behind |= ahead
        behind |= labels.narrow(axis, 0, size - 1) != labels.narrow(axis, 1, size - 1)
    return mixed


def _winners(
    labels: torch.Tensor, corner: torch.Tensor, points: list[torch.Tensor], sizes: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    """The winning label at N points; `labels` is flat, `corner` the index of each cell's lowest corner."""
    nearest = labels[_flat([point.round() for point in points], sizes, strides)]
    shares = []
    for point in points:
        low = point.floor()
        shares.append(((low + 1).sub_(point), point - low))
    found, weights = [], []
    for offsets in product(range(2), repeat=len(points)):  # in grid_sample's order, for equal rounding
        found.append(labels[corner + sum(o * s for o, s in zip(offsets, strides, strict=True))])
        weight = shares[-1][offsets[-1]]
        for share, offset in zip(shares[-2::-1], offsets[-2::-1], strict=True):
            weight = weight * share[offset]
        weights.append(weight * SCALE)
    return _best(torch.stack(found), torch.stack(weights), nearest)


def _best(labels: torch.Tensor, weights: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """The label with the largest weight; labels and weights are (corners, N), the label of the nearest voxel (N,)."""
    low, high = torch.aminmax(labels, dim=0)
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
    """The weight of each candidate, summed corner by corner and rounded as nnU-Net does."""
    total = torch.zeros(candidates.shape)
    for label, weight in zip(labels, weights, strict=True):
        total.addcmul_(candidates == label, weight)
    return total.half()
