"""How do logits on the network's grid become labels on the image's, without the logits ever being there for all voxels?

nnU-Net interpolates the logits of every class to the image's grid and takes the largest. Most voxels lie between eight
grid points that agree on the largest class, and linear interpolation keeps that order: no interpolation is needed
there. Elsewhere only classes are interpolated that can win: within a block of grid points a class whose largest value
is below the smallest value of another one is below it at every voxel in between. Both are exact, so the labels are
those of interpolating all classes in float32. Where so many classes remain that this does not pay, as with noise, the
classes are interpolated one after the other.

windows.py brings the logits, a slab of planes at a time; interpolation.py has the grids.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stunet.inference.interpolation import Axis, Corners, axis, interpolate

BLOCK = 8  # grid steps: smaller blocks rule out more classes, larger ones cost less to look through
# Time of one class at one voxel that is fetched alone, in that of one among all voxels: benchmarks/README.md.
ALONE = 8.0
VOXELS = 2**22  # of one class that are interpolated at a time, about

Axes = tuple[Axis, Axis, Axis]


class Slab(NamedTuple):
    """Logits (K, planes, H, W) in float32 from plane `start` on; it begins with the last plane of the slab before."""

    start: int
    logits_KDHW: Tensor


def axes_between(source: Sequence[int], target: Sequence[int], nearest_axis: int | None, order: int) -> Axes:
    """The axes from grid to grid.

    Args:
        source: Shape of the network's grid.
        target: Shape of the (cropped) image's.
        nearest_axis: The axis along which the nearest plane is taken, nnU-Net's separate z; None where there is none.
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
    """Labels of all voxels of the target grid, handed to `write` as soon as the planes around them are there.

    Args:
        slabs: The logits, in order.
        axes: From axes_between().
        regions: The label of each region, in the order in which later ones overwrite earlier ones; None: the label is
            the number of the largest logit, the smaller number where two are equal.
        write: Takes the first plane and labels (planes, H, W) in int16.
    """
    for start, part, here in _parts(slabs, axes, voxels=VOXELS):
        write(start, _largest(part, here) if regions is None else _regions(part, here, regions))


