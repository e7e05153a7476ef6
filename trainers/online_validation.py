"""How good is the network on a validation batch, without copies of its logits?

nnU-Net makes the prediction one-hot, and from it six more arrays of that size. Here the same numbers are counted, so
validation_step is written anew; a test compares it with nnU-Net's. Read next: base.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class CountedValidation(nnUNetTrainer):
    """nnU-Net's trainer with its online evaluation counted."""

    def validation_step(self, batch: dict) -> dict:
        """The loss, and per class or region the voxels that are right, wrongly found and missed, as in nnU-Net.

        Args:
            batch: `data` (B, C, D, H, W); `target` (B, 1 or regions, D, H, W), a list of them with deep supervision.
        """
        data, targets = batch["data"].to(self.device, non_blocking=True), batch["target"]
        one = not isinstance(targets, list)
        targets = [target.to(self.device, non_blocking=True) for target in ([targets] if one else targets)]
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            outputs = self.network(data)
            loss = self.loss(outputs, targets[0] if one else targets)
        logits = outputs[0] if self.enable_deep_supervision else outputs
        counted = self.count(logits, targets[0], batch["keys"]).to(torch.float32).cpu().numpy()
        return {"loss": loss.detach().cpu().numpy()} | dict(
            zip(("tp_hard", "fp_hard", "fn_hard"), counted, strict=True)
        )

    def count(self, logits: torch.Tensor, target: torch.Tensor, cases: Sequence[str]) -> torch.Tensor:
        """Voxels per class or region, (3, K): right, wrongly found, missed; `cases` are the names of the samples."""
        count = count_regions if self.label_manager.has_regions else count_labels
        return count(logits, target, self.label_manager.ignore_label)


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
