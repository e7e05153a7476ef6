"""The tables and the voxel counts for batches whose cases annotate different classes: each sample's own labels count.

The losses, which take the same tables, are in stunet/losses. Read next: trainer.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stunet.labels.annotations import Annotations


class CaseTables:
    """What each case annotates, as the tensors that the losses and the counts below take.

    Args:
        annotations: The annotations of all cases that may occur.
    """

    def __init__(self, annotations: Annotations) -> None:
        kinds = {case.labels: name for name, case in annotations.cases.items()}  # one case for each set of labels
        rows = {labels: row for row, labels in enumerate(kinds)}
        self._rows = {name: rows[case.labels] for name, case in annotations.cases.items()}
        sigmoid = annotations.head == "sigmoid"
        found = [annotations.regions(case) if sigmoid else (annotations.groups(case),) for case in kinds.values()]
        self._tables = [torch.from_numpy(np.stack(tables)) for tables in zip(*found, strict=True)]

    def look_up(self, cases: Sequence[str]) -> tuple[Tensor, ...]:
        """Return the groups (B, C) of the samples of a batch; for a sigmoid head what is annotated (B, R) and which
        values are inside of each region (B, R, values). They stay on the CPU, where the losses read them.
        """
        rows = [self._rows[case] for case in cases]
        return tuple(table[rows] for table in self._tables)


def count_groups(logits: Tensor, target: Tensor, groups_BC: Tensor, *, values: int, ignore: int | None) -> Tensor:
    """Count voxels per label of a softmax head, with its leaves merged into what the sample annotates.

    Args:
        logits: (B, C, ...).
        target: (B, 1, ...), values of label files, less than `values` or equal to `ignore`.
        groups_BC: The result of CaseTables.look_up().
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
    # The ignore label is beyond the table: ignored voxels look up the background, and are not counted.
    true_BN = true_BN * counted_BN
    counts = []
    for region in range(logits.shape[1]):
        here = annotated_BR[:, region]
        # Above 0 the sigmoid is above one half.
        found = logits[here, region].flatten(1) > 0
        true = inside_BRV[here, region].gather(1, true_BN[here])
        counted = counted_BN[here]
        counts.append(torch.stack([(x & counted).sum() for x in (found & true, found & ~true, true & ~found)]))
    return torch.stack(counts, dim=1)
