"""Which loss does a training take?

    DiceCE           softmax, every case annotates every class: nnU-Net's loss, value and gradient
    PartitionDiceCE  softmax, cases annotate different classes, or coarser ones: annotations.py has what they say
    MaskedSigmoid    one sigmoid per class, for definitions that overlap or contradict each other
    DeepSupervision  any of them at every resolution

Nothing of the logits' size is made but their gradient: sums over voxels are taken a chunk at a time, and the backward
pass computes the probabilities anew. Read next: softmax.py, sigmoid.py, overlap.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stunet.losses.sigmoid import MaskedSigmoid
from stunet.losses.softmax import DiceCE, PartitionDiceCE

__all__ = ["DeepSupervision", "DiceCE", "MaskedSigmoid", "PartitionDiceCE"]


class DeepSupervision(torch.nn.Module):
    """A loss at several resolutions, one after the other, as a weighted sum; a weight of zero skips its resolution.

    Args:
        loss: Takes logits, target and whatever else forward() is given.
        weights: One per resolution, the finest first; nnU-Net's trainer computes them.
    """

    def __init__(self, loss: torch.nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        self.weights = tuple(float(weight) for weight in weights)

    def forward(self, logits: Sequence[Tensor], target: Sequence[Tensor], *more: Tensor) -> Tensor:
        """The weighted sum.

        Args:
            logits: By resolution.
            target: By resolution.
            more: What says which classes are annotated; the same for all resolutions.
        """
        levels = zip(self.weights, logits, target, strict=True)
        return torch.stack([weight * self.loss(x, y, *more) for weight, x, y in levels if weight]).sum()
