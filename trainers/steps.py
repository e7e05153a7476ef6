"""One training or validation step: micro-batches, precision, and work shared by processes.

Replaces nnU-Net's train_step and validation_step: the numbers are the same, also if a batch is split into micro-batches
(`accumulation`) or shared by processes (sharding.py). The online evaluation counts voxels (metrics.py), while
nnU-Net converts the prediction to one-hot. Read next: base.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.losses import Whole
from stunet.trainers.data.batches import parts_of
from stunet.trainers.distributed import sharding
from stunet.trainers.metrics import count_labels, count_regions

CLIP_NORM = 12  # of the gradient, as in nnU-Net


class Steps(nnUNetTrainer):
    """nnU-Net's trainer with steps that can be split into parts."""

    network: Any  # an STUNet, which nnU-Net wraps in OptimizedModule and DistributedDataParallel
    accumulation: int  # micro-batches per process and step
    precision: str | None  # "bf16" or "fp32"; None as in nnU-Net: fp16 with a scaled loss on CUDA, else fp32

    def train_step(self, batch: dict) -> dict:
        """Run one step of the optimizer; return the loss of the whole batch, including that of the other processes.

        Args:
            batch: The share of this process: `data` (B, C, D, H, W), `target` (B, 1, D, H, W) or, with deep
                supervision, a list, and `keys`, the names of the cases.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, whole = [], self._whole(batch)
        for part, weight, last in self._parts(batch):
            with sharding.gradients_stay(self.network, not last):
                loss = self.outputs_and_loss(part, whole)[1] * weight
                (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
            losses.append(loss.detach())
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": self._of_all(losses)}

    def validation_step(self, batch: dict) -> dict:
        """Return the loss as train_step() does, and the TP, FP and FN voxels per class or region."""
        losses, counts, whole = [], [], self._whole(batch)
        for part, weight, _ in self._parts(batch):
            outputs, loss = self.outputs_and_loss(part, whole)
            losses.append(loss.detach() * weight)
            counts.append(self.count(outputs, part))
        counted = torch.stack(counts).sum(0).to(torch.float32).cpu().numpy()
        numbers = dict(zip(("tp_hard", "fp_hard", "fn_hard"), counted, strict=True))
        return {"loss": self._of_all(losses), **numbers}

    def outputs_and_loss(self, batch: dict, whole: Whole | None = None) -> tuple[Any, torch.Tensor]:
        """Run the forward pass of a micro-batch; its loss is a piece of the whole batch's, if `whole` is given."""
        with self._autocast():
            outputs = self.network(batch["data"])
            more = {} if whole is None else {"whole": whole}
            return outputs, self.loss_of(batch)(outputs, batch["target"], **more)

    def loss_of(self, batch: dict) -> Any:
        """Return the loss for a micro-batch; override this for a loss that depends on `batch["keys"]`."""
        return self.loss

    def count(self, outputs: Any, batch: dict) -> torch.Tensor:
        """Count a micro-batch's true positive, false positive and false negative voxels, (3, classes or regions)."""
        target = batch["target"]
        logits, target = (outputs[0], target[0]) if self.enable_deep_supervision else (outputs, target)
        count = count_regions if self.label_manager.has_regions else count_labels
        return count(logits, target, self.label_manager.ignore_label)

    def _parts(self, batch: dict) -> Iterator[tuple[dict, float, bool]]:
        """Yield micro-batches on the device, their weights in the loss, and whether they are the last.

        Processes and micro-batches may differ in size: with these weights, their losses add up to that of the batch.
        """
        parts = parts_of(batch, self.accumulation)
        for number, part in enumerate(parts, 1):
            weight = len(part["data"]) * sharding.processes() / self.batch_size  # gradients are averaged over processes
            yield on_device(part, self.device), weight, number == len(parts)

    def _whole(self, batch: dict) -> Whole | None:
        """Return what a micro-batch's loss needs to know of the others; if there are none, the loss asks the processes.

        Only batch Dice needs the network's outputs, so only with it is every micro-batch computed twice.
        """
        if self.accumulation == 1:
            return None
        pieces = []
        with torch.no_grad(), self._autocast():
            for part, _, _ in self._parts(batch):
                outputs = self.network(part["data"]) if self.configuration_manager.batch_dice else None
                pieces.append(self.loss_of(part).whole(outputs, part["target"]))
        return sum(pieces[1:], pieces[0]).of_all_processes()

    def _of_all(self, losses: list[torch.Tensor]) -> np.ndarray:
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        return sharding.mean(loss).cpu().numpy()

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.precision or ("fp16" if self.device.type == "cuda" else "fp32")
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def on_device(batch: dict, device: torch.device) -> dict:
    """Return the batch with its tensors on a device."""
    target = batch["target"]
    moved = [level.to(device, non_blocking=True) for level in (target if isinstance(target, list) else [target])]
    data = batch["data"].to(device, non_blocking=True)
    return {**batch, "data": data, "target": moved if isinstance(target, list) else moved[0]}
