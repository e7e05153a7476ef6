"""What nnU-Net's two U-Nets have in common: the names of their tensors, and their decoder.

plain_unet.py and resenc.py add the encoder. The networks are those of dynamic_network_architectures, and plans describe
them as nnU-Net writes it (nnunet_arguments.py).

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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from stunet.architectures.base import DECODER, HEADS, UPSAMPLING, Architecture, Kept, Recognised, Shapes
from stunet.architectures.nnunet_arguments import (
    CLASSES,
    MOST_WIDTH,
    NONLIN,
    NORM,
    Dimensions,
    dimensions,
    each,
    named,
    ndim_of,
    problems,
    usual,
)

if TYPE_CHECKING:
    from torch import nn

_TWICE = re.compile(r"(^|\.)decoder\.encoder\.")
_ALIAS = re.compile(r"\.all_modules\.([0-9])\.")
_LEVEL = re.compile(r"decoder\.stages\.([0-9]{1,2})\.convs\.([0-9]{1,2})\.conv\.weight")
PARTS = {"decoder.transpconvs": UPSAMPLING, "decoder.stages": DECODER, "decoder.seg_layers": HEADS}


class Stage(NamedTuple):
    """An encoder stage, as its tensors tell it: its channels, its kernel, and its convolutions or residual blocks."""

    features: int
    kernel: tuple[int, ...]
    repeats: int


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
            **{key: value for key, value in self.usual(ndim).items() if key != "strides"},
            "n_stages": len(stages),
            "features_per_stage": [stage.features for stage in stages],
            "kernel_sizes": [list(stage.kernel) for stage in stages],
            self.repeats: [stage.repeats for stage in stages],
            "n_conv_per_stage_decoder": decoder or [self.usual_decoder] * (len(stages) - 1),
            "conv_bias": f"{stem}conv.bias" in shapes,
            "norm_op_kwargs": {"eps": 1e-5, "affine": f"{stem}norm.weight" in shapes},
            **self.own_arguments(shapes),
        }
        if tracked:  # what has neither statistics nor parameters is taken for an instance norm as well
            arguments[NORM] = f"torch.nn.modules.batchnorm.BatchNorm{ndim}d"
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
        """Return what counts depend on, of the first `stages` stages."""
        return dimensions(arguments, self.repeats, stages)

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
        return usual(ndim, self.repeats, self.usual_repeats[0])

    def laid_out(
        self,
        arguments: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Return a plan's arguments for other strides; widths and blocks of further stages go on as nnU-Net's do."""
        before, stages, ndim = arguments["n_stages"], len(strides), ndim_of(arguments)
        features = each(arguments["features_per_stage"], before)
        most = max(MOST_WIDTH[ndim], *features)
        while len(features) < stages:
            features.append(min(2 * features[-1], most))
        repeats, planned = each(arguments[self.repeats], before), [*self.usual_repeats]
        planned += planned[-1:] * max(stages, before)
        repeats += planned[before:stages] if repeats == planned[:before] else repeats[-1:] * (stages - before)
        # Coarsest first: further levels come, and fewer go, at the front.
        decoder = each(arguments["n_conv_per_stage_decoder"], before - 1)
        decoder = (decoder[:1] or [self.usual_decoder]) * (stages - before) + decoder
        if kernels is None:
            kernels = [each(kernel, ndim) for kernel in each(arguments["kernel_sizes"], before)]
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
        return each(arguments["features_per_stage"], 1)[0]

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        known = {key: self.known(key) for key in self.imports}
        wrong = next(problems(arguments, self.repeats, known), None)
        return wrong or self.own_problem(arguments, arguments["n_stages"])

    def describe(self, arguments: Mapping[str, Any]) -> str:
        own = self.dimensions(arguments)
        features, repeats = ("-".join(map(str, values)) for values in (own.features, own.repeats))
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

    def untold(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        options = {key: arguments.get(f"{key}_kwargs") or {} for key in (NONLIN, NORM)}
        activation = named(NONLIN, arguments.get(NONLIN))
        numbers = {key: value for key, value in options[NONLIN].items() if key != "inplace" and value is not None}
        if activation == "LeakyReLU":
            numbers.setdefault("negative_slope", 0.01)  # torch's
        return {
            "activation": " ".join([str(activation), *(f"{key}={value}" for key, value in sorted(numbers.items()))]),
            "activation before the norm": bool(arguments.get("nonlin_first")),
            "norm": (named(NORM, arguments.get(NORM)) or "none")[:-2],  # without the number of axes
            "eps of the norm": options[NORM].get("eps", 1e-5),
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
            pair = [one[:common] if isinstance(one, list) else one for one in (value, there[key])]
            if pair[0] != pair[1]:
                return f"{given}, and the plan's network is {target}: other {key}"
        return None

    def strides(self, network: Any) -> Sequence[Sequence[int]]:
        return network.encoder.strides

    def known(self, key: str) -> Mapping[str, str]:
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
