"""How is one step computed: in how many micro-batches, in which precision, shared by how many processes?

In place of nnU-Net's train_step and validation_step: the same numbers, also where a batch is cut into micro-batches
(`accumulation`) or shared by processes (parallel.py). The online evaluation is counted (online_validation.py), where
nnU-Net makes the prediction one-hot. Read next: base.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.losses import Whole
from stunet.trainers import parallel
from stunet.trainers.batches import parts_of
from stunet.trainers.online_validation import count_labels, count_regions

CLIP_NORM = 12  # of the gradient, nnU-Net's


class Steps(nnUNetTrainer):
    """nnU-Net's trainer with steps that can be cut into parts."""

    network: Any  # an STUNet, which nnU-Net wraps in OptimizedModule and DistributedDataParallel
    accumulation: int  # micro-batches per process and step
    precision: str | None  # "bf16" or "fp32"; None as in nnU-Net: fp16 with a scaled loss on CUDA, else fp32

    def train_step(self, batch: dict) -> dict:
        """One step of the optimizer; returns the loss of the whole batch, that of the other processes included.

        Args:
            batch: The share of this process: `data` (B, C, D, H, W), `target` (B, 1, D, H, W), a list with deep
                supervision, and `keys`, the names of the cases.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, whole = [], self._whole(batch)
        for part, weight, last in self._parts(batch):
            with parallel.gradients_stay(self.network, not last):
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
        """The loss as of train_step(), and per class or region the voxels that are right, wrongly found and missed."""
        losses, counts, whole = [], [], self._whole(batch)
        for part, weight, _ in self._parts(batch):
            outputs, loss = self.outputs_and_loss(part, whole)
            losses.append(loss.detach() * weight)
            counts.append(self.count(outputs, part))
        counted = torch.stack(counts).sum(0).to(torch.float32).cpu().numpy()
        numbers = dict(zip(("tp_hard", "fp_hard", "fn_hard"), counted, strict=True))
        return {"loss": self._of_all(losses), **numbers}

    def outputs_and_loss(self, batch: dict, whole: Whole | None = None) -> tuple[Any, torch.Tensor]:
        """Forward pass of a micro-batch, and its loss as a piece of the whole batch, if that is given."""
        with self._autocast():
            outputs = self.network(batch["data"])
            more = {} if whole is None else {"whole": whole}
            return outputs, self.loss_of(batch)(outputs, batch["target"], **more)

    def loss_of(self, batch: dict) -> Any:
        """The loss for a micro-batch: the place for one that looks at `batch["keys"]`."""
        return self.loss

    def count(self, outputs: Any, batch: dict) -> torch.Tensor:
        """Voxels of a micro-batch that are right, wrongly found and missed, (3, classes or regions)."""
        target = batch["target"]
        logits, target = (outputs[0], target[0]) if self.enable_deep_supervision else (outputs, target)
        count = count_regions if self.label_manager.has_regions else count_labels
        return count(logits, target, self.label_manager.ignore_label)

    def _parts(self, batch: dict) -> Iterator[tuple[dict, float, bool]]:
        """Micro-batches on the device with their weight in the loss, and whether one is the last.

        Processes and micro-batches need not be of one size: their losses, so weighted, add up to that of the batch.
        """
        parts = parts_of(batch, self.accumulation)
        for number, part in enumerate(parts, 1):
            weight = len(part["data"]) * parallel.processes() / self.batch_size  # gradients are averaged over processes
            yield on_device(part, self.device), weight, number == len(parts)

    def _whole(self, batch: dict) -> Whole | None:
        """What the loss of a micro-batch has to know of the others; without any, the loss itself asks the processes.

        Only the Dice of a batch needs the network's outputs, so only there every micro-batch is computed twice.
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
        return parallel.mean(loss).cpu().numpy()

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.precision or ("fp16" if self.device.type == "cuda" else "fp32")
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def on_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on a device."""
    target = batch["target"]
    moved = [level.to(device, non_blocking=True) for level in (target if isinstance(target, list) else [target])]
    data = batch["data"].to(device, non_blocking=True)
    return {**batch, "data": data, "target": moved if isinstance(target, list) else moved[0]}
