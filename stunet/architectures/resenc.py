"""nnU-Net's residual-encoder U-Net, ResidualEncoderUNet: residual blocks in the encoder, convolutions in the decoder.

nnunet_unet.py has what it shares with the plain one. Its stem is a convolution before the stages:

    Stem      encoder.stem.convs.0
    Blocks    encoder.stages.{0..n-1}.blocks.{b}.conv{1,2}   BasicBlockD; with bottlenecks (BottleneckD) conv{1,2,3}
    Shortcut  ....blocks.0.skip.{0,1}                        average pooling where the stage has a stride, which takes
              the first number, then a convolution of size 1 where the channels change
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stunet.architectures.base import ENCODER, STEM, Shapes
from stunet.architectures.nnunet_arguments import CONV, DROPOUT, NONLIN, NORM, Dimensions
from stunet.architectures.nnunet_unet import PARTS, NNUNet, Stage, count_repeats

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCK = "block"
_BLOCKS = {
    f"dynamic_network_architectures.building_blocks.residual.{name}": name for name in ("BasicBlockD", "BottleneckD")
}
_INPUT = "encoder.stem.convs.0.conv.weight"
_FIRST = "encoder.stages.0.blocks.0.conv1.conv.weight"
_MAIN = re.compile(r"encoder\.stages\.([0-9]{1,2})\.blocks\.([0-9]{1,2})\.conv1\.conv\.weight")
_SHORTCUT = re.compile(r"(encoder\.stages\.[0-9]{1,2}\.blocks\.0\.skip)\.[01]\.")


class _ResEnc(NNUNet):
    repeats = "n_blocks_per_stage"
    usual_repeats = (1, 3, 4, 6)
    usual_decoder = 1

    def network_class(self) -> "type[nn.Module]":
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

        return ResidualEncoderUNet

    def resolve(self, key: str, dotted: str | None) -> Any:
        if key != BLOCK or dotted is None:
            return super().resolve(key, dotted)
        from dynamic_network_architectures.building_blocks import residual

        return getattr(residual, _BLOCKS[dotted])

    def known(self, key: str) -> Mapping[str, str]:
        return _BLOCKS if key == BLOCK else super().known(key)

    def features(self, network: "nn.Module", x_BCDHW: "Tensor") -> "list[Tensor]":
        """Return the outputs of all encoder stages; sides that strides do not divide are rounded up.

        Convolutions do that, and the poolings in the shortcuts beside them round down until they are told otherwise,
        which changes nothing for other sides.
        """
        from torch import nn

        for module in network.modules():
            if isinstance(module, nn.AvgPool2d | nn.AvgPool3d) and not module.ceil_mode:
                module.ceil_mode = True
        return super().features(network, x_BCDHW)

    def owns(self, shapes: Shapes) -> bool:
        # ResidualUNet has the same encoder, and residual blocks in its decoder, too.
        decoder = "decoder.stages.0.blocks.0.conv1.conv.weight"
        return len(shapes.get(_INPUT, ())) in (4, 5) and _FIRST in shapes and decoder not in shapes

    def matching(self, name: str) -> str:
        """Return the name without the number of a shortcut's convolution, which is behind a pooling if there is one."""
        return _SHORTCUT.sub(r"\1.", name)

    def stages(self, shapes: Shapes) -> list[Stage]:
        repeats = count_repeats({(int(m[1]), int(m[2])) for m in map(_MAIN.fullmatch, shapes) if m})
        last, wide = (3, 2) if _bottlenecks(shapes, 0) else (2, 1)
        found = []
        for stage, blocks in enumerate(repeats):
            first = f"encoder.stages.{stage}.blocks.0.conv"
            if not {f"{first}{last}.conv.weight", f"{first}{wide}.conv.weight"} <= shapes.keys():
                raise ValueError(f"lacks parts of its encoder: those of stage {stage}")
            features = shapes[f"{first}{last}.conv.weight"][0]
            found.append(Stage(features, tuple(shapes[f"{first}{wide}.conv.weight"][2:]), blocks))
        return found

    def own_arguments(self, shapes: Shapes) -> dict[str, Any]:
        stages = self.stages(shapes)
        found: dict[str, Any] = {}
        if stages[0].features != (stem := shapes[_INPUT][0]):
            found["stem_channels"] = stem
        if _bottlenecks(shapes, 0):
            bottleneck = next(dotted for dotted, name in _BLOCKS.items() if name == "BottleneckD")
            found |= {BLOCK: bottleneck, "bottleneck_channels": [_bottlenecks(shapes, n) for n in range(len(stages))]}
        return found

    def own_problem(self, arguments: Mapping[str, Any], stages: int) -> str | None:
        stem, bottlenecks = arguments.get("stem_channels"), arguments.get("bottleneck_channels")
        if stem is not None and not (type(stem) is int and stem > 0):
            return f"stem_channels {stem!r} must be a positive integer"
        given = bottlenecks if isinstance(bottlenecks, list | tuple) else [bottlenecks] * stages
        has = _has_bottlenecks(arguments)
        if has and not (len(given) == stages and all(type(one) is int and one > 0 for one in given)):
            return f"bottleneck_channels {bottlenecks!r} must be {stages} positive integers"
        return None

    def comparable(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        found = super().comparable(arguments)
        stages = found["n_stages"]
        found["stem_channels"] = self._stem(arguments, found["features_per_stage"])
        return found | {"bottleneck_channels": [_width(arguments, stage) for stage in range(stages)]}

    def encoder_parameters(self, arguments: Mapping[str, Any], channels: int, strides: Sequence[Sequence[int]]) -> int:
        own = self.dimensions(arguments, len(strides))
        stem = self._stem(arguments, own.features)
        total, before = own.convolution(channels, stem, own.kernels[0]), stem
        for stage, (features, kernel, repeats) in enumerate(zip(own.features, own.kernels, own.repeats, strict=True)):
            for c_in in (before, *[features] * (repeats - 1)):
                if width := _width(arguments, stage):
                    total += own.convolution(c_in, width) + own.convolution(width, width, kernel)
                    total += own.convolution(width, features)
                else:
                    total += own.convolution(c_in, features, kernel) + own.convolution(features, features, kernel)
            if before != features:
                total += own.convolution(before, features, bias=False)
            before = features
        return total

    def kept_of_stage(self, arguments: Mapping[str, Any], own: Dimensions, stage: int, voxels: Sequence[int]) -> int:
        """Return what is kept of a stage; a block's last activation works on the sum of block and shortcut."""
        features, count, width = own.features[stage], voxels[stage], _width(arguments, stage)
        stem = self._stem(arguments, own.features)
        before, finer = (own.features[stage - 1], voxels[stage - 1]) if stage else (stem, count)
        # The first convolution of a bottleneck comes before the stride.
        inner = [width * (finer if number == 0 else count) + width * count for number in range(own.repeats[stage])]
        total = own.kept * sum((one if width else features * count) + features * count for one in inner)
        if before != features:
            # The pooled input of the shortcut's convolution, and its output as the input of a norm.
            total += before * count * (finer != count) + features * count * own.norm
        return total + (own.kept * stem * count if stage == 0 else 0)

    def _stem(self, arguments: Mapping[str, Any], features: Sequence[int]) -> int:
        return arguments.get("stem_channels") or features[0]


def _bottlenecks(shapes: Shapes, stage: int) -> int:
    """Return the channels between the convolutions of size 1 of a stage's blocks; 0 without these."""
    name = f"encoder.stages.{stage}.blocks.0.conv"
    return shapes.get(f"{name}2.conv.weight", (0,))[0] if f"{name}3.conv.weight" in shapes else 0


def _has_bottlenecks(arguments: Mapping[str, Any]) -> bool:
    return _BLOCKS.get(str(arguments.get(BLOCK))) == "BottleneckD"


def _width(arguments: Mapping[str, Any], stage: int) -> int:
    """Return the channels of a stage's bottlenecks; 0 without these."""
    if not _has_bottlenecks(arguments):
        return 0
    given = arguments["bottleneck_channels"]
    return given[stage] if isinstance(given, list | tuple) else given


RESENC = _ResEnc(
    class_name="dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    title="ResEnc U-Net",
    parts={"encoder.stem": STEM, "encoder.stages": ENCODER, **PARTS},
    inputs=frozenset({_INPUT}),
    required=frozenset(
        {"n_stages", "features_per_stage", CONV, "kernel_sizes", "n_blocks_per_stage", "n_conv_per_stage_decoder"}
    ),
    optional=frozenset({
        "conv_bias", NORM, "norm_op_kwargs", DROPOUT, "dropout_op_kwargs", NONLIN, "nonlin_kwargs", BLOCK,
        "bottleneck_channels", "stem_channels", "deep_supervision",
    }),
    encoder_prefix="encoder.",
    imports=(CONV, NORM, DROPOUT, NONLIN, BLOCK),
    depth_by_patch=True,
)  # fmt: skip
