"""Fine-tuning strategies as data: what trains when, and with which learning rate.

A parameter is identified by its name alone, so nothing here needs torch, and listing the strategies takes no time.
Everything that is not pre-trained (`fresh`: new heads, a stem for other channels) trains in every phase. A strategy
without weights therefore trains everything, with the same schedule: the fair baseline.

    Parts      encoder (with its stem), decoder (with upsampling and fusion), heads; adapters, if lora.py has added them
    Blocks     along the depth: n encoder stages, then decoder levels, m together; the heads come last
    Quarters   of the m blocks, cut at ceil(m i / 4); the heads belong to the last. STU-Net of six stages: encoder
               stages 0-2 and 3-5, decoder levels 0-2 and 3-4. This is our own definition: the study that compared
               quarters (Khan and Fang 2023, arXiv:2307.10915) has no public code that would show theirs.

Which part and block a parameter belongs to, its network's architecture says (stunet/architectures).

finetuning.py applies a strategy to a training; lora.py has the adapters.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stunet import architectures
from stunet.architectures.base import DECODER, ENCODER, FUSION, HEADS, OTHER, STEM, UPSAMPLING, Architecture, Layout
from stunet.errors import UsageError, closest

if TYPE_CHECKING:
    import torch

ADAPTERS = "adapters"
ALL = (ENCODER, DECODER, HEADS)
QUARTERS = tuple(f"quarter-{number}" for number in (1, 2, 3, 4))
COARSE = {STEM: ENCODER, FUSION: DECODER, UPSAMPLING: DECODER}  # what strategies do not tell apart
PARAMETRIZED = ".parametrizations.weight."  # torch's infix in the names of the tensors that make up a weight
RAMP = 0.05  # 50 of 1000 epochs, the best documented recipe (Wald et al. 2025, arXiv:2410.23132, table 3)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A period of training: the learning rate rises linearly to its peak, then falls to zero at the end of the phase.

    Args:
        end: Where the phase ends, as a share of all epochs.
        trains: The parts or quarters that train, in addition to everything fresh.
        ramp: How long the learning rate rises, as a share of all epochs.
        power: Power of the polynomial decay; 0 keeps the learning rate at its peak.
    """

    end: float
    trains: tuple[str, ...]
    ramp: float = 0.0
    power: float = 0.9  # nnU-Net's exponent


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way of fine-tuning.

    Args:
        title: One line for listings.
        phases: In chronological order; the last one ends at 1.
        lr: Peak learning rate from pre-trained weights.
        scratch_lr: The same without them.
        layer_decay: Factor on the learning rate from each block to the one before it.
        depth: Share of the pre-trained network's stages that the plan keeps.
        lora_rank: Rank of the adapters; 0 for none.
    """

    title: str
    phases: tuple[Phase, ...]
    lr: float = 1e-3  # that of the published fine-tuning, a tenth of nnU-Net's
    scratch_lr: float = 1e-2  # nnU-Net's
    layer_decay: float = 1.0
    depth: float = 1.0
    lora_rank: int = 0


def _throughout(*trains: str) -> tuple[Phase, ...]:
    """Return one phase with the default's schedule, so that such strategies differ only in what they train."""
    return (Phase(end=1.0, trains=trains, ramp=RAMP),)


