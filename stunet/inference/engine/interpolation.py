"""Map the voxels of one grid onto another and interpolate values there, linear or nearest, axis by axis.

Positions are those of nnU-Net's resampling (skimage.transform.resize, scipy's map_coordinates): the centre of voxel i
of n is at (i + 0.5) / n, and the outermost values extend beyond the outermost centres. export.py uses this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Axis:
    """One axis of a target grid in its source: value(i) = (1 - fraction) * source[lower] + fraction * source[upper].

    Args:
        lower: Index of the source plane at or before each target plane, non-decreasing.
        upper: Index of the next source plane; equal to `lower` if only that one counts.
        fraction: Weight of `upper`, float32.
    """

    lower: Tensor
    upper: Tensor
    fraction: Tensor

    @cached_property
    def interpolates(self) -> bool:
        """Whether any target plane lies between two source planes."""
        return bool((self.fraction > 0).any())

    def planes(self, low: int, high: int) -> tuple[int, int]:
        """Return the range of target planes between source planes `low` and `high`, without those that lie on `low`.

        Planes on `low` belong to the previous range; if `low` is 0 there is none, and they are included.
        """
        start = 0 if low == 0 else int(torch.searchsorted(self.upper, low, right=True))
        return start, int(torch.searchsorted(self.upper, high, right=True))

    def part(self, start: int, stop: int, first: int) -> "Axis":
        """Return target planes start to stop for a source that begins with plane `first`."""
        return Axis(self.lower[start:stop] - first, self.upper[start:stop] - first, self.fraction[start:stop])

    def to(self, device: torch.device) -> "Axis":
        """Return the same axis on another device."""
        if self.lower.device == device:
            return self
        return Axis(self.lower.to(device), self.upper.to(device), self.fraction.to(device))


Axes = tuple[Axis, Axis, Axis]


def axis(source: int, target: int, linear: bool) -> Axis:
    """Return the axis that maps `target` planes onto `source` planes.

    Args:
        source: Number of planes that have values.
        target: Number of planes that need values, over the same length.
        linear: Interpolate; otherwise each plane takes the nearest.
    """
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    if not linear:
        # Halves are rounded up, as in scipy.
        nearest = (position + 0.5).floor().long().clamp(max=source - 1)
        return Axis(nearest, nearest, torch.zeros(target))
    lower = position.floor().long()
    fraction = (position - lower).float()
    # A plane without weight is not named as the upper one: it may be in a later slab, or not exist at all.
    return Axis(lower, torch.where(fraction > 0, lower + 1, lower), fraction)


def between(values_DHWK: Tensor, axes: Axes, voxels: Sequence[Tensor]) -> Tensor:
    """Interpolate values at some voxels of the target grid: (d, h, w, K) in float32 -> (voxels, K).

    Args:
        values_DHWK: On the source grid; has_rows() must hold.
        axes: Of the target grid.
        voxels: Indices on the target grid, one tensor per axis.
    """
    corners = torch.zeros((len(voxels[0]), 1), dtype=torch.long, device=values_DHWK.device)
    weights = torch.ones((len(voxels[0]), 1), device=values_DHWK.device)
    classes = values_DHWK.shape[-1]
    strides = [stride // classes for stride in values_DHWK.stride()[:3]]
    for each, index, stride in zip(axes, voxels, strides, strict=True):
        sides, shares = [each.lower[index] * stride], [1 - each.fraction[index]]
        if each.interpolates:
            sides, shares = [*sides, each.upper[index] * stride], [*shares, each.fraction[index]]
        corners = torch.cat([corners + side[:, None] for side in sides], 1)
        weights = torch.cat([weights * share[:, None] for share in shares], 1)
    # A weighted sum of matrix rows. It is meant for embeddings, and ten times faster than copying the rows first.
    rows = 1 + sum((n - 1) * stride for n, stride in zip(values_DHWK.shape, strides, strict=False))
    table = values_DHWK.as_strided((rows, classes), (classes, 1))
    return functional.embedding_bag(corners, table, per_sample_weights=weights, mode="sum")


def has_rows(values_DHWK: Tensor) -> bool:
    """Return whether each voxel's K values are adjacent and voxels are at multiples of K, as in a view of an array."""
    classes = values_DHWK.shape[-1]
    return values_DHWK.stride(3) == 1 and all(stride % classes == 0 for stride in values_DHWK.stride()[:3])
