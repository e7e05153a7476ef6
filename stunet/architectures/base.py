"""What the rest of the package asks of a network: its parts, their order, its memory, how to recognise and build it.

One file per network answers (stunet.py is the example), and only that file knows its tensors' names. A network takes
part with an encoder of stages, a decoder of levels, and one head per level; plans hold its class and arguments.
Nothing here imports torch before a network is at hand.

    Parts     stem, encoder, upsampling, decoder, heads; with several encoders, also fusion, which has a module per
              encoder stage. A part's modules stand in a list, whose index is their level
    Levels    encoder stages count from the finest, 0 being the stem's; the others from the coarsest
    Depth     encoder stages 0 to n-1, then decoder levels n to n+m-1; the heads come last
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STEM, ENCODER, FUSION, UPSAMPLING = "stem", "encoder", "fusion", "upsampling"
DECODER, HEADS, OTHER = "decoder", "heads", "other"
Shapes = Mapping[str, tuple[int, ...]]


class Place(NamedTuple):
    """Where a tensor belongs: one of the parts, and the level in it."""

    part: str
    level: int


class Kept(NamedTuple):
    """Numbers per sample that a block's backward pass needs: all, and those of its output alone."""

    all: int
    output: int


@dataclass(frozen=True)
class Recognised:
    """The network that tensors belong to, as far as they tell: everything but, for most, the strides.

    Attributes:
        architecture: Which network it is.
        arguments: Those of its class that the tensors determine.
        size: Name of its size; None if it has none.
        stages: Number of encoder stages.
        channels: Input channels.
        classes: Rows of the heads; 0 without heads.
        ndim: Axes of space.
        strides: Those that the shapes of transposed convolutions tell; None: the tensors do not depend on strides.
        assumed: Names of those arguments that these tensors do not tell, because they have no decoder: the usual ones.
    """

    architecture: "Architecture"
    arguments: Mapping[str, Any]
    size: str | None
    stages: int
    channels: int
    classes: int
    ndim: int
    strides: Sequence[Sequence[int]] | None = None
    assumed: frozenset[str] = frozenset()

    @property
    def planned(self) -> dict[str, Any]:
        """The arguments as plans hold them, where a size is a name or None."""
        return {key: self.size if key == "size" else value for key, value in self.arguments.items()}

    def build(self, strides: Sequence[Sequence[int]] | None = None) -> "nn.Module":
        """Build the network with these strides, or its own, or the usual ones if no tensor depends on them."""
        strides = strides or self.strides or [[1] * self.ndim, *[[2] * self.ndim] * (self.stages - 1)]
        return self.architecture.build(self.channels, self.classes or 1, {**self.arguments, "strides": strides})

    def __str__(self) -> str:
        return self.architecture.describe(self.arguments)


@dataclass(frozen=True)
class Layout:
    """The blocks of a network in order of depth."""

    architecture: "Architecture"
    stages: int
    levels: int

    @property
    def blocks(self) -> int:
        """The number of blocks, and the index of the heads behind them."""
        return self.stages + self.levels

    def block_of(self, name: str) -> int:
        """Return the index of the block that a parameter belongs to.

        Raises:
            ValueError: Not a parameter of this architecture.
        """
        part, level = self.architecture.place(name)
        if part == OTHER:
            raise ValueError(f"{name!r} is not a parameter of {self.architecture.title}")
        # The first fusion, of the bottlenecks, and the second one both feed the first decoder level.
        blocks = {STEM: 0, ENCODER: level, FUSION: self.stages + max(level - 1, 0), HEADS: self.blocks}
        return blocks.get(part, self.stages + level)


