"""Start a training of a network with several encoders, each from weights of its own.

Every encoder is matched, judged and filled as if its network had no other (Architecture.sources); fusion, decoder and
heads are new. start.py has what a single start does, and loads either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import nn

from stunet import architectures
from stunet.architectures.base import FUSION
from stunet.architectures.multi_encoder import MOST
from stunet.errors import UsageError, WeightsError
from stunet.labels.annotations import Annotations
from stunet.plans.plan import ENCODER_ALONE, Plan, StartingWeights
from stunet.trainers.finetune.start import NAME_LENGTH, Start, choose_heads, judge, plan_entry
from stunet.weights.report import Fate, JointReport
from stunet.weights.transfer import Transfer


@dataclass(frozen=True)
class JointTransfer:
    """What will be loaded into each encoder, and the report of all."""

    report: JointReport
    transfers: tuple[Transfer, ...]

    def load(self, network: nn.Module) -> None:
        """Load into a network like the one that was judged; whatever is not loaded keeps its initialisation.

        Raises:
            WeightsError: A tensor is not what was copied into it.
        """
        sources = architectures.of_network(network).sources(network)
        for transfer, source in zip(self.transfers, sources, strict=True):
            transfer.load(source)


class JointStart:
    """The weights that the encoders of a training start from, in their order; it serves as a Start does.

    Args:
        starts: Two or more.

    Raises:
        UsageError: Two of them are the same file, or they are too many.
        WeightsError: They cannot be read, or are not of one kind of network.
    """

    def __init__(self, starts: Sequence[Start]) -> None:
        self.starts = tuple(starts)
        self._decided: tuple[Plan, str, JointTransfer] | None = None
        if len(self.starts) > MOST:
            raise UsageError(f"{len(self.starts)} --pretrained, but a network has up to {MOST} encoders", "fewer")
        for one, other in combinations(self.starts, 2):
            _check_pair(one, other)

    def plan_entries(
        self,
        is_file: Sequence[bool],
        dataset_json: Mapping[str, Any],
        annotations: Annotations | None = None,
        inflate: str | None = None,
    ) -> tuple[StartingWeights, ...]:
        """Return the weights as a plan names them.

        Args:
            is_file: For each, whether the user named a file, of which others may share the name.
            dataset_json: nnU-Net's description of the dataset to train on.
            annotations: The dataset's annotations, if its cases annotate different classes.
            inflate: How 2D weights become 3D ones, one of INFLATIONS.
        """
        entries = []
        for start, named in zip(self.starts, is_file, strict=True):
            heads = choose_heads(start, None, dataset_json, annotations, ENCODER_ALONE)
            # All of the names are in the names of folders.
            length = NAME_LENGTH // len(self.starts)
            entries.append(
                plan_entry(start, heads, is_file=named, transfer=ENCODER_ALONE, inflate=inflate, length=length)
            )
        return tuple(entries)

    def decide(
        self, network: nn.Module, plan: Plan, configuration: str, dataset_json: Mapping[str, Any]
    ) -> JointTransfer:
        """Return what will be loaded into the network of a configuration, which may be on the meta device.

        Raises:
            WeightsError: The files are not those that the plan names, or do not fit the network.
        """
        if self._decided is None or self._decided[:2] != (plan, configuration):
            self._decided = plan, configuration, self._judge(network, plan, configuration, dataset_json)
        return self._decided[2]

    def release(self) -> None:
        """Let go of the parameters, as Start does."""
        self._decided = None
        for start in self.starts:
            start.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return JointStart, (self.starts,)

    def _judge(
        self, network: nn.Module, plan: Plan, configuration: str, dataset_json: Mapping[str, Any]
    ) -> JointTransfer:
        architecture = architectures.of_network(network)
        sources = architecture.sources(network)
        if not len(sources) == len(self.starts) == len(plan.weights):
            raise WeightsError(
                f"{len(self.starts)} weights are given, plans {plan.name!r} start from {len(plan.weights)}, and their "
                f"network has {len(sources)} encoder(s)",
                "as many --pretrained as the plans were derived with",
            )
        transfers = tuple(
            judge(start, named, source, plan, configuration, dataset_json)
            for start, named, source in zip(self.starts, plan.weights, sources, strict=True)
        )
        reports = tuple(transfer.report for transfer in transfers)
        fates = _fates(network, sources, [report.tensors for report in reports])
        return JointTransfer(JointReport(reports, fates, architecture), transfers)


def _check_pair(one: Start, other: Start) -> None:
    if one.sha256 == other.sha256:
        raise UsageError(
            f"{str(one.path)!r} and {str(other.path)!r} are the same weights: the encoders would learn the same",
            "other weights for one of them, or one --pretrained",
        )
    first, second = one.weights, other.weights
    for what, here, there in (
        ("network", first.network.architecture.title, second.network.architecture.title),
        ("axes", f"{first.network.ndim}D", f"{second.network.ndim}D"),
        ("size", str(first.network), str(second.network)),
        ("stages", first.network.stages, second.network.stages),
        ("strides", first.strides, second.strides),
        ("input channels", first.network.channels, second.network.channels),
    ):
        # Strides may be unknown.
        if here != there and None not in (here, there):
            raise WeightsError(
                f"{str(first.path)!r} and {str(second.path)!r} differ in {what}: {here} and {there}",
                "encoders of one network are alike in size, strides and channels: other weights, or one --pretrained",
            )
    if "encoders" in first.network.arguments:
        raise WeightsError(
            f"{str(first.path)!r} and {str(second.path)!r} hold {first.network.architecture.title} each",
            "one --pretrained, or weights of an STU-Net for each encoder",
        )


def _fates(network: nn.Module, sources: Sequence[nn.Module], reported: Sequence[Sequence[Fate]]) -> tuple[Fate, ...]:
    """Return one fate per tensor of the network under its own name there, then those left over in the weights."""
    own = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, Fate] = {}
    for source, fates in zip(sources, reported, strict=True):
        # By identity: sources share the parameters of their encoder with the network.
        renamed = {name: own.get(id(parameter), name) for name, parameter in source.named_parameters()}
        found |= {renamed[fate.target]: replace(fate, target=renamed[fate.target]) for fate in fates if fate.target}
    architecture = architectures.of_network(network)
    fusion = {
        name: Fate(name, None, "missing", value.numel(), note="starts as the mean")
        for name, value in network.named_parameters()
        if architecture.place(name).part == FUSION
    }
    left = [fate for fates in reported for fate in fates if not fate.target]
    return (*((found | fusion)[name] for name in network.state_dict()), *left)
