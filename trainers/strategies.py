"""How is a pre-trained network fine-tuned? The strategies as data: what trains when, and with which learning rate.

A parameter is known by its name alone, so nothing here needs torch, and listing the strategies takes no time. Whatever
is not pre-trained (`fresh`: new heads, a stem for other channels) trains in every phase. So a strategy without weights
trains everything, with the same schedule: the fair baseline.

    Parts      encoder, decoder, heads; adapters, where lora.py has added them
    Blocks     along the depth: encoder stages 0 to n-1, then decoder levels, n to 2n-2; the heads come after
    Quarters   of the m = 2n-1 blocks, cut at ceil(m i / 4); the heads belong to the last. Six stages: encoder stages
               0-2 and 3-5, decoder levels 0-2 and 3-4. This is our definition: of the study that compared quarters
               (Khan and Fang 2023, arXiv:2307.10915) there is no public code that would tell theirs.

base.py applies a strategy to a training; lora.py has the adapters.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stunet.errors import UsageError, closest

if TYPE_CHECKING:
    import torch

ENCODER, DECODER, HEADS, ADAPTERS = "encoder", "decoder", "heads", "adapters"
ALL = (ENCODER, DECODER, HEADS)
QUARTERS = tuple(f"quarter-{number}" for number in (1, 2, 3, 4))
PARTS = {
    "conv_blocks_context": ENCODER,
    "upsample_layers": DECODER,
    "conv_blocks_localization": DECODER,
    "seg_outputs": HEADS,
}
PARAMETRIZED = ".parametrizations.weight."  # torch's mark in the names of what makes up a weight
RAMP = 0.05  # 50 of 1000 epochs, the best documented recipe (Wald et al. 2025, arXiv:2410.23132, table 3)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a training: the rate rises linearly to its peak, then falls to zero at the end of the phase.

    Args:
        end: Where it ends, as a share of all epochs.
        trains: The parts or quarters that train, besides whatever is fresh.
        ramp: How long the rate rises, as a share of all epochs.
        power: Of the polynomial that it falls with; 0 keeps it at its peak.
    """

    end: float
    trains: tuple[str, ...]
    ramp: float = 0.0
    power: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way of fine-tuning.

    Args:
        title: One line for listings.
        phases: In the order of time; the last one ends at 1.
        lr: Peak learning rate from pre-trained weights.
        scratch_lr: The same without them.
        layer_decay: Factor on the learning rate from each block to the one before it.
        depth: Share of the stages of the pre-trained network that the plan keeps.
        lora_rank: Rank of the adapters; 0 for none.
    """

    title: str
    phases: tuple[Phase, ...]
    lr: float = 1e-3
    scratch_lr: float = 1e-2
    layer_decay: float = 1.0
    depth: float = 1.0
    lora_rank: int = 0


def _throughout(*trains: str) -> tuple[Phase, ...]:
    """One phase, with the default's learning rates: strategies that differ in what trains differ in nothing else."""
    return (Phase(end=1.0, trains=trains, ramp=RAMP),)


