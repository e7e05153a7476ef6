"""Self-supervised pre-training: what differs from supervised training. The pretext (pretexts/) has the loss.

Patches are drawn and turned as in supervised training, labels are not used. Held-out subjects tell how well the pretext
is solved on images that the network has not seen. Read next: pretexts/base.py.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stunet.errors import DataError, WeightsError
from stunet.files import staging_name, write_json
from stunet.folds import Fold, choose_cases
from stunet.trainers import pictures, steps
from stunet.trainers.data import loader
from stunet.trainers.data.batches import SeededBatches, numbers_of, positions_of
from stunet.trainers.data.sources import Source, acquired_spacings, frequencies, record_of, sources_of, split, union
from stunet.trainers.distributed import sharding
from stunet.trainers.plots import PretrainingLogger
from stunet.trainers.pretexts import methods
from stunet.trainers.pretexts.base import COUNTED, COUNTS, Patches, Pretext, Rows, Setting
from stunet.trainers.pretexts.draws import generators
from stunet.trainers.trainer import BaseTrainer
from stunet.weights.nnssl import check_written, write_nnssl
from stunet.workspace import PRETRAINED, PRETRAINED_TEACHER, PRETRAINING

GEOMETRY = {"Convert3DTo2DTransform", "SpatialTransform", "Convert2DTo3DTransform", "MirrorTransform"}
EARLY, LEAST_EPOCHS = 0.1, 2  # when a measure at chance is warned of: share of the epochs, and their least number
LEAST_COUNTED = 0.5  # of the held-out patches; fewer are warned of
# Measures, and the values below which a collapse is warned of.
SCALE = 100.0  # of the features of a stage, or 1 over it, beyond which is warned
COLLAPSED = {"spread": 0.05, "entropy": 0.1, "sharpness": 0.01}


class STUNetPretrainer(BaseTrainer):
    """Pre-trains a network on images, with the pretext that the plan names.

    `network` is the pretext, which wraps the network; bare_network() is the network alone, whose weights are what a
    checkpoint holds as nnU-Net's. What else the pretext has (heads, teacher, queue) stands in the checkpoint's block.
    """

    logger_class = PretrainingLogger
    logger: Any
    augment: str
    alpha: float

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - as in BaseTrainer
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.plan.pretext is None:
            raise DataError(f"plans {self.plan.name!r} name no pretext", "stunet_pretrain -d ... --method mae")
        self.method = methods.find(self.plan.pretext)
        if self.plan.train.initial_lr is None:
            self.initial_lr *= self.method.rate
        self.enable_deep_supervision = False
        self.oversample_foreground_percent = 0.0
        self._kept: list[Rows] = []  # of the running step's micro-batches
        self.measures: dict[str, float] = {}  # of the last epoch, on held-out subjects
        self.untrained: float | None = None  # the pretext's measure before the first step, where that is above chance
        self._collapsed = False  # whether that was said

    def configure(self, *, left_out: Collection[str] = (), **options: Any) -> None:
        """Set what is the run's, as in every training, and the scans that are left out."""
        super().configure(**options)
        self.left_out = frozenset(left_out)

    def initialize(self) -> None:
        super().initialize()
        pretext, logger = self.pretext, self.logger
        logger.measure, logger.chance, logger.chance_loss = pretext.measure, pretext.chance, pretext.chance_loss

    # The network and its loss.

    def build_network_architecture(
        self,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> torch.nn.Module:
        """Build the network, with as many classes as channels, and the pretext around it."""
        arguments = plans_manager, configuration_manager, num_input_channels, num_input_channels, False
        network = super().build_network_architecture(*arguments)
        return methods.build(self.plan.pretext, network, self.setting())  # type: ignore[arg-type]

    def setting(self) -> Setting:
        """Return what the pretext has to know of the plan."""
        planned = self.configuration_manager
        steps_ = self.num_epochs * self.num_iterations_per_epoch
        patch, acquired = tuple(planned.patch_size), acquired_spacings(self.sources, len(planned.patch_size))
        held_out = len(self.do_split()[1])
        return Setting(patch, tuple(planned.spacing), planned.batch_size, steps_, self.augment, acquired, held_out)

    def _do_i_compile(self) -> bool:
        return False  # crops of the pretexts differ from step to step, and each would be compiled

    @property
    def pretext(self) -> Pretext:
        """The pretext, without wrappers."""
        return sharding.unwrap(self.network)  # type: ignore[return-value]

    def bare_network(self) -> torch.nn.Module:
        """Return the network that is pre-trained, without the pretext."""
        return self.pretext.network

    def new_network(self) -> torch.nn.Module:
        return super().new_network().network  # type: ignore[return-value]

    def start_from(self, fresh: Collection[str]) -> None:
        """Start teachers and optimizer from the weights that are in the network now."""
        self.pretext.restart()
        super().start_from(fresh)

    def _build_loss(self) -> Any:
        return None  # the pretext's

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the finest head is the only one that is used."""

    # One step.

    def look_ahead(self, batch: dict) -> Rows | None:
        """Return the rows of this process's samples, without gradient, if a micro-batch's loss depends on the others'.

        Computing them twice costs less memory than keeping the activations of all micro-batches.
        """
        return self._rows(batch) if self.pretext.coupled and self.accumulation > 1 else None

    def _rows(self, batch: dict) -> Rows:
        with torch.no_grad(), steps.autocast(self):
            parts = [self.network(self._patches(part), only="rows") for part, _, _ in steps.micro_batches(self, batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def outputs_and_loss(self, part: dict, whole: Rows | None) -> tuple[Rows, torch.Tensor]:
        """Return a micro-batch's measures, and its loss."""
        complete = None
        if self.pretext.coupled and (self.accumulation > 1 or sharding.world_size() > 1):
            complete = partial(self._complete, whole, part["first"])
        with steps.autocast(self):
            loss, measures, kept = self.network(self._patches(part), complete)
        self._kept.append(kept)
        return measures, loss

    def after_step(self, loss: np.ndarray) -> np.ndarray:
        """Let the pretext update teachers and queues, with the rows of all processes' samples; return the loss to log.

        Not with values that are not finite, as of a step that half precision has skipped: averages would keep them.
        """
        own = {name: torch.cat([rows[name] for rows in self._kept]) for name in self._kept[0]}
        self._kept = []
        rows = sharding.gather_rows(own, self._shares())
        if all(bool(value.isfinite().all()) for value in rows.values()):
            with torch.no_grad():
                self.pretext.update(rows)
        return loss / _share(rows)

    def _complete(self, whole: Rows | None, first: int, own: Rows) -> tuple[Rows, int]:
        """Return the rows of all processes' samples, and the index of a micro-batch's first one among them."""
        shares = self._shares()
        return sharding.gather_rows(whole or own, shares), sum(shares[: self.local_rank]) + first

    def _shares(self) -> list[int]:
        processes = sharding.world_size()
        return [len(positions_of(self.batch_size, rank, processes)) for rank in range(processes)]

    @staticmethod
    def _patches(part: dict) -> Patches:
        draws, cases = generators(part["seed"]), numbers_of(part["keys"])
        return Patches(part["data"], part["target"] >= 0, draws, part["place"], cases)

    # The data.

    @cached_property
    def sources(self) -> list[Source]:
        """The datasets that are drawn from, the plan's own first."""
        return sources_of(self.plan, self.configuration_name)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return nnU-Net's datasets of training and validation cases, or their unions."""
        if len(self.sources) == 1:
            return super().get_tr_and_val_datasets()
        train, validation = (union(self.sources, self.configuration_name, names) for names in self.do_split())
        return train, validation

    def case_weights(self, cases: Sequence[str]) -> Any:
        return frequencies(self.sources, cases, self.alpha)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases to train on, of which the seed picks `num_cases`, and those of held-out subjects.

        Raises:
            DataError: There is only one subject.
        """
        train, validation = split(self.sources, self.configuration_name, self.seed, self.left_out)
        return choose_cases(train, self.num_cases, self.seed, self.fold), validation

    def trains_with(self) -> dict[str, Any]:
        return record_of(self.sources, self.configuration_name, self.fold, Fold(*map(tuple, self.do_split())))

    def get_dataloaders(self) -> tuple[SeededBatches, SeededBatches]:
        """Return those of every training, but held-out cases take turns, as methods tell them from each other."""
        train, validation = super().get_dataloaders()
        assert isinstance(validation.source, loader.UnlabelledLoader)
        validation.source.take_turns(self.seed)  # before the processes start, which have copies
        return train, validation

    def sample_loader(self) -> Callable[..., loader.SampleLoader]:
        return partial(loader.UnlabelledLoader, patches=self.method.patches)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """Return nnU-Net's augmentation settings; the method decides whether patches are turned and mirrored."""
        rotation, dummy_2d, initial_patch, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        if not self._turns:
            initial_patch = self.configuration_manager.patch_size
        return rotation, dummy_2d, initial_patch, axes if self.method.mirrors and self.augment != "none" else ()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the geometric part of nnU-Net's augmentation: intensities are the pretext's business."""
        composed = super().get_training_transforms(*args, **kwargs)
        names = GEOMETRY if self._turns else {"MirrorTransform"}
        kept = [step for step in composed.transforms if type(step).__name__ in names | self._ours(names)]
        return type(composed)(kept)

    @property
    def _turns(self) -> bool:
        return self.method.turns and self.augment != "none"

    def _ours(self, names: set[str]) -> set[str]:
        """Return the names of the classes that stand in for these of nnU-Net's."""
        replaced = self.replaced_transforms()
        return {getattr(replaced[name], "func", replaced[name]).__name__ for name in names & replaced.keys()}

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> None:
        return None  # patches as they are: nnU-Net would turn the -1 of what does not count into background

    # Validation: on patches of the held-out subjects.

    def evaluate(self, batch: dict) -> dict:
        """Return loss and measures of a batch of held-out patches, of all micro-batches and processes."""
        return self._judged(sharding.gather_rows(self._rows(batch), self._shares()))

    def _judged(self, rows: Rows) -> dict:
        with torch.no_grad():
            loss, measures = self.pretext.judge(rows)
        return {"loss": loss.cpu().numpy() / _share(rows), **{name: float(value) for name, value in measures.items()}}

    def _before_training(self) -> float | None:
        """Return the measure on the first held-out batches, before the first step; all processes must call this.

        Statistics by which features are standardised have settled then, as they do in the first steps. Nothing changes.
        """
        self.network.eval()
        before = {name: value.clone() for name, value in self.pretext.named_buffers()}
        found = []
        with torch.no_grad():
            for number in (0, *range(self.num_val_iterations_per_epoch)):
                rows = sharding.gather_rows(self._rows(self.dataloader_val.batch(number)), self._shares())
                found.append(self._judged(rows))
                self.pretext.update(rows)  # teachers equal their students, so this only changes buffers
            for name, value in self.pretext.named_buffers():
                value.copy_(before[name])
        reached = _averages(found[1:])[self.pretext.measure]
        return reached if math.isfinite(reached) else None

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the loss and the pretext's measure in place of nnU-Net's Dice, so that the best checkpoint is by it."""
        self.measures = _averages(val_outputs)
        loss = self.measures.pop("loss")
        self.logger.log("mean_fg_dice", self.measures[self.pretext.measure], self.current_epoch)
        self.logger.log("dice_per_class_or_region", [], self.current_epoch)
        self.logger.log("val_losses", loss, self.current_epoch)
        if self.current_epoch + 1 in (self._early, self.num_epochs):
            self._warn_of_scale()

    def on_train_start(self) -> None:
        """Start as every training, and see that what will be exported at the end can be read back."""
        super().on_train_start()
        if self._is_alone:
            self.listener.warning(
                f"a single scan is held out, and {self.plan.pretext} tells scans from each other: its "
                f"{self.pretext.measure} and checkpoint_best.pth mean nothing; more subjects, or another --method"
            )
        self.export(rehearse=True)
        if self.pretext.above_chance and not (self.current_epoch or self.to_replay):
            self.untrained = self._before_training()
        self.logger.untrained = self.untrained

    def on_train_end(self) -> None:
        """End as every training, with the network that was pre-trained in a file of its own."""
        super().on_train_end()
        self.export()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.pretext.has_pictures and pictures.are_due(self.current_epoch, self.num_epochs):
            self._draw()
        self._warn_of_collapse()
        if not math.isfinite(self.logger.get_value("train_losses", step=-1)):
            self.listener.warning(
                f"the loss of epoch {self.current_epoch} is not finite: --set precision=bf16 or fp32, or a smaller "
                "initial_lr"
            )
        if self.current_epoch == 1 and (share := self.measures.get(COUNTED, 1.0)) < LEAST_COUNTED:
            self.listener.warning(
                f"only {share:.0%} of the held-out patches count, too much of the others is padding or masked: a "
                "smaller --set patch_size, or another --method"
            )
        if self.current_epoch == self._early and not self._is_alone and self._is_at_chance():
            name, level = self._level()
            what = "chance" if name == "chance" else "what it was before training"
            self.listener.warning(
                f"after {self.current_epoch} epochs the {self.pretext.measure} on held-out subjects is still no better "
                f"than {what}, {level:.3g}: a smaller or larger --set initial_lr, or another --method"
            )

    def _warn_of_scale(self) -> None:
        """Say if features have lost their scale: nothing holds it where a loss compares directions of features.

        With FSDP2 all processes have to take part.
        """
        part, *_ = next(steps.micro_batches(self, self.dataloader_val.batch(0)))
        with torch.no_grad(), steps.autocast(self):
            found = self.network(self._patches(part), only="scales").tolist()
        stage = max(range(len(found)), key=lambda n: abs(math.log(max(found[n], 1e-30))))
        if not 1 / SCALE < found[stage] < SCALE:
            self.listener.warning(
                f"epoch {self.current_epoch + 1}: the features of encoder stage {stage} are {found[stage]:.2g} on "
                "average, and of an untrained network about 1: fine-tuning may diverge; a smaller --set initial_lr"
            )

    def _draw(self) -> None:
        """Draw what the network makes of the first held-out patches; with FSDP2 all processes have to take part."""
        # Of a part that memory suffices for.
        part, *_ = next(steps.micro_batches(self, self.dataloader_val.batch(0)))
        with torch.no_grad(), steps.autocast(self):
            shown = self.network(self._patches(part), only="pictures")
        if self.local_rank == 0:
            pictures.write(shown, Path(self.output_folder), self.current_epoch)

    def _warn_of_collapse(self) -> None:
        """Say once if embeddings or answers have become the same for all images."""
        low = [name for name, least in COLLAPSED.items() if self.measures.get(name, math.inf) < least]
        if self._collapsed or not low or self.current_epoch < self._early:
            return
        self._collapsed = True
        value, least = self.measures[low[0]], COLLAPSED[low[0]]
        self.listener.warning(
            f"after {self.current_epoch} epochs the {low[0]} on held-out subjects is {value:.3f}, below {least}: the "
            "network makes the same of all images; a smaller --set initial_lr, a larger --set batch_size, or another "
            "--method"
        )

    @property
    def _early(self) -> int:
        """How many epochs have to be complete before a warning."""
        return max(LEAST_EPOCHS, math.ceil(EARLY * self.num_epochs))

    @property
    def _is_alone(self) -> bool:
        """Whether held-out patches have none of another scan that they could be told from."""
        return self.method.demand.compares and self.pretext.setting.held_out == 1

    def _level(self) -> tuple[str, float]:
        """Return what the measure has to exceed, and its name: chance, or what it was before training."""
        chance, untrained = self.pretext.chance, self.untrained
        return ("untrained", untrained) if untrained is not None and untrained > chance else ("chance", chance)

    def _is_at_chance(self) -> bool:
        """Return whether the last epoch cannot be told from the level to exceed, by two standard errors."""
        value, chance = self.logger.get_value("mean_fg_dice", step=-1), self._level()[1]
        samples = self.num_val_iterations_per_epoch * self.batch_size
        # Of a share of right answers; other measures have their chance level at 0.
        error = math.sqrt(max(0.0, chance * (1 - chance)) / samples)
        return bool(value <= chance + 2 * error)

    def epoch_results(self) -> tuple[dict[str, str], dict[str, float]]:
        """Return the measure, the level to exceed, and how many patches a second have passed through the network."""
        value, start, end = (
            self.logger.get_value(key, step=-1)
            for key in ("mean_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps")
        )
        steps_ = self.num_iterations_per_epoch + self.num_val_iterations_per_epoch
        rate = steps_ * self.batch_size / max(end - start, 1e-9)
        name, level = self._level()
        return {self.pretext.measure: f"{value:.3f}", name: f"{level:.3g}", "samples/s": f"{rate:.1f}"}, {}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write what was reached: there is no segmentation to validate."""
        if self.local_rank == 0:
            write_json(Path(self.output_folder) / PRETRAINING, self.summary())
        self.write_record()
        self.logger.validated(self)

    def summary(self) -> dict[str, Any]:
        """Return the method, chance levels, and loss and measure of each epoch on held-out subjects, as JSON."""
        pretext, log = self.pretext, self.logger
        return {
            "method": self.plan.pretext,
            "measure": pretext.measure,
            "chance": pretext.chance,
            "untrained": self.untrained,
            "chance_loss": pretext.chance_loss,
            "train_losses": list(map(float, log.get_value("train_losses", None))),
            "val_losses": list(map(float, log.get_value("val_losses", None))),
            "val_measures": list(map(float, log.get_value("mean_fg_dice", None))),
        }

    # Checkpoints.

    def more_state(self) -> dict[str, Any]:
        state = sharding.gather(self.pretext.own_state())
        mine = {"method": self.plan.pretext, "transfers": self.method.transfers, "state": state}
        return {**super().more_state(), "pretext": {**mine, "untrained": self.untrained}}

    def export(self, rehearse: bool = False) -> None:
        """Write the network, and the teacher if there is one, in nnssl's format; all processes must call this.

        Args:
            rehearse: Load the files into new networks, as fine-tuning will, and remove them: until the last epoch,
                nobody may take them for what was pre-trained.

        Raises:
            WeightsError: A file is not what was written.
        """
        if self.disable_checkpointing:
            return
        states = {PRETRAINED: self.network_state()}
        if (teacher := self.pretext.find_teacher()) is not None:
            states[PRETRAINED_TEACHER] = sharding.gather(teacher.state_dict())
        if self.local_rank != 0:
            return
        run = self.plan, self.configuration_name, list(self.dataset_json["channel_names"].values())
        for name, state in states.items():
            path = Path(self.output_folder) / (staging_name(name) if rehearse else name)
            try:
                write_nnssl(path, state, *run, str(self.plan.pretext), transfers=self.method.transfers)
                if rehearse:
                    check_written(path, state)
            finally:
                if rehearse:
                    path.unlink(missing_ok=True)

    def load_network_state(self, weights: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
        """Load as in every training, and what the pretext has besides.

        Raises:
            WeightsError: The checkpoint was pre-trained with another method.
        """
        saved = more.get("pretext")
        if not isinstance(saved, Mapping) or saved.get("method") != self.plan.pretext:
            before = saved.get("method") if isinstance(saved, Mapping) else None
            raise WeightsError(
                f"the checkpoint was pre-trained with {before!r}, not {self.plan.pretext!r}",
                "--overwrite starts from scratch",
            )
        super().load_network_state(weights, more)
        state = self.pretext.state_dict()
        self.pretext.load_own_state(sharding.shard_like(saved["state"], state))
        self.untrained = saved.get("untrained")


def _averages(found: Sequence[dict]) -> dict[str, float]:
    """Return the averages of loss and measures over batches."""
    # A batch of which nothing counts has no loss.
    weights = np.array([each.get(COUNTED, 1.0) for each in found])
    averages = {
        name: float(np.average([each[name] for each in found], weights=weights if weights.any() else None))
        for name in found[0]
    }
    return {**averages, **({COUNTED: float(weights.mean())} if COUNTED in averages else {})}


def _share(rows: Rows) -> float:
    """Return the share of a batch's samples that count, 1 if none does."""
    return float(rows[COUNTS].mean()) or 1.0 if COUNTS in rows else 1.0
