"""Load the weights of a file into a network that differs in depth, input channels, kernels or classes.

Every tensor of the network and of the weights has one fate, which names and shapes alone determine. First it is decided
what would be loaded; then it is loaded tensor by tensor, as the weights are mapped from their file and may be large.

Tensors are matched by resolution: encoder stages count from the finest, everything after them from the coarsest.
reading.py reads the file, matching.py matches and adapts tensors, heads.py chooses the rows; trainers/finetune/start.py
decides before anything is written, and loads before the first epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stunet.architectures.base import Architecture, Recognised
from stunet.errors import UsageError, WeightsError
from stunet.plans.plan import INFLATIONS, TRANSFERS
from stunet.weights.checkpoints import check_finite
from stunet.weights.differences import (
    axes_warnings,
    channel_order,
    contrast_warnings,
    function_warnings,
    input_warnings,
    origin,
    stride_warnings,
)
from stunet.weights.heads import plan_heads
from stunet.weights.inflation import of_slice
from stunet.weights.mapped import release
from stunet.weights.matching import ABSENT, Match
from stunet.weights.reading import Weights
from stunet.weights.recognition import recognise
from stunet.weights.report import Fate, TransferReport

STEMS = ("repeat", "first")
LEAST_COVERAGE = 0.9  # of the encoder; if less fits, the weights belong to something else
GAPS_SHOWN = 3


def transfer(network: nn.Module, weights: Weights, **options: Any) -> TransferReport:
    """Load whatever fits of the weights into a network: decide() with these options, then Transfer.load().

    An error leaves the network unchanged; with finite weights of a sound memory there is none after decide().
    """
    decision = decide(network, weights, **options)
    decision.load(network)
    return decision.report


def decide(
    network: nn.Module,
    weights: Weights,
    *,
    classes: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    normalization: Sequence[str] | None = None,
    intensities: Mapping[str, Any] | None = None,
    spacing: Sequence[float] | None = None,
    transposition: Sequence[int] | None = None,
    orientation: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    cascade_channels: int = 0,
    head: str | None = None,
    stem: str = "repeat",
    transfer: str | None = None,
    inflate: str | None = None,
    sha256: str | None = None,
) -> "Transfer":
    """Decide what of the weights fits into a network, and read them through once; nothing is loaded.

    Args:
        network: One of stunet.architectures; it may be on the meta device.
        weights: From read_weights().
        classes: Name of each row of the network's heads, background first (and absent if regions are learned); empty if
            the rows are those of a pre-training without labels.
        channels: Names of its image channels.
        normalization: How the plan normalises them: nnU-Net's scheme per channel.
        intensities: The plan's foreground_intensity_properties_per_channel, by which CT is normalised.
        spacing: The plan's, in mm, array order.
        transposition: The plan's transpose_forward.
        orientation: The plan's, such as "LPS"; None: unknown.
        arguments: Those of the network in the plan, which say more than its tensors; None: unknown.
        cascade_channels: One-hot channels in its input, after the image channels; their weights start as zeros.
        head: One of heads.MODES, or None: slice if any class matches.
        stem: How to handle image channels other than the weights', one of STEMS; see `inflate_channels`.
        transfer: What is taken: "encoder" (with its stem), or "all" that fits; None: what the weights say.
        inflate: How 2D weights become 3D ones, one of INFLATIONS; None: they do not.
        sha256: Hash of the weights' file, for the report.

    Raises:
        UsageError: `head`, `stem`, `transfer` or `inflate` is unknown, or is not possible with these weights.
        WeightsError: The network is of another architecture, size or number of axes than the weights; less than
            90 % of its encoder would be loaded; the weights contain NaN or infinity.
    """
    for what, value, known in (
        ("stem", stem, STEMS),
        ("transfer", transfer, TRANSFERS),
        ("inflate", inflate, INFLATIONS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"unknown {what} {value!r}", f"one of {', '.join(known)}")
    transfer = transfer or weights.transfers
    architecture = weights.network.architecture
    if not architecture.built(network):
        raise WeightsError(
            f"the weights in {str(weights.path)!r} are of {architecture.title}, and the plan's network is "
            f"{type(network).__name__}",
            "plan with stunet_plan_and_preprocess and train with those plans",
        )
    # Each tensor once, under its official name; loading one name of a network's tensor loads all.
    state = {name: value for name, value in network.state_dict().items() if architecture.canonical(name) == name}
    target = recognise(state, weights.path)
    if classes and len(classes) != target.classes:
        raise ValueError(f"{len(classes)} names for the {target.classes} rows of the network's heads")
    _check_same_network(target, weights, inflate)
    heads = plan_heads(head, weights, classes, transfer)
    order = channel_order(weights.channels, channels)
    match = Match(weights, target, heads, target.channels - cascade_channels, stem, transfer, inflate, order)
    fates = [match.fate(name, drawn) for name, drawn in state.items()]
    loaded = {fate.target: fate.source for fate in fates if fate.target and fate.source}
    left = weights.tensors.keys() - set(loaded.values())
    fates += [Fate(None, name, "unused", given.numel()) for name, given in weights.tensors.items() if name in left]
    coverage = _coverage(fates, architecture, min(target.stages, weights.network.stages), weights.path)
    check_finite({source: weights.tensors[source] for source in loaded.values()}, weights.path, architecture)
    strides = architecture.strides(network)
    if inflate:  # nothing that 2D weights have learned depends on the depth
        strides, spacing = of_slice(strides), spacing[1:] if spacing else None
    warnings = (
        *stride_warnings(strides, weights),
        *function_warnings(weights, arguments),
        *input_warnings(weights, channels, normalization, spacing),
        *axes_warnings(weights, transposition, orientation),
        *contrast_warnings(weights, normalization, intensities, order),
        *heads.warnings,
    )
    report = TransferReport(
        str(weights.path),
        sha256,
        weights.entry,
        coverage,
        heads,
        warnings,
        tuple(fates),
        architecture,
        origin(weights),
        transfer,
        inflate,
    )
    return Transfer(report, loaded, match)


@dataclass(frozen=True)
class Transfer:
    """What will be loaded: the source of each tensor of the network that has one, and the report."""

    report: TransferReport
    sources: Mapping[str, str]
    match: "Match"

    def load(self, network: nn.Module) -> None:
        """Load into a network like the one that decide() saw; whatever is not loaded keeps its initialisation.

        Copies tensor by tensor, releases the file's memory, and verifies what was copied.

        Raises:
            WeightsError: A tensor is not what was copied into it.
        """
        # A state dict shares its tensors with the network: copying into them loads.
        state, given = network.state_dict(), self.match.weights.tensors
        with torch.no_grad():
            for name, source in self.sources.items():
                state[name].copy_(self.match.value(name, source, state[name]))
                release(given[source])
        for name, source in self.sources.items():
            # After all of it, and from the file again: its pages were released above.
            verify(name, state[name], self.match.value(name, source, state[name]))
            release(given[source])


def verify(name: str, there: Tensor, expected: Tensor) -> None:
    """Check that a tensor of the network equals what it should, to the last bit of the network's own dtype.

    Raises:
        WeightsError: It does not.
    """
    if not torch.equal(there, expected.to(there)):
        raise WeightsError(
            f"{name!r} in the network is not what was loaded into it", "check the memory of this machine"
        )


def _check_same_network(target: Recognised, weights: Weights, inflate: str | None) -> None:
    given, what = weights.network, f"{str(weights.path)!r} holds {weights.network.ndim}D weights"
    if inflate and (given.ndim, target.ndim) != (2, 3):
        raise UsageError(
            f"--inflate makes 2D weights 3D, but {what}, and the plan's network is {target.ndim}D", "leave it out"
        )
    if given.ndim != target.ndim and not inflate:
        raise WeightsError(
            f"{what}, and the plan's network is {target.ndim}D",
            "--inflate average makes them 3D, or -c 2d" if given.ndim == 2 else "-c 3d_fullres for 3D weights",
        )
    if differs := given.architecture.difference(given, target):
        own = f"--size {given.size}, for plans of that size, or " if given.size else ""
        other = f"weights of size {target.size}" if target.size else "weights of a network like the plan's"
        raise WeightsError(f"{str(weights.path)!r} holds {differs}", own + other)


def _coverage(fates: list[Fate], architecture: Architecture, stages: int, path: Path) -> float:
    """Return the loaded fraction of the encoder's first `stages` stages; raise an error if it is too small."""
    encoder = [
        fate
        for fate in fates
        if fate.target and architecture.is_encoder(fate.target) and architecture.place(fate.target).level < stages
    ]
    gaps = sorted((f for f in encoder if not f.source), key=lambda f: -f.elements)
    coverage = 1 - sum(f.elements for f in gaps) / sum(f.elements for f in encoder)
    if coverage >= LEAST_COVERAGE:
        return coverage
    partial = all(f.note == ABSENT for f in gaps)
    cause = "only a part of a network's weights" if partial else "weights of a network with other convolutions"
    largest = ", ".join(f"{f.target!r} {f.note}" for f in gaps[:GAPS_SHOWN])
    raise WeightsError(
        f"{str(path)!r} would give {coverage:.0%} of the encoder; missing: {largest}; it probably holds {cause}",
        "other weights: stunet_models list",
    )
