"""Match the tensors of a network with those of weights, and adapt their values: channels, kernels, rows of classes.

Names and shapes alone determine what becomes of a tensor. transfer.py asks for every tensor of a network, and loads;
kernels.py and heads.py change what differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from stunet.architectures.base import HEADS, UPSAMPLING, Architecture, Recognised
from stunet.plans.plan import ENCODER_ALONE
from stunet.weights.heads import Heads, take_rows
from stunet.weights.kernels import can_fit, change, fit
from stunet.weights.reading import Weights
from stunet.weights.report import Fate

ABSENT = "not in the weights"
LEFT_OUT = "not transferred"


def inflate_channels(weight: Tensor, images: int, cascade: int, stem: str = "repeat") -> Tensor:
    """Turn weights (C', C, ...) of an input convolution into (C', images + cascade, ...), zeros for one-hot channels.

    With "repeat", every image channel gets the sum over C divided by the number of image channels. If all channels show
    the same, the response is therefore that of the original weights, from any number of channels to any other, and back
    again. With "first", the first image channels keep the weights of the first of C, and the others get zeros.
    """
    given = weight.shape[1]
    result = weight.new_zeros(len(weight), images + cascade, *weight.shape[2:])
    if given == images or stem == "first":
        result[:, : min(given, images)] = weight[:, :images]
    else:
        result[:, :images] = weight.sum(1, keepdim=True) / images
    return result


@dataclass(frozen=True)
class Match:
    """The correspondence between tensors of the network and of the weights, and the values that are loaded."""

    weights: Weights
    target: Recognised
    heads: Heads
    images: int  # channels of the network's input without one-hot channels
    stem: str
    transfer: str
    inflate: str | None
    order: Sequence[int] | None = None  # the weights' channel for each of the images'; None: as they come

    @property
    def given(self) -> int:
        """Number of image channels of the weights: those with names, as a cascade's others are one-hot channels."""
        total = self.weights.network.channels
        return min(len(self.weights.channels or ()) or total, total)

    @property
    def architecture(self) -> Architecture:
        """Of the network and of the weights."""
        return self.target.architecture

    def fate(self, name: str, drawn: Tensor) -> Fate:
        """Return what becomes of one tensor of the network."""
        size, head = drawn.numel(), self.architecture.place(name).part == HEADS
        if head and self.heads.mode == "reset":
            return Fate(name, None, "head", size, note="as drawn")
        if self.transfer == ENCODER_ALONE and not self.architecture.is_encoder(name):
            return Fate(name, None, "missing", size, note=LEFT_OUT)
        source = self._source(name)
        value = None if source is None else self.weights.tensors[source]
        if source is None or value is None:
            return Fate(name, None, "missing", size, note=ABSENT)
        free = 0 if head else 1 if name in self.architecture.inputs else None  # the axis that may differ in length
        given, wanted = value.shape[2:], drawn.shape[2:]
        fits = can_fit(given, wanted, self._lifts(name), self.inflate)
        if not fits or _besides(free, value.shape[:2]) != _besides(free, drawn.shape[:2]):
            shapes = f"{tuple(value.shape)} instead of {tuple(drawn.shape)}"
            return Fate(name, None, "missing", size, note=shapes)
        if free == 0:
            # New rows of a reused head come from the background's: filled, but not trained for their class.
            known = sum(map(bool, self.heads.moves)) - sum(map(bool, self.heads.added))
            return Fate(name, source, "head", size, size * known // len(drawn))
        # That all kernels of a 2D network get a depth is said once (report.py).
        kernels = change(given, wanted) if given != wanted and len(given) == len(wanted) else ""
        kernels = f"kernel {kernels}" if kernels and free == 1 else kernels
        if free == 1 and not value.shape[1] == self.given == self.images == drawn.shape[1]:
            known = size * min(self.given, self.images) // drawn.shape[1]
            notes = filter(None, (self._inflation(drawn.shape[1] - self.images), kernels))
            return Fate(name, source, "inflated", size, known, "; ".join(notes))
        if given != wanted:
            # Trained for what they do, so a strategy that keeps what is pre-trained keeps them.
            return Fate(name, source, "inflated", size, size, kernels)
        return Fate(name, source, "copied", size, size)

    def value(self, name: str, source: str, drawn: Tensor) -> Tensor:
        """Return the new value of a tensor of the network, currently `drawn`."""
        value = self.weights.tensors[source]
        if value.shape[2:] != drawn.shape[2:]:
            value = fit(value.to(drawn), drawn.shape[2:], self._lifts(name), self.inflate)
        if self.architecture.place(name).part == HEADS:
            rows = take_rows(drawn, value, self.heads.moves)
            return rows + rows.new_tensor(self.heads.added) if self.heads.added and name.endswith("bias") else rows
        if name in self.architecture.inputs:
            # Without the one-hot channels of the weights' own cascade, whose labels were others.
            value = value[:, list(self.order or range(self.given))].to(drawn)
            return inflate_channels(value, self.images, drawn.shape[1] - self.images, self.stem)
        return value

    @cached_property
    def _named(self) -> dict[str, str]:
        return {self.architecture.matching(name): name for name in self.weights.tensors}

    def _source(self, name: str) -> str | None:
        """Return the weights' tensor at the place of this one."""
        if not self.architecture.is_encoder(name):
            level = self.architecture.place(name).level + self.weights.network.stages - self.target.stages
            name = self.architecture.at_level(name, level)
        return self._named.get(self.architecture.matching(name))

    def _lifts(self, name: str) -> bool:
        return self.architecture.place(name).part == UPSAMPLING

    def _inflation(self, cascade: int) -> str:
        shared = "repeated" if self.given == 1 else f"the sum of {self.given}"
        way = "the first kept" if self.stem == "first" else f"{shared} / {self.images}"
        images = f"{self.given} -> {self.images} image channels, {way}" if self.given != self.images else ""
        return "; ".join(filter(None, (images, f"{cascade} one-hot channels begin with zeros" if cascade else "")))


def _besides(axis: int | None, shape: Sequence[int]) -> list[int]:
    return [length for n, length in enumerate(shape) if n != axis]
