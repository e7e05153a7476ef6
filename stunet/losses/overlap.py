"""How good is the overlap? Soft Dice from sums over voxels: per sample, over the batch, or over all processes.

Also what the softmax and the sigmoid loss share: reading targets by chunks of voxels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stunet.errors import DataError

# Elements (voxels times classes) at once: on the CPU what caches hold, on others what keeps a GPU busy.
ELEMENTS, ELEMENTS_CPU = 2**24, 2**18


class DiceAndEntropy(torch.nn.Module):
    """What the losses have in common: their options.

    Args:
        batch_dice: Dice over the samples of the batch that annotate a class together, not per sample.
        ignore_label: Voxels with this value count nowhere.
        smooth: Added to the Dice's numerator and denominator.
        dice_weight: Of the negative Dice, averaged over classes.
        ce_weight: Of the cross entropy.
        ddp: The batch is that of all processes.
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


def mean_dice(
    right: Tensor, found: Tensor, true: Tensor, annotated: Tensor, *, batch_dice: bool, smooth: float, ddp: bool
) -> Tensor:
    """Soft Dice, averaged over what is annotated: nnU-Net's MemoryEfficientSoftDiceLoss, where that is everything.

    Args:
        right: (B, V) sum of the probabilities of a label over its own voxels.
        found: (B, V) the same over all voxels.
        true: (B, V) number of its voxels.
        annotated: (B, V) bool; the sums of what is not annotated must be zero.
        batch_dice: Dice of the sums over all samples, instead of the mean of those of single samples.
        smooth: Added to numerator and denominator.
        ddp: Sum, and count what is annotated, over all processes; their gradients must be averaged, as DDP does.
    """
    share = len(annotated)
    sums = torch.stack([right, found, true.to(right), annotated.to(right)])
    if batch_dice:
        sums = sums.sum(1)
        sums = _SumOverRanks.apply(sums) if ddp else sums
    right, found, true, samples = sums
    dice = (2 * right + smooth) / (found + true + smooth).clamp_min(1e-8)
    counted = samples > 0
    number = counted.sum()
    if ddp and not batch_dice:
        number = of_all_ranks(number.to(dice), share)
    return torch.where(counted, dice, 0).sum() / number.clamp_min(1)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; backward sums as well, since every process has a loss that depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def of_all_ranks(number: Tensor, samples: int) -> Tensor:
    """A number as all processes have it together, for the share of samples that this one has.

    Losses divided by it, weighted by the processes' shares, have the mean of one process with all samples.
    """
    dtype = wide(number.device)
    total = torch.stack([number.to(dtype), number.new_tensor(samples, dtype=dtype)])
    dist.all_reduce(total)
    return (total[0] / total[1] * samples).to(number)


def chunks(voxels: int, classes: int, device: torch.device, chunk: int | None) -> Iterator[slice]:
    """Voxels to look at together, `chunk` of them or as many as suit the device."""
    elements = ELEMENTS_CPU if device.type == "cpu" else ELEMENTS
    size = chunk or max(1024, elements // classes)
    return (slice(start, min(start + size, voxels)) for start in range(0, voxels, size))


def wide(device: torch.device) -> torch.dtype:
    """What sums over voxels are added in: in single precision a count of 10^7 has no room for a probability."""
    return torch.float32 if device.type == "mps" else torch.float64


def read(target: Tensor, ignore_label: int | None, values: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values of voxels as indices.

    Args:
        target: (n,) of any type.
        ignore_label: None: no value is ignored.
        values: There are the values 0 to values - 1.

    Returns:
        (n,) int64 the value, 0 where it is ignored or out of range; (n,) bool: not ignored; (n,) bool: out of range.
    """
    value = target.long()
    kept = torch.ones_like(value, dtype=torch.bool) if ignore_label is None else value != ignore_label
    outside = kept & ((value < 0) | (value >= values))
    return torch.where(kept & ~outside, value, 0), kept, outside


def check(unknown_B: Tensor, target_BN: Tensor, known: Sequence[Sequence[int]], ignore_label: int | None) -> None:
    """Refuses a batch in which samples have values that they cannot have.

    Raises:
        DataError: For the first sample that `unknown_B` marks, whose values can be `known` and `ignore_label`.
    """
    for sample in unknown_B.nonzero()[:, 0].tolist():
        found = sorted(set(target_BN[sample].long().unique().tolist()) - {*known[sample], ignore_label})
        raise DataError(
            f"sample {sample} of the batch has voxels of the value {found[0]}, "
            f"but its labels have the values {', '.join(map(str, sorted(known[sample])))}",
            "correct the case's label file, or what the dataset says it annotates, and preprocess it again",
        )
