"""What nnU-Net's two U-Nets have in common: the names of their tensors, their decoder, and the arguments in plans.

plain_unet.py and resenc.py add the encoder. The networks are those of dynamic_network_architectures, and plans describe
them as nnU-Net writes it: lists with one entry per stage, and classes as dotted strings. These are looked up in a fixed
table, and nothing is imported by the name that a file gives.

    Encoder      encoder.stages.{0..n-1}        stage k: stride strides[k]
    Upsampling   decoder.transpconvs.{0..n-2}   0 = from the bottleneck; the kernel is the stride, so shapes tell it
    Decoder      decoder.stages.{0..n-2}        after concatenation (upsampled, skip)
    Heads        decoder.seg_layers.{0..n-2}    0 = lowest resolution, last = full resolution

A state dict has most tensors under four names: the modules of `all_modules` are conv and norm, and the decoder has the
encoder as well.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from stunet.architectures.base import DECODER, HEADS, UPSAMPLING, Architecture, Kept, Recognised, Shapes

if TYPE_CHECKING:
    from torch import nn

CONV, NORM, DROPOUT, NONLIN = "conv_op", "norm_op", "dropout_op", "nonlin"
# The classes that plans may name, by argument: the module of torch that defines them, and their names.
_TORCH: dict[str, dict[str, tuple[str, ...]]] = {
    CONV: {"conv": ("Conv2d", "Conv3d")},
    NORM: {"instancenorm": ("InstanceNorm2d", "InstanceNorm3d"), "batchnorm": ("BatchNorm2d", "BatchNorm3d")},
    DROPOUT: {"dropout": ("Dropout", "Dropout2d", "Dropout3d")},
    NONLIN: {"activation": ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish")},
}
CLASSES: dict[str, dict[str, str]] = {
    key: {
        dotted: name
        for module, names in modules.items()
        for name in names
        for dotted in (f"torch.nn.{name}", f"torch.nn.modules.{module}.{name}")
    }
    for key, modules in _TORCH.items()
}
# What may be given to them.
_OPTIONS = {
    NORM: {"eps", "momentum", "affine", "track_running_stats"},
    DROPOUT: {"p", "inplace"},
    NONLIN: {"inplace", "negative_slope", "alpha", "approximate"},
}
_FROM_OUTPUT = {"ReLU", "LeakyReLU", "ELU"}  # computed in place, these need their output alone for the backward pass
_TWICE = re.compile(r"(^|\.)decoder\.encoder\.")
_ALIAS = re.compile(r"\.all_modules\.([0-9])\.")
_LEVEL = re.compile(r"decoder\.stages\.([0-9]{1,2})\.convs\.([0-9]{1,2})\.conv\.weight")
MOST_STAGES = 20
USUAL_WIDTH = 32  # channels of the first stage in nnU-Net's plans; they double per stage
MOST_WIDTH = {2: 512, 3: 320}  # by the number of axes: where they stop doubling
PARTS = {"decoder.transpconvs": UPSAMPLING, "decoder.stages": DECODER, "decoder.seg_layers": HEADS}


class Stage(NamedTuple):
    """An encoder stage, as its tensors tell it: its channels, its kernel, and its convolutions or residual blocks."""

    features: int
    kernel: tuple[int, ...]
    repeats: int


@dataclass(frozen=True)
class Dimensions:
    """The arguments of a plan that shapes or memory depend on, with one entry per stage.

    Attributes:
        features: Channels.
        kernels: Voxels per axis.
        repeats: Convolutions or residual blocks of the encoder.
        decoder: Convolutions per level, coarsest first.
        bias: Whether convolutions have one.
        norm: Whether there are norms.
        affine: Whether norms have parameters.
        tracked: Whether norms have running statistics.
        kept: Tensors of its output's shape that autograd keeps of a convolution with norm and activation: the input of
            the norm, that of the activation unless it works in place, and its output.
    """

    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    repeats: tuple[int, ...]
    decoder: tuple[int, ...]
    bias: bool
    norm: bool
    affine: bool
    tracked: bool
    kept: int

    def convolution(self, c_in: int, c_out: int, kernel: Sequence[int] = (), bias: bool | None = None) -> int:
        """Return the number of parameters of a convolution, one of size 1 by default, and the norm behind it."""
        has_bias = self.bias if bias is None else bias
        return math.prod(kernel) * c_in * c_out + c_out * has_bias + 2 * c_out * self.affine


class NNUNet(Architecture):
    """One of the two; `repeats` is the argument for what an encoder stage is made of."""

    repeats: ClassVar[str]
    usual_repeats: ClassVar[tuple[int, ...]]  # in nnU-Net's plans; the last one is that of all further stages
    usual_decoder: ClassVar[int]  # convolutions per level in nnU-Net's plans

    @abstractmethod
    def network_class(self) -> "type[nn.Module]":
        """Return the class."""

    @abstractmethod
    def stages(self, shapes: Shapes) -> list[Stage]:
        """Return the encoder stages that tensors belong to, finest first.

        Raises:
            ValueError: Some are missing.
        """

    @abstractmethod
    def kept_of_stage(self, arguments: Mapping[str, Any], own: Dimensions, stage: int, voxels: Sequence[int]) -> int:
        """Return the numbers per sample that autograd keeps of an encoder stage, its stem included."""

    def own_arguments(self, shapes: Shapes) -> dict[str, Any]:
        """Return the arguments that only this network has, as tensors determine them."""
        return {}

    def own_problem(self, arguments: Mapping[str, Any], stages: int) -> str | None:
        """Return what is wrong with the arguments that only this network has; None if nothing is."""
        return None

    def canonical(self, name: str) -> str:
        name = _TWICE.sub(r"\1encoder.", name)
        return _ALIAS.sub(lambda found: ".conv." if found[1] == "0" else ".norm.", name)

    def single(self, network: Any) -> dict[str, str]:
        """Leave the names by which forward() calls modules: those of all_modules, and the encoder's own."""
        del network.decoder.encoder
        for module in list(network.modules()):
            if hasattr(module, "all_modules"):
                for name in [name for name, _ in module.named_children() if name != "all_modules"]:
                    delattr(module, name)
        return {self.canonical(name): name for name in network.state_dict()}

    def misfits(self, shapes: Shapes) -> set[str]:
        """Return the names of a decoder without skip connections, as nnssl's NoSkipResEncL has it."""
        lift, first = (shapes.get(f"decoder.{name}.weight") for name in ("transpconvs.0", "stages.0.convs.0.conv"))
        if not lift or not first or lift[1] != first[1]:
            return set()
        return {name for name in shapes if self.place(name).part in PARTS.values()}

    def recognise(self, shapes: Shapes) -> Recognised:
        shapes = {self.canonical(name): shape for name, shape in shapes.items()}
        stages = self.stages(shapes)
        _, channels, *first = shapes[min(self.inputs)]
        if len(stages) < 2:
            raise ValueError("has a single encoder stage, and a network has two or more")
        if any(len(stage.kernel) != len(first) for stage in stages):
            raise ValueError("has convolutions in 2D and in 3D")
        decoder, strides = _decoder(shapes, len(stages), len(first))
        stem = min(self.inputs).removesuffix("conv.weight")
        tracked, ndim = f"{stem}norm.running_mean" in shapes, len(first)
        arguments = {
            "n_stages": len(stages),
            "features_per_stage": [stage.features for stage in stages],
            CONV: f"torch.nn.modules.conv.Conv{ndim}d",
            "kernel_sizes": [list(stage.kernel) for stage in stages],
            self.repeats: [stage.repeats for stage in stages],
            "n_conv_per_stage_decoder": decoder or [self.usual_decoder] * (len(stages) - 1),
            "conv_bias": f"{stem}conv.bias" in shapes,
            # Running statistics tell the norm, and what has neither them nor parameters is taken for a norm as well.
            NORM: f"torch.nn.modules.{'batchnorm.Batch' if tracked else 'instancenorm.Instance'}Norm{ndim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": f"{stem}norm.weight" in shapes},
            DROPOUT: None,
            "dropout_op_kwargs": None,
            NONLIN: "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
            **self.own_arguments(shapes),
        }
        classes = shapes.get(f"decoder.seg_layers.{len(stages) - 2}.weight", (0,))[0]
        assumed = frozenset() if decoder else frozenset({"n_conv_per_stage_decoder"})
        return Recognised(self, arguments, None, len(stages), channels, classes, ndim, strides, assumed)

    def build(self, channels: int, classes: int, arguments: Mapping[str, Any]) -> "nn.Module":
        if wrong := self.problem(arguments):
            raise ValueError(wrong)
        given = {key: self.resolve(key, value) if key in self.imports else value for key, value in arguments.items()}
        try:
            return self.network_class()(input_channels=channels, num_classes=classes, **given)
        except (TypeError, AssertionError) as error:  # options that the class does not take
            raise ValueError(str(error)) from None

    def resolve(self, key: str, dotted: str | None) -> Any:
        """Return the class of the table that an argument names; None for None."""
        from torch import nn

        return None if dotted is None else getattr(nn, CLASSES[key][dotted])

    def dimensions(self, arguments: Mapping[str, Any], stages: int | None = None) -> Dimensions:
        """Return what counts depend on, of the first `stages` stages: a plan's lists may be of the deepest network."""
        count = stages or arguments["n_stages"]
        ndim = _ndim(arguments)
        norm, options = _named(NORM, arguments.get(NORM)), arguments.get("norm_op_kwargs") or {}
        nonlin, inplace = _named(NONLIN, arguments.get(NONLIN)), (arguments.get("nonlin_kwargs") or {}).get("inplace")
        is_batch = norm is not None and norm.startswith("Batch")
        # What is computed elsewhere than in place needs its input, too; of ReLU that is known from the output.
        also = nonlin is not None and nonlin != "ReLU" and not (inplace and nonlin in _FROM_OUTPUT)
        return Dimensions(
            tuple(_each(arguments["features_per_stage"], count)),
            tuple(tuple(_each(kernel, ndim)) for kernel in _each(arguments["kernel_sizes"], count)),
            tuple(_each(arguments[self.repeats], count)),
            tuple(_each(arguments["n_conv_per_stage_decoder"], count - 1)),
            bool(arguments.get("conv_bias", False)),
            norm is not None,
            norm is not None and bool(options.get("affine", is_batch)),
            norm is not None and bool(options.get("track_running_stats", is_batch)),
            1 + (norm is not None) + also,
        )

    def parameters(
        self, arguments: Mapping[str, Any], channels: int, classes: int, strides: Sequence[Sequence[int]]
    ) -> int:
        own, total = self.dimensions(arguments, len(strides)), self.encoder_parameters(arguments, channels, strides)
        levels = zip(own.features, own.features[1:], own.kernels, reversed(own.decoder), strides[1:], strict=False)
        for high, low, kernel, convolutions, stride in levels:
            total += math.prod(stride) * low * high + high * own.bias  # without a norm
            total += own.convolution(2 * high, high, kernel) + (convolutions - 1) * own.convolution(high, high, kernel)
            total += (high + 1) * classes
        return total

    def kept(self, arguments: Mapping[str, Any], voxels: Sequence[int]) -> list[Kept]:
        own = self.dimensions(arguments, len(voxels))
        outputs = [features * count for features, count in zip(own.features, voxels, strict=True)]
        encoder = [
            Kept(self.kept_of_stage(arguments, own, stage, voxels), output) for stage, output in enumerate(outputs)
        ]
        # Besides its convolutions a level keeps the concatenation of upsampled features and skip connection.
        return encoder + [
            Kept((2 + own.kept * convolutions) * output, output)
            for output, convolutions in zip(outputs[:-1], reversed(own.decoder), strict=True)
        ]

    def usual(self, ndim: int) -> dict[str, Any]:
        return {
            "n_stages": 1,
            "features_per_stage": [USUAL_WIDTH],
            CONV: f"torch.nn.modules.conv.Conv{ndim}d",
            "kernel_sizes": [[3] * ndim],
            "strides": [[1] * ndim],
            self.repeats: [self.usual_repeats[0]],
            "n_conv_per_stage_decoder": [],
            "conv_bias": True,
            NORM: f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            DROPOUT: None,
            "dropout_op_kwargs": None,
            NONLIN: "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }

    def laid_out(
        self,
        arguments: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Return a plan's arguments for other strides; widths and blocks of further stages go on as nnU-Net's do."""
        before, stages, ndim = arguments["n_stages"], len(strides), _ndim(arguments)
        features = _each(arguments["features_per_stage"], before)
        most = max(MOST_WIDTH[ndim], *features)
        while len(features) < stages:
            features.append(min(2 * features[-1], most))
        repeats, usual = _each(arguments[self.repeats], before), [*self.usual_repeats]
        usual += usual[-1:] * max(stages, before)
        repeats += usual[before:stages] if repeats == usual[:before] else repeats[-1:] * (stages - before)
        # Coarsest first: further levels come, and fewer go, at the front.
        decoder = _each(arguments["n_conv_per_stage_decoder"], before - 1)
        decoder = (decoder[:1] or [self.usual_decoder]) * (stages - before) + decoder
        if kernels is None:
            kernels = [_each(kernel, ndim) for kernel in _each(arguments["kernel_sizes"], before)]
        found = {
            **arguments,
            "n_stages": stages,
            "features_per_stage": features[:stages],
            "kernel_sizes": [list(kernel) for kernel in kernels[:stages]],
            "strides": [list(stride) for stride in strides],
            self.repeats: repeats[:stages],
            "n_conv_per_stage_decoder": decoder[len(decoder) - stages + 1 :],
        }
        if isinstance(widths := arguments.get("bottleneck_channels"), list | tuple):
            found["bottleneck_channels"] = [*widths, *widths[-1:] * stages][:stages]
        return found

    def width(self, arguments: Mapping[str, Any]) -> int:
        return _each(arguments["features_per_stage"], 1)[0]

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        return next(self._problems(arguments), None)

    def describe(self, arguments: Mapping[str, Any]) -> str:
        own = self.dimensions(arguments)
        features, repeats = ("-".join(map(str, each)) for each in (own.features, own.repeats))
        what = self.repeats.split("_")[1].replace("conv", "convolutions")
        norm = "batch norm" if own.tracked else "instance norm" if own.norm else "no norm"
        return f"{len(own.features)} stages of {features} channels and {repeats} {what}, {norm}"

    def comparable(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        own = self.dimensions(arguments)
        norm = {"affine": own.affine, "running statistics": own.tracked}
        return {
            "n_stages": len(own.features),
            "features_per_stage": list(own.features),
            "kernel_sizes": [list(kernel) for kernel in own.kernels],
            self.repeats: list(own.repeats),
            "n_conv_per_stage_decoder": list(own.decoder),
            "conv_bias": own.bias,
            NORM: norm,
        }

    def settled(self, arguments: Mapping[str, Any], found: Recognised) -> dict[str, Any]:
        """Return a plan's own arguments; the norm may be another one, as trainers swap it (nnUNetTrainerBN)."""
        unknown = sorted(arguments.keys() - self.required - self.optional - {"strides"})
        if wrong := f"name unknown arguments: {', '.join(unknown)}" if unknown else self.problem(arguments):
            raise ValueError(f"describe no {self.title}: {wrong}")
        own = {key: value for key, value in arguments.items() if key not in ("strides", "deep_supervision")}
        if self.comparable(arguments)[NORM] != self.comparable(found.arguments)[NORM]:
            own |= {key: found.arguments[key] for key in (NORM, "norm_op_kwargs")}
        super().settled(own, found)
        return own

    def difference(self, given: Recognised, target: Recognised) -> str | None:
        """Return which of the stages that both have differ, but for kernels and biases, or which norm."""
        here, there = self.comparable(given.arguments), self.comparable(target.arguments)
        common = min(given.stages, target.stages)
        for key, value in here.items():
            if key in ("n_stages", "n_conv_per_stage_decoder", "conv_bias", "kernel_sizes"):
                continue  # transfer.py matches levels and kernels; a bias before a norm has no effect
            pair = [each[:common] if isinstance(each, list) else each for each in (value, there[key])]
            if pair[0] != pair[1]:
                return f"{given}, and the plan's network is {target}: other {key}"
        return None

    def strides(self, network: Any) -> Sequence[Sequence[int]]:
        return network.encoder.strides

    def _problems(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Yield what is wrong; only the first is of use, as later checks rely on earlier ones."""
        stages = arguments["n_stages"]
        if type(stages) is not int or not 2 <= stages <= MOST_STAGES:
            yield f"n_stages {stages!r} must be 2 to {MOST_STAGES}"
        for key in self.imports:
            if (value := arguments.get(key)) not in (known := self.known(key)) and (value is not None or key == CONV):
                names = ", ".join(sorted(known, key=len)[: len(known) // 2 or 1])
                yield f"{key} {value!r} is not one of the classes that are known here: {names}"
        ndim = _ndim(arguments)
        for key, count in (
            ("features_per_stage", stages), (self.repeats, stages), ("n_conv_per_stage_decoder", stages - 1),
        ):  # fmt: skip
            if not _are_counts(arguments[key], count):
                yield f"{key} {arguments[key]!r} must be {count} positive integers"
        kernels = arguments["kernel_sizes"]
        given = kernels if isinstance(kernels, list | tuple) else [kernels] * stages
        if len(given) != stages or not all(_are_counts(one, ndim, odd=True) for one in given):
            yield f"kernel_sizes {kernels!r} must be {stages} entries of {ndim} odd numbers"
        if (strides := arguments.get("strides")) is not None and len(strides) != stages:
            yield f"strides {strides!r} must have an entry for each of {stages} stages"
        if not isinstance(arguments.get("conv_bias", False), bool):
            yield f"conv_bias {arguments['conv_bias']!r} must be true or false"
        if (norm := _named(NORM, arguments.get(NORM))) and not norm.endswith(f"{ndim}d"):
            yield f"norm_op {arguments[NORM]!r} is not for {ndim}D"
        for key, known_options in _OPTIONS.items():
            options = arguments.get(f"{key}_kwargs")
            if options is not None and not _are_plain(options, known_options):
                yield f"{key}_kwargs {options!r} must be numbers by the names {', '.join(sorted(known_options))}"
        if wrong := self.own_problem(arguments, stages):
            yield wrong

    def known(self, key: str) -> Mapping[str, Any]:
        """Return the dotted strings that an argument may have."""
        return CLASSES[key]


def _decoder(shapes: Shapes, stages: int, ndim: int) -> tuple[list[int], list[list[int]] | None]:
    """Return the convolutions per level, and the strides; empty and None if there is no decoder."""
    found = {(int(m[1]), int(m[2])) for m in map(_LEVEL.fullmatch, shapes) if m}
    kernels = [shapes.get(f"decoder.transpconvs.{level}.weight") for level in range(stages - 1)]
    if not found and not any(kernels):
        return [], None
    convolutions = [sum(level == own for own, _ in found) for level in range(stages - 1)]
    whole = {(level, number) for level, count in enumerate(convolutions) for number in range(count)}
    lifts = [kernel for kernel in kernels if kernel and len(kernel) == ndim + 2]
    if found != whole or len(lifts) != stages - 1 or not all(convolutions):
        raise ValueError(f"lacks parts of its decoder, or has parts of another one: it has {stages} encoder stages")
    return convolutions, [[1] * ndim, *(list(kernel[2:]) for kernel in reversed(lifts))]


def count_repeats(found: set[tuple[int, int]]) -> list[int]:
    """Return how many repeats there are per stage, from their places (stage, number).

    Raises:
        ValueError: Some are missing.
    """
    stages = 1 + max(stage for stage, _ in found)
    repeats = [sum(stage == own for own, _ in found) for stage in range(stages)]
    if found != {(stage, number) for stage, count in enumerate(repeats) for number in range(count)} or not all(repeats):
        raise ValueError(f"lacks parts of its encoder: {len(found)} blocks in {stages} stages")
    return repeats


def _ndim(arguments: Mapping[str, Any]) -> int:
    return int(CLASSES[CONV][arguments[CONV]].removeprefix("Conv")[0])


def _named(key: str, dotted: str | None) -> str | None:
    """Return the name of a class in torch.nn."""
    return None if dotted is None else CLASSES[key][dotted]


def _each(value: Any, count: int) -> list[Any]:
    """Return one value per stage or axis; a single one is for all."""
    return list(value[:count]) if isinstance(value, list | tuple) else [value] * count


def _are_counts(value: Any, count: int, odd: bool = False) -> bool:
    """Return whether a value is a positive integer, or as many of them."""
    given = value if isinstance(value, list | tuple) else [value] * count
    return len(given) == count and all(type(one) is int and one > 0 and (one % 2 or not odd) for one in given)


def _are_plain(options: Any, known: set[str]) -> bool:
    return isinstance(options, Mapping) and all(
        key in known and (value is None or isinstance(value, bool | int | float | str))
        for key, value in options.items()
    )
