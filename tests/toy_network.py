"""A second network, for tests: what one file about a network has to say, and nothing in it is like STU-Net.

It has a stem of its own, max pooling between stages, transposed convolutions, no residuals, no norms, and other names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stunet.architectures.base import DECODER, ENCODER, HEADS, STEM, UPSAMPLING, Architecture, Kept, Recognised, Shapes


class ToyNet(nn.Module):
    """Maps (B, C, D, H, W) to logits; the width doubles per stage."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        width: int,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.strides = strides
        widths = [width * 2**stage for stage in range(len(strides))]
        pairs = [(widths[n], widths[n - 1], tuple(strides[n])) for n in range(len(strides) - 1, 0, -1)]
        self.entry = nn.Conv3d(input_channels, width, 3, padding=1)
        before = [width, *widths]
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool3d(tuple(stride)), nn.Conv3d(before[n], widths[n], 3, padding=1), nn.LeakyReLU(0.01)
            )
            for n, stride in enumerate(strides)
        )
        self.lift = nn.ModuleList(nn.ConvTranspose3d(low, high, stride, stride) for low, high, stride in pairs)
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv3d(2 * high, high, 3, padding=1), nn.LeakyReLU(0.01)) for _, high, _ in pairs
        )
        self.classify = nn.ModuleList(nn.Conv3d(high, num_classes, 1) for _, high, _ in pairs)
        self.decoder = nn.Module()  # where nnU-Net switches deep supervision
        self.decoder.deep_supervision = deep_supervision  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x, skips, outputs = self.entry(x), [], []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for lift, merge, head in zip(self.lift, self.merge, self.classify, strict=True):
            x = merge(torch.cat((lift(x), skips.pop()), 1))
            outputs.append(head(x))
        return outputs[::-1] if self.decoder.deep_supervision else outputs[-1]

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise as nnU-Net's networks do; for `network.apply`."""
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class _Toy(Architecture):
    def owns(self, shapes: Shapes) -> bool:
        return len(shapes.get("entry.weight", ())) == 5 and "down.0.1.weight" in shapes

    def recognise(self, shapes: Shapes) -> Recognised:
        width, channels = shapes["entry.weight"][:2]
        stages = len({name for name in shapes if name.startswith("down.") and name.endswith("weight")})
        classes = shapes.get(f"classify.{stages - 2}.weight", (0,))[0]
        lifts = [list(shapes[f"lift.{n}.weight"][2:]) for n in range(stages - 1) if f"lift.{n}.weight" in shapes]
        strides = [[1, 1, 1], *lifts[::-1]] if lifts else None  # an encoder alone does not tell
        return Recognised(self, {"width": width}, None, stages, channels, classes, 3, strides)

    def build(self, channels: int, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
        return ToyNet(channels, classes, **arguments)

    def parameters(
        self, arguments: Mapping[str, Any], channels: int, classes: int, strides: Sequence[Sequence[int]]
    ) -> int:
        widths = [arguments["width"] * 2**stage for stage, _ in enumerate(strides)]
        encoder = sum(27 * c_in * c_out + c_out for c_in, c_out in zip([widths[0], *widths], widths, strict=False))
        decoder = sum(8 * 2 * c * c + c + 27 * 2 * c * c + c + (c + 1) * classes for c in widths[:-1])  # strides of 2
        return 27 * channels * widths[0] + widths[0] + encoder + decoder

    def kept(self, arguments: Mapping[str, Any], voxels: Sequence[int]) -> list[Kept]:
        outputs = [arguments["width"] * 2**stage * count for stage, count in enumerate(voxels)]
        return [Kept(2 * n, n) for n in outputs] + [Kept(4 * n, n) for n in outputs[:-1]]

    def width(self, arguments: Mapping[str, Any]) -> int:
        return arguments["width"]

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        return None if type(arguments["width"]) is int else f"width {arguments['width']!r} is not a number"

    def describe(self, arguments: Mapping[str, Any]) -> str:
        return f"width {arguments['width']}"

    def prepare(self, network: nn.Module, device: torch.device) -> nn.Module:
        network.prepared_for = device.type  # type: ignore[assignment]
        return network


TOY = _Toy(
    class_name=f"{ToyNet.__module__}.{ToyNet.__qualname__}",
    title="ToyNet",
    parts={"entry": STEM, "down": ENCODER, "lift": UPSAMPLING, "merge": DECODER, "classify": HEADS},
    inputs=frozenset({"entry.weight"}),
    required=frozenset({"width"}),
    optional=frozenset({"deep_supervision"}),
)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
