"""Write and read the checkpoints of a training, so that it continues exactly, on any number of processes.

Read next: base.py, which decides when to write one; weights/checkpoints.py writes and reads the file.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.errors import WeightsError, first_few
from stunet.files import json_differences
from stunet.networks import STUNet
from stunet.plans.check import of_a_run
from stunet.provenance import check_checkpoint, check_run, continued
from stunet.trainers.distributed import sharding
from stunet.trainers.steps import Steps
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint

FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"  # nnU-Net's names


class Saving(Steps):
    """nnU-Net's trainer with checkpoints that hold everything needed to continue, and need no pickle."""

    fsdp = False  # whether several processes shard the network (sharding.py) instead of replicating it
    current_epoch: int
    _outputs: list[dict]  # of the training steps of the running epoch
    _known: list[dict]  # the same, from before an interruption
    only_validates = False  # the network is validated and not trained any further
    _trained_with: dict[str, Any] | None = None  # provenance.py's record; the checkpoint's, if one was loaded
    _saved: float  # when the latest checkpoint was written, on time's monotonic clock

    def save_checkpoint(self, filename: str) -> None:
        """Write what nnU-Net writes, all or nothing, and readable without executing a pickle.

        The recorded trainer name is nnUNetTrainer: prediction needs nothing of ours but the network, which the plans
        name, so nnUNetv2_predict works without setting any variable. All processes take part; the first one writes.
        """
        if self.disable_checkpointing:
            return
        content = {
            "network_weights": self.network_state(),
            "optimizer_state": sharding.optimizer_state(self.optimizer),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": nnUNetTrainer.__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "stunet": {
                "trainer": type(self).__name__,
                "losses": [float(output["loss"]) for output in self._outputs + self._known],
                "trained_with": self.trained_with(),
                **self.more_state(),
            },
        }
        if self.local_rank == 0:
            save_checkpoint(content, Path(filename))
        if Path(filename).name == LATEST:
            self._saved = time.monotonic()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue from a checkpoint: weights, optimizer, epoch, log, and the completed steps of an interrupted epoch.

        Raises:
            WeightsError: Unreadable, of another architecture or fold, or trained with another plan or other labels.
            DataError: Trained with other cases than the fold has now, or with other raw files of these.
        """
        if isinstance(filename_or_checkpoint, str):
            name, checkpoint = filename_or_checkpoint, load_checkpoint(Path(filename_or_checkpoint), self.device)
        else:
            name, checkpoint = "the checkpoint", filename_or_checkpoint
        trained = of_a_run(checkpoint["init_args"]["plans"], self.configuration_name)
        now = of_a_run(self.plans_manager.plans, self.configuration_name)
        if changed := json_differences(trained, now, "plans"):
            raise WeightsError(
                f"{name} was trained with another plan than today's ({first_few(changed)})", "--overwrite starts anew"
            )
        check_checkpoint(name, checkpoint["init_args"], self.fold, self.dataset_json)
        self._settle_folds()
        before: dict[str, Any] | None = checkpoint["stunet"].get("trained_with") or None
        now = self.trains_with()
        for warning in check_run(name, before, now, not self.only_validates):
            self.listener.trains(f"warning: {warning}")
        self._trained_with = continued(before, now) if before else {}  # unknown, and stays unknown
        if not self.was_initialized:
            self.initialize()
        self.load_network_state(checkpoint["network_weights"], checkpoint["stunet"])
        sharding.load_optimizer(self.optimizer, checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(_as_logged(checkpoint["logging"]))
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        self._known = [{"loss": np.asarray(loss, np.float32)} for loss in checkpoint["stunet"]["losses"]]

    def trained_with(self) -> dict[str, Any]:
        """Return the record of the cases this network was trained with (provenance.py); empty if unknown."""
        if self._trained_with is None:
            self._trained_with = self.trains_with()
        return self._trained_with

    def network_state(self) -> dict[str, torch.Tensor]:
        """Return the full weights for a checkpoint, under their official names; must be called by all processes."""
        return sharding.whole(self.bare_network().state_dict())

    def more_state(self) -> dict[str, Any]:
        """Return what else a subclass needs to continue."""
        return {}

    def load_network_state(self, weights: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
        """Load what network_state() and more_state() returned."""
        network = self.bare_network()
        network.load_state_dict(sharding.like(weights, network.state_dict()))

    def new_network(self) -> STUNet:
        """Build a full network like the one being trained, with other values."""
        plans, configuration, classes = self.plans_manager, self.configuration_manager, self.label_manager
        arguments = (self.num_input_channels, classes.num_segmentation_heads, self.enable_deep_supervision)
        return self.build_network_architecture(plans, configuration, *arguments)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do what nnU-Net's method does, however the network is wrapped."""
        self.bare_network().decoder.deep_supervision = enabled

    def bare_network(self) -> STUNet:
        """Return the network without DDP's and torch.compile's wrapping."""
        return sharding.bare(self.network)


def _as_logged(content: dict[str, list]) -> dict[str, list]:
    """Convert a log to the types training writes: nnU-Net's moving average continues from a float32, not a float.

    In float64 the next value would differ in its last bits from that of an uninterrupted run.
    """
    return {**content, "ema_fg_dice": [np.float32(value) for value in content["ema_fg_dice"]]}
