"""nnU-Net's plain U-Net, PlainConvUNet: convolutions with norm and activation, two per stage in nnU-Net's plans.

TotalSegmentator's models are of this kind. nnunet_unet.py has what it shares with the other one. The stem is the first
encoder stage.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stunet.architectures.base import ENCODER, STEM, Shapes
from stunet.architectures.nnunet_arguments import CONV, DROPOUT, NONLIN, NORM, Dimensions
from stunet.architectures.nnunet_unet import PARTS, NNUNet, Stage, count_repeats

if TYPE_CHECKING:
    from torch import nn

_INPUT = "encoder.stages.0.0.convs.0.conv.weight"
_CONVOLUTION = re.compile(r"encoder\.stages\.([0-9]{1,2})\.0\.convs\.([0-9]{1,2})\.conv\.weight")


class _PlainUNet(NNUNet):
    repeats = "n_conv_per_stage"
    usual_repeats = (2,)
    usual_decoder = 2

    def network_class(self) -> "type[nn.Module]":
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        return PlainConvUNet

    def owns(self, shapes: Shapes) -> bool:
        return len(shapes.get(_INPUT, ())) in (4, 5)

    def stages(self, shapes: Shapes) -> list[Stage]:
        found = {(int(m[1]), int(m[2])) for m in map(_CONVOLUTION.fullmatch, shapes) if m}
        first = (
            shapes[f"encoder.stages.{stage}.0.convs.0.conv.weight"] for stage, _ in enumerate(count_repeats(found))
        )
        return [
            Stage(c_out, tuple(kernel), repeats)
            for (c_out, _, *kernel), repeats in zip(first, count_repeats(found), strict=True)
        ]

    def encoder_parameters(self, arguments: Mapping[str, Any], channels: int, strides: Sequence[Sequence[int]]) -> int:
        own, total = self.dimensions(arguments, len(strides)), 0
        for features, kernel, repeats in zip(own.features, own.kernels, own.repeats, strict=True):
            total += own.convolution(channels, features, kernel)
            total += (repeats - 1) * own.convolution(features, features, kernel)
            channels = features
        return total

    def kept_of_stage(self, arguments: Mapping[str, Any], own: Dimensions, stage: int, voxels: Sequence[int]) -> int:
        return own.repeats[stage] * own.kept * own.features[stage] * voxels[stage]


PLAIN_UNET = _PlainUNet(
    class_name="dynamic_network_architectures.architectures.unet.PlainConvUNet",
    title="plain U-Net",
    parts={"encoder.stages.0": STEM, "encoder.stages": ENCODER, **PARTS},
    inputs=frozenset({_INPUT}),
    required=frozenset(
        {"n_stages", "features_per_stage", CONV, "kernel_sizes", "n_conv_per_stage", "n_conv_per_stage_decoder"}
    ),
    optional=frozenset({
        "conv_bias", NORM, "norm_op_kwargs", DROPOUT, "dropout_op_kwargs", NONLIN, "nonlin_kwargs", "nonlin_first",
        "deep_supervision",
    }),
    encoder_prefix="encoder.",
    imports=(CONV, NORM, DROPOUT, NONLIN),
    depth_by_patch=True,
)  # fmt: skip
