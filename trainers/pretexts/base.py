"""What a pretext is: a module that wraps the network, and whose forward pass returns a loss without labels.

    compute(patches)    what the loss needs of each sample: tensors whose first axis is the sample's
    loss(rows)          the loss of samples, and measures to log
    update(rows)        after each step of the optimizer: teachers, queues, centres

The loss is a mean over samples; a row named COUNTS says which of them count. Where it also depends on the other samples
of the batch (`coupled`), the trainer passes their rows along, without gradient: the gradients of all parts of a batch
then add up to those of the whole, in any number of micro-batches and processes (as in GradCache, Gao et al. 2021,
arXiv:2101.06983). Nothing in a pretext may normalise over the batch, for the same reason. Read next: predictive.py for
the shortest ones, methods.py for the table.

Shape legend: B samples, C channels, D H W depth, height and width (2D: no D).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from stunet import architectures
from stunet.architectures.base import ENCODER as STAGES
from stunet.architectures.base import HEADS, STEM, Place
from stunet.errors import UsageError
from stunet.trainers.pretexts.draws import Draws
from stunet.trainers.pretexts.momentum import follow

Rows = dict[str, Tensor]
COUNTS = "counts"  # (B,), 1 for samples that count in loss and measures, otherwise 0
CASE = "case"  # (B,), Patches.cases, in the rows of every pretext
COUNTED = "counted"  # the measure that is their share
HALVES = torch.float16, torch.bfloat16
Outcome = tuple[Tensor, Rows]  # the loss, and measures: scalars without gradient
ENCODER, DECODER, ALL = "encoder", "decoder", "all"


@dataclass(frozen=True)
class Setting:
    """What a pretext has to know of the plan.

    Args:
        patch: Voxels per axis.
        spacing: In mm per axis.
        batch_size: Samples per step, of all processes.
        steps: Of the whole training.
        augment: How views of a patch differ: "standard", "safe" or "none" (augment.py).
        acquired: The spacings of the scans before they were resampled; none where all are the plan's.
        held_out: Images of which held-out batches have about equally many patches; None: as many as samples.
    """

    patch: Sequence[int]
    spacing: Sequence[float]
    batch_size: int
    steps: int
    augment: str = "standard"
    acquired: Sequence[Sequence[float]] = ()
    held_out: int | None = None

    @property
    def ndim(self) -> int:
        """The number of axes of space."""
        return len(self.patch)


class Patches(NamedTuple):
    """Some samples of a batch.

    Attributes:
        images: (B, C, D, H, W).
        valid: (B, 1, D, H, W), bool: the voxels that count; not padding, nor what a mask excludes.
        draws: A generator per sample, the only source of randomness.
        places: (B, 2), where along the first axis of its image a patch begins and ends, as shares of the image's side.
        cases: (B,), int64: equal numbers are patches of the same image, which are not to be told from each other.
    """

    images: Tensor
    valid: Tensor
    draws: Draws
    places: Tensor
    cases: Tensor


class Pretext(nn.Module, ABC):
    """Trains a network without labels. Subclasses set the attributes, and are listed in methods.py.

    Attributes:
        trains: ENCODER (with the stem), DECODER (its first levels alone), or ALL (encoder, decoder, the finest head).
        levels: How many levels of the decoder are trained at most, from the coarsest on.
        measure: The name of the measure that tells how well it does on images it has not seen; higher is better.
        above_chance: Whether a network that was never trained is above chance, as its features differ between images.
            What it reaches is then measured before the first step.
        coupled: Whether the loss of a sample depends on the others of the batch.
        kept: The names of the rows that update() needs of the whole batch.
        teacher: The network whose weights follow the trained one's, in pretexts that have one.

    Args:
        network: One of stunet.architectures, with as many classes as channels; its weights are what is pre-trained.
        setting: What the plan says.

    Raises:
        UsageError: The plan does not suit the pretext, such as a patch that is too small.
    """

    trains: ClassVar[str] = ENCODER
    levels: ClassVar[int | None] = None
    measure: ClassVar[str]
    above_chance: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()
    teacher: nn.Module

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__()
        self.network, self.setting = network, setting
        self.architecture = architectures.of_network(network)
        finest = len(self.architecture.modules(network, HEADS)) - 1
        for name, parameter in network.named_parameters():
            # DDP waits for the gradient of everything that requires one.
            parameter.requires_grad_(self._is_trained(self.architecture.place(name), finest))
        self.widths = self._widths()

    def _is_trained(self, place: Place, finest: int) -> bool:
        """Return whether the pretext trains what lies there; `finest` is the level of the finest head."""
        if place.part in (STEM, STAGES):
            return self.trains != DECODER
        if place.part == HEADS:
            return self.trains == ALL and place.level == finest
        return self.trains != ENCODER and (self.levels is None or place.level < self.levels)

    def _widths(self) -> list[int]:
        """Return the channels of the encoder's stages."""
        sides = [2 * math.prod(axis) for axis in zip(*self.architecture.strides(self.network), strict=True)]
        with torch.no_grad():
            image = torch.zeros(1, self.architecture.channels(self.network), *sides)
            return [each.shape[1] for each in self.features(image)]

    @property
    @abstractmethod
    def chance(self) -> float:
        """What the measure is for a network that knows nothing."""

    @property
    def chance_loss(self) -> float | None:
        """What the loss is for a network that knows nothing; None if no number can be given."""
        return None

    @abstractmethod
    def compute(self, patches: Patches) -> Rows:
        """Return what loss() needs of each sample."""

    @abstractmethod
    def loss(self, rows: Rows) -> Outcome:
        """Return the mean loss of samples, and measures of them; `self.measure` has to be one.

        Trained weights take no part, only in compute(): with FSDP2 they are not whole at other times.
        """

    def update(self, rows: Rows) -> None:
        """Update what no gradient does, after each step of the optimizer; `rows` are those in `kept` of all samples."""

    @property
    def has_pictures(self) -> bool:
        """Whether pictures() shows something."""
        return type(self).pictures is not Pretext.pictures

    def pictures(self, patches: Patches) -> Rows:
        """Return what a person wants to see of some samples, by title, of the images' shape each; the target last."""
        return {}

    def scales(self, patches: Patches) -> Tensor:
        """Return the root mean square of the features of each encoder stage, finest first."""
        return torch.stack([each.float().square().mean().sqrt() for each in self.features(patches.images)])

    def forward(
        self, patches: Patches, complete: Callable[[Rows], tuple[Rows, int]] | None = None, only: str | None = None
    ) -> Any:
        """Return the loss of some samples of a batch, the measures, and the rows that update() needs of them.

        Args:
            patches: The samples.
            complete: Returns the rows of the whole batch and the index of the first of these samples in it, for
                coupled losses of a part of a batch; None if the samples are the whole batch.
            only: The name of a method, "rows", "pictures" or "scales", whose result is returned instead: a call of the
                module is all that its wrappers notice, and FSDP2 has to gather the weights.
        """
        if only is not None:
            return getattr(self, only)(patches)
        rows = self.rows(patches)
        # How many samples count is asked for with the loss.
        kept = {name: rows[name].detach() for name in (*self.kept, COUNTS) if name in rows}
        if complete is None:
            return *self.judge(rows), kept
        whole, first = complete({name: value.detach() for name, value in rows.items()})
        part = slice(first, first + len(patches.images))
        joined = {name: torch.cat([whole[name][: part.start], rows[name], whole[name][part.stop :]]) for name in rows}
        loss, measures = self.judge(joined)
        # The trainer weights a part's loss by its share of the batch. The value of this one is the batch's in every
        # part, but its gradient only flows through this part's rows, so that is weighted back.
        return _scaled(loss, len(next(iter(joined.values()))) / len(patches.images)), measures, kept

    def rows(self, patches: Patches) -> Rows:
        """Return what compute() does, in single precision at least, and which image each sample is of."""
        rows = {**self.compute(patches), CASE: patches.cases.to(patches.images.device)}
        return {name: value.float() if value.dtype in HALVES else value for name, value in rows.items()}

    def judge(self, rows: Rows) -> Outcome:
        """Return what loss() does, in the precision of the rows, and the loss times the share of samples that count.

        That of a part of a batch is then its part of the batch's: otherwise a sample would weigh more in a part where
        few count. Divided by the share of the whole batch, it is the mean of what counts.
        """
        with full_precision(next(iter(rows.values()))):
            loss, measures = self.loss(rows)
        if COUNTS not in rows:
            return loss, measures
        counted = rows[COUNTS].mean()
        return loss * counted, {**measures, COUNTED: counted}

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's outputs, finest first, each (B, C', D / s, H / s, W / s)."""
        return self.architecture.features(self.network, images)

    def find_teacher(self) -> nn.Module | None:
        """Return the teacher; None if there is none."""
        return getattr(self, "teacher", None)

    def teachers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return each module that is a teacher, and the one whose weights it follows."""
        return []

    def restart(self) -> None:
        """Copy the teachers again, once weights to start from are in the network."""
        for teacher, student in self.teachers():
            follow(teacher, student, 0)

    def own_state(self) -> Rows:
        """Return the tensors of the pretext that are not the network's: heads, teacher, queue."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Load what own_state() returned.

        Raises:
            RuntimeError: They are not the tensors of this pretext.
        """
        network = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        self.load_state_dict({**network, **state})


