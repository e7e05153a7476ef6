"""Dice and binary cross entropy of regions, which overlap and which every case annotates: nnU-Net's loss for them.

The operations are the same as in nnU-Net's DC_and_BCE_loss, so that a training in one process is identical to the last
bit; the addition is what the pieces of a batch have to know about the whole (overlap.py).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stunet.losses.overlap import DiceAndEntropy, Sums


class RegionDiceCE(DiceAndEntropy):
    """nnU-Net's DC_and_BCE_loss with MemoryEfficientSoftDiceLoss: equal value and gradient.

    Takes the options of DiceAndEntropy; with an `ignore_label`, the last channel of a target marks what is ignored. As
    in nnU-Net, the cross entropy is then a sum over regions, and without an ignore label a mean over them.
    """

    def sums(self, logits_BRDHW: Tensor, target_BRDHW: Tensor) -> Sums:  # type: ignore[override]
        """Return what the loss needs to know about the voxels.

        Args:
            logits_BRDHW: One output per region.
            target_BRDHW: 0 or 1, of any type; with one more channel if voxels can be ignored.
        """
        kept = self._kept(target_BRDHW)
        y = (target_BRDHW if kept is None else target_BRDHW[:, :-1]).to(torch.float32)
        p, axes = torch.sigmoid(logits_BRDHW), tuple(range(2, logits_BRDHW.ndim))
        dtype = torch.promote_types(logits_BRDHW.dtype, torch.float32)
        # Half precision sums up in float32: it cannot hold the number of voxels of a patch.
        right, found, true = ((x if kept is None else x * kept).sum(axes, dtype=dtype) for x in (p * y, p, y))
        annotated = torch.ones_like(true, dtype=torch.bool)
        if kept is None:  # nnU-Net's mean over all voxels and regions, to the last bit
            return Sums(
                right, found, true, annotated, F.binary_cross_entropy_with_logits(logits_BRDHW, y.to(dtype)), None
            )
        entropy = F.binary_cross_entropy_with_logits(logits_BRDHW, y.to(dtype), reduction="none")
        return Sums(right, found, true, annotated, (entropy * kept).sum(), kept.sum().to(dtype))

    def counts(self, target_BRDHW: Tensor, *tables: Tensor) -> tuple[Tensor, int]:
        kept = self._kept(target_BRDHW)
        return target_BRDHW.new_zeros((), dtype=torch.int64) if kept is None else kept.sum(), len(target_BRDHW)

    def _kept(self, target_BRDHW: Tensor) -> Tensor | None:
        """Return the voxels that count, (B, 1, ...) bool; None if nothing can be ignored."""
        return None if self.ignore_label is None else ~target_BRDHW[:, -1:].bool()
