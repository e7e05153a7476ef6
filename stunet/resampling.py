"""Resample volumes with the same result as nnU-Net, in a fraction of its time and memory.

nnU-Net resizes with skimage in float64: images by splines, and labels one by one, with the highest score winning. Here
an image is multiplied by one banded matrix per axis, plane by plane, and labels are decided by a vote of the corners of
the cell that contains a voxel, at the same cost for any number of labels. case.py decides what is called.

Voxel centres lie at (k + 0.5) * old / new - 0.5 of the old grid, as in skimage.transform.resize(mode="edge").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.ndimage import spline_filter1d

PADDING = 12  # voxels by which scipy extends an image before it fits a spline
REACH = 28  # a voxel at this distance affects a spline's coefficient by a factor of 0.268^28, which is 1e-16
NEGLIGIBLE = 1e-13  # smaller matrix entries are dropped; with 1e-10, one voxel in 4000 is rounded to another float32
BLOCK = 64  # rows of a matrix that are multiplied at a time
SLAB = 16  # planes read at a time: in transposed volumes, a cache line holds that many voxels of a line
CHUNK = 2**15  # voxels voted on at a time


def resample_image(
    image_CDHW: np.ndarray, new_shape: Sequence[int], separate_axis: int | None = None, order: int = 3
) -> np.ndarray:
    """Resample with splines, as skimage.transform.resize(mode="edge", anti_aliasing=False) with clipping.

    The result is equal up to rounding. Works in float64 on a few planes at a time: needs the result and about
    `2 * REACH` planes of memory.

    Args:
        image_CDHW: float32; a view with any strides.
        new_shape: (D, H, W) in voxels.
        separate_axis: Along this axis (0, 1 or 2) the nearest slice is taken, and slices are resampled in 2D.
        order: 0 (nearest), 1 (linear) or 3 (cubic).

    Returns:
        float32 (C, D, H, W); the image itself if the shape is unchanged.
    """
    if image_CDHW.shape[1:] == tuple(new_shape):
        return image_CDHW
    result = np.empty((len(image_CDHW), *new_shape), np.float32)
    first = separate_axis or 0
    for source, target in zip(image_CDHW, result, strict=True):
        along, across = np.moveaxis(source, first, 0), np.moveaxis(target, first, 0)
        (depth, *old), (new_depth, *new) = along.shape, across.shape
        plane = _in_plane(tuple(old), tuple(new), order)
        if separate_axis is None and order > 0:
            _combine_planes(along, across, plane, _matrix(depth, new_depth, order, SLAB))
        else:
            _choose_planes(along, across, plane, _Taps.of(depth, new_depth).nearest)
    return result


def resample_labels(labels: np.ndarray, new_shape: Sequence[int], separate_axis: int | None = None) -> np.ndarray:
    """Return the label with the highest linearly interpolated score, bit-identical to nnU-Net's order 1 and order_z 0.

    A tie is settled by the nearest voxel or, if its label is not among the best, by the smallest label, as in
    batchgenerators 0.25.5. Needs the result and a few planes of memory.

    Args:
        labels: (C, D, H, W) or (D, H, W) of any integer type, or floats that are labels; a view with any strides.
        new_shape: (D, H, W) in voxels.
        separate_axis: Along this axis (0, 1 or 2) the nearest slice is taken, and slices are resampled in 2D.

    Returns:
        The same type and number of axes; the labels themselves if the shape is unchanged.
    """
    if labels.shape[-3:] == tuple(new_shape):
        return labels
    if labels.ndim == 3:
        return resample_labels(labels[None], new_shape, separate_axis)[0]
    result = np.empty((len(labels), *new_shape), labels.dtype)
    sizes = zip(labels.shape[1:], new_shape, strict=True)
    taps = [_Taps.of(old, new, axis == separate_axis) for axis, (old, new) in enumerate(sizes)]
    for source, target in zip(labels, result, strict=True):
        _vote(source, target, taps)
    return result


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along one axis: for each new voxel the neighbours, their weights, and the nearest one."""

    neighbours: tuple[np.ndarray, ...]  # the lower and the upper one, or a single one if that has all the weight
    weights: tuple[np.ndarray, ...]
    nearest: np.ndarray

    @classmethod
    def of(cls, old: int, new: int, nearest_only: bool = False) -> "_Taps":
        # Ties depend on the last bit, so this repeats scipy's NI_ZoomShift, in its order: weights are those of the
        # unclipped position even outside the image; only the neighbours are clipped to it.
        position = (np.arange(new) + 0.5) * (old / new) - 0.5
        nearest = np.clip(np.floor(position + 0.5), 0, old - 1).astype(np.intp)
        low = np.floor(position)
        if nearest_only or (low == position).all():
            return cls((nearest,), (np.ones(new),), nearest)
        first = 1 - (position - low)
        neighbours = [np.clip(low + offset, 0, old - 1).astype(np.intp) for offset in range(2)]
        return cls(tuple(neighbours), (first, 1 - first), nearest)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a banded matrix: result[rows] = matrix @ source[columns]."""

    rows: slice
    columns: slice
    matrix: torch.Tensor  # multiplied by torch: callers limit its threads, while numpy's BLAS has its own


def _matrix(old: int, new: int, order: int, block: int = BLOCK) -> list[_Rows]:
    """Return interpolation along one axis as a matrix (new, old): spline evaluation times fitting it to the voxels."""
    padding = PADDING if order > 1 else 0
    return [_rows(np.arange(k, min(k + block, new)), old, new, order, padding) for k in range(0, new, block)]


def _rows(rows: np.ndarray, old: int, new: int, order: int, padding: int) -> _Rows:
    size = old + 2 * padding
    position = (rows + 0.5) * (old / new) - 0.5 + padding
    start = np.floor(position).astype(np.intp) - order // 2
    first, last = max(start[0] - REACH, 0), min(start[-1] + order + REACH, size - 1)
    impulses = np.eye(last + 1 - first)
    coefficients = spline_filter1d(impulses, order, axis=0, mode="mirror") if order > 1 else impulses
    evaluation = np.zeros((len(rows), last + 1 - first))
    for tap, weight in enumerate(_weights(position - np.floor(position), order)):
        index = np.clip(start + tap, 0, size - 1)
        np.add.at(evaluation, (np.arange(len(rows)), index - first), weight)
    fitted = (torch.from_numpy(evaluation) @ torch.from_numpy(coefficients)).numpy()
    voxels = np.clip(np.arange(first, last + 1) - padding, 0, old - 1)  # the padding repeats the image's edge
    first_of_voxel = np.searchsorted(voxels, np.arange(voxels[0], voxels[-1] + 1))
    matrix = np.add.reduceat(fitted, first_of_voxel, axis=1)
    used = np.flatnonzero((np.abs(matrix) > NEGLIGIBLE).any(axis=0))
    columns = slice(int(voxels[0] + used[0]), int(voxels[0] + used[-1] + 1))
    band = torch.from_numpy(matrix[:, used[0] : used[-1] + 1].copy())
    return _Rows(slice(int(rows[0]), int(rows[-1]) + 1), columns, band)


def _weights(x: np.ndarray, order: int) -> list[np.ndarray]:
    """Return B-splines at distances x, 1 - x, ... from a knot, 0 <= x < 1 (Unser, IEEE Signal Processing Mag. 1999)."""
    if order == 1:
        return [1 - x, x]
    middle = [(y * y * (y - 2) * 3 + 4) / 6 for y in (x, 1 - x)]
    return [(1 - x) ** 3 / 6, *middle, x**3 / 6]


def _in_plane(old: tuple[int, ...], new: tuple[int, ...], order: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that resamples one plane to another number of voxels, in float64."""
    if order == 0:
        y, x = (_Taps.of(*sizes).nearest for sizes in zip(old, new, strict=True))
        return lambda plane: plane[y][:, x]
    down, across = (None if o == n else _matrix(o, n, order) for o, n in zip(old, new, strict=True))

    def resample(values: np.ndarray) -> np.ndarray:
        plane = torch.from_numpy(values.astype(np.float64))
        if across is not None:
            narrow, plane = plane, plane.new_empty(old[0], new[1])
            for part in across:
                torch.mm(narrow[:, part.columns], part.matrix.T, out=plane[:, part.rows])
        if down is not None:
            low, plane = plane, plane.new_empty(new)
            for part in down:
                torch.mm(part.matrix, low[part.columns], out=plane[part.rows])
        return plane.numpy()

    return resample


