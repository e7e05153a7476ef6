"""Evaluate the network on a validation batch without copying its logits.

nnU-Net converts the prediction to one-hot, and from that makes six more arrays of the same size. Here the same numbers
are obtained by counting; a test compares them with nnU-Net's. Read next: steps.py.
"""

import torch


def count_labels(logits: torch.Tensor, target: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Count voxels per foreground class.

    Args:
        logits: (B, K, ...); a voxel's class is that of its highest logit.
        target: (B, 1, ...), labels.
        ignore_label: Voxels with this label are not counted.

    Returns:
        (3, K - 1): true positives, false positives, false negatives; int64.
    """
    found, true = logits.argmax(dim=1).flatten(), target.flatten().long()
    if ignore_label is not None:
        annotated = true != ignore_label
        found, true = found[annotated], true[annotated]
    classes = logits.shape[1]
    # bincount is three passes over the voxels, whatever the number of classes; [1:] leaves the background out.
    right, of_found, of_true = (x.bincount(minlength=classes)[1:] for x in (true[found == true], found, true))
    return torch.stack([right, of_found - right, of_true - right])


def count_regions(logits: torch.Tensor, target: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Count voxels per region; regions overlap, and a voxel is in each one whose probability exceeds one half.

    Args:
        logits: (B, R, ...).
        target: (B, R, ...), 0 or 1; if voxels can be ignored, there is one more channel at the end that marks them.
        ignore_label: None if there is no such channel.

    Returns:
        (3, R): true positives, false positives, false negatives; int64.
    """
    # `x & True` is x: no mask is made where none is needed.
    annotated = True if ignore_label is None else ~target[:, -1].bool()
    counts = []
    # One region at a time: what is made on the way is as large as one channel, not as all of them.
    for region in range(logits.shape[1]):
        # As in nnU-Net, not `logits > 0`: the sigmoid of a tiny positive logit rounds to 0.5, which is outside.
        found, true = torch.sigmoid(logits[:, region]) > 0.5, target[:, region].bool()
        counts.append(torch.stack([(x & annotated).sum() for x in (found & true, found & ~true, true & ~found)]))
    return torch.stack(counts, dim=1)
