"""Dice and cross entropy of a softmax, also where samples annotate only some classes, or unions of them.

A sample's labels are a partition of the outputs into groups; everything unannotated is in the background's group. The
probability of a group is the sum of those of its outputs, q_g = sum p_c (Fidon et al. 2021, label-set loss; Shi et al.
2021, marginal loss). Its logit is therefore the logsumexp of theirs, not their sum: with it the loss of a partition is
the ordinary loss of fewer outputs. Complete labels are the partition into single outputs.

Per voxel, with p the probabilities, t the target and m whether it counts, forward adds up

    right_t += m p_t    found_c += m p_c    entropy -= m log p_t

From their gradients r, f, e backward makes that of the logits, with p computed anew:

    p_c (f_c - sum_k f_k p_k - h) + [c = t] h    where h = r_t p_t - e, and p = h = 0 for ignored voxels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stunet.losses.overlap import chunks, mean_dice, read, refuse, wide


class DiceCE(torch.nn.Module):
    """nnU-Net's DC_and_CE_loss with MemoryEfficientSoftDiceLoss and without background: equal value and gradient.

    Args:
        batch_dice: Dice over the whole batch, not per sample.
        ignore_label: Voxels with this value count nowhere.
        smooth: Added to the Dice's numerator and denominator.
        dice_weight: Of the negative Dice, averaged over classes.
        ce_weight: Of the cross entropy, averaged over voxels.
        ddp: With batch Dice: the batch is that of all processes.
        chunk: Voxels at once; None: as many as suit the device.
    """

    def __init__(
        self,
        batch_dice: bool,
        ignore_label: int | None = None,
        smooth: float = 1e-5,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        ddp: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_dice, self.ignore_label, self.smooth = batch_dice, ignore_label, smooth
        self.dice_weight, self.ce_weight, self.ddp, self.chunk = dice_weight, ce_weight, ddp, chunk

    def forward(self, logits_BCDHW: Tensor, target_B1DHW: Tensor) -> Tensor:
        """The loss; logits in half precision are computed with in single.

        Raises:
            DataError: A value of the target is no class.
        """
        samples, classes = logits_BCDHW.shape[:2]
        return self.of_groups(logits_BCDHW, target_B1DHW, [Groups.single(classes)] * samples, classes)

    def of_groups(self, logits: Tensor, target: Tensor, groups: Sequence["Groups"], values: int) -> Tensor:
        """The loss where each sample has its own groups, of values below `values`."""
        right, found, entropy, true = _Sums.apply(
            logits.flatten(2), target.flatten(1), groups, values, self.ignore_label, self.chunk
        )
        annotated = torch.zeros(true.shape, dtype=torch.bool)
        for sample, group in enumerate(groups):
            annotated[sample, list(group.values)] = True
        dice = mean_dice(
            *(x[:, 1:] for x in (right, found, true, annotated.to(true.device))),
            batch_dice=self.batch_dice,
            smooth=self.smooth,
            ddp=self.ddp,
        )
        return self.ce_weight * entropy.sum() / true.sum().clamp_min(1) - self.dice_weight * dice


class PartitionDiceCE(DiceCE):
    """DiceCE for samples that annotate different sets of classes.

    The Dice is averaged over the labels that are annotated: by any sample with batch Dice, which pools over the samples
    (of all processes) that annotate a label; otherwise over all pairs of a sample and a label of it.

    Args:
        values: How many values label files have, background included: len(annotations.values).
        more: As for DiceCE.
    """

    def __init__(self, values: int, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.values = values

    def forward(self, logits_BCDHW: Tensor, target_B1DHW: Tensor, groups_BC: Tensor) -> Tensor:  # type: ignore[override]
        """The loss.

        Args:
            logits_BCDHW: One output per leaf class and the background.
            target_B1DHW: The values of the label files.
            groups_BC: Annotations.groups() of each sample, int64, best on the CPU: the value that voxels of an output's
                class have in its label file, 0 for what belongs to its background.

        Raises:
            DataError: A voxel has a value that none of its sample's groups has.
        """
        if groups_BC.shape != logits_BCDHW.shape[:2]:
            raise ValueError(f"groups have the shape {tuple(groups_BC.shape)}, logits {tuple(logits_BCDHW.shape)}")
        groups = [Groups.of(row) for row in groups_BC.tolist()]
        return self.of_groups(logits_BCDHW, target_B1DHW, groups, self.values)


@dataclass(frozen=True)
class Groups:
    """The groups of one sample, in the order in which the outputs are rearranged: first those of a single output.

    Attributes:
        values: Of the groups, in the target.
        sizes: How many outputs each has.
        order: The outputs, group by group; None: they are in this order already.
    """

    values: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...] | None

    @classmethod
    def single(cls, classes: int) -> "Groups":
        """Every output is a group."""
        return cls(tuple(range(classes)), (1,) * classes, None)

    @classmethod
    def of(cls, values: Sequence[int]) -> "Groups":
        """The groups of outputs with the same value."""
        members: dict[int, list[int]] = {}
        for output, value in enumerate(values):
            members.setdefault(value, []).append(output)
        ordered = sorted(members.items(), key=lambda item: (len(item[1]) > 1, item[1]))
        order = tuple(output for _, outputs in ordered for output in outputs)
        return cls(
            tuple(value for value, _ in ordered),
            tuple(len(outputs) for _, outputs in ordered),
            None if order == tuple(range(len(order))) else order,
        )


class _Merge:
    """The logits of a sample's groups, from those of its outputs, and gradients the other way."""

    def __init__(self, groups: Groups, device: torch.device, values: int) -> None:
        self.values = torch.tensor(groups.values, device=device)
        self.order = None if groups.order is None else torch.tensor(groups.order, device=device)
        self.single = groups.sizes.count(1)
        self.unions = groups.sizes[self.single :]
        self.row_of_value = torch.full((values,), -1, device=device)
        self.row_of_value[self.values] = torch.arange(len(groups.values), device=device)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (G, n) of the groups from (C, n), and for each union (size, n): what part each output has in it."""
        x = x if self.order is None else x.index_select(0, self.order)
        if not self.unions:
            return x, []
        parts = x[self.single :].split(self.unions)
        merged = [part.logsumexp(0, keepdim=True) for part in parts]
        shares = [(part - whole).exp_() for part, whole in zip(parts, merged, strict=True)]
        return torch.cat([x[: self.single], *merged]), shares

    def backward(self, gradient: Tensor, shares: list[Tensor], out: Tensor) -> None:
        """Writes the gradient (C, n) of the outputs from that of the groups (G, n)."""
        if shares:
            unions = (share * union for share, union in zip(shares, gradient[self.single :], strict=True))
            gradient = torch.cat([gradient[: self.single], *unions])
        if self.order is None:
            out.copy_(gradient)
        else:
            out.index_copy_(0, self.order, gradient.to(out.dtype))


class _Sums(torch.autograd.Function):
    """What a softmax loss needs of the voxels: see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BCN: Tensor,
        target_BN: Tensor,
        groups: Sequence[Groups],
        values: int,
        ignore_label: int | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns right (B, V), found (B, V), entropy (B,) and the number of voxels (B, V), by values of the target."""
        (samples, classes, voxels), device = logits_BCN.shape, logits_BCN.device
        dtype = torch.promote_types(logits_BCN.dtype, torch.float32)
        right, found, true = torch.zeros((3, samples, values), dtype=wide(device), device=device)
        entropy = torch.zeros(samples, dtype=wide(device), device=device)
        normalizer_BN = torch.empty((samples, voxels), dtype=dtype, device=device)
        merges = [_Merge(group, device, values) for group in groups]
        with torch.autocast(device.type, enabled=False):
            for b, merge in enumerate(merges):
                unknown = torch.zeros((), dtype=torch.bool, device=device)
                for part in chunks(voxels, classes, device, chunk):
                    value, kept, outside = read(target_BN[b, part], ignore_label, values)
                    row = merge.row_of_value[value]
                    unknown |= (outside | (kept & (row < 0))).any()
                    z, _ = merge.forward(logits_BCN[b, :, part].to(dtype))
                    highest = z.amax(0)
                    exponential = (z - highest).exp_()
                    total = exponential.sum(0)
                    normalizer = highest + total.log()
                    log_p = z.gather(0, row.clamp_min(0)[None])[0] - normalizer
                    found[b].index_add_(0, merge.values, (exponential @ (kept / total)).to(found.dtype))
                    right[b].scatter_add_(0, value, torch.where(kept, log_p.exp(), 0).to(right.dtype))
                    true[b].scatter_add_(0, value, kept.to(true.dtype))
                    entropy[b] -= torch.where(kept, log_p, 0).sum()
                    normalizer_BN[b, part] = torch.where(kept, normalizer, torch.inf)  # then p is 0 in backward
                if unknown:
                    raise refuse(target_BN[b], b, sorted(groups[b].values), ignore_label)
        ctx.save_for_backward(logits_BCN, target_BN, normalizer_BN)
        ctx.more = merges, ignore_label, chunk
        right, found, entropy, true = (x.to(dtype) for x in (right, found, entropy, true))
        ctx.mark_non_differentiable(true)
        return right, found, entropy, true

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_BCN, target_BN, normalizer_BN = ctx.saved_tensors
        of_right, of_found, of_entropy, _ = gradients
        (_, classes, voxels), device, dtype = logits_BCN.shape, logits_BCN.device, normalizer_BN.dtype
        merges, ignore_label, chunk = ctx.more
        gradient_BCN = torch.empty_like(logits_BCN)
        with torch.autocast(device.type, enabled=False):
            for b, merge in enumerate(merges):
                f = of_found[b, merge.values]
                for part in chunks(voxels, classes, device, chunk):
                    value, kept, _ = read(target_BN[b, part], ignore_label, len(merge.row_of_value))
                    row = merge.row_of_value[value].clamp_min(0)[None]
                    z, shares = merge.forward(logits_BCN[b, :, part].to(dtype))
                    p = (z - normalizer_BN[b, part]).exp_()
                    h = torch.where(kept, of_right[b][value] * p.gather(0, row)[0] - of_entropy[b], 0)
                    gradient = p.mul_(f[:, None] - (f @ p + h))
                    gradient.scatter_add_(0, row, h[None])
                    merge.backward(gradient, shares, gradient_BCN[b, :, part])
        return gradient_BCN, None, None, None, None, None