class _Planes:
    """The planes of a volume with any strides, read in slabs; most efficient if requested in order."""

    def __init__(self, volume: np.ndarray) -> None:
        self._volume, self._first = volume, -SLAB

    def __getitem__(self, index: int) -> np.ndarray:
        if not self._first <= index < self._first + SLAB:
            self._first = int(index) // SLAB * SLAB
            self._slab = np.ascontiguousarray(self._volume[self._first : self._first + SLAB])
        return self._slab[index - self._first]


def _combine_planes(
    source: np.ndarray, target: np.ndarray, plane: Callable[[np.ndarray], np.ndarray], matrix: list[_Rows]
) -> None:
    """Resample in 3D: planes are resampled one by one into a window, and combined by a matrix along the first axis."""
    low, high = float(source.min()), float(source.max())
    planes = _Planes(source)
    window = np.empty((max(part.matrix.shape[1] for part in matrix), *target.shape[1:]))
    first, last = 0, 0  # planes in the window
    for part in matrix:
        begin, end = part.columns.start, part.columns.stop
        for index in range(begin, end):
            window[index - begin] = window[index - first] if index < last else plane(planes[index])
        first, last = begin, end
        used = torch.from_numpy(window[: end - begin])
        for row in range(target.shape[1]):  # of all planes at once: the product stays in the cache
            target[part.rows, row] = torch.mm(part.matrix, used[:, row]).clamp_(low, high).numpy()