STRATEGIES: dict[str, Strategy] = {
    "full": Strategy(
        title="everything; the rate falls from the first epoch on (the published STU-Net recipe)",
        phases=(Phase(end=1.0, trains=ALL),),
    ),
    "ramp": Strategy(title="everything; the rate rises for 5 % of the epochs, then falls", phases=_throughout(*ALL)),
    "sawtooth": Strategy(
        title="decoder and heads for 5 % of the epochs, then everything, each with a ramp of its own",
        # Wald et al. 2024, arXiv:2412.17041, where the second ramp ended at half of the peak, with a jump after it
        phases=(
            Phase(end=0.05, trains=(DECODER, HEADS), ramp=0.025),
            Phase(end=1.0, trains=ALL, ramp=0.05),
        ),
    ),
    "warmup": Strategy(
        title="encoder frozen for 5 % of the epochs, then everything (a learning-rate ramp is 'ramp')",
        # Zhang et al. 2022, arXiv:2209.12157, with 25 epochs; as long as in sawtooth, so that only the ramps differ
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
    """The strategy of this name.

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
    """How many of a pre-trained network's stages the plan keeps: 5 of 6 for three quarters."""
    return max(2, math.ceil(strategy.depth * stages))


def phase_of(strategy: Strategy, epoch: int, epochs: int) -> Phase:
    """The phase of an epoch, counted from 0; the last one where training is over."""
    return _span(strategy, epoch, epochs).phase


def rate(strategy: Strategy, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch as a share of the peak: above 0, and 1 at the end of a ramp and in the next epoch.

    A function of its arguments alone, so that a resumed training goes on with the rates of an uninterrupted one.
    """
    span = _span(strategy, epoch, epochs)
    if epoch < span.full:
        return (epoch - span.start + 1) / (span.full - span.start)
    return (1 - (epoch - span.full) / (span.end - span.full)) ** span.phase.power


def describe(strategy: Strategy, epochs: int, lr: float, pretrained: bool) -> list[str]:
    """One line per phase: its epochs (from 1), the course of the learning rate, what trains."""
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
    """Whether the phases that should have a ramp have one: the rate of a ramp of one epoch is the peak itself."""
    return all(span.full - span.start > 1 for span in _spans(strategy, epochs) if span.phase.ramp)


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to.

    Raises:
        ValueError: Not a parameter of an STU-Net.
    """
    first = name.partition(".")[0]
    if first not in PARTS:
        raise ValueError(f"{name!r} is no parameter of an STU-Net")
    adapter = PARAMETRIZED in name and not name.endswith(".original")
    return ADAPTERS if adapter else PARTS[first]


def block_of(name: str, stages: int) -> int:
    """The place of a parameter's block along the depth of a network of `stages` stages; 2 `stages` - 1 for heads.

    Raises:
        ValueError: Not a parameter of an STU-Net.
    """
    part_of(name)
    first, index = name.split(".")[:2]
    place = {ENCODER: 0, DECODER: stages, HEADS: 2 * stages - 1}[PARTS[first]]
    return place if PARTS[first] == HEADS else place + int(index)


def quarter_of(name: str, stages: int) -> str:
    """The quarter that a parameter belongs to.

    Raises:
        ValueError: Not a parameter of an STU-Net.
    """
    blocks = 2 * stages - 1
    bounds = [math.ceil(blocks * number / 4) for number in (1, 2, 3)]
    return QUARTERS[sum(block_of(name, stages) >= bound for bound in bounds)]


def trainable(phase: Phase, name: str, stages: int, fresh: Collection[str]) -> bool:
    """Whether a parameter trains in a phase."""
    return name in fresh or part_of(name) in phase.trains or quarter_of(name, stages) in phase.trains


def trains_all(strategy: Strategy) -> bool:
    """Whether all parameters train themselves, from the beginning to the end."""
    return not strategy.lora_rank and all(set(phase.trains) == set(ALL) for phase in strategy.phases)


def set_trainable(network: "torch.nn.Module", phase: Phase, fresh: Collection[str]) -> tuple[int, int]:
    """Freezes what does not train in a phase, lets go of its gradients, and releases the rest.

    Args:
        network: Without DDP's wrapping, which must be put around it anew: DDP takes note of what trains only then.
        phase: From phase_of().
        fresh: Names of the parameters that are not pre-trained.

    Returns:
        The numbers of parameters that train, and of all.
    """
    stages = _stages(network)
    trained = total = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable(phase, name, stages, fresh))
        if not parameter.requires_grad:
            parameter.grad = None
        total += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return trained, total


def groups(network: "torch.nn.Module", strategy: Strategy, fresh: Collection[str]) -> list[dict[str, Any]]:
    """The network's parameters for an optimizer: one group, or one per block where the learning rate depends on it.

    The order is always the same, frozen or not, so that an optimizer's state can be loaded again. A group's `scale` is
    its share of the learning rate, the first one's is 1; what is fresh learns at the full rate wherever it is.
    """
    found: dict[int, list[torch.nn.Parameter]] = {}
    last = 2 * _stages(network) - 1
    for name, parameter in network.named_parameters():
        block = last if strategy.layer_decay == 1 or name in fresh else block_of(name, _stages(network))
        found.setdefault(block, []).append(parameter)
    return [
        {"params": found[block], "scale": strategy.layer_decay ** (last - block)}
        for block in sorted(found, reverse=True)
    ]


class Schedule:
    """Sets the learning rates of an optimizer made of groups(), as nnU-Net's trainer asks: `step(epoch)`."""

    def __init__(self, optimizer: "torch.optim.Optimizer", strategy: Strategy, epochs: int, lr: float) -> None:
        self.optimizer, self.strategy, self.epochs, self.lr = optimizer, strategy, epochs, lr

    def step(self, epoch: int) -> None:
        """Sets the rates of an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["scale"] * rate(self.strategy, epoch, self.epochs)


def _stages(network: "torch.nn.Module") -> int:
    return len(network.conv_blocks_context)  # type: ignore[arg-type]  # an STUNet, which would need torch to say


class _Span(NamedTuple):
    """A phase in epochs: its first one, the first one after the ramp, and the first one after it."""

    phase: Phase
    start: int
    full: int
    end: int


def _span(strategy: Strategy, epoch: int, epochs: int) -> _Span:
    return next(span for span in _spans(strategy, epochs) if min(epoch, epochs - 1) < span.end)


def _spans(strategy: Strategy, epochs: int) -> list[_Span]:
    """The phases in epochs, each of them one epoch at least; with fewer epochs than phases the first ones have none."""
    spans: list[_Span] = []
    start = 0
    for index, phase in enumerate(strategy.phases):
        later = len(strategy.phases) - 1 - index
        end = max(0, min(max(round(phase.end * epochs), start + 1), epochs - later))
        spans.append(_Span(phase, start, min(start + round(phase.ramp * epochs), end), end))
        start = end
    return spans