@dataclass(frozen=True)
class Architecture(ABC):
    """A network that plans can name; the whole state of its modules must be in its state dict.

    Attributes:
        class_name: Its class, as in plans; nnU-Net calls it with input_channels, num_classes and the plan's arguments.
        title: Its name for users.
        parts: Part by name of the module list (of the module, for a stem of its own).
        inputs: Names of the convolution weights that take the image.
        required: Arguments of the class that a plan must give, besides strides.
        optional: Arguments that a plan may give.
        imports: Those of them that are classes, which plans hold as dotted strings.
        depth_by_patch: Whether the number of stages follows from the patch, and kernels along coarse axes from the
            spacing, as nnU-Net plans its own networks (plans/topology.py); otherwise the stages are chosen.
        encoder_prefix: What names of the encoder begin with, and files of an encoder alone may leave out.
    """

    class_name: str
    title: str
    parts: Mapping[str, str]
    inputs: frozenset[str]
    required: frozenset[str]
    optional: frozenset[str] = frozenset({"deep_supervision", "checkpointing"})
    imports: tuple[str, ...] = ()
    depth_by_patch: bool = False
    encoder_prefix: str = ""

    @abstractmethod
    def owns(self, shapes: Shapes) -> bool:
        """Return whether tensors of these names and shapes belong to this network, complete or not."""

    def misfits(self, shapes: Shapes) -> set[str]:
        """Return the names of tensors that only look like this network's, among those that it owns."""
        return set()

    @abstractmethod
    def recognise(self, shapes: Shapes) -> Recognised:
        """Return the network that tensors which it owns belong to; decoder and heads may be missing.

        Raises:
            ValueError: They contradict each other; the message continues a sentence that begins with the file.
        """

    @abstractmethod
    def build(self, channels: int, classes: int, arguments: Mapping[str, Any]) -> "nn.Module":
        """Build the network for these input channels, classes, and arguments of a plan, strides included."""

    @abstractmethod
    def parameters(
        self, arguments: Mapping[str, Any], channels: int, classes: int, strides: Sequence[Sequence[int]]
    ) -> int:
        """Return the number of parameters with these strides, whatever those in the arguments are."""

    def encoder_parameters(self, arguments: Mapping[str, Any], channels: int, strides: Sequence[Sequence[int]]) -> int:
        """Return the number of parameters of the encoder, or a larger one if that is not known."""
        return self.parameters(arguments, channels, 1, strides)

    @abstractmethod
    def kept(self, arguments: Mapping[str, Any], voxels: Sequence[int]) -> list[Kept]:
        """Return what autograd keeps of each block, encoder stages first.

        Args:
            arguments: Those of the class.
            voxels: Of the feature maps of each encoder stage; the decoder's are these without the last.
        """

    def usual(self, ndim: int) -> dict[str, Any]:
        """Return the arguments that nnU-Net's planners give it, but for what laid_out() adds.

        Raises:
            ValueError: They have no such network.
        """
        raise ValueError(f"nnU-Net plans no {self.title}")

    def laid_out(
        self,
        arguments: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Return a plan's arguments for the same network with other strides, and what else there is per stage.

        Args:
            arguments: Those of the class.
            strides: One entry per stage; fewer than before take the deepest stages away.
            kernels: Sizes of the convolutions' kernels, one entry per stage; None: those of the arguments.
        """
        return {**arguments, "strides": [list(stride) for stride in strides]}

    @abstractmethod
    def width(self, arguments: Mapping[str, Any]) -> int:
        """Return the channels of the features at full resolution."""

    @abstractmethod
    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the arguments in a plan, besides strides; None if nothing is."""

    @abstractmethod
    def describe(self, arguments: Mapping[str, Any]) -> str:
        """Return in words which of these networks the arguments describe, for messages."""

    def label(self, arguments: Mapping[str, Any]) -> str:
        """Return a short name, such as STU-Net-B."""
        return self.title

    def comparable(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what tensors tell of the arguments in a plan, in one form, whatever form the plan has them in."""
        return {key: arguments[key] for key in self.required}

    def untold(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the arguments in a plan that change what it computes and no tensor, by name for users."""
        return {}

    def settled(self, arguments: Mapping[str, Any], found: Recognised) -> dict[str, Any]:
        """Return a plan's arguments for the network that tensors belong to, without strides.

        Raises:
            ValueError: The plan has another network; the text continues "its plans ".
        """
        told = self.comparable(arguments)
        for key, value in self.comparable(found.planned).items():
            if key not in found.assumed and told[key] != value:
                raise ValueError(f"say {key} {told[key]!r}, but its tensors are of {key} {value!r}")
        return found.planned

    def difference(self, given: Recognised, target: Recognised) -> str | None:
        """Return why weights of this architecture do not fit a network of it; None if transfer.py bridges what differs.

        The text names both, and the network is the plan's.
        """
        return None if given.arguments == target.arguments else f"{given}, and the plan's network is {target}"

    def canonical(self, name: str) -> str:
        """Return the one official name of a tensor, which a state dict may hold under several."""
        return name

    def single(self, network: "nn.Module") -> dict[str, str]:
        """Take all names but one from each module of a network that has several, and return the others' place.

        It computes what it did before, through the names that are left. Returns, by its official name, what a tensor
        is called then.
        """
        return {name: name for name in network.state_dict()}

    def matching(self, name: str) -> str:
        """Return what two networks' tensors at the same place have in common: the canonical name, or a part of it."""
        return name

    def portable(self, network: "nn.Module") -> "nn.Module":
        """Return the network, which may be modified, with layers of torch that other programs know."""
        return network

    def prepare(self, network: "nn.Module", device: "torch.device") -> "nn.Module":
        """Return the network in its fastest form for prediction on a device; optimized.py then does what suits any."""
        return network

    def place(self, name: str) -> Place:
        """Return the part and level of a tensor by its name; OTHER if it is not one of this network."""
        name = self.canonical(name)
        found = [prefix for prefix in self.parts if name.startswith(f"{prefix}.")]
        if not found:
            return Place(OTHER, 0)
        # The longest: a stem's name can begin with the encoder's.
        prefix = max(found, key=len)
        number = name[len(prefix) + 1 :].partition(".")[0]
        counts = self.parts[prefix] != STEM and number.isdigit()
        return Place(self.parts[prefix], int(number) if counts else 0)

    def is_encoder(self, name: str) -> bool:
        """Return whether a tensor belongs to the encoder, its stem included."""
        return self.place(name).part in (STEM, ENCODER)

    def at_level(self, name: str, level: int) -> str:
        """Return the name that a tensor has at another level of its part."""
        prefix = max((prefix for prefix in self.parts if name.startswith(f"{prefix}.")), key=len)
        _, dot, rest = name[len(prefix) + 1 :].partition(".")
        return f"{prefix}.{level}{dot}{rest}"

    def built(self, network: "nn.Module") -> bool:
        """Return whether a network, without wrappers, is one of these; FSDP2 puts it into a subclass."""
        return any(f"{each.__module__}.{each.__qualname__}" == self.class_name for each in type(network).__mro__)

    def strides(self, network: Any) -> Sequence[Sequence[int]]:
        """Return the strides of a network, one entry per stage."""
        return network.strides

    def deeply_supervise(self, network: Any, enabled: bool) -> None:
        """Switch between the heads of all levels and the finest alone, where nnU-Net looks for the switch."""
        network.decoder.deep_supervision = enabled

    def is_deeply_supervised(self, network: Any) -> bool:
        """Return what deeply_supervise() has set."""
        return network.decoder.deep_supervision

    def channels(self, network: "nn.Module") -> int:
        """Return the number of input channels."""
        # Any of them, as all take the image; min() because a set has no order.
        return network.get_parameter(min(self.inputs)).shape[1]

    def layout(self, network: "nn.Module") -> Layout:
        """Return the order of a network's blocks."""
        return Layout(self, len(self.modules(network, ENCODER)), len(self.modules(network, DECODER)))

    def blocks(self, network: "nn.Module") -> "list[nn.Module]":
        """Return the modules of stem, encoder and decoder in order of depth: what is gathered together in FSDP2."""
        separate = self.modules(network, STEM)
        encoder = self.modules(network, ENCODER)
        return [*(stem for stem in separate if stem not in encoder), *encoder, *self.modules(network, DECODER)]

    def modules(self, network: "nn.Module", part: str) -> "list[nn.Module]":
        """Return the modules of a part by level."""
        found: list[nn.Module] = []
        for prefix in (prefix for prefix, own in self.parts.items() if own == part):
            module = network.get_submodule(prefix)
            found += [module] if part == STEM else [each for each in module.children() if each not in found]
        return found

    def features(self, network: "nn.Module", x_BCDHW: "Tensor") -> "list[Tensor]":
        """Return the outputs of all encoder stages, finest first, each (B, C', D / s, H / s, W / s)."""
        outputs: list[Tensor] = []
        encoder = self.modules(network, ENCODER)
        for module in self.blocks(network)[: -len(self.modules(network, DECODER)) or None]:
            x_BCDHW = self.run(network, module, x_BCDHW)
            if module in encoder:  # and not a stem of its own
                outputs.append(x_BCDHW)
        return outputs

    def sources(self, network: "nn.Module") -> "list[nn.Module]":
        """Return the networks that pre-trained weights are loaded into, one per encoder: the network itself, or views.

        A view shares the parameters of its encoder with the network.
        """
        return [network]

    def decode(self, network: "nn.Module", features: "Sequence[Tensor]", levels: int | None = None) -> "Tensor":
        """Return the decoder's output at full resolution, (B, C', D, H, W), without the head.

        Args:
            network: The network, without wrappers.
            features: What features() returned, or the same shapes with other values: zeros in place of all but the
                last take the skip connections away.
            levels: Decode that many levels only, the coarsest ones; the output has the last one's resolution.
        """
        *skips, x = features
        modules = zip(self.modules(network, UPSAMPLING), self.modules(network, DECODER), strict=True)
        for (upsample, stage), skip in list(zip(modules, reversed(skips), strict=True))[:levels]:
            x = self.run(network, _decode, upsample, stage, x, skip)
        return x

    def run(self, network: "nn.Module", function: "Callable[..., Tensor]", *inputs: Any) -> "Tensor":
        """Call a part of a network, which a network that recomputes activations does in its own way."""
        return function(*inputs)

    def width_of(self, network: Any) -> int:
        """Return the channels of decode()'s output."""
        return self.head(network).in_channels  # type: ignore[return-value]

    def head(self, network: "nn.Module") -> "nn.Module":
        """Return the head at full resolution."""
        return self.modules(network, HEADS)[-1]


def _decode(upsample: "nn.Module", stage: "nn.Module", x_BCDHW: "Tensor", skip_BCDHW: "Tensor") -> "Tensor":
    import torch

    return stage(torch.cat((upsample(x_BCDHW), skip_BCDHW), 1))
