"""One training or validation step: micro-batches, precision, and work shared by processes.

Replaces nnU-Net's train_step and validation_step: the numbers are the same, also if a batch is split into micro-batches
(`accumulation`) or shared by processes (distributed/sharding.py). The online evaluation counts voxels (metrics.py),
while nnU-Net converts the prediction to one-hot. Read next: trainer.py, which calls these functions.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stunet.losses import Totals
from stunet.trainers.data.batches import split_batch, to_device
from stunet.trainers.distributed import sharding

if TYPE_CHECKING:
    from stunet.trainers.trainer import BaseTrainer

CLIP_NORM = 12  # of the gradient, as in nnU-Net


def optimize(trainer: "BaseTrainer", batch: dict) -> dict:
    """Run one step of the optimizer; return the loss of the whole batch, including that of the other processes.

    Args:
        trainer: With its network in training mode.
        batch: The share of this process: `data` (B, C, D, H, W), `target` (B, 1, D, H, W) or, with deep supervision, a
            list, and `keys`, the names of the cases.
    """
    optimizer, scaler = trainer.optimizer, trainer.grad_scaler
    optimizer.zero_grad(set_to_none=True)
    losses, whole = [], trainer.look_ahead(batch)
    for part, weight, last in micro_batches(trainer, batch):
        with sharding.skip_gradient_sync(trainer.network, skip=not last):  # one exchange per step, not per part
            loss = trainer.outputs_and_loss(part, whole)[1] * weight
            (loss if scaler is None else scaler.scale(loss)).backward()
        # Without its graph, which would be kept until the end of the step.
        losses.append(loss.detach())
    if scaler is not None:
        scaler.unscale_(optimizer)  # the norm below is that of the true gradient
    torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), CLIP_NORM)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return {"loss": trainer.after_step(mean_loss(losses))}


def evaluate(trainer: "BaseTrainer", batch: dict) -> dict:
    """Return the loss as optimize() does, and the TP, FP and FN voxels per class or region."""
    losses, counts, whole = [], [], trainer.look_ahead(batch)
    for part, weight, _ in micro_batches(trainer, batch):
        outputs, loss = trainer.outputs_and_loss(part, whole)
        losses.append(loss.detach() * weight)
        finest = (x[0] if trainer.enable_deep_supervision else x for x in (outputs, part["target"]))
        counts.append(trainer.count(*finest, *trainer.tables(part)))
    # One copy from the device per batch; float32 is the type of nnU-Net's counts.
    counted = torch.stack(counts).sum(0).to(torch.float32).cpu().numpy()
    numbers = dict(zip(("tp_hard", "fp_hard", "fn_hard"), counted, strict=True))
    return {"loss": mean_loss(losses), **numbers}


def outputs_and_loss(trainer: "BaseTrainer", part: dict, totals: Totals | None) -> tuple[Any, torch.Tensor]:
    """Run the forward pass of a micro-batch; its loss is a piece of the whole batch's, if `totals` are given."""
    with autocast(trainer):
        outputs = trainer.network(part["data"])
        more = {} if totals is None else {"totals": totals}
        return outputs, trainer.loss(outputs, part["target"], *trainer.tables(part), **more)


def micro_batches(trainer: "BaseTrainer", batch: dict) -> Iterator[tuple[dict, float, bool]]:
    """Yield micro-batches on the device, their weights in the loss, and whether they are the last.

    Processes and micro-batches may differ in size: with these weights, their losses add up to that of the batch.
    """
    parts = split_batch(batch, trainer.accumulation)
    for number, part in enumerate(parts, 1):
        weight = len(part["data"]) * sharding.world_size() / trainer.batch_size  # gradients are averaged over processes
        yield to_device(part, trainer.device), weight, number == len(parts)


def totals(trainer: "BaseTrainer", batch: dict) -> Totals | None:
    """Return what a micro-batch's loss needs to know of the others; if there are none, the loss asks the processes.

    Only batch Dice needs the network's outputs, so only with it is every micro-batch computed twice.
    """
    if trainer.accumulation == 1:
        return None
    pieces = []
    with torch.no_grad(), autocast(trainer):
        for part, _, _ in micro_batches(trainer, batch):
            # A second forward pass costs less memory than keeping the activations of all micro-batches.
            outputs = trainer.network(part["data"]) if trainer.configuration_manager.batch_dice else None
            pieces.append(trainer.loss.totals(outputs, part["target"], *trainer.tables(part)))
    return sum(pieces[1:], pieces[0]).all_reduce()


def mean_loss(losses: list[torch.Tensor]) -> np.ndarray:
    loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
    return sharding.mean(loss).cpu().numpy()


def autocast(trainer: "BaseTrainer") -> AbstractContextManager[Any]:
    # By default nnU-Net's: half precision on CUDA only, as autocast on a CPU is slow.
    precision = trainer.precision or ("fp16" if trainer.device.type == "cuda" else "fp32")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(trainer.device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