def pooled(features_BCDHW: Tensor) -> Tensor:
    """Average over space: (B, C, ...) -> (B, C)."""
    return features_BCDHW.flatten(2).mean(2)


def mlp(*widths: int) -> nn.Sequential:
    """Build linear layers of these widths with ReLU in between."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(widths):
        layers += [nn.Linear(c_in, c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def average(values: Tensor, counts: Tensor, otherwise: float = 0.0) -> Tensor:
    """Return the mean of the values (N,) where `counts` (N,) is 1, not 0; `otherwise` if it is nowhere."""
    mean = (values * counts).sum() / counts.sum().clamp_min(1)
    return torch.where(counts.any(), mean, otherwise)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Switch autocast off: half precision is too coarse for coordinates, intensities and similarities."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_size(pretext: Pretext, size: Sequence[int], what: str) -> None:
    """Raise if what the encoder sees is so small that the last stage has a single voxel, which cannot be normalised.

    Raises:
        UsageError: The patch is too small for the network's strides.
    """
    if math.prod(bottleneck(pretext, size)) < 2 or min(size) < 1:
        shape = " x ".join(map(str, size))
        raise UsageError(
            f"patch {' x '.join(map(str, pretext.setting.patch))}: {what} has {shape} voxels, of which the network's "
            "strides leave one, and that cannot be normalised",
            "--set patch_size with larger sides, --stages with fewer, or --method mae",
        )


def bottleneck(pretext: Pretext, size: Sequence[int]) -> list[int]:
    """Return the voxels per axis that padded strided convolutions leave of these in the last stage."""
    left = list(size)
    for strides in pretext.architecture.strides(pretext.network):
        left = [-(-n // stride) for n, stride in zip(left, strides, strict=True)]
    return left


def _scaled(loss: Tensor, scale: Tensor | float) -> Tensor:
    """Return the loss, with a gradient that is `scale` times as large."""
    return loss.detach() + (loss - loss.detach()) * scale
