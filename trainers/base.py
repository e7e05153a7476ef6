"""The base of all our training procedures: values from the plan, the order of the data, stopping on a signal.

steps.py has the steps and saving.py the checkpoints; nnU-Net's trainer does the rest. Read next: supervised.py and
launch.py.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from stunet.errors import Interrupted, StunetError
from stunet.files import remove, staging_name, write_json
from stunet.folds import Fold, chosen
from stunet.kinds import SPLITS, read
from stunet.losses import DeepSupervision, DiceAndEntropy, DiceCE, RegionDiceCE
from stunet.nnunet import exchanged, write_whole
from stunet.provenance import RECORD, fold_of, trained_with
from stunet.trainers.data.batches import SeededBatches, share_of
from stunet.trainers.data.label_rotation import Blur, CornerVote
from stunet.trainers.data.loader import Samples
from stunet.trainers.distributed import sharding
from stunet.trainers.progress import Listener, Silent
from stunet.trainers.saving import LATEST, Saving
from stunet.trainers.validation import measure, validate

SAVE_INTERVAL_S = 600.0  # a power cut loses at most this much work; nnU-Net saves every 50 epochs
PLOT_INTERVAL_S = 60.0  # nnU-Net's progress.png takes seconds to draw, as long as a short epoch

write_whole(host)


class PlannedTrainer(Saving):
    """nnU-Net's trainer with its values taken from the plan's `stunet` block (see plans/settings.py)."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this signature and passes it on
    ) -> None:
        plans.setdefault("continue_training", False)  # nnU-Net pops it
        kept = {key: value for key, value in dataset_json.items() if key != "dataset"}  # local paths, not the model's
        super().__init__(plans, configuration, fold, kept, device)
        self.seed = 0
        self.momentum = 0.99
        self.num_cases: int | None = None
        self.label_interpolation, self.mirror = "linear", "auto"
        self.accumulation, self.precision = 1, None
        for key, value in self.plans_manager.plans["stunet"]["train"].items():
            setattr(self, key, value)
        if self.is_ddp:  # nnU-Net assumes CUDA, and that all processes run on one machine
            self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        if device.type != "cuda" or self.precision is not None:
            self.grad_scaler = None
        # With two stages there is a single head, whose weight would be nnU-Net's for the last head: zero.
        self.enable_deep_supervision = len(self.configuration_manager.pool_op_kernel_sizes) > 2
        self.listener: Listener = Silent()
        self.running = False  # in training, which stops after a step; anything else stops at once
        self.stop_requested = False
        self._outputs: list[dict] = []  # of the training steps of the running epoch
        self._known: list[dict] = []  # the same, from before an interruption
        self._saved = self._plotted = time.monotonic()

    def initialize(self) -> None:
        """Initialize as nnU-Net does, with the plan's seed."""
        torch.manual_seed(self.seed)
        with exchanged(host, DDP=sharding.dealt if self.fsdp else sharding.data_parallel):
            super().initialize()
        if self.fsdp:  # nnU-Net has already made the optimizer, for the parameters from before the sharding
            self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def _do_i_compile(self) -> bool:
        return not self.fsdp and super()._do_i_compile()

    def _set_batch_size_and_oversample(self) -> None:
        """Set the values of all processes together; get_dataloaders() decides which samples each process gets."""
        self.batch_size = self.configuration_manager.batch_size

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return nnU-Net's optimizer and schedule with the plan's momentum: 0.9 suits runs of a few hundred steps."""
        optimizer, schedule = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["momentum"] = self.momentum
        return optimizer, schedule

    def _build_loss(self) -> Any:
        """Return criterion() at each resolution, with nnU-Net's weights."""
        stock, loss = super()._build_loss(), self.criterion()
        if not self.enable_deep_supervision:
            return loss
        if self.is_ddp:
            sharding.without_lowest_head(stock)
        return DeepSupervision(loss, stock.weight_factors)

    def criterion(self) -> DiceAndEntropy:
        """Return nnU-Net's loss at one resolution, in a form that processes and micro-batches can compute jointly."""
        kind = RegionDiceCE if self.label_manager.has_regions else DiceCE
        return kind(self.configuration_manager.batch_dice, self.label_manager.ignore_label, ddp=self.is_ddp)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; with `num_cases`, the seed picks that many training cases (its 4 are among its 8).

        Raises:
            DataError: There are fewer cases, or the fold cannot be trained; nnU-Net would make a random split for a
                missing one.
        """
        fold_of(self.plans_manager.dataset_name, self.plans_manager.plans, self.configuration_name, self.fold)
        with exchanged(host, load_json=_named(_folds), generate_crossval_split=_named(generate_crossval_split)):
            train, validation = super().do_split()
        return (train if self.num_cases is None else chosen(train, self.num_cases, self.seed, self.fold)), validation

    def trains_with(self) -> dict[str, Any]:
        """Return what this run would train with now: the record that its checkpoints keep (provenance.py)."""
        run = (self.plans_manager.dataset_name, self.plans_manager.plans, self.configuration_name, self.fold)
        cases = fold_of(*run)
        if cases is None:  # nnU-Net has to make the folds first
            train, validation = self.do_split()
            cases = Fold(tuple(map(str, train)), tuple(map(str, validation)))
        return trained_with(*run, cases)

    def _settle_folds(self) -> None:
        """Let one process create missing folds before the others read them."""
        if self.is_ddp:
            if self.local_rank == 0:
                self.do_split()
            dist.barrier()

    def get_dataloaders(self) -> tuple[SeededBatches, SeededBatches]:
        """Return nnU-Net's loaders and augmentation, with numbered batches in place of its background processes."""
        workers = get_allowed_n_proc_DA()
        if self.device.type == "cpu" and "nnUNet_n_proc_DA" not in os.environ:
            workers = min(workers, 1)  # the network needs the cores, and one process keeps up with it
        ours = {"nnUNetDataLoader": Samples, "SingleThreadedAugmenter": _NotStarted, "get_allowed_n_proc_DA": lambda: 0}
        with exchanged(host, **ours):
            train, validation = (loader.source for loader in super().get_dataloaders())
        for loader in (train, validation):
            self.prepare_loader(loader)
        train.weigh(self.case_weights(train.indices))
        start = self.current_epoch * self.num_iterations_per_epoch
        start_validation = self.current_epoch * self.num_val_iterations_per_epoch
        pin = self.device.type == "cuda"
        share = share_of(self.batch_size, self.local_rank, sharding.processes())
        fewer = min(workers, max(1, workers // 2))
        return (
            SeededBatches(train, (self.seed, 0), share, start, len(self._known), workers, pin),
            SeededBatches(validation, (self.seed, 1), share, start_validation, 0, fewer, pin),
        )

    def prepare_loader(self, loader: Samples) -> None:
        """Change what a loader draws and how it is augmented, according to the plan's values."""
        for transform in loader.transforms.transforms:
            if isinstance(transform, CornerVote) and self.label_interpolation == "nearest":
                transform.mode_seg = "nearest"

    def case_weights(self, cases: Sequence[str]) -> Sequence[float] | None:
        """Return the relative frequency with which each training case is drawn; None: all equally often."""
        return None

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's augmentation; segmentations are transformed the same way, but all labels in one pass."""
        with exchanged(host, SpatialTransform=CornerVote, GaussianBlurTransform=Blur):
            return nnUNetTrainer.get_training_transforms(*args, **kwargs)

    def plot_network_architecture(self) -> None:
        """Do nothing: the drawing package that nnU-Net looks for is no longer one of its dependencies."""

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and write what this run trains with next to its checkpoints."""
        self._settle_folds()
        super().on_train_start()
        self.write_record()

    def write_record(self) -> None:
        """Write what the network was trained with to the fold's folder, for whoever looks at its results."""
        if self.local_rank == 0 and (record := self.trained_with()):
            write_json(Path(self.output_folder) / RECORD, record)

    def run_training(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: `stop_requested` was set; checkpoint_latest.pth holds the state after the last step.
            OutOfMemoryError: A data loading process was killed; with a single process, the state is saved as well.
            DataError: A preprocessed case is damaged; saved likewise.
        """
        self.running = True
        try:
            super().run_training()
        except StunetError:
            loaders = filter(None, (self.dataloader_train, self.dataloader_val))
            begun = self.current_epoch or self._outputs
            if begun and not self.is_ddp and any(loader.failed for loader in loaders):  # so no step is half done
                self._save_between_steps()
            raise
        finally:
            self.running = False
            for loader in (self.dataloader_train, self.dataloader_val):
                if loader is not None:
                    loader.close()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._outputs = []

    def train_step(self, batch: dict | None) -> dict:
        """Run one step of the optimizer; a batch of None stands for a step taken before an interruption."""
        output = self._known.pop(0) if batch is None else super().train_step(batch)
        self._outputs.append(output)
        self.listener.step(self, "train", len(self._outputs), float(output["loss"]))
        self._stop_if_requested()
        return output

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validated = 0

    def validation_step(self, batch: dict) -> dict:
        output = super().validation_step(batch)
        self._validated += 1
        self.listener.step(self, "validation", self._validated, float(output["loss"]))
        self._stop_if_requested()
        return output

    def on_epoch_end(self) -> None:
        """Log and save as nnU-Net does, but time-based: the latest checkpoint, and the plot, which is slow to draw."""
        self._outputs = []  # the epoch is complete: a checkpoint from here on starts with the next one
        now = time.monotonic()
        due = sharding.anywhere(now - self._saved > SAVE_INTERVAL_S, self.device)
        self.save_every = 1 if due else self.num_epochs + 1
        last = self.current_epoch == self.num_epochs - 1
        plot = last or now - self._plotted > PLOT_INTERVAL_S
        if plot:
            self._plotted = now
        draw = self.logger.plot_progress_png
        self.logger.plot_progress_png = partial(_plot_whole, draw) if plot else lambda folder: None
        try:
            super().on_epoch_end()
        finally:
            self.logger.plot_progress_png = draw
        self.listener.epoch(self)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run nnU-Net's final validation in this process and in bounded memory: see validation.py."""
        validate(self, save_probabilities)
        if self._trained_with is not None:
            self.write_record()

    def measure_validation(self, processes: int) -> None:
        """Compare what `processes` processes have predicted with the labels, and write summary.json."""
        measure(self, processes)

    def _stop_if_requested(self) -> None:
        # A signal reaches the processes at different times; all of them must leave after the same step.
        if not sharding.anywhere(self.stop_requested, self.device):
            return
        if self.disable_checkpointing:
            raise Interrupted(f"stopped after {self.current_epoch} epochs, without a checkpoint as asked", "")
        path = self._save_between_steps()
        if self.is_ddp:
            dist.barrier()  # if a process left early, the others would be terminated while rank 0 is writing
        raise Interrupted(
            f"stopped after {self.current_epoch} epochs; the state is in {str(path)!r}", "the same command with --c"
        )

    def _save_between_steps(self) -> Path:
        path = Path(self.output_folder) / LATEST
        self.current_epoch -= 1  # save_checkpoint counts the running epoch as done
        self.save_checkpoint(str(path))
        self.current_epoch += 1
        return path


class _Names(list):
    """Case names with fast lookup: nnU-Net looks up each of a fold's, which takes a minute for 100,000 with lists."""

    def __contains__(self, name: object) -> bool:
        if not hasattr(self, "known"):
            self.known = frozenset(self)
        return name in self.known


def _folds(path: str) -> list[dict]:
    found: list[dict] = read(Path(path), SPLITS)
    return found


def _named(splits: Callable[..., list[dict]]) -> Callable[..., list[dict]]:
    def named(*args: Any, **kwargs: Any) -> list[dict]:
        return [{part: _Names(names) for part, names in split.items()} for split in splits(*args, **kwargs)]

    return named


def _plot_whole(draw: Callable[[str], None], folder: str) -> None:
    part = Path(folder) / staging_name("plot")
    part.mkdir()
    try:
        draw(str(part))
        for file in part.iterdir():
            os.replace(file, Path(folder) / file.name)
    finally:
        remove(part)


class _NotStarted:
    """Replaces nnU-Net's single-process augmenter, which would needlessly draw a first batch; keeps the loader."""

    def __init__(self, source: Any, transform: None) -> None:
        self.source = source

    def __next__(self) -> None:
        return None
