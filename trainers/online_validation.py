"""How good is the network on a validation batch, without copies of its logits?

nnU-Net makes the prediction one-hot, and from it six more arrays of that size. Here the same numbers are counted; a
test compares them with nnU-Net's. Read next: steps.py.
"""

import torch


def count_labels(logits: torch.Tensor, target: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Voxels per foreground class.

    Args:
        logits: (B, K, ...); the class of a voxel is that of its highest logit.
        target: (B, 1, ...), labels.
        ignore_label: Voxels with it count nowhere.

    Returns:
        (3, K - 1): right, wrongly found, missed; int64.
    """
    found, true = logits.argmax(dim=1).flatten(), target.flatten().long()
    if ignore_label is not None:
        annotated = true != ignore_label
        found, true = found[annotated], true[annotated]
    classes = logits.shape[1]
    right, of_found, of_true = (x.bincount(minlength=classes)[1:] for x in (true[found == true], found, true))
    return torch.stack([right, of_found - right, of_true - right])


def count_regions(logits: torch.Tensor, target: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Voxels per region; regions overlap, and a voxel is in each whose probability is above one half.

    Args:
        logits: (B, R, ...).
        target: (B, R, ...), 0 or 1, and at the end one channel more that says what is ignored, if anything can be.
        ignore_label: None where there is no such channel.

    Returns:
        (3, R): right, wrongly found, missed; int64.
    """
    annotated = True if ignore_label is None else ~target[:, -1].bool()
    counts = []
    for region in range(logits.shape[1]):
        found, true = torch.sigmoid(logits[:, region]) > 0.5, target[:, region].bool()
        counts.append(torch.stack([(x & annotated).sum() for x in (found & true, found & ~true, true & ~found)]))
    return torch.stack(counts, dim=1)
