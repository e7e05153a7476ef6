"""Turn logits on the network's grid into labels on the image's grid, without interpolating the logits of every voxel.

nnU-Net interpolates the logits of every class to the image's grid and takes the argmax. Most voxels lie between eight
grid points that share the same argmax, and linear interpolation preserves it: a class whose logit is the largest at all
eight is also the largest in any weighted average of them. Only the other voxels, a few per cent with a trained network,
are interpolated. This is not an approximation: the labels are those of interpolating all voxels in float32.

windows.py supplies the logits, a slab of planes at a time; interpolation.py has the grids.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stunet.inference.engine.interpolation import Axes, axis, between, has_rows

VOXELS_AT_A_TIME = 2**22  # of the target grid
VALUES_CPU = 2**19  # interpolated at a time: 2 MB, which fits into the caches
VALUES_GPU = 2**25
COPIED_AT_A_TIME = 2**23  # logits that cannot be read in place, because they are in half precision
BITS = 62  # regions that one integer can encode


class Slab(NamedTuple):
    """Logits (planes, H, W, K) from plane `start` on; the first one repeats the last plane of the previous slab."""

    start: int
    logits_DHWK: Tensor


def axes_between(source: Sequence[int], target: Sequence[int], nearest_axis: int | None, order: int) -> Axes:
    """Return the axes that map the target grid to the source grid.

    Args:
        source: Shape of the network's grid.
        target: Shape of the (cropped) image's.
        nearest_axis: The axis along which the nearest plane is taken, nnU-Net's separate z; None if there is none.
        order: 1 for linear interpolation, 0 for nearest.
    """
    one, two, three = (
        axis(n, m, linear=order == 1 and number != nearest_axis)
        for number, (n, m) in enumerate(zip(source, target, strict=True))
    )
    return one, two, three


def label(
    slabs: Iterable[Slab], axes: Axes, regions: Sequence[int] | None, write: Callable[[int, Tensor], None]
) -> None:
    """Label all voxels of the target grid, passing labels to `write` as soon as the planes around them are available.

    Args:
        slabs: The logits, in order.
        axes: From axes_between().
        regions: The label of each region, in the order in which later ones overwrite earlier ones; None: the label is
            the index of the largest logit, the smaller index if two are equal.
        write: Called with the index of the first plane and the labels (planes, H, W) in int16.
    """
    for start, logits, here in _parts(slabs, axes, VOXELS_AT_A_TIME):
        labels = _decide(logits, regions)
        voxels = _where_corners_differ(labels[..., None] if regions is None else _pattern(logits), here)
        # Where all corners agree, the label of the lower one is that of the voxel.
        for dim, each in enumerate(here):
            labels = labels.index_select(dim, each.lower)
        for some, values in _interpolated(logits, here, voxels):
            labels[tuple(each[some] for each in voxels)] = _decide(values, regions)
        write(start, labels)


def probabilities(
    slabs: Iterable[Slab], axes: Axes, regions: Sequence[int] | None, write: Callable[[int, Tensor, Tensor], None]
) -> None:
    """Label all voxels as label() does, and also pass their probabilities (K, planes, H, W), not kept, to `write`.

    Probabilities are the softmax over classes, or the sigmoid of each region, in float32.
    """
    # Fewer than for labels: all classes of these voxels are in memory together.
    for start, logits, here in _parts(slabs, axes, VOXELS_AT_A_TIME // 32):
        shape = [len(each.lower) for each in here]
        voxels = torch.unravel_index(torch.arange(math.prod(shape), device=logits.device), shape)
        labels = torch.empty(math.prod(shape), dtype=torch.int16, device=logits.device)
        likely = logits.new_empty((logits.shape[-1], math.prod(shape)))
        for some, values in _interpolated(logits, here, voxels):
            labels[some] = _decide(values, regions)
            likely[:, some] = (values.softmax(-1) if regions is None else values.sigmoid()).T
        write(start, labels.view(shape), likely.view(-1, *shape))


def _parts(slabs: Iterable[Slab], axes: Axes, voxels: int) -> Iterator[tuple[int, Tensor, Axes]]:
    """Yield first target plane, logits and axes of parts of the slabs with about `voxels` target voxels each."""
    for start, logits in slabs:
        device = logits.device
        height, width = axes[1].to(device), axes[2].to(device)
        begin, end = axes[0].planes(start, start + len(logits) - 1)
        planes = max(1, voxels // (len(height.lower) * len(width.lower)))
        copied = logits.dtype != torch.float32 or not has_rows(logits)
        if copied:
            planes = max(1, min(planes, (end - begin) * COPIED_AT_A_TIME // logits.numel()))
        for first in range(begin, end, planes):
            stop = min(end, first + planes)
            low, high = int(axes[0].lower[first]), int(axes[0].upper[stop - 1])
            part = logits[low - start : high - start + 1]
            part = part.float().contiguous() if copied else part
            yield first, part, (axes[0].part(first, stop, low).to(device), height, width)


def _decide(values: Tensor, regions: Sequence[int] | None) -> Tensor:
    """Return the labels (...), in int16, of logits (..., K)."""
    if regions is None:
        return values.argmax(-1).to(torch.int16)
    labels = torch.zeros(values.shape[:-1], dtype=torch.int16, device=values.device)
    for number, region in enumerate(regions):
        # A logit above 0 is a probability above 0.5, nnU-Net's threshold for regions.
        labels.masked_fill_(values[..., number] > 0, region)
    return labels


def _pattern(logits_DHWK: Tensor) -> Tensor:
    """Encode regions as bits: integers (D, H, W, N), equal at two grid points only if the same regions are there."""
    columns, rows = [], max(1, _voxels_at_once(logits_DHWK) // logits_DHWK.shape[2])
    for first in range(0, logits_DHWK.shape[-1], BITS):
        group = logits_DHWK[..., first : first + BITS]
        bits = 2 ** torch.arange(group.shape[-1], device=group.device)
        columns.append(torch.cat([((some > 0) * bits).sum(-1) for plane in group for some in plane.split(rows)]))
    return torch.stack(columns, -1).view(*logits_DHWK.shape[:3], -1)


def _where_corners_differ(values_DHWN: Tensor, axes: Axes) -> tuple[Tensor, ...]:
    """Return the target voxels that lie between grid points of different values, as one index tensor per axis."""
    # Minimum and maximum over the corners of each cell, one axis after the other; they are equal if all corners are.
    least = most = values_DHWN
    for dim, each in enumerate(axes):
        size = least.shape[dim]
        if each.interpolates and size > 1:
            least = torch.minimum(least.narrow(dim, 0, size - 1), least.narrow(dim, 1, size - 1))
            most = torch.maximum(most.narrow(dim, 0, size - 1), most.narrow(dim, 1, size - 1))
    differ = (least != most).any(-1)
    for dim, each in enumerate(axes):
        # There is one cell fewer than grid points: voxels on the last point belong to the last cell.
        differ = differ.index_select(dim, each.lower.clamp(max=differ.shape[dim] - 1))
    return torch.nonzero(differ, as_tuple=True)


def _interpolated(logits_DHWK: Tensor, axes: Axes, voxels: tuple[Tensor, ...]) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the voxels and their interpolated values (voxels, K), a chunk at a time."""
    step = _voxels_at_once(logits_DHWK)
    for first in range(0, len(voxels[0]), step):
        some = slice(first, first + step)
        yield some, between(logits_DHWK, axes, [each[some] for each in voxels])


def _voxels_at_once(logits_DHWK: Tensor) -> int:
    return max(1, (VALUES_CPU if logits_DHWK.is_cpu else VALUES_GPU) // logits_DHWK.shape[-1])