STRATEGIES: dict[str, Strategy] = {
    "full": Strategy(
        title="everything; the rate falls from the first epoch on (the published STU-Net recipe)",
        phases=(Phase(end=1.0, trains=ALL),),
    ),
    "ramp": Strategy(title="everything; the rate rises for 5 % of the epochs, then falls", phases=_throughout(*ALL)),
    "sawtooth": Strategy(
        title="decoder and heads for 5 % of the epochs, then everything, each with a ramp of its own",
        # Wald et al. 2024, arXiv:2412.17041, where the second ramp ended at half of the peak, followed by a jump
        phases=(
            Phase(end=0.05, trains=(DECODER, HEADS), ramp=0.025),
            Phase(end=1.0, trains=ALL, ramp=0.05),
        ),
    ),
    "warmup": Strategy(
        title="encoder frozen for 5 % of the epochs, then everything (a learning-rate ramp is 'ramp')",
        # Zhang et al. 2022, arXiv:2209.12157, with 25 epochs; here as long as in sawtooth, so only the ramps differ
        phases=(Phase(end=0.05, trains=(DECODER, HEADS), power=0.0), Phase(end=1.0, trains=ALL)),
    ),
    "linear": Strategy(title="the heads only", phases=_throughout(HEADS)),
    "decoder": Strategy(title="the decoder; of the heads what is new", phases=_throughout(DECODER)),
    "encoder-frozen": Strategy(title="decoder and heads", phases=_throughout(DECODER, HEADS)),
    "quarter-1": Strategy(title="the first quarter of the blocks: the upper encoder", phases=_throughout(QUARTERS[0])),
    "quarter-2": Strategy(title="the second quarter: the lower encoder", phases=_throughout(QUARTERS[1])),
    "quarter-3": Strategy(title="the third quarter: the lower decoder", phases=_throughout(QUARTERS[2])),
    "quarter-4": Strategy(title="the last quarter: the upper decoder and the heads", phases=_throughout(QUARTERS[3])),
    "shallow": Strategy(
        title="everything, without the deepest quarter of the stages (5 of 6)", phases=_throughout(*ALL), depth=0.75
    ),
    "layerwise": Strategy(
        title="everything; each block at 0.75 times the rate of the next one",
        phases=_throughout(*ALL),
        layer_decay=0.75,
    ),
    "lora": Strategy(
        title="the heads, and adapters of rank 8 beside every frozen convolution, merged in the checkpoint",
        phases=_throughout(ADAPTERS, HEADS),
        lora_rank=8,
    ),
}
DEFAULT = "ramp"


def find(name: str) -> Strategy:
    """Return the strategy of this name.

    Raises:
        UsageError: There is none.
    """
    if name not in STRATEGIES:
        known = list(STRATEGIES)
        raise UsageError(
            f"unknown fine-tuning strategy {name!r}{closest(name, known)}", f"--finetune takes {', '.join(known)}"
        )
    return STRATEGIES[name]


def kept_stages(strategy: Strategy, stages: int) -> int:
    """Return how many of a pre-trained network's stages the plan keeps: 5 of 6 for three quarters."""
    # A network has at least two stages (networks.py).
    return max(2, math.ceil(strategy.depth * stages))


def phase_of(strategy: Strategy, epoch: int, epochs: int) -> Phase:
    """Return the phase of an epoch, counted from 0; the last phase once training is over."""
    return _span(strategy, epoch, epochs).phase


def rate(strategy: Strategy, epoch: int, epochs: int) -> float:
    """Return an epoch's learning rate relative to the peak: above 0; 1 in the last epoch of a ramp and the next one.

    A function of its arguments alone, so that a resumed training continues with the rates of an uninterrupted one.
    """
    span = _span(strategy, epoch, epochs)
    if epoch < span.full:
        # + 1: an epoch at a rate of 0 would train nothing.
        return (epoch - span.start + 1) / (span.full - span.start)
    return (1 - (epoch - span.full) / (span.end - span.full)) ** span.phase.power


def describe(strategy: Strategy, epochs: int, lr: float, pretrained: bool) -> list[str]:
    """Return one line per phase: its epochs (from 1), the course of the learning rate, and what trains."""
    lines = []
    for span in _spans(strategy, epochs):
        course = [f"rising to {lr:g} in {span.full - span.start}"] if span.full > span.start else [f"from {lr:g}"]
        if span.full < span.end:
            course.append("falling" if span.phase.power else "constant")
        if span.start < span.end:
            what = ", ".join(span.phase.trains) if pretrained else "everything"
            lines.append(f"epochs {span.start + 1}-{span.end}: learning rate {', '.join(course)}; trains {what}")
    return lines


def has_ramps(strategy: Strategy, epochs: int) -> bool:
    """Return whether the phases that should have a ramp have one: a ramp of one epoch is at the peak immediately."""
    return all(span.full - span.start > 1 for span in _spans(strategy, epochs) if span.phase.ramp)


