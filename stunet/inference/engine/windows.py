"""Run the network over an image, window by window, and hand out the logits of each plane as soon as they are final.

Except for their order, windows are nnU-Net's: steps of at most `step_size` windows, weighted with a Gaussian. They are
visited along the axis on which the image is longest, measured in windows. A plane is final once no later window reaches
it; it is then handed on and its memory reused, so that logits need the memory of one window's depth, however long the
scan is. The weights of all windows are normalised to sum to one at every voxel in advance, so no division is needed
afterwards.

optimized.py has the network; export.py consumes the slabs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor
from torch.nn import functional

from stunet.inference.engine.export import Slab
from stunet.inference.engine.optimized import ReadyNetwork

VALUES_AT_A_TIME = 2**23  # converted and added: bounds the memory for it
SMALL_BATCH = 64**3  # voxels in a batch of windows on the CPU; larger batches gain nothing there
LARGE_BATCH = 8  # windows at most in a batch on a GPU
FREE_SHARE = 0.7  # of a GPU's free memory that a batch may take


class Window(NamedTuple):
    """The features of a window.

    Attributes:
        place: The part of the image that it sees, per axis.
        weights_DHW: Per axis, what each of these voxels counts; the product, summed over all windows, is 1 everywhere.
        corner: The window's voxel at which that part begins: not 0 only where the image is padded.
        stages_CDHW: The features, finest first; each value belongs to a block of the window's voxels.
    """

    place: Sequence[slice]
    weights_DHW: Sequence[Tensor]
    corner: Sequence[int]
    stages_CDHW: Sequence[Tensor]


@dataclass
class SlidingWindow:
    """A network that processes one window at a time.

    Args:
        network: Maps windows to logits.
        patch: Shape of a window in voxels; for a 2D network it has one entry fewer than an image has axes.
        classes: K, the number of the network's output channels.
        step_size: Step between windows as a fraction of the window, above 0 and at most 1.
    """

    network: ReadyNetwork
    patch: Sequence[int]
    classes: int
    step_size: float = 0.5
    _batch: int = field(default=0, init=False)  # 0: not known yet

    def axis(self, shape: Sequence[int]) -> int:
        """Return the axis along which windows are visited for this shape: the one for which least has to be kept."""
        return min(range(3), key=lambda axis: self._window[axis] / max(shape[axis], self._window[axis]))

    def count(self, shape: Sequence[int]) -> int:
        """Return how many windows an image of this shape has, over all members of the network."""
        return math.prod(len(self._starts(axis, n)) for axis, n in enumerate(shape)) * self.network.members

    def logits_bytes(self, shape: Sequence[int], half: bool = False) -> int:
        """Return the memory that the logits of an image of this shape need, in bytes."""
        padded = [max(n, p) for n, p in zip(shape, self._window, strict=True)]
        padded[self.axis(shape)] = self._window[self.axis(shape)] + 1  # what _Planes keeps
        return math.prod(padded) * self.classes * (2 if half else 4)

    @torch.inference_mode()
    def slabs(
        self,
        image_CDHW: Tensor,
        half: bool = False,
        on_device: bool = True,
        on_window: Callable[[], None] = lambda: None,
    ) -> Iterator[Slab]:
        """Yield the logits of an image, some planes at a time; their axes are in the order given by order().

        A slab is valid until the next one is requested.

        Args:
            image_CDHW: Preprocessed.
            half: Add in half precision, as nnU-Net does: half the memory, and an error of up to 1e-3 of a logit.
            on_device: Add on the network's device; otherwise in the machine's memory.
            on_window: Called for each finished window, count() times.

        Raises:
            torch.OutOfMemoryError: One window, or the logits of one row of windows, do not fit on the device.
        """
        order = self.order(image_CDHW.shape[1:])
        padded, inside = _padded(image_CDHW, self._window)
        image = padded.to(self.network.device).permute(0, *(1 + axis for axis in order))
        window = [self._window[axis] for axis in order]
        starts = [self._starts(axis, n) for axis, n in zip(order, image.shape[1:], strict=True)]
        place = self.network.device if on_device else torch.device("cpu")
        weights = [_weights(n, at, place) for n, at in zip(window, starts, strict=True)]
        planes = _Planes(self.classes, window[0], [inside[axis] for axis in order], image.shape[1:], half, place)

        corners = list(itertools.product(range(len(starts[1])), range(len(starts[2]))))
        for row, start in enumerate(starts[0]):
            # Members change once per row, not per window: each change copies all weights into the network.
            for member in range(self.network.members):
                self.network.use(member)
                positions = [(start, starts[1][j], starts[2][k]) for j, k in corners]
                for (j, k), at, logits in zip(corners, positions, self._logits(image, positions, order), strict=True):
                    weight = _product(weights[0][row], weights[1][j], weights[2][k]) / self.network.members
                    planes.add(logits, weight, at, window)
                    on_window()
            yield from planes.finished(starts[0][row + 1] if row + 1 < len(starts[0]) else start + window[0])

    @torch.inference_mode()
    def features(
        self,
        image_CDHW: Tensor,
        wanted: Callable[[Sequence[slice]], bool] = lambda place: True,
        on_window: Callable[[], None] = lambda: None,
    ) -> "Iterator[Window]":
        """Yield the encoder's features window by window; no decoder is computed.

        Args:
            image_CDHW: Preprocessed.
            wanted: Whether a window is to be computed, by the part of the image that it sees.
            on_window: Called for each window, also for those that are left out: count() times with one member.
        """
        padded, inside = _padded(image_CDHW, self._window)
        padded, shape = padded.to(self.network.device), image_CDHW.shape[1:]
        starts = [self._starts(axis, n) for axis, n in enumerate(shape)]
        weights = [_weights(n, at, torch.device("cpu")) for n, at in zip(self._window, starts, strict=True)]
        chosen = []
        for number in itertools.product(*map(range, map(len, starts))):
            place, own, corner = [], [], []
            for axis, index in enumerate(number):
                start, edge, first = starts[axis][index], self._window[axis], inside[axis].start
                begin, end = max(0, start - first), min(shape[axis], start - first + edge)
                place.append(slice(begin, end))
                own.append(weights[axis][index][begin + first - start : end + first - start])
                corner.append(begin + first - start)
            if wanted(place):
                chosen.append((tuple(starts[axis][index] for axis, index in enumerate(number)), place, own, corner))
            else:
                on_window()
        rest = iter(chosen)
        for stages in self._batches(padded, [each[0] for each in chosen], (0, 1, 2), self.network.features):
            for sample, (_, place, own, corner) in zip(range(len(stages[0])), rest, strict=False):
                yield Window(place, own, corner, [stage[sample] for stage in stages])
                on_window()

    def order(self, shape: Sequence[int]) -> list[int]:
        """Return the order of an image's axes in its slabs: axis() comes first."""
        first = self.axis(shape)
        return [first, *(axis for axis in range(3) if axis != first)]

    @property
    def _window(self) -> tuple[int, ...]:
        return (1,) * (3 - len(self.patch)) + tuple(self.patch)

    def _starts(self, axis: int, size: int) -> list[int]:
        if axis < 3 - len(self.patch):
            return list(range(size))  # a 2D network sees each slice once
        edge = self._window[axis]
        return compute_steps_for_sliding_window((max(size, edge),), (edge,), self.step_size)[0]

    def _logits(self, image: Tensor, positions: Sequence[tuple[int, ...]], order: Sequence[int]) -> Iterator[Tensor]:
        """Yield the logits (D, H, W, K) of windows at these positions in the image, whose axes have this order."""
        for logits in self._batches(image, positions, order, self.network):
            yield from logits.permute(0, *(2 + axis for axis in order), 1)

    def _batches(
        self,
        image: Tensor,
        positions: Sequence[tuple[int, ...]],
        order: Sequence[int],
        function: Callable[[Tensor], Any],
    ) -> Iterator[Any]:
        """Yield what the function makes of windows (B, C, D, H, W), some at a time, with one axis more if it is 2D."""
        # On a GPU, the first batch is one window, by which _first() measures how many fit.
        batch = self._batch or (1 if self.network.device.type == "cuda" else _cpu_batch(self.patch))
        window = [self._window[axis] for axis in order]
        back = [2 + order.index(axis) for axis in range(3)]
        done = 0
        while done < len(positions):
            chosen = positions[done : done + batch]
            parts = [image[:, z : z + window[0], y : y + window[1], x : x + window[2]] for z, y, x in chosen]
            windows = torch.stack(parts).permute(0, 1, *back)
            try:
                outputs = self._forward(windows, function) if self._batch else self._first(windows, function)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch = self._batch = batch // 2
                continue
            batch = self._batch
            yield outputs
            done += len(chosen)

    def _first(self, windows_BCDHW: Tensor, function: Callable[[Tensor], Any]) -> Any:
        """Return the outputs of the first windows, and choose the batch size to use from now on."""
        device = self.network.device
        if device.type != "cuda":
            self._batch = _cpu_batch(self.patch)
            return self._forward(windows_BCDHW, function)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        outputs = self._forward(windows_BCDHW, function)
        needed = max(1, torch.cuda.max_memory_allocated(device) - before)
        # Memory that torch has reserved and does not use is free for a batch as well.
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)
        self._batch = min(LARGE_BATCH, max(1, int(FREE_SHARE * free / needed)))
        return outputs

    def _forward(self, windows_BCDHW: Tensor, function: Callable[[Tensor], Any]) -> Any:
        # A window of a 2D network is one slice, whose axis the network does not take.
        if len(self.patch) == 3:
            return function(windows_BCDHW)
        outputs = function(windows_BCDHW.squeeze(2))
        return outputs.unsqueeze(2) if isinstance(outputs, Tensor) else [each.unsqueeze(2) for each in outputs]


