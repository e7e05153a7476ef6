"""Dice and cross entropy of a softmax, also if samples annotate only some classes, or unions of them.

A sample's labels are a partition of the outputs into groups; everything unannotated is in the background's group. The
probability of a group is the sum of those of its outputs, q_g = sum p_c (Fidon et al. 2021, label-set loss; Shi et al.
2021, marginal loss). Its logit is therefore the logsumexp of theirs, not their sum: with that, the loss of a partition
is the ordinary loss with fewer outputs. Complete labels are the partition into single outputs.

Per voxel, with p the probabilities, t the target and m whether it counts, forward adds up

    right_t += m p_t    found_c += m p_c    entropy -= m log p_t

From their gradients r, f, e backward computes that of the logits, recomputing p:

    p_c (f_c - sum_k f_k p_k - h) + [c = t] h    where h = r_t p_t - e, and p = h = 0 for ignored voxels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stunet.losses.overlap import DiceAndEntropy, Sums, check, chunks, read, wide


class DiceCE(DiceAndEntropy):
    """nnU-Net's DC_and_CE_loss with MemoryEfficientSoftDiceLoss and without background: equal value and gradient.

    Takes the options of DiceAndEntropy.
    """

    def sums(self, logits_BCDHW: Tensor, target_B1DHW: Tensor) -> Sums:  # type: ignore[override]
        """Return what the loss needs to know about the voxels.

        Raises:
            DataError: A value of the target is not a class.
        """
        samples, classes = logits_BCDHW.shape[:2]
        return self.sums_of_groups(logits_BCDHW, target_B1DHW, [Groups.from_values(range(classes))] * samples, classes)

    def counts(self, target_B1DHW: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor | int]:
        number = target_B1DHW.new_tensor(target_B1DHW.numel(), dtype=torch.int64)
        return number if self.ignore_label is None else (target_B1DHW != self.ignore_label).sum(), len(target_B1DHW)

    def sums_of_groups(self, logits: Tensor, target: Tensor, groups: Sequence["Groups"], values: int) -> Sums:
        """Return the sums if each sample has its own groups, with values below `values`."""
        right, found, entropy, true = _Sums.apply(
            logits.flatten(2), target.flatten(1), groups, values, self.ignore_label, self.chunk
        )
        # Filled on the CPU and copied once, rather than one small copy per sample.
        annotated = torch.zeros(true.shape, dtype=torch.bool)
        for sample, group in enumerate(groups):
            annotated[sample, list(group.values)] = True
        annotated = annotated.to(true.device)
        return Sums(right[:, 1:], found[:, 1:], true[:, 1:], annotated[:, 1:], entropy, true.sum())


class PartitionDiceCE(DiceCE):
    """DiceCE for samples that annotate different sets of classes.

    The Dice is averaged over the labels that are annotated: with batch Dice, those that any sample annotates, pooled
    over the samples (of all processes) that do; otherwise all pairs of a sample and one of its labels.

    Args:
        values: How many values label files have, including background: len(annotations.values).
        more: As for DiceCE.
    """

    complete = False

    def __init__(self, values: int, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.values = values

    def sums(self, logits_BCDHW: Tensor, target_B1DHW: Tensor, groups_BC: Tensor) -> Sums:  # type: ignore[override]
        """Return what the loss needs to know about the voxels.

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
        # Best on the CPU: from a GPU this would wait for all that was started before.
        groups = [Groups.from_values(row) for row in groups_BC.tolist()]
        return self.sums_of_groups(logits_BCDHW, target_B1DHW, groups, self.values)

    def counts(self, target_B1DHW: Tensor, groups_BC: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        pairs = sum(len({*row} - {0}) for row in groups_BC.tolist())
        return super().counts(target_B1DHW)[0], pairs


@dataclass(frozen=True)
class Groups:
    """The groups of one sample.

    Attributes:
        values: The groups' values in the target: first those with a single output, then the others.
        single: The outputs that are alone in their groups.
        unions: The outputs of each of the other groups.
    """

    values: tuple[int, ...]
    single: tuple[int, ...]
    unions: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_values(cls, values: Sequence[int]) -> "Groups":
        """Group the outputs that have the same value."""
        members: dict[int, list[int]] = {}
        for output, value in enumerate(values):
            members.setdefault(value, []).append(output)
        single = {value: outputs[0] for value, outputs in members.items() if len(outputs) == 1}
        unions = {value: tuple(outputs) for value, outputs in members.items() if len(outputs) > 1}
        return cls((*single, *unions), tuple(single.values()), tuple(unions.values()))


class _Merge:
    """Merges logits of outputs into logits of groups, one row for each, and distributes the gradient back."""

    def __init__(self, groups: Groups, device: torch.device, values: int) -> None:
        self.values = torch.tensor(groups.values, device=device)
        self.single = torch.tensor(groups.single, dtype=torch.long, device=device)
        self.unions = [torch.tensor(union, device=device) for union in groups.unions]
        self.row_of_value = torch.full((values,), -1, device=device)
        self.row_of_value[self.values] = torch.arange(len(groups.values), device=device)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return (G, n) from (C, n), and per union the unnormalised shares of its outputs, (size, n), and their sum."""
        if not self.unions:
            return x, []
        z = x.new_empty((len(self.values), x.shape[1]))
        torch.index_select(x, 0, self.single, out=z[: len(self.single)])
        shares = []
        for union, row in zip(self.unions, z[len(self.single) :], strict=True):
            part = x.index_select(0, union)
            highest = part.amax(0)  # torch.logsumexp, in place, and without losing the shares that backward needs
            total = part.sub_(highest).exp_().sum(0)
            torch.add(highest, total.log(), out=row)
            shares.append((part, total))
        return z, shares

    def backward(self, gradient: Tensor, shares: list[tuple[Tensor, Tensor]], out: Tensor) -> None:
        """Write the gradient of the outputs, (C, n), from that of the groups, (G, n)."""
        if not self.unions:
            out.copy_(gradient)
            return
        out.index_copy_(0, self.single, gradient[: len(self.single)].to(out.dtype))
        for union, (part, total), union_gradient in zip(self.unions, shares, gradient[len(self.single) :], strict=True):
            out.index_copy_(0, union, part.mul_(union_gradient / total).to(out.dtype))


class _Sums(torch.autograd.Function):
    """The sums over voxels that a softmax loss needs: see the top of this file."""

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
        """Return right (B, V), found (B, V), entropy (B,) and number of voxels (B, V), by value of the target."""
        (samples, classes, voxels), device = logits_BCN.shape, logits_BCN.device
        dtype = torch.promote_types(logits_BCN.dtype, torch.float32)
        right, found, true = torch.zeros((3, samples, values), dtype=wide(device), device=device)
        entropy = torch.zeros(samples, dtype=wide(device), device=device)
        # Backward recomputes the probabilities from two numbers per voxel; keeping them would take C, as the logits do.
        scale_B2N = torch.empty((samples, 2, voxels), dtype=dtype, device=device)
        unknown = torch.zeros(samples, dtype=torch.bool, device=device)
        merges = [_Merge(group, device, values) for group in groups]
        with torch.autocast(device.type, enabled=False):  # it would compute the matrix products in half precision
            for b, merge in enumerate(merges):
                for part in chunks(voxels, classes, device, chunk):
                    value, kept, outside = read(target_BN[b, part], ignore_label, values)
                    row = merge.row_of_value[value]
                    unknown[b] |= (outside | (kept & (row < 0))).any()
                    z, _ = merge.forward(logits_BCN[b, :, part].to(dtype))
                    highest = z.amax(0)
                    exponential = (z - highest).exp_()
                    total = exponential.sum(0)
                    inverse = kept / total  # 0 for ignored voxels, whose probabilities then count nowhere
                    # Row -1 is a value of no group, which check() reports below.
                    log_p = z.gather(0, row.clamp_min(0)[None])[0] - highest - total.log()
                    # A matrix product: the probabilities themselves, as large as the chunk, are never made.
                    found[b].index_add_(0, merge.values, (exponential @ inverse).to(found.dtype))
                    right[b].scatter_add_(0, value, torch.where(kept, log_p.exp(), 0).to(right.dtype))
                    true[b].scatter_add_(0, value, kept.to(true.dtype))
                    entropy[b] -= torch.where(kept, log_p, 0).sum()
                    scale_B2N[b, 0, part], scale_B2N[b, 1, part] = highest, inverse
        # Once per batch: on a GPU, every look at `unknown` waits for all that was started before.
        check(unknown, target_BN, [group.values for group in groups], ignore_label)
        ctx.save_for_backward(logits_BCN, target_BN, scale_B2N)
        ctx.more = merges, ignore_label, chunk
        right, found, entropy, true = (x.to(dtype) for x in (right, found, entropy, true))
        ctx.mark_non_differentiable(true)
        return right, found, entropy, true

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_BCN, target_BN, scale_B2N = ctx.saved_tensors
        right_gradient, found_gradient, entropy_gradient, _ = gradients
        (_, classes, voxels), device, dtype = logits_BCN.shape, logits_BCN.device, scale_B2N.dtype
        merges, ignore_label, chunk = ctx.more
        gradient_BCN = torch.empty_like(logits_BCN)
        with torch.autocast(device.type, enabled=False):
            for b, merge in enumerate(merges):
                f = found_gradient[b, merge.values]
                for part in chunks(voxels, classes, device, chunk):
                    value, kept, _ = read(target_BN[b, part], ignore_label, len(merge.row_of_value))
                    row = merge.row_of_value[value].clamp_min(0)[None]
                    z, shares = merge.forward(logits_BCN[b, :, part].to(dtype))
                    highest, inverse = scale_B2N[b, :, part]
                    exponential = (z - highest).exp_()
                    p = exponential.gather(0, row)[0] * inverse
                    # The formula at the top of the file; `inverse` makes the first term 0 for ignored voxels.
                    h = torch.where(kept, right_gradient[b][value] * p - entropy_gradient[b], 0)
                    gradient = (f[:, None] - (f @ exponential * inverse + h)).mul_(inverse).mul_(exponential)
                    gradient.scatter_add_(0, row, h[None])
                    merge.backward(gradient, shares, gradient_BCN[b, :, part])
        return gradient_BCN, None, None, None, None, None
