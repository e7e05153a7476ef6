"""The loss and the voxel counts for batches whose cases annotate different classes: each sample's own labels count.

The formulas are in stunet/losses; this module looks up a batch's cases. Read next: trainer.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stunet.labels.annotations import Annotations
from stunet.losses import DeepSupervision, DiceAndEntropy, Whole


class LossOfCases(torch.nn.Module):
    """A loss that is told by `of` which cases the next batch consists of.

    Args:
        loss: Called with outputs, targets, and per sample the result of `Annotations.groups` (softmax) or `.regions`.
        annotations: The annotations of all cases that may occur.
    """

    def __init__(self, loss: DeepSupervision | DiceAndEntropy, annotations: Annotations) -> None:
        super().__init__()
        self.loss = loss
        kinds = {case.labels: name for name, case in annotations.cases.items()}  # one case for each set of labels
        rows = {labels: row for row, labels in enumerate(kinds)}
        self._rows = {name: rows[case.labels] for name, case in annotations.cases.items()}
        sigmoid = annotations.head == "sigmoid"
        found = [annotations.regions(case) if sigmoid else (annotations.groups(case),) for case in kinds.values()]
        self._tables = [torch.from_numpy(np.stack(tables)) for tables in zip(*found, strict=True)]
        self.given: tuple[Tensor, ...] = ()

    def of(self, cases: Sequence[str]) -> tuple[Tensor, ...]:
        """Look up the samples of a batch: groups (B, C), or what is annotated (B, R) and inside (B, R, values)."""
        rows = [self._rows[case] for case in cases]
        self.given = tuple(table[rows] for table in self._tables)
        return self.given

    def forward(self, outputs: Any, targets: Any, whole: Whole | None = None) -> Tensor:
        return self.loss(outputs, targets, *self.given, whole=whole)

    def whole(self, outputs: Any, targets: Any) -> Whole:
        """Return what these samples contribute to the whole batch: see stunet/losses/overlap.py."""
        return self.loss.whole(outputs, targets, *self.given)


def count_groups(logits: Tensor, target: Tensor, groups_BC: Tensor, *, values: int, ignore: int | None) -> Tensor:
    """Count voxels per label of a softmax head, with its leaves merged into what the sample annotates.

    Args:
        logits: (B, C, ...).
        target: (B, 1, ...), values of label files, less than `values` or equal to `ignore`.
        groups_BC: The result of LossOfCases.of().
        values: The number of values, including the background.
        ignore: Voxels with this value are not counted.

    Returns:
        (3, values - 1): true positives, false positives, false negatives.
    """
    found, true = groups_BC.gather(1, logits.argmax(dim=1).flatten(1)).flatten(), target.flatten().long()
    if ignore is not None:
        found, true = found[true != ignore], true[true != ignore]
    right, of_found, of_true = (x.bincount(minlength=values)[1:] for x in (true[found == true], found, true))
    return torch.stack([right, of_found - right, of_true - right])


def count_annotated(
    logits: Tensor, target: Tensor, annotated_BR: Tensor, inside_BRV: Tensor, *, ignore: int | None
) -> Tensor:
    """Count voxels per region of a sigmoid head, (3, R), in samples that annotate it; otherwise as count_groups()."""
    true_BN = target.flatten(1).long()
    counted_BN = torch.ones_like(true_BN, dtype=torch.bool) if ignore is None else true_BN != ignore
    true_BN = true_BN * counted_BN
    counts = []
    for region in range(logits.shape[1]):
        here = annotated_BR[:, region]
        found = logits[here, region].flatten(1) > 0
        true = inside_BRV[here, region].gather(1, true_BN[here])
        counted = counted_BN[here]
        counts.append(torch.stack([(x & counted).sum() for x in (found & true, found & ~true, true & ~found)]))
    return torch.stack(counts, dim=1)
