"""The base of all training procedures: nnU-Net's trainer, which takes its values from the plan and continues exactly.

What is left to others: one step (steps.py), the content of a checkpoint (checkpoint.py), fine-tuning
(finetune/finetuning.py), drawing and augmenting samples (data/), working with other processes (distributed/), the final
validation (validation.py). Read next: supervised.py, which is a procedure, and stunet/runs/launch.py, which runs one.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from stunet import architectures
from stunet.errors import DataError, Interrupted, StunetError, closest
from stunet.files import write_json
from stunet.folds import Fold, choose_cases
from stunet.losses import DeepSupervision, DiceAndEntropy, DiceCE, RegionDiceCE
from stunet.nnunet import patched, write_atomically
from stunet.plans.plan import Plan
from stunet.plans.settings import TRAIN
from stunet.preprocessing.folds import find_fold
from stunet.provenance import RECORD, check_training, continued_record, training_record
from stunet.trainers import checkpoint, steps
from stunet.trainers.data import augmentation, loader
from stunet.trainers.data.batches import SeededBatches, positions_of
from stunet.trainers.data.splits import patched_splits
from stunet.trainers.distributed import sharding
from stunet.trainers.finetune.finetuning import NO_STATE, FineTuning
from stunet.trainers.metrics import count_labels, count_regions
from stunet.trainers.plots import Logger
from stunet.trainers.progress import NullListener, TrainingListener
from stunet.trainers.validation import measure, validate
from stunet.workspace import LATEST

SAVE_INTERVAL_S = 600.0  # a power cut loses at most this much work; nnU-Net saves every 50 epochs

write_atomically(host)


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer, with resumable steps, micro-batches, fine-tuning, and any number of processes.

    Constructing one takes nnU-Net's five arguments, which nnU-Net finds by their names; configure() takes the rest. A
    procedure is a subclass that overrides some of these:

        criterion, tables, count, class_names               the loss, and the online evaluation
        case_weights, annotated_values, replaced_transforms what is drawn, and how it is augmented
        measure_validation                                  the evaluation at the end
        more_state, load_network_state                      what else a checkpoint holds
    """

    logger_class: type[Logger] = Logger
    initial_lr: float
    network: Any  # one of stunet.architectures, which nnU-Net wraps in OptimizedModule and DistributedDataParallel

    # Values of the plan that nnU-Net's trainer does not have; plans/settings.py explains them, and has the defaults.
    seed: int
    momentum: float
    num_cases: int | None
    label_interpolation: str
    accumulation: int
    precision: str | None

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
        with patched(host, MetaLogger=self.logger_class):
            super().__init__(plans, configuration, fold, kept, device)
        self.plan = Plan(self.plans_manager.plans)
        self.finetuning = FineTuning.from_plan(self.plan)
        if self.finetuning is not None:
            self.initial_lr = self.finetuning.peak_lr(default=self.initial_lr)
        if unknown := sorted(self.plan.set_for_training.keys() - TRAIN.keys()):
            raise DataError(  # nnUNetv2_train does not check plans as stunet_train does
                f"plans {self.plan.name!r}: unknown training value {unknown[0]!r}{closest(unknown[0], list(TRAIN))}",
                "correct or remove it, or update stunet",
            )
        for key, value in vars(self.plan.train).items():
            # None: the strategy's rate, or nnU-Net's; setting it would hide that.
            if key != "initial_lr" or value is not None:
                setattr(self, key, value)
        if self.is_ddp:  # nnU-Net assumes CUDA, and that all processes run on one machine
            self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        # Only nnU-Net's own precision scales gradients: float32 and bfloat16 have the range to do without.
        if device.type != "cuda" or self.precision is not None:
            self.grad_scaler = None
        # With two stages there is a single head, whose weight would be nnU-Net's for the last head: zero.
        self.enable_deep_supervision = len(self.configuration_manager.pool_op_kernel_sizes) > 2
        self.configure()
        self.running = self.stop_requested = False
        self.step_outputs: list[dict] = []  # of the running epoch's training steps
        self.to_replay: list[dict] = []  # the same from before an interruption, which are not computed again
        self._trained_with: dict[str, Any] | None = None  # provenance.py's record; the checkpoint's, if one was loaded
        self._saved = time.monotonic()  # when the latest checkpoint was written

    def configure(
        self,
        *,
        listener: TrainingListener | None = None,
        fsdp: bool = False,
        only_validates: bool = False,
        disable_checkpointing: bool = False,
    ) -> None:
        """Set what is the run's and not the plan's; call it once, before anything else.

        Args:
            listener: Hears of the progress.
            fsdp: Several processes shard the network (distributed/sharding.py) instead of replicating it.
            only_validates: The network is validated and not trained any further.
            disable_checkpointing: Write no checkpoints.
        """
        self.listener = listener or NullListener()
        self.fsdp, self.only_validates, self.disable_checkpointing = fsdp, only_validates, disable_checkpointing

    # The network, its loss and its optimizer.

    def initialize(self) -> None:
        """Initialize as nnU-Net does, with the plan's seed."""
        # Before nnU-Net draws the initial weights: they are alike in all processes.
        torch.manual_seed(self.seed)
        with patched(host, DDP=sharding.shard if self.fsdp else sharding.data_parallel):
            super().initialize()
        if self.fsdp:  # nnU-Net has already made the optimizer, for the parameters from before the sharding
            self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def _do_i_compile(self) -> bool:
        return not self.fsdp and super()._do_i_compile()

    def _set_batch_size_and_oversample(self) -> None:
        """Set the values of all processes together; get_dataloaders() decides which samples each process gets."""
        self.batch_size = self.configuration_manager.batch_size

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return nnU-Net's optimizer and schedule with the plan's momentum, or those of the fine-tuning strategy."""
        optimizer, schedule = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["momentum"] = self.momentum  # 0.9 suits runs of a few hundred steps
        if self.finetuning is None or self.finetuning.strategy is None:
            return optimizer, schedule
        return self.finetuning.optimizer(optimizer, self.bare_network(), self.num_epochs, self.initial_lr)

    def _build_loss(self) -> DeepSupervision | DiceAndEntropy:
        """Return criterion() at each resolution, with nnU-Net's weights."""
        stock, loss = super()._build_loss(), self.criterion()
        if not self.enable_deep_supervision:
            return loss
        weights = stock.weight_factors
        return DeepSupervision(loss, sharding.without_lowest_head(weights) if self.is_ddp else weights)

    def criterion(self) -> DiceAndEntropy:
        """Return nnU-Net's loss at one resolution, in a form that processes and micro-batches can compute jointly."""
        kind = RegionDiceCE if self.label_manager.has_regions else DiceCE
        return kind(self.configuration_manager.batch_dice, self.label_manager.ignore_label, ddp=self.is_ddp)

    def tables(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Return what loss and count() need besides the target; none where every case annotates every class."""
        return ()

    def count(self, logits: torch.Tensor, target: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        """Count true positive, false positive and false negative voxels, (3, classes or regions)."""
        count = count_regions if self.label_manager.has_regions else count_labels
        return count(logits, target, self.label_manager.ignore_label)

    def look_ahead(self, batch: dict) -> Any:
        """Return what the loss of a micro-batch needs to know of the whole batch; None if nothing."""
        return steps.totals(self, batch)

    def outputs_and_loss(self, part: dict, whole: Any) -> tuple[Any, torch.Tensor]:
        """Return the network's outputs for a micro-batch, and its loss; `whole` is what look_ahead() returned."""
        return steps.outputs_and_loss(self, part, whole)

    def after_step(self, loss: np.ndarray) -> np.ndarray:
        """Update what no gradient does, after a step of the optimizer; return the loss to log."""
        return loss

    def start_from(self, fresh: Collection[str]) -> None:
        """Set up adapters and optimizer as the strategy requires, once pre-trained weights are in the network.

        Args:
            fresh: Names of the parameters that are not pre-trained.
        """
        assert self.finetuning is not None
        self.finetuning.start(self.bare_network(), frozenset(fresh), self.seed)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def bare_network(self) -> torch.nn.Module:
        """Return the network without DDP's and torch.compile's wrapping."""
        return sharding.unwrap(self.network)

    def new_network(self) -> torch.nn.Module:
        """Build a full network with the initial values of the one being trained."""
        torch.manual_seed(self.seed)  # as in initialize()
        planned, heads = (self.plans_manager, self.configuration_manager), self.label_manager.num_segmentation_heads
        return self.build_network_architecture(*planned, self.num_input_channels, heads, self.enable_deep_supervision)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do what nnU-Net's method does, however the network is wrapped."""
        network = self.bare_network()
        architectures.of_network(network).deeply_supervise(network, enabled)

    def plot_network_architecture(self) -> None:
        """Do nothing: the drawing package that nnU-Net looks for is no longer one of its dependencies."""

    # The data.

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; with `num_cases`, the seed picks that many training cases (its 4 are among its 8).

        Raises:
            DataError: There are fewer cases, or the fold cannot be trained; nnU-Net would make a random split for a
                missing one.
        """
        find_fold(self.plan.dataset_name, self.plan, self.configuration_name, self.fold)
        with patched_splits():
            train, validation = super().do_split()
        return (
            train if self.num_cases is None else choose_cases(train, self.num_cases, self.seed, self.fold)
        ), validation

    def _settle_folds(self) -> None:
        """Let one process create missing folds before the others read them."""
        if self.is_ddp:
            # nnU-Net's local_rank is the rank among all processes, on any number of machines.
            if self.local_rank == 0:
                self.do_split()
            dist.barrier()

    def get_dataloaders(self) -> tuple[SeededBatches, SeededBatches]:
        """Return nnU-Net's loaders and augmentation, with numbered batches in place of its background processes."""
        workers = get_allowed_n_proc_DA()
        if self.device.type == "cpu" and "nnUNet_n_proc_DA" not in os.environ:
            workers = min(workers, 1)  # the network needs the cores, and one process keeps up with it
        with loader.patched_loaders(self.sample_loader()):
            train, validation = (augmenter.loader for augmenter in super().get_dataloaders())
        train.weigh(self.case_weights(train.indices))
        positions = positions_of(self.batch_size, self.local_rank, sharding.world_size())
        # Numbered through all epochs: a resumed training goes on with the next batch, and repeats a stopped validation.
        start, replayed = self.current_epoch * self.num_iterations_per_epoch, len(self.to_replay)
        start_validation = self.current_epoch * self.num_val_iterations_per_epoch
        # Half as many processes for the validation, as in nnU-Net.
        pin, fewer = self.device.type == "cuda", min(workers, max(1, workers // 2))
        return (
            SeededBatches(train, (self.seed, 0), positions, start, replayed, workers, pin),
            SeededBatches(validation, (self.seed, 1), positions, start_validation, 0, fewer, pin),
        )

    def case_weights(self, cases: Sequence[str]) -> Sequence[float] | None:
        """Return the relative frequency with which each training case is drawn; None: all equally often."""
        return None

    def sample_loader(self) -> Callable[..., loader.SampleLoader]:
        """Return what is constructed in place of nnU-Net's loader, with its arguments."""
        return partial(loader.SampleLoader, annotated=self.annotated_values())

    def annotated_values(self) -> Sequence[int] | None:
        """Return the values that annotated voxels have in label files; None: those of the network's classes."""
        return None

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's augmentation with our transforms in it: data/augmentation.py lists them."""
        return augmentation.build(super().get_training_transforms, self.replaced_transforms(), *args, **kwargs)

    def replaced_transforms(self) -> dict[str, Callable[..., Any]]:
        """Return what takes the place of nnU-Net's transforms, by the names of their classes."""
        replaced: dict[str, Callable[..., Any]] = dict(augmentation.REPLACED)
        if self.label_interpolation == "nearest":
            replaced["SpatialTransform"] = partial(replaced["SpatialTransform"], mode_seg="nearest")
        return replaced

    # The training, and what is done before and after each of its parts.

    def run_training(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: A stop was requested; checkpoint_latest.pth holds the state after the last step.
            WeightsError: The plan starts from weights, but none were loaded.
            OutOfMemoryError: A data loading process was killed; with a single process, the state is saved as well.
            DataError: A preprocessed case is damaged; saved likewise.
        """
        if self.finetuning is not None:
            self.finetuning.check_started(self.plan)
        self.running = True
        try:
            super().run_training()
        except StunetError:
            loaders = filter(None, (self.dataloader_train, self.dataloader_val))
            begun = self.current_epoch or self.step_outputs
            # With several processes the others are in the middle of a step, and saving needs all of them.
            if begun and not self.is_ddp and any(loader.failed for loader in loaders):  # so no step is half done
                self._save_between_steps()
            raise
        finally:
            self.running = False
            for batches in filter(None, (self.dataloader_train, self.dataloader_val)):
                batches.close()

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and write what this run trains with next to its checkpoints."""
        # nnU-Net's on_train_start makes the loaders, and with them missing folds, in all processes at once.
        self._settle_folds()
        super().on_train_start()
        self.write_record()
        self.logger.begin(self)

    def on_train_epoch_start(self) -> None:
        """Freeze and unfreeze what the epoch requires, then start it as nnU-Net does."""
        if self.finetuning is not None:
            # Also after continuing: a checkpoint has the epoch, but not which parameters are frozen.
            change = self.finetuning.enter(self.bare_network(), self.current_epoch, self.num_epochs)
            if change is not None:
                self.listener.trains(f"from epoch {self.current_epoch + 1} on: trains {change}")
                if self.is_ddp and not self.fsdp:  # DDP only looks at what is trainable when it is constructed
                    self.network = sharding.data_parallel(self.network.module)
        super().on_train_epoch_start()
        self.step_outputs = []

    def train_step(self, batch: dict | None) -> dict:
        """Run one step of the optimizer; a batch of None stands for a step taken before an interruption."""
        # Its loss still counts in the epoch's mean; weights and optimizer are already those after it.
        output = self.to_replay.pop(0) if batch is None else steps.optimize(self, batch)
        self.step_outputs.append(output)
        self.listener.step(self, "train", len(self.step_outputs), float(output["loss"]))
        self._stop_if_requested()
        return output

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validated = 0

    def validation_step(self, batch: dict) -> dict:
        output = self.evaluate(batch)
        self._validated += 1
        self.listener.step(self, "validation", self._validated, float(output["loss"]))
        self._stop_if_requested()
        return output

    def evaluate(self, batch: dict) -> dict:
        """Return the loss of a validation batch, and what on_validation_epoch_end() needs besides."""
        return steps.evaluate(self, batch)

    def on_epoch_end(self) -> None:
        """Log and save as nnU-Net does, but the latest checkpoint by time."""
        self.step_outputs = []  # the epoch is complete: a checkpoint from here on starts with the next one
        # Saving takes all processes, which do not get here at the same moment: they decide together.
        due = sharding.any_rank(time.monotonic() - self._saved > SAVE_INTERVAL_S, self.device)
        # nnU-Net saves if the number of finished epochs is a multiple of this, so the larger value means not now.
        self.save_every = 1 if due else self.num_epochs + 1
        self.logger.note_cost(self)
        super().on_epoch_end()
        self.listener.epoch(self)

    def epoch_results(self) -> tuple[dict[str, str], dict[str, float]]:
        """Return what is shown of a finished epoch besides its losses, by name, and the Dice of each class."""
        return {}, {}

    def on_train_end(self) -> None:
        """End as nnU-Net does, with a plot of all epochs, however fast the last ones were."""
        super().on_train_end()
        self.logger.end(self)  # after the checkpoint, which a plot that fails must not cost

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run nnU-Net's final validation in this process and in bounded memory: see validation.py."""
        validate(self, save_probabilities)
        if self._trained_with is not None:
            self.write_record()
        self.logger.validated(self)

    def measure_validation(self, processes: int) -> None:
        """Compare what `processes` processes have predicted with the labels, and write summary.json."""
        measure(self, processes)

    # Stopping, saving and continuing.

    def request_stop(self) -> None:
        """Stop the training after its current step; can be called from a signal handler."""
        self.stop_requested = True

    def _stop_if_requested(self) -> None:
        # A signal reaches the processes at different times; all of them must leave after the same step.
        if not sharding.any_rank(self.stop_requested, self.device):
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
        self.write_checkpoint(path, self.current_epoch)
        return path

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint at the end of an epoch, where nnU-Net calls this."""
        self.write_checkpoint(Path(filename), self.current_epoch + 1)

    def write_checkpoint(self, path: Path, epochs: int) -> None:
        """Write the state of the training; all processes must call this, and the first one writes.

        Args:
            path: The file, which appears complete or not at all.
            epochs: How many are complete; the steps of the next one that are already done are saved as well.
        """
        if self.disable_checkpointing:
            return
        checkpoint.write(self, path, epochs)
        if path.name == LATEST:
            self._saved = time.monotonic()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue from a checkpoint: weights, optimizer, epoch, log, and the completed steps of an interrupted epoch.

        Raises:
            WeightsError: Unreadable, of another architecture or fold, or trained with another plan or other labels.
            DataError: Trained with other cases than the fold has now, or with other raw files of these.
        """
        name, content = checkpoint.read(filename_or_checkpoint, self.device)
        checkpoint.check(name, content, self)
        self._settle_folds()
        before: dict[str, Any] | None = content["stunet"].get("trained_with") or None
        now = self.trains_with()
        for warning in check_training(name, before, now, not self.only_validates):
            self.listener.warning(warning)
        self._trained_with = continued_record(before, now) if before else {}  # unknown, and stays unknown
        if not self.was_initialized:
            self.initialize()
        # Before the optimizer's state: with fine-tuning, this adds the adapters and makes another optimizer.
        self.load_network_state(content["network_weights"], content["stunet"])
        sharding.load_optimizer(self.optimizer, content["optimizer_state"])
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self.current_epoch = content["current_epoch"]
        self.logger.load_checkpoint(checkpoint.as_logged(content["logging"]))
        self._best_ema = content["_best_ema"]
        self.inference_allowed_mirroring_axes = content["inference_allowed_mirroring_axes"]
        self.to_replay = [{"loss": np.asarray(loss, np.float32)} for loss in content["stunet"]["losses"]]

    def network_state(self) -> dict[str, torch.Tensor]:
        """Return the full weights for a checkpoint, under their official names; must be called by all processes."""
        network, tuning = self.bare_network(), self.finetuning
        return sharding.full_state(network, network.state_dict() if tuning is None else tuning.merged(network))

    def more_state(self) -> dict[str, Any]:
        """Return what else is needed to continue: entries of a checkpoint's `stunet` block."""
        return NO_STATE if self.finetuning is None else self.finetuning.state(self.bare_network())

    def load_network_state(self, weights: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
        """Load what network_state() and more_state() returned."""
        if self.finetuning is None:
            return self.load_weights(weights)
        if more.get("fresh") is not None and self.finetuning.fresh is None:
            self.start_from(more["fresh"])
        self.finetuning.load(self.bare_network(), weights, more.get("adapters", {}))

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Load full tensors, as checkpoints of any number of processes hold them; the network may be sharded."""
        network = self.bare_network()
        network.load_state_dict(sharding.shard_like(weights, network.state_dict()))

    # The record of what the network was trained with (provenance.py).

    def trains_with(self) -> dict[str, Any]:
        """Return what this run would train with now: the record that its checkpoints keep."""
        run = (self.plan.dataset_name, self.plan, self.configuration_name, self.fold)
        cases = find_fold(*run)
        if cases is None:  # nnU-Net has to make the folds first
            train, validation = self.do_split()
            cases = Fold(tuple(map(str, train)), tuple(map(str, validation)))
        return training_record(*run, cases)

    def trained_with(self) -> dict[str, Any]:
        """Return the record of the cases this network was trained with; empty if unknown."""
        if self._trained_with is None:
            self._trained_with = self.trains_with()
        return self._trained_with

    def write_record(self) -> None:
        """Write what the network was trained with to the fold's folder, for whoever looks at its results."""
        if self.local_rank == 0 and (record := self.trained_with()):
            write_json(Path(self.output_folder) / RECORD, record)