def part_of(name: str, architecture: Architecture) -> str:
    """Return the part of the network that a parameter belongs to.

    Raises:
        ValueError: Not a parameter of this architecture.
    """
    part = architecture.place(name).part
    if part == OTHER:
        raise ValueError(f"{name!r} is not a parameter of {architecture.title}")
    adapter = PARAMETRIZED in name and not name.endswith(".original")
    return ADAPTERS if adapter else COARSE.get(part, part)


def quarter_of(name: str, layout: Layout) -> str:
    """Return the quarter that a parameter belongs to.

    Raises:
        ValueError: Not a parameter of this architecture.
    """
    bounds = [math.ceil(layout.blocks * number / 4) for number in (1, 2, 3)]
    return QUARTERS[sum(layout.block_of(name) >= bound for bound in bounds)]


def trainable(phase: Phase, name: str, layout: Layout, fresh: Collection[str]) -> bool:
    """Return whether a parameter trains in a phase."""
    if name in fresh:
        return True
    return part_of(name, layout.architecture) in phase.trains or quarter_of(name, layout) in phase.trains


def trains_all(strategy: Strategy) -> bool:
    """Return whether all parameters are trained directly, from beginning to end."""
    return not strategy.lora_rank and all(set(phase.trains) == set(ALL) for phase in strategy.phases)


def set_trainable(network: "torch.nn.Module", phase: Phase, fresh: Collection[str]) -> tuple[int, int]:
    """Freeze what does not train in a phase and drop its gradients, and unfreeze the rest.

    Args:
        network: Without DDP's wrapper, which must be put around it again: DDP only then looks at what is trainable.
        phase: The result of phase_of().
        fresh: Names of the parameters that are not pre-trained.

    Returns:
        The number of parameters that train, and the total number.
    """
    layout = architectures.of_network(network).layout(network)
    trained = total = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable(phase, name, layout, fresh))
        if not parameter.requires_grad:
            parameter.grad = None
        total += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return trained, total


def groups(network: "torch.nn.Module", strategy: Strategy, fresh: Collection[str]) -> list[dict[str, Any]]:
    """Return the network's parameter groups for an optimizer: one, or one per block if the learning rates differ.

    The order is always the same, frozen or not, so that an optimizer's state can be loaded again. A group's `scale` is
    its factor on the learning rate, and 1 for the first; what is fresh learns at the full rate wherever it is.
    """
    found: dict[int, list[torch.nn.Parameter]] = {}
    layout = architectures.of_network(network).layout(network)
    last = layout.blocks  # the heads
    for name, parameter in network.named_parameters():
        block = last if strategy.layer_decay == 1 or name in fresh else layout.block_of(name)
        found.setdefault(block, []).append(parameter)
    return [
        # The heads come first: nnU-Net logs the rate of the first group.
        {"params": found[block], "scale": strategy.layer_decay ** (last - block)}
        for block in sorted(found, reverse=True)
    ]


class Schedule:
    """Sets the learning rates of an optimizer made of groups(), called as nnU-Net's trainer does: `step(epoch)`."""

    def __init__(self, optimizer: "torch.optim.Optimizer", strategy: Strategy, epochs: int, lr: float) -> None:
        self.optimizer, self.strategy, self.epochs, self.lr = optimizer, strategy, epochs, lr

    def step(self, epoch: int) -> None:
        """Set the learning rates of an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["scale"] * rate(self.strategy, epoch, self.epochs)


class _Span(NamedTuple):
    """A phase in epochs: its first epoch, the first one after the ramp, and the first one after the phase."""

    phase: Phase
    start: int
    full: int
    end: int


def _span(strategy: Strategy, epoch: int, epochs: int) -> _Span:
    # nnU-Net's count goes on to `epochs` when training ends.
    return next(span for span in _spans(strategy, epochs) if min(epoch, epochs - 1) < span.end)


def _spans(strategy: Strategy, epochs: int) -> list[_Span]:
    """Return the phases in epochs, each at least one epoch long; with too few epochs the first phases get none."""
    spans: list[_Span] = []
    start = 0
    for index, phase in enumerate(strategy.phases):
        later = len(strategy.phases) - 1 - index
        end = max(0, min(max(round(phase.end * epochs), start + 1), epochs - later))
        spans.append(_Span(phase, start, min(start + round(phase.ramp * epochs), end), end))
        start = end
    return spans
