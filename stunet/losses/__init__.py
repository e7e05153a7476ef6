"""The losses for training.

    DiceCE           softmax, every case annotates every class: nnU-Net's loss, value and gradient
    PartitionDiceCE  softmax, cases annotate different classes, or coarser ones, as annotations.py records
    MaskedSigmoid    one sigmoid per class, for definitions that overlap or contradict each other
    RegionDiceCE     nnU-Net's regions, which every case annotates: nnU-Net's loss
    DeepSupervision  any of these at every resolution

The only array as large as the logits is their gradient: sums over voxels are computed in chunks, and the backward pass
recomputes the probabilities (except for regions). Read next: softmax.py, sigmoid.py, regions.py, overlap.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stunet.losses.overlap import DiceAndEntropy, Totals
from stunet.losses.regions import RegionDiceCE
from stunet.losses.sigmoid import MaskedSigmoid
from stunet.losses.softmax import DiceCE, PartitionDiceCE

__all__ = [
    "DeepSupervision",
    "DiceAndEntropy",
    "DiceCE",
    "MaskedSigmoid",
    "PartitionDiceCE",
    "RegionDiceCE",
    "Totals",
]


class DeepSupervision(torch.nn.Module):
    """The weighted sum of a loss over several resolutions, one after the other; a weight of zero skips a resolution.

    Args:
        loss: Takes logits, target and whatever else forward() is given.
        weights: One per resolution, the finest first; nnU-Net's trainer computes them.
    """

    def __init__(self, loss: DiceAndEntropy, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        self.weights = tuple(float(weight) for weight in weights)

    def forward(
        self, logits: Sequence[Tensor], target: Sequence[Tensor], *tables: Tensor, totals: Totals | None = None
    ) -> Tensor:
        """Return the weighted sum.

        Args:
            logits: By resolution.
            target: By resolution.
            tables: Define what the samples annotate; the same for all resolutions.
            totals: Those of the batch that the samples are a piece of: the sum of totals() of its pieces.
        """
        levels = self._levels(logits, target)
        losses = [
            weight * self.loss(x, y, *tables, totals=None if totals is None else totals[level])
            for level, (weight, x, y) in enumerate(levels)
        ]
        return torch.stack(losses).sum()

    def totals(self, logits: Sequence[Tensor] | None, target: Sequence[Tensor], *tables: Tensor) -> Totals:
        """Return what these samples contribute to the whole batch, by resolution: see DiceAndEntropy.totals()."""
        levels = self._levels([None] * len(target) if logits is None else logits, target)
        return Totals.stacked([self.loss.totals(x, y, *tables) for _, x, y in levels])

    def _levels(self, logits: Sequence[Any], target: Sequence[Tensor]) -> list[tuple[float, Any, Tensor]]:
        # nnU-Net's weight for the lowest resolution is zero: its logits may be anything, and are not even read.
        return [level for level in zip(self.weights, logits, target, strict=True) if level[0]]