class _Planes:
    """The weighted logits of the planes that a row of windows reaches, and of the plane before them.

    Args:
        classes: K.
        depth: Of a window, in planes.
        inside: Per axis, the part of the padded image that is the image.
        shape: Of the padded image.
        half: Half precision.
        device: Where the logits are kept.
    """

    def __init__(
        self, classes: int, depth: int, inside: Sequence[slice], shape: torch.Size, half: bool, device: torch.device
    ) -> None:
        kind = torch.half if half else torch.float32
        # One plane more than a window: a slab begins with the last plane of the one before, for interpolation.
        self._sums = torch.zeros((depth + 1, *shape[1:], classes), dtype=kind, device=device)
        self._first = 0  # the plane of the padded image at index 1
        self._begin, self._end, _ = inside[0].indices(shape[0])
        self._inside = inside[1:]

    def add(self, logits_DHWK: Tensor, weight_DHW: Tensor, at: Sequence[int], window: Sequence[int]) -> None:
        """Add the logits of the window at this position."""
        sums = self._sums[1:, at[1] : at[1] + window[1], at[2] : at[2] + window[2]]
        step = max(1, VALUES_AT_A_TIME // sums[0].numel())
        for plane in range(0, len(sums), step):
            some = slice(plane, plane + step)
            sums[some].addcmul_(logits_DHWK[some].to(sums), weight_DHW[some, ..., None].to(sums))

    def finished(self, following: int) -> Iterator[Slab]:
        """Yield the planes before `following`, where the next row of windows begins, and move the rest to the front."""
        begin, end = max(self._first - 1, self._begin), min(following, self._end)
        if end > max(self._first, self._begin):
            at = begin - self._first + 1
            yield Slab(begin - self._begin, self._sums[at : at + end - begin, self._inside[0], self._inside[1]])
        step, planes = following - self._first, len(self._sums)
        # In steps, because source and target of a single copy would overlap.
        for to in range(0, planes - step, step):
            count = min(step, planes - step - to)
            self._sums[to : to + count] = self._sums[to + step : to + step + count]
        self._sums[planes - step :] = 0
        self._first = following


def _padded(image_CDHW: Tensor, window: Sequence[int]) -> tuple[Tensor, list[slice]]:
    """Return the image, zero-padded on both sides of axes shorter than a window, and where in it the image is."""
    lacking = [max(0, edge - n) for edge, n in zip(window, image_CDHW.shape[1:], strict=True)]
    inside = [slice(lack // 2, lack // 2 + n) for lack, n in zip(lacking, image_CDHW.shape[1:], strict=True)]
    if not any(lacking):
        return image_CDHW, inside
    sides = [side for lack in reversed(lacking) for side in (lack // 2, lack - lack // 2)]
    return functional.pad(image_CDHW, sides), inside


def _cpu_batch(patch: Sequence[int]) -> int:
    return max(1, SMALL_BATCH // math.prod(patch))


def _weights(edge: int, starts: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return nnU-Net's Gaussian along one axis for each window, divided by its sum over all windows, float32."""
    # A Gaussian is the product of those along its axes, and windows form a grid: so each axis can be normalised alone.
    gaussian = compute_gaussian((edge,), dtype=torch.float64, device=torch.device("cpu"))
    total = torch.zeros(starts[-1] + edge, dtype=torch.float64)
    for start in starts:
        total[start : start + edge] += gaussian
    return [(gaussian / total[start : start + edge]).to(device, torch.float32) for start in starts]


def _product(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return (z[:, None, None] * y[:, None]) * x
