"""What a training checkpoint holds, and whether a training may continue from one.

The keys are nnU-Net's, so that its commands read the file. A block of ours has what else is needed to continue exactly,
on any number of processes:

    stunet
        trainer         name of the class
        losses          of the training steps of the running epoch that are already done
        trained_with    the record of provenance.py
        fresh, adapters what finetune/finetuning.py restores
        annotations     what partial/trainer.py compares

A checkpoint of nnU-Net's own trainer lacks the block: its training goes on from the end of an epoch, with the same
optimizer, schedule and log; which cases it has seen, nobody recorded.

weights/checkpoints.py writes and reads the file. Read next: load_checkpoint() in trainer.py, which restores the state.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.errors import WeightsError, first_few
from stunet.files import json_differences
from stunet.plans.check import training_part
from stunet.plans.plan import Plan
from stunet.provenance import check_checkpoint
from stunet.trainers.distributed import sharding
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from stunet.trainers.trainer import BaseTrainer


# What nnU-Net's trainer needs to go on.
_OF_TRAINING = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "inference_allowed_mirroring_axes",
}  # fmt: skip


def content_of(trainer: "BaseTrainer", epochs: int) -> dict[str, Any]:
    """Return a checkpoint of a training; all processes must call this, as tensors may be sharded.

    The recorded trainer name is nnUNetTrainer: prediction needs nothing of ours but the network, which the plans name,
    so nnUNetv2_predict works without setting any variable.

    Args:
        trainer: With an initialized network.
        epochs: How many epochs are complete.
    """
    return {
        "network_weights": trainer.network_state(),
        "optimizer_state": sharding.optimizer_state(trainer.optimizer),
        "grad_scaler_state": None if trainer.grad_scaler is None else trainer.grad_scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": epochs,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": nnUNetTrainer.__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        "stunet": {
            "trainer": type(trainer).__name__,
            # Those not yet replayed belong to the epoch as well: a second stop during the replay must not lose them.
            "losses": [float(output["loss"]) for output in trainer.step_outputs + trainer.to_replay],
            "trained_with": trainer.trained_with(),
            **trainer.more_state(),
        },
    }


def write(trainer: "BaseTrainer", path: Path, epochs: int) -> None:
    """Write content_of() a training, all or nothing, and readable without executing a pickle; the first process does.

    Args:
        trainer: With an initialized network, in all processes.
        path: The file.
        epochs: How many epochs are complete.
    """
    # In all processes, although one writes: gathering shards is a joint operation.
    content = content_of(trainer, epochs)
    if trainer.local_rank == 0:
        save_checkpoint(content, path)


def read(source: str | dict[str, Any], device: torch.device) -> tuple[str, dict[str, Any]]:
    """Return the name of a checkpoint for messages, and its content: `source` is a path, or the content itself.

    Raises:
        WeightsError: It cannot be read.
    """
    if not isinstance(source, str):
        return "the checkpoint", source
    content = load_checkpoint(Path(source), device)
    return source, content if "stunet" in content else _of_nnunet(source, content)


def _of_nnunet(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of nnU-Net's trainer with the block of ours.

    Raises:
        WeightsError: It is of another trainer, whose settings only that one knows, or not of a training.
    """
    hint = f"--pretrained {name} in place of --c, for a new training that starts from its weights"
    if (trainer := content.get("trainer_name")) != nnUNetTrainer.__name__:
        raise WeightsError(f"{name} was trained by {str(trainer)[:60]!r}, whose settings stunet does not have", hint)
    if lacking := sorted(_OF_TRAINING - content.keys()):
        raise WeightsError(f"{name} lacks {', '.join(lacking)}, without which no training goes on", hint)
    return {**content, "stunet": {"trainer": trainer, "losses": []}}


def check(name: str, content: dict[str, Any], trainer: "BaseTrainer") -> None:
    """Raise unless a checkpoint is one of this training.

    Raises:
        WeightsError: It was trained with another plan, is of another fold, or was trained with other labels.
    """
    configuration = trainer.configuration_name
    trained = training_part(Plan(content["init_args"]["plans"]), configuration)
    if changed := json_differences(trained, training_part(trainer.plan, configuration), "plans"):
        raise WeightsError(
            f"{name} was trained with another plan than today's ({first_few(changed)})",
            "--overwrite starts from scratch",
        )
    check_checkpoint(name, content["init_args"], trainer.fold, trainer.dataset_json)


def as_logged(log: dict[str, list]) -> dict[str, list]:
    """Convert a log to the types training writes: nnU-Net's moving average continues from a float32, not a float.

    In float64 the next value would differ in its last bits from that of an uninterrupted run.
    """
    return {**log, "ema_fg_dice": [np.float32(value) for value in log["ema_fg_dice"]]}
