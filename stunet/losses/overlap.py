"""Soft Dice from sums over voxels: per sample, over the batch, or over all processes.

Also has what the softmax and sigmoid losses share: reading targets in chunks of voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stunet.errors import DataError

# Elements (voxels times classes) at a time: on the CPU what fits in caches, elsewhere what keeps a GPU busy.
ELEMENTS, ELEMENTS_CPU = 2**24, 2**18


@dataclass(frozen=True)
class Sums:
    """What a loss needs to know about the voxels of some samples.

    Attributes:
        right: (B, V) sum of a label's probabilities over its own voxels.
        found: (B, V) the same over all voxels.
        true: (B, V) number of the label's voxels.
        annotated: (B, V) bool; the sums of labels that are not annotated are zero.
        entropy: Cross entropies, to be added up.
        number: How many voxels (or pairs of a voxel and an output) they are summed over. None: equally many in every
            sample, and `entropy` is their mean.
    """

    right: Tensor
    found: Tensor
    true: Tensor
    annotated: Tensor
    entropy: Tensor
    number: Tensor | None


@dataclass(frozen=True)
class Totals:
    """Totals over the pieces of a batch: the shares of processes, and the micro-batches of a share.

    Attributes:
        counts: (3,) the number from Sums, the pairs of a sample and a label that it annotates, and the samples.
        sums: (4, V) right, found, true and annotated of Sums, added up over samples: for batch Dice.
    """

    counts: Tensor
    sums: Tensor | None = None

    def __add__(self, other: "Totals") -> "Totals":
        both = self.sums is not None and other.sums is not None
        return Totals(self.counts + other.counts, self.sums + other.sums if both else None)  # type: ignore[operator]

    def all_reduce(self) -> "Totals":
        """Return the sum over all processes; must be called by all of them."""
        if not dist.is_initialized():
            return self
        parts = [part for part in (self.counts, self.sums) if part is not None]  # one message for both
        total = torch.cat([part.to(self.counts).flatten() for part in parts])
        dist.all_reduce(total)
        found = [x.view_as(p).to(p) for x, p in zip(total.split([p.numel() for p in parts]), parts, strict=True)]
        return Totals(*found)

    @classmethod
    def stacked(cls, levels: Sequence["Totals"]) -> "Totals":
        """Combine those of several resolutions into one, with a leading index."""
        sums = [level.sums for level in levels if level.sums is not None]
        return cls(torch.stack([level.counts for level in levels]), torch.stack(sums) if sums else None)

    def __getitem__(self, level: int) -> "Totals":
        return Totals(self.counts[level], None if self.sums is None else self.sums[level])


class DiceAndEntropy(torch.nn.Module):
    """The base of the losses: how sums over voxels become Dice and cross entropy, of a batch or a piece of it.

    The losses of the pieces, weighted by their shares of the samples, add up to the loss of the batch, and so do their
    gradients: means are over what counts in the whole batch, not in a piece. A piece is a process's share (with `ddp`,
    forward() asks the other processes) or a micro-batch (forward() is given `totals`).

    Args:
        batch_dice: Compute Dice over all samples of the batch that annotate a class together, not per sample.
        ignore_label: Voxels with this value are not counted.
        smooth: Added to the Dice's numerator and denominator.
        dice_weight: Weight of the negative Dice, averaged over classes.
        ce_weight: Weight of the cross entropy.
        ddp: The batch is that of all processes together.
        chunk: Voxels at a time; None: as many as suit the device.
    """

    complete = True  # whether each sample annotates every label

    def __init__(
        self,
        batch_dice: bool,
        ignore_label: int | None = None,
        smooth: float = 1e-5,  # as in nnU-Net's trainer
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        ddp: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_dice, self.ignore_label, self.smooth = batch_dice, ignore_label, smooth
        self.dice_weight, self.ce_weight, self.ddp, self.chunk = dice_weight, ce_weight, ddp, chunk

    def sums(self, logits: Tensor, target: Tensor, *tables: Tensor) -> Sums:
        """Return what the loss needs to know about the voxels; `tables` define what the samples annotate."""
        raise NotImplementedError

    def counts(self, target: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the number for Sums, and that of pairs of a sample and an annotated label: any value if `complete`."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor, *tables: Tensor, totals: Totals | None = None) -> Tensor:
        """Return the loss; logits in half precision are computed in single precision.

        Args:
            logits: (B, C, ...), one output per class or region.
            target: (B, 1, ...), or (B, R, ...) for regions.
            tables: What sums() takes.
            totals: Those of the batch that the samples are a piece of: the sum of totals() of its pieces.

        Raises:
            DataError: A voxel has a value that its sample cannot have.
        """
        sums = self.sums(logits, target, *tables)
        if totals is None and self.ddp:
            totals = self._piece(sums).all_reduce()
        return self._loss(sums, totals)

    def totals(self, logits: Tensor | None, target: Tensor, *tables: Tensor) -> Totals:
        """Return what these samples contribute to the whole batch; no gradients, and no logits if Dice is per sample.

        Args:
            logits: As for forward(); may be None unless `batch_dice`.
            target: As for forward().
            tables: As for forward().
        """
        with torch.no_grad():
            if logits is not None and self.batch_dice:
                return self._piece(self.sums(logits, target, *tables))
            return _counted(*self.counts(target, *tables), len(target))

    def _piece(self, sums: Sums) -> Totals:
        # Nobody divides by it: where `number` is None, the mean has been taken.
        number = torch.zeros_like(sums.entropy) if sums.number is None else sums.number
        counts = _counted(number, sums.annotated.sum(), len(sums.annotated)).counts
        return Totals(counts, self._dice_sums(sums).detach() if self.batch_dice else None)

    def _dice_sums(self, sums: Sums) -> Tensor:
        """Return right, found, true and annotated: (4, V), or (4, B, V) without batch Dice."""
        right = sums.right
        found = torch.stack([right, sums.found, sums.true.to(right), sums.annotated.to(right)])
        return found.sum(1) if self.batch_dice else found

    def _loss(self, sums: Sums, totals: Totals | None) -> Tensor:
        dice_sums, entropy, pairs = self._dice_sums(sums), sums.entropy.sum(), None
        number = None if sums.number is None else sums.number.clamp_min(1)
        if totals is not None:
            # This piece's loss is weighted by its share of the samples when the pieces are added up, and its means are
            # over the whole batch: so what they are divided by is scaled by that share here.
            all_numbers, all_pairs, all_samples = totals.counts
            share = (len(sums.right) / all_samples).to(dice_sums)
            number = None if number is None else all_numbers.clamp_min(1).to(dice_sums) * share
            if totals.sums is not None:  # the value of the whole, with the gradient of this piece
                dice_sums = totals.sums + (dice_sums - dice_sums.detach()) / share
            elif not self.complete:
                pairs = all_pairs.clamp_min(1).to(dice_sums) * share
        mean = self.ce_weight * entropy if number is None else self.ce_weight * entropy / number
        return mean - self.dice_weight * self._dice(dice_sums, pairs)

    def _dice(self, sums: Tensor, pairs: Tensor | None) -> Tensor:
        """Return soft Dice, averaged over `pairs` or, if None, what is annotated; nnU-Net's if that is everything."""
        right, found, true, samples = sums
        # The clamp is nnU-Net's, and only matters without `smooth`.
        dice = (2 * right + self.smooth) / (found + true + self.smooth).clamp_min(1e-8)
        counted = samples > 0
        return torch.where(counted, dice, 0).sum() / (counted.sum().clamp_min(1) if pairs is None else pairs)


