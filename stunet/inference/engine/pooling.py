"""Average the features of a scan over regions while windows pass by, so that feature maps of the scan never exist.

Everything follows from what a feature map of the whole scan would be, had it been made as prediction makes logits:

    A value of a stage belongs to the block of voxels that the strides up to there make of the window, as in the
    decoder's upsampling. At a voxel, the windows that see it are averaged with nnU-Net's weights: a Gaussian,
    divided by its sum over all windows. A region's features are the mean of these over its voxels.

So a coarse value counts with the share of its block that lies in the region. Nothing is rounded to a stage's own grid,
where a structure of a few voxels would vanish or be given to whatever is in the middle of the block. With one window
the result is the mean over the dense feature maps. With several it depends on where windows lie only as far as the
features do: by what a window sees around a voxel, by norms over the window, and by where its blocks begin.

A region has its own voxels, which need not be those of the network's grid (features/regions.py): each is at some voxel
of the network's grid, and counts there. windows.py has the windows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stunet.architectures.base import ENCODER
from stunet.errors import DataError
from stunet.inference.engine.windows import VALUES_AT_A_TIME, SlidingWindow, Window

Block = tuple[int, ...]  # voxels of a window that a value of a stage stands for, per axis


class Pool(Protocol):
    """Adds up the features of rows: regions, or points."""

    def sees(self, place: Sequence[slice]) -> bool:
        """Return whether a part of the image has voxels of a row."""

    def add(self, window: Window, blocks: Sequence[Block]) -> None:
        """Add a window; every window that sees a row is given once."""

    def means(self) -> list[Tensor]:
        """Return the mean of every row, per stage, (rows, C), float32."""


def pool(
    windows: SlidingWindow,
    image_CDHW: Tensor,
    pools: Sequence[Pool],
    on_window: Callable[[], None] = lambda: None,
    until: str = ENCODER,
) -> None:
    """Add all windows of an image to the pools; windows that none of them sees are not computed.

    Args:
        windows: The network.
        image_CDHW: Preprocessed.
        pools: What is averaged.
        on_window: Called for each window.
        until: ENCODER, DECODER or HEADS; see ReadyNetwork.features().

    Raises:
        DataError: Features are NaN or infinite.
    """
    blocks = windows.network.blocks(until)
    missing = 3 - len(windows.patch)
    blocks = [(1,) * missing + block for block in blocks]

    def wanted(place: Sequence[slice]) -> bool:
        return any(each.sees(place) for each in pools)

    for window in windows.features(image_CDHW, wanted, on_window, until):
        for each in pools:
            if len(pools) == 1 or each.sees(window.place):
                each.add(window, blocks)
    if not all(bool(mean.isfinite().all()) for each in pools for mean in each.means()):
        raise DataError("the network's features are NaN or infinite", "--precision fp32")


class Whole:
    """The mean over all voxels of the image on the network's grid, without what windows are padded with.

    Args:
        shape: Of the preprocessed image.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.voxels = math.prod(shape)
        self._sums: list[Tensor] = []

    def sees(self, place: Sequence[slice]) -> bool:
        return True

    def add(self, window: Window, blocks: Sequence[Block]) -> None:
        self._sums = self._sums or _zeros(1, window.stages_CDHW)
        for sums, stage, block in zip(self._sums, window.stages_CDHW, blocks, strict=True):
            z, y, x = (
                torch.from_numpy(np.bincount((corner + np.arange(len(w))) // b, w, minlength=n))
                .to(stage.device)
                .float()
                for corner, w, b, n in zip(window.corner, window.weights_DHW, block, stage.shape[1:], strict=True)
            )
            step = max(1, VALUES_AT_A_TIME // stage[:, 0].numel())
            for start in range(0, stage.shape[1], step):
                part = stage[:, start : start + step].float()
                sums[0] += (((part @ x) @ y) @ z[start : start + step]).cpu().double()

    def means(self) -> list[Tensor]:
        return [(sums / self.voxels).float() for sums in self._sums]


class Labelled:
    """The mean over the voxels of each class, on the grid of the label map.

    Args:
        labels_DHW: Integers of 0 or more, over the volume of the preprocessed image, whose axes it has.
        places: Per axis, the voxel of the preprocessed image that each voxel of the label map lies in, ascending.
        values: The values of each class; a voxel may be of several. Classes without voxels get no row.
    """

    def __init__(
        self, labels_DHW: np.ndarray, places: Sequence[np.ndarray], values: Mapping[str, Sequence[int]]
    ) -> None:
        self._labels, self._places = labels_DHW, places
        found = np.zeros(SLOTS, np.int64)
        for plane in labels_DHW:
            found += np.bincount(plane.reshape(-1), minlength=SLOTS)
        voxels = {name: int(found[[v for v in {*own} if v < SLOTS]].sum()) for name, own in values.items()}
        self.voxels = {name: count for name, count in voxels.items() if count}
        self._tables = []
        for name in self.voxels:
            table = np.zeros(SLOTS, bool)
            table[[v for v in values[name] if v < SLOTS]] = True
            self._tables.append(table)
        self._any = np.any([np.zeros(SLOTS, bool), *self._tables], axis=0)
        self._sums: list[Tensor] = []

    def sees(self, place: Sequence[slice]) -> bool:
        return bool(self._any[self._labels[self._within(place)]].any())

    def add(self, window: Window, blocks: Sequence[Block]) -> None:
        self._sums = self._sums or _zeros(len(self._tables), window.stages_CDHW)
        within = self._within(window.place)
        labels = self._labels[within]
        # Voxels of the label map that lie in the same voxel of the image are next to each other.
        different = [np.unique(at[part], return_index=True) for at, part in zip(self._places, within, strict=True)]
        voxels = [values - place.start for (values, _), place in zip(different, window.place, strict=True)]
        for row, table in enumerate(self._tables):
            counts = table[labels].astype(np.int32)
            if not counts.any():
                continue
            for axis, (_, first) in enumerate(different):
                counts = np.add.reduceat(counts, first, axis)
            inside = counts.nonzero()
            at = [v[i] for v, i in zip(voxels, inside, strict=True)]
            weights = counts[inside] * _product(window, at)
            for sums, stage, block in zip(self._sums, window.stages_CDHW, blocks, strict=True):
                shares = np.bincount(_cells(window, stage, block, at), weights)
                cells = shares.nonzero()[0]
                sums[row] += _weighted(stage, cells, shares[cells])

    def means(self) -> list[Tensor]:
        counts = torch.tensor(list(self.voxels.values()), dtype=torch.float64)[:, None]
        return [(sums / counts).float() for sums in self._sums]

    def _within(self, place: Sequence[slice]) -> tuple[slice, ...]:
        return tuple(
            slice(*np.searchsorted(at, (part.start, part.stop))) for at, part in zip(self._places, place, strict=True)
        )


class Points:
    """The features at single voxels.

    Args:
        voxels_N3: Of the preprocessed image.
    """

    def __init__(self, voxels_N3: np.ndarray) -> None:
        self._voxels = voxels_N3
        self._sums: list[Tensor] = []

    def sees(self, place: Sequence[slice]) -> bool:
        return bool(self._inside(place).any())

    def add(self, window: Window, blocks: Sequence[Block]) -> None:
        self._sums = self._sums or _zeros(len(self._voxels), window.stages_CDHW)
        rows = np.flatnonzero(self._inside(window.place))
        begin = np.array([place.start for place in window.place])
        weights = torch.from_numpy(_product(window, list((self._voxels[rows] - begin).T)))[:, None]
        for sums, stage, block in zip(self._sums, window.stages_CDHW, blocks, strict=True):
            sums[torch.from_numpy(rows)] += self._read(stage, block, window, rows).cpu().double() * weights

    def means(self) -> list[Tensor]:
        return [sums.float() for sums in self._sums]

    def _read(self, stage_CDHW: Tensor, block: Block, window: Window, rows: np.ndarray) -> Tensor:
        """Return a stage's values at some of the points, (N, C)."""
        at = [self._voxels[rows, axis] - place.start for axis, place in enumerate(window.place)]
        return _values(stage_CDHW, _cells(window, stage_CDHW, block, at))

    def _inside(self, place: Sequence[slice]) -> np.ndarray:
        return np.all(
            [(part.start <= n) & (n < part.stop) for part, n in zip(place, self._voxels.T, strict=True)], axis=0
        )


class Interpolated(Points):
    """The features at places between voxels: linear between the centres of the blocks of a window.

    At the centre of a voxel this is what interpolating the whole map of a window to its shape gives there. A place
    counts with the weight of the voxel that it lies in.

    Args:
        places_N3: In voxels of the preprocessed image, whole numbers being their centres.
    """

    def __init__(self, places_N3: np.ndarray) -> None:
        self._places = np.asarray(places_N3, np.float64)
        super().__init__(np.floor(self._places + 0.5).astype(np.int64))

    def _read(self, stage_CDHW: Tensor, block: Block, window: Window, rows: np.ndarray) -> Tensor:
        begin = np.array([place.start for place in window.place])
        at = self._places[rows] - begin + window.corner
        return _interpolated(stage_CDHW, (at + 0.5) / block - 0.5)


SLOTS = 2**16  # values of labels


def _zeros(rows: int, stages: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros(rows, len(stage), dtype=torch.float64) for stage in stages]


def _interpolated(stage_CDHW: Tensor, at_N3: np.ndarray) -> Tensor:
    """Return a map's values at places in its own voxels, (N, C) in float64; beyond its edge those of the edge."""
    sides = np.array(stage_CDHW.shape[1:])
    at = np.clip(at_N3, 0, sides - 1)
    low = np.minimum(np.floor(at).astype(np.int64), np.maximum(sides - 2, 0))
    share = at - low
    total = torch.zeros(len(at), len(stage_CDHW), dtype=torch.float64)
    for corner in np.ndindex(2, 2, 2):
        weights = np.where(corner, share, 1 - share).prod(axis=1)
        if weights.any():
            cells = np.ravel_multi_index(tuple(np.minimum(low + corner, sides - 1).T), tuple(sides))
            total += _values(stage_CDHW, cells).cpu().double() * torch.from_numpy(weights)[:, None]
    return total


def _product(window: Window, at: Sequence[np.ndarray]) -> np.ndarray:
    """Return what voxels of a window's part of the image count."""
    z, y, x = (np.asarray(w, np.float64)[n] for w, n in zip(window.weights_DHW, at, strict=True))
    return z * y * x


def _cells(window: Window, stage_CDHW: Tensor, block: Block, at: Sequence[np.ndarray]) -> Any:
    """Return the values of a stage, counted through, that stand for voxels of a window's part of the image."""
    places = tuple((corner + n) // b for corner, n, b in zip(window.corner, at, block, strict=True))
    return np.ravel_multi_index(places, stage_CDHW.shape[1:])


def _values(stage_CDHW: Tensor, cells: np.ndarray) -> Tensor:
    """Return values of a stage, (N, C)."""
    return stage_CDHW.flatten(1).T.index_select(0, torch.from_numpy(cells).to(stage_CDHW.device)).float()


def _weighted(stage_CDHW: Tensor, cells: np.ndarray, weights: np.ndarray) -> Tensor:
    """Return the weighted sum of values of a stage, (C,), a part of them at a time."""
    total = torch.zeros(len(stage_CDHW), dtype=torch.float64)
    step = max(1, VALUES_AT_A_TIME // len(stage_CDHW))
    for start in range(0, len(cells), step):
        some = slice(start, start + step)
        of_part = torch.from_numpy(weights[some]).to(stage_CDHW.device).float()
        total += (of_part @ _values(stage_CDHW, cells[some])).cpu().double()
    return total
