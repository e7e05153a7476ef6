"""Dice and binary cross entropy of one sigmoid per class, over the classes that each sample annotates.

For definitions that overlap or contradict each other, which no partition can represent (after Ulrich et al. 2023,
MultiTalent; with means instead of their sums, so that the number of classes does not change the step). Outputs that a
sample does not annotate are not read: their gradient is zero.

Per voxel, with p the probability of an output, y whether the voxel is in it and m whether it counts, forward adds up

    right += m p y    found += m p    entropy += m (log(1 + exp(x)) - x y)

and backward turns their gradients r, f, e into that of the logit: m (p (1 - p) (r y + f) + e (p - y)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stunet.losses.overlap import DiceAndEntropy, Sums, check, chunks, read, wide


class MaskedSigmoid(DiceAndEntropy):
    """Dice and cross entropy over annotated outputs; nnU-Net's DC_and_BCE_loss if all are, and none is ignored.

    Takes the options of DiceAndEntropy.
    """

    complete = False

    def sums(  # type: ignore[override]
        self, logits_BRDHW: Tensor, target_B1DHW: Tensor, annotated_BR: Tensor, inside_BRV: Tensor
    ) -> Sums:
        """Return what the loss needs to know about the voxels.

        Args:
            logits_BRDHW: One output per entry of Annotations.outputs; there is none for the background.
            target_B1DHW: The values of the label files.
            annotated_BR: Annotations.regions() of each sample, best on the CPU: which outputs are annotated.
            inside_BRV: Annotations.regions() of each sample, best on the CPU: which values belong to an output.

        Raises:
            DataError: A voxel has a value that its sample does not annotate.
        """
        if annotated_BR.shape != logits_BRDHW.shape[:2] or inside_BRV.shape[:2] != annotated_BR.shape:
            raise ValueError(
                f"logits have the shape {tuple(logits_BRDHW.shape)}, annotated {tuple(annotated_BR.shape)}, "
                f"inside {tuple(inside_BRV.shape)}"
            )
        right, found, entropy, true, voxels = _Sums.apply(
            logits_BRDHW.flatten(2), target_B1DHW.flatten(1), annotated_BR, inside_BRV, self.ignore_label, self.chunk
        )
        annotated_BR = annotated_BR.to(logits_BRDHW.device)
        return Sums(right, found, true, annotated_BR, entropy, (annotated_BR.sum(1) * voxels).sum())

    def counts(  # type: ignore[override]
        self, target_B1DHW: Tensor, annotated_BR: Tensor, inside_BRV: Tensor
    ) -> tuple[Tensor, Tensor]:
        ignored = target_B1DHW == (-1 if self.ignore_label is None else self.ignore_label)  # -1: rejected by sums()
        voxels = (~ignored).flatten(1).sum(1)
        return (annotated_BR.sum(1).to(voxels.device) * voxels).sum(), annotated_BR.sum()


class _Sums(torch.autograd.Function):
    """The sums over voxels that a sigmoid loss needs: see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BRN: Tensor,
        target_BN: Tensor,
        annotated_BR: Tensor,
        inside_BRV: Tensor,
        ignore_label: int | None,
        chunk: int | None,
    ) -> tuple[Tensor, ...]:
        """Return right, found, entropy, true (B, R), and the number of voxels that are not ignored (B,)."""
        (samples, _, voxels), device, values = logits_BRN.shape, logits_BRN.device, inside_BRV.shape[2]
        dtype = torch.promote_types(logits_BRN.dtype, torch.float32)
        sums = torch.zeros((4, *annotated_BR.shape), dtype=wide(device), device=device)
        by_value = torch.zeros((samples, values), dtype=wide(device), device=device)
        # Only the rows that a sample annotates are read: with many sources these are few.
        rows = [annotated.nonzero()[:, 0].to(device) for annotated in annotated_BR]
        tables = [inside_BRV[b].to(device)[row].to(dtype) for b, row in enumerate(rows)]
        known = inside_BRV.to(device).any(1)
        known[:, 0] = True  # the background, which is in no region
        unknown = torch.zeros(samples, dtype=torch.bool, device=device)
        with torch.autocast(device.type, enabled=False):
            for b, (row, table) in enumerate(zip(rows, tables, strict=True)):
                for part in chunks(voxels, max(1, len(row)), device, chunk):
                    value, kept, outside = read(target_BN[b, part], ignore_label, values)
                    unknown[b] |= (outside | (kept & ~known[b, value])).any()
                    by_value[b].scatter_add_(0, value, kept.to(by_value.dtype))
                    x, mask = _rows(logits_BRN[b, :, part], row).to(dtype), kept.to(dtype)
                    y = table.index_select(1, value)
                    softplus = F.softplus(x, threshold=50)  # above that it equals x, in double precision as well
                    # sigmoid(x); with logsigmoid, and out of place, a step took 0.62 CPU s instead of 0.50 (tried.md).
                    p = (x - softplus).exp_()
                    chunk_sums = torch.stack([(p * y) @ mask, p @ mask, softplus.addcmul_(x, y, value=-1) @ mask])
                    sums[:3, b].index_add_(1, row, chunk_sums.to(sums.dtype))
                # Voxels per region, from voxels per value: one pass over the target instead of one per region.
                sums[3, b].index_add_(0, row, table.to(sums.dtype) @ by_value[b])
        check(unknown, target_BN, [row.nonzero()[:, 0].tolist() for row in known], ignore_label)
        ctx.save_for_backward(logits_BRN, target_BN)
        ctx.more = rows, tables, ignore_label, chunk
        right, found, entropy, true = sums.to(dtype)
        number = by_value.sum(1).to(dtype)
        ctx.mark_non_differentiable(true, number)
        return right, found, entropy, true, number

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_BRN, target_BN = ctx.saved_tensors
        voxels, device = logits_BRN.shape[2], logits_BRN.device
        rows, tables, ignore_label, chunk = ctx.more
        gradient_BRN = torch.empty_like(logits_BRN)
        with torch.autocast(device.type, enabled=False):
            for b, (row, table) in enumerate(zip(rows, tables, strict=True)):
                r, f, e = (gradient[b][row, None] for gradient in gradients[:3])
                # What is not annotated is in no row below.
                if len(row) < logits_BRN.shape[1]:
                    gradient_BRN[b] = 0
                for part in chunks(voxels, max(1, len(row)), device, chunk):
                    value, kept, _ = read(target_BN[b, part], ignore_label, table.shape[1])
                    y = table.index_select(1, value)
                    p = _rows(logits_BRN[b, :, part], row).to(table.dtype).sigmoid()
                    # The formula at the top as p ((1 - p) (r y + f) + e) - e y: in place, in one array.
                    gradient = (r * y).add_(f)
                    gradient.addcmul_(gradient, p, value=-1).add_(e).mul_(p).sub_(y.mul_(e)).mul_(kept)
                    gradient_BRN[b, :, part].index_copy_(0, row, gradient.to(gradient_BRN.dtype))
        return gradient_BRN, None, None, None, None, None


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    return x if len(rows) == len(x) else x.index_select(0, rows)
