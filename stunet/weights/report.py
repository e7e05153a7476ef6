"""Report what was loaded into a network, tensor by tensor: for the console, and for transfer_report.json.

Every tensor of the network and of the weights has one fate:

    copied     unchanged
    inflated   input convolutions whose number of channels differs, and kernels of other lengths, as of 2D in 3D
    head       rows by class name, or as initialised
    missing    keeps its initialisation: not in the weights, of another shape, or not to be transferred
    unused     only in the weights

transfer.py decides; heads.py has the rows of the classes.
"""

from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from stunet.architectures.base import DECODER, ENCODER, UPSAMPLING, Architecture
from stunet.plans.plan import ENCODER_ALONE, WHOLE
from stunet.weights.changes import Change
from stunet.weights.heads import Heads

KINDS = ("copied", "inflated", "head", "missing", "unused")


@dataclass(frozen=True)
class Fate:
    """What becomes of one tensor.

    Attributes:
        target: Name in the network; None if it is unused.
        source: Name in the weights; None if nothing is loaded.
        kind: One of KINDS.
        elements: Number of its elements.
        pretrained: How many of them were trained for what they do; the others are initial values, zero or repeated.
        note: What is special about it.
    """

    target: str | None
    source: str | None
    kind: str
    elements: int
    pretrained: int = 0
    note: str = ""


class _Tensors:
    """What follows from the fates of the tensors alone."""

    tensors: tuple[Fate, ...]
    architecture: Architecture
    changes: tuple[Change, ...] = ()

    @property
    def fresh(self) -> frozenset[str]:
        """Tensors of the network that are not pre-trained, or not in all their classes or input channels."""
        return frozenset(fate.target for fate in self.tensors if fate.target and fate.pretrained < fate.elements)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns, and one row per part of the network: its size, and the number of tensors of each fate."""
        rows = []
        parts = [self.part_of(fate) for fate in self.tensors]
        for part in dict.fromkeys(parts):
            fates = [fate for fate, own in zip(self.tensors, parts, strict=True) if own == part]
            size = sum(fate.elements for fate in fates if fate.target)
            counts = [sum(fate.kind == kind for fate in fates) for kind in KINDS]
            rows.append([part, f"{size:,}", *(str(count or "-") for count in counts)])
        return ["part", "parameters", *KINDS], rows

    def part_of(self, fate: Fate) -> str:
        """Return the part of the network: "stem", "encoder 1" and so on, "decoder", "heads", or "other"."""
        part, level = self.architecture.place(fate.target or fate.source or "")
        return f"{ENCODER} {level}" if part == ENCODER else DECODER if part == UPSAMPLING else part


@dataclass(frozen=True)
class TransferReport(_Tensors):
    """What was loaded into a network, and from where.

    Attributes:
        weights: The file.
        sha256: Hash of the file, if the caller knows it.
        entry: Name in the registry, if known.
        coverage: Loaded fraction of the encoder's elements, in the stages that network and weights share.
        heads: What became of the classes.
        warnings: What users should know before training.
        tensors: One fate per tensor of the network, then those left over in the weights.
        architecture: Of the network, which says where a tensor belongs.
        origin: How a pretext trained the weights; None for others.
        transfer: What was taken, one of TRANSFERS.
        inflate: How 2D kernels became 3D ones, one of INFLATIONS.
        changes: In what the training differs from that of the weights: what, there, and here.
    """

    weights: str
    sha256: str | None
    entry: str | None
    coverage: float
    heads: Heads
    warnings: tuple[str, ...]
    tensors: tuple[Fate, ...]
    architecture: Architecture
    origin: str | None = None
    transfer: str = WHOLE
    inflate: str | None = None
    changes: tuple[Change, ...] = ()

    def lines(self) -> list[str]:
        """Return what the table does not tell."""
        part = ["transferred: stem and encoder; decoder and upsampling are initialised at random"]
        return [*self.own_lines(), *(part if self.transfer == ENCODER_ALONE else ()), *self.heads.lines()]

    def own_lines(self) -> list[str]:
        """Return the part of lines() that is about the weights, and not about what is left as it is."""
        name = f"{self.entry}, " if self.entry else ""
        loaded = f"weights: {name}{self.weights}; {self.coverage:.1%} of the encoder loaded"
        lines = [loaded, f"pre-training: {self.origin}"] if self.origin else [loaded]
        if self.inflate:
            lines.append(f"kernels: 2D, made 3D by {self.inflate!r}")
        notes = [
            (fate.target in self.architecture.inputs, fate.note) for fate in self.tensors if fate.kind == "inflated"
        ]
        lines += [f"input: {note}" for note in dict.fromkeys(note for is_input, note in notes if is_input and note)]
        others = Counter(note for is_input, note in notes if note and not is_input)
        return lines + [f"kernels: {note} in {count} convolutions" for note, count in others.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the content of transfer_report.json."""
        tensors = [asdict(fate) for fate in self.tensors]
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "architecture"}
        # Reports of weights that labels trained are as they were before there were others.
        usual = {"origin": None, "transfer": WHOLE, "inflate": None, "changes": ()}
        own = {key: value for key, value in own.items() if key not in usual or value != usual[key]}
        return {**own, "heads": asdict(self.heads), "tensors": tensors}


@dataclass(frozen=True)
class JointReport(_Tensors):
    """What was loaded into a network with several encoders.

    Attributes:
        reports: One per encoder, as of a network with that encoder alone.
        tensors: One fate per tensor of the network, then those left over in each of the weights.
        architecture: Of the network.
    """

    reports: tuple[TransferReport, ...]
    tensors: tuple[Fate, ...]
    architecture: Architecture

    @property
    def warnings(self) -> tuple[str, ...]:
        """What users should know before training, of all weights; what they have in common comes once."""
        return tuple(dict.fromkeys(text for report in self.reports for text in report.warnings))

    def lines(self) -> list[str]:
        """Return what the table does not tell, with the number of the encoder."""
        return [f"encoder {n}: {line}" for n, report in enumerate(self.reports, 1) for line in report.own_lines()] + [
            "fusion: starts as the mean of the encoders; decoder, upsampling and heads are initialised at random"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of transfer_report.json: under `encoders` that of each, without its tensors."""
        encoders = [{key: value for key, value in each.to_json().items() if key != "tensors"} for each in self.reports]
        return {"encoders": encoders, "tensors": [asdict(fate) for fate in self.tensors]}