def probabilities(
    slabs: Iterable[Slab], axes: Axes, regions: Sequence[int] | None, write: Callable[[int, Tensor, Tensor], None]
) -> None:
    """As label(), and `write` also gets the probabilities (K, planes, H, W), which are not kept.

    The softmax over classes, or for regions the sigmoid of each, in float32.
    """
    for start, part, here in _parts(slabs, axes, voxels=VOXELS // 32):
        values = interpolate(part, here)
        if regions is None:
            values = values.softmax(0)
            write(start, _argmax(values), values)
        else:
            values = values.sigmoid_()
            write(start, _overwritten(values > 0.5, regions), values)


def labels_of(regions: Sequence[int] | None, lookup: np.ndarray | None) -> Callable[[Tensor], np.ndarray]:
    """What turns the results of label() into those of another label system, if there is one."""

    def apply(labels: Tensor) -> np.ndarray:
        values = labels.cpu().numpy()
        return values if lookup is None else lookup[values]

    return apply


def _parts(slabs: Iterable[Slab], axes: Axes, voxels: int) -> Iterable[tuple[int, Tensor, Axes]]:
    """Cuts slabs into parts of about so many target voxels: first target plane, logits, and axes of the part."""
    per_plane = len(axes[1].lower) * len(axes[2].lower)
    for start, logits in slabs:
        device = logits.device
        last = start + logits.shape[1] - 1
        scale = max(1.0, len(axes[0].lower) / axes[0].size)
        steps = max(1, min(BLOCK, int(voxels / per_plane / scale)))
        for low in range(start, max(last, start + 1), steps):
            high = min(low + steps, last)
            begin, end = axes[0].planes(low, high)
            # A nearest axis with a thousandfold more target planes would make parts of any size.
            for first in range(begin, end, max(1, voxels // per_plane)):
                stop = min(end, first + max(1, voxels // per_plane))
                here = axes[0].part(first, stop, low)
                part = logits[:, low - start : high - start + 1]
                yield first, part, (here.to(device), axes[1].to(device), axes[2].to(device))


def _largest(logits_KDHW: Tensor, axes: Axes) -> Tensor:
    """The class of the largest interpolated logit at every target voxel."""
    winner = _argmax(logits_KDHW)
    labels, voxels = _where_corners_agree(winner, axes)
    if len(voxels[0]) == 0:
        return labels
    can_win = _can_win(logits_KDHW)
    block = _block_of(voxels, axes, can_win.shape[1:])
    can_win = can_win.flatten(1)
    counts = torch.bincount(block, minlength=can_win.shape[1])
    alone = int((can_win * counts).sum())
    if alone * ALONE > labels.numel() * len(logits_KDHW):
        return _argmax_interpolated(logits_KDHW, axes)
    corners = Corners(voxels, axes, logits_KDHW.shape[1:])
    best = torch.full((len(block),), -torch.inf, device=labels.device)
    best_label = torch.zeros(len(block), dtype=labels.dtype, device=labels.device)
    for number in torch.nonzero((can_win * counts).sum(1))[:, 0].tolist():
        some = torch.nonzero(can_win[number][block])[:, 0]
        values = corners.values(logits_KDHW[number], some)
        better = values > best[some]
        some = some[better]
        best[some] = values[better]
        best_label[some] = number
    labels[voxels] = best_label
    return labels


def _regions(logits_KDHW: Tensor, axes: Axes, regions: Sequence[int]) -> Tensor:
    """Each region is where its interpolated logit is above 0."""
    labels = torch.zeros([len(each.lower) for each in axes], dtype=torch.int16, device=logits_KDHW.device)
    for logits, value in zip(logits_KDHW, regions, strict=True):
        inside, voxels = _where_corners_agree((logits > 0).to(torch.int16), axes)
        if len(voxels[0]):
            corners = Corners(voxels, axes, logits.shape)
            everywhere = torch.arange(len(voxels[0]), device=logits.device)
            inside[voxels] = (corners.values(logits, everywhere) > 0).to(torch.int16)
        labels[inside > 0] = value
    return labels


def _overwritten(inside_KDHW: Tensor, regions: Sequence[int]) -> Tensor:
    labels = torch.zeros(inside_KDHW.shape[1:], dtype=torch.int16, device=inside_KDHW.device)
    for inside, value in zip(inside_KDHW, regions, strict=True):
        labels[inside] = value
    return labels


def _where_corners_agree(values_DHW: Tensor, axes: Axes) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The values of the lower corners of all target voxels, and the voxels at which the corners differ."""
    least = most = values_DHW
    for dim in range(3):
        size = least.shape[dim]
        if size > 1:
            least = torch.minimum(least.narrow(dim, 0, size - 1), least.narrow(dim, 1, size - 1))
            most = torch.maximum(most.narrow(dim, 0, size - 1), most.narrow(dim, 1, size - 1))
    differ = least != most
    for dim, each in enumerate(axes):
        values_DHW = values_DHW.index_select(dim, each.lower)
        differ = differ.index_select(dim, each.lower.clamp(max=differ.shape[dim] - 1))
    return values_DHW, torch.nonzero(differ, as_tuple=True)  # type: ignore[return-value]


def _can_win(logits_KDHW: Tensor) -> Tensor:
    """For blocks of BLOCK grid steps: whether a class can be the largest anywhere between their points, (K, blocks)."""
    most, least = _over_blocks(logits_KDHW, torch.amax), _over_blocks(logits_KDHW, torch.amin)
    return most >= least.amax(0)


def _over_blocks(values_KDHW: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """A reduction over the BLOCK + 1 grid points of each block, which neighbours share at their faces."""
    for dim in (1, 2, 3):
        size = values_KDHW.shape[dim]
        starts = range(0, max(size - 1, 1), BLOCK)
        parts = [reduce(values_KDHW.narrow(dim, s, min(BLOCK + 1, size - s)), dim) for s in starts]
        values_KDHW = torch.stack(parts, dim)
    return values_KDHW


def _block_of(voxels: tuple[Tensor, ...], axes: Axes, shape: Sequence[int]) -> Tensor:
    """The number of the block that each voxel lies in."""
    z, y, x = (
        (each.lower[index] // BLOCK).clamp_(max=count - 1)
        for index, each, count in zip(voxels, axes, shape, strict=True)
    )
    return (z * shape[1] + y) * shape[2] + x


def _argmax(values_KDHW: Tensor) -> Tensor:
    """The number of the largest value, the smaller one where two are equal; on the CPU faster than torch.argmax."""
    best = values_KDHW[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for number in range(1, len(values_KDHW)):
        labels.masked_fill_(values_KDHW[number] > best, number)
        torch.maximum(best, values_KDHW[number], out=best)
    return labels


def _argmax_interpolated(logits_KDHW: Tensor, axes: Axes) -> Tensor:
    """As _argmax() of the interpolated logits, of which there are only those of one class at a time."""
    best = interpolate(logits_KDHW[0], axes)
    labels = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for number in range(1, len(logits_KDHW)):
        values = interpolate(logits_KDHW[number], axes)
        labels.masked_fill_(values > best, number)
        torch.maximum(best, values, out=best)
    return labels
