"""Where do the voxels of one grid lie on another, and what is a value there? Linear or nearest, one axis at a time.

Positions are those of nnU-Net's resampling (skimage.transform.resize, scipy's map_coordinates): the centre of voxel i
of n is at (i + 0.5) / n, and beyond the outer centres the outer values hold. export.py interpolates with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a target grid on its source: value(i) = (1 - fraction) * source[lower] + fraction * source[upper].

    Args:
        lower: Index of the source plane before each target plane, never falling.
        upper: Index of the one after it; `lower` where only that one counts.
        fraction: Weight of `upper`, float32.
        size: Number of source planes.
    """

    lower: Tensor
    upper: Tensor
    fraction: Tensor
    size: int

    def planes(self, low: int, high: int) -> tuple[int, int]:
        """The target planes between source planes `low` and `high`, as a range; without those that lie on `low`.

        On `low` lie those of the range before; where low is 0 there is none, and they are included.
        """
        start = 0 if low == 0 else int(torch.searchsorted(self.upper, low, right=True))
        return start, int(torch.searchsorted(self.upper, high, right=True))

    def part(self, start: int, stop: int, first: int) -> "Axis":
        """Target planes start to stop on a source that begins with plane `first`."""
        here = slice(start, stop)
        return Axis(self.lower[here] - first, self.upper[here] - first, self.fraction[here], self.size - first)

    def to(self, device: torch.device) -> "Axis":
        """The same on another device."""
        return Axis(self.lower.to(device), self.upper.to(device), self.fraction.to(device), self.size)


def axis(source: int, target: int, linear: bool) -> Axis:
    """The axis of `target` planes over `source` planes.

    Args:
        source: Number of planes that have values.
        target: Number of planes that want them, over the same length.
        linear: Interpolate; otherwise each takes the nearest.
    """
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    if not linear:
        nearest = (position + 0.5).floor().long().clamp(max=source - 1)
        return Axis(nearest, nearest, torch.zeros(target), source)
    lower = position.floor().long()
    fraction = (position - lower).float()
    return Axis(lower, torch.where(fraction > 0, lower + 1, lower), fraction, source)


def interpolate(values: Tensor, axes: tuple[Axis, Axis, Axis]) -> Tensor:
    """All target voxels: (..., d, h, w) on the source grid -> (..., D, H, W)."""
    for dim, each in zip((-3, -2, -1), axes, strict=True):
        if bool((each.fraction > 0).any()):
            fraction = each.fraction.reshape(-1, *(1,) * (-1 - dim))
            lower = values.index_select(dim, each.lower)
            values = lower.lerp_(values.index_select(dim, each.upper), fraction.expand_as(lower))
        elif not torch.equal(each.lower, torch.arange(values.shape[dim], device=values.device)):
            values = values.index_select(dim, each.lower)
    return values


class Corners:
    """Some target voxels with the eight source voxels around each; values there are fetched, not the whole grid's.

    Args:
        voxels: Their indices on the target grid, one tensor per axis.
        axes: Of the target grid.
        shape: Of the source grid.
    """

    def __init__(self, voxels: tuple[Tensor, Tensor, Tensor], axes: tuple[Axis, Axis, Axis], shape: torch.Size) -> None:
        strides = (shape[1] * shape[2], shape[2], 1)
        lower = [each.lower[index] for index, each in zip(voxels, axes, strict=True)]
        self.first = sum((at * stride for at, stride in zip(lower, strides, strict=True)), torch.zeros_like(lower[0]))
        self.steps = [
            (each.upper[index] - at) * stride
            for index, each, at, stride in zip(voxels, axes, lower, strides, strict=True)
        ]
        self.fractions = [each.fraction[index] for index, each in zip(voxels, axes, strict=True)]

    def values(self, source_DHW: Tensor, some: Tensor) -> Tensor:
        """The interpolated values of the voxels number `some`, (len(some),)."""
        flat, first = source_DHW.flatten(), self.first[some]
        (step_z, step_y, step_x), (z, y, x) = ([each[some] for each in part] for part in (self.steps, self.fractions))

        def line(at: Tensor) -> Tensor:
            return torch.lerp(flat[at], flat[at + step_x], x)

        def plane(at: Tensor) -> Tensor:
            return torch.lerp(line(at), line(at + step_y), y)

        return torch.lerp(plane(first), plane(first + step_z), z)