def _counted(number: Tensor, pairs: Tensor | int, samples: int) -> Totals:
    dtype = wide(number.device)
    counts = [torch.as_tensor(count, dtype=dtype, device=number.device) for count in (number, pairs, samples)]
    return Totals(torch.stack(counts))


def chunks(voxels: int, classes: int, device: torch.device, chunk: int | None) -> Iterator[slice]:
    """Yield slices of voxels to process together, `chunk` of them or as many as suit the device."""
    elements = ELEMENTS_CPU if device.type == "cpu" else ELEMENTS
    size = chunk or max(1024, elements // classes)
    return (slice(start, min(start + size, voxels)) for start in range(0, voxels, size))


def wide(device: torch.device) -> torch.dtype:
    """Return the type for sums over voxels: float32 has too few digits for 10^7 plus a probability."""
    # MPS has no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def read(target: Tensor, ignore_label: int | None, values: int) -> tuple[Tensor, Tensor, Tensor]:
    """Convert values of voxels to indices.

    Args:
        target: (n,) of any type.
        ignore_label: None: no value is ignored.
        values: Number of values; they are 0 to values - 1.

    Returns:
        (n,) int64: the value, 0 if it is ignored or out of range; (n,) bool: not ignored; (n,) bool: out of range.
    """
    value = target.long()
    kept = torch.ones_like(value, dtype=torch.bool) if ignore_label is None else value != ignore_label
    outside = kept & ((value < 0) | (value >= values))
    # Always a valid index: on a GPU an invalid one fails before check() can say which value it is.
    return torch.where(kept & ~outside, value, 0), kept, outside


def check(unknown_B: Tensor, target_BN: Tensor, known: Sequence[Sequence[int]], ignore_label: int | None) -> None:
    """Reject a batch in which samples have values that they cannot have.

    Raises:
        DataError: For the first sample that `unknown_B` marks; valid values are `known` and `ignore_label`.
    """
    for sample in unknown_B.nonzero()[:, 0].tolist():
        found = sorted(set(target_BN[sample].long().unique().tolist()) - {*known[sample], ignore_label})
        raise DataError(
            f"sample {sample} of the batch has voxels of the value {found[0]}, "
            f"but its labels have the values {', '.join(map(str, sorted(known[sample])))}",
            "correct the case's label file, or what the dataset says it annotates, and preprocess it again",
        )