def _choose_planes(
    source: np.ndarray, target: np.ndarray, plane: Callable[[np.ndarray], np.ndarray], nearest: np.ndarray
) -> None:
    """Resample in 2D: each new plane is the nearest old one, resampled and, as in nnU-Net, clipped to its own range."""
    planes, before = _Planes(source), -1
    for new, old in enumerate(nearest):
        if old == before:
            target[new] = target[new - 1]
        else:
            values = planes[old]
            target[new] = np.clip(plane(values), values.min(), values.max())
        before = old


def _vote(source: np.ndarray, target: np.ndarray, taps: Sequence[_Taps]) -> None:
    """Fill `target` plane by plane: with the nearest label, and where corners differ, with what they vote for."""
    depth, rows, columns = taps
    planes, cells = _Planes(source), _Cells(len(rows.neighbours) > 1, len(columns.neighbours) > 1)
    held: dict[int, np.ndarray] = {}
    for index, result in enumerate(target):
        layers = [int(neighbour[index]) for neighbour in depth.neighbours]
        held = {layer: held[layer] if layer in held else planes[layer] for layer in layers}
        result[:] = held[int(depth.nearest[index])][rows.nearest].take(columns.nearest, axis=1)
        mixed = cells.mixed([held[layer] for layer in layers], layers)
        open_ = np.flatnonzero(mixed[rows.neighbours[0]].take(columns.neighbours[0], axis=1))
        layer_weights = [weight[index] for weight in depth.weights]
        for begin in range(0, len(open_), CHUNK):
            chunk = open_[begin : begin + CHUNK]
            y, x = np.divmod(chunk, result.shape[1])
            corners, weights = [], []
            for (layer, a), (row, b), (column, c) in product(
                zip(layers, layer_weights, strict=True),
                zip(rows.neighbours, rows.weights, strict=True),
                zip(columns.neighbours, columns.weights, strict=True),
            ):
                corners.append(held[layer].ravel()[row[y] * source.shape[2] + column[x]])
                weights.append((a * b[y]) * c[x])
            nearest = result.ravel()[chunk]
            result.ravel()[chunk] = _winners(np.array(corners), np.array(weights), nearest)


class _Cells:
    """Finds the cells between voxels whose corners differ."""

    def __init__(self, rows: bool, columns: bool) -> None:
        self._axes = [axis for axis, wanted in enumerate((rows, columns)) if wanted]
        self._layers: list[int] = []
        self._mixed = np.empty(0)

    def mixed(self, planes: list[np.ndarray], layers: list[int]) -> np.ndarray:
        """Return (H, W): whether the cell whose lower corner is voxel (h, w), between one or two planes, is mixed."""
        if layers != self._layers:
            mixed = planes[0] != planes[-1]
            for axis in self._axes:
                ahead = tuple(slice(1, None) if a == axis else slice(None) for a in range(2))
                behind = tuple(slice(None, -1) if a == axis else slice(None) for a in range(2))
                differ = planes[0][ahead] != planes[0][behind]
                mixed[behind] |= mixed[ahead]
                mixed[behind] |= differ
            self._layers, self._mixed = layers, mixed
        return self._mixed


# trainers/data/label_rotation.py has the same vote in torch. It is not shared: there, sums are rounded to half
# precision as in nnU-Net's augmentation; here they are double as in scipy, and ties depend on the last bit.
def _winners(labels: np.ndarray, weights: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return the label with the largest weight; labels and weights are (corners, N), `nearest` (N,) breaks ties."""
    low, high = labels.min(axis=0), labels.max(axis=0)
    is_low, is_high = labels == low, labels == high
    of_low, of_high = np.zeros(len(low)), np.zeros(len(low))
    for corner, weight in enumerate(weights):  # summed in scipy's order: ties depend on the last bit
        of_low += weight * is_low[corner]
        of_high += weight * is_high[corner]
    winner = np.where(of_low == of_high, nearest, np.where(of_low > of_high, low, high))
    if (many := np.flatnonzero(~(is_low | is_high).all(axis=0))).size:
        winner[many] = _winners_of_many(labels[:, many], weights[:, many], nearest[many])
    return winner


def _winners_of_many(labels: np.ndarray, weights: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    scores = np.zeros(labels.shape)
    for label, weight in zip(labels, weights, strict=True):
        scores += weight * (labels == label)
    best = scores == scores.max(axis=0)
    smallest = np.where(best, labels, labels.max()).min(axis=0)
    return np.where((best & (labels == nearest)).any(axis=0), nearest, smallest)
