"""STU-Net with several encoders: the names of its tensors, its memory, and how to recognise it.

Each encoder takes weights of an STU-Net (sources), so decoder, heads and whatever else is alike are left to stunet.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stunet.architectures.base import (
    DECODER,
    ENCODER,
    FUSION,
    HEADS,
    STEM,
    UPSAMPLING,
    Architecture,
    Kept,
    Layout,
    Place,
    Recognised,
    Shapes,
)
from stunet.architectures.stunet import STUNET, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST = 4  # encoders; each of them takes the memory of one
_STAGE = re.compile(r"encoders\.([0-9]{1,2})\.([0-9]{1,2})\.")
_INPUT = "encoders.0.0.0.conv1.weight"


class _MultiEncoder(Architecture):
    def owns(self, shapes: Shapes) -> bool:
        return len(shapes.get(_INPUT, ())) in (4, 5)

    def recognise(self, shapes: Shapes) -> Recognised:
        encoders = 1 + max(int(m[1]) for m in map(_STAGE.match, shapes) if m)
        found = [STUNET.recognise(_as_stunet(shapes, each)) for each in range(encoders) if _has(shapes, each)]
        if not 2 <= len(found) == encoders <= MOST or any(one != found[0] for one in found):
            raise ValueError(f"lacks parts of its encoders: {len(found)} of 2 to {MOST} that are alike")
        one = found[0]
        arguments = {**one.arguments, "encoders": encoders}
        return Recognised(self, arguments, one.size, one.stages, one.channels, one.classes, one.ndim)

    def build(self, channels: int, classes: int, arguments: Mapping[str, Any]) -> "nn.Module":
        from stunet.networks import MultiEncoderSTUNet

        return MultiEncoderSTUNet(channels, classes, **arguments)

    def parameters(
        self, arguments: Mapping[str, Any], channels: int, classes: int, strides: Sequence[Sequence[int]]
    ) -> int:
        encoders, one = arguments["encoders"], STUNET.encoder_parameters(arguments, channels, strides)
        widths = [size_of(arguments).channels(stage) for stage, _ in enumerate(strides)]
        fusion = sum(encoders * width * width + width for width in widths)
        return STUNET.parameters(arguments, channels, classes, strides) + (encoders - 1) * one + fusion

    def encoder_parameters(self, arguments: Mapping[str, Any], channels: int, strides: Sequence[Sequence[int]]) -> int:
        return arguments["encoders"] * STUNET.encoder_parameters(arguments, channels, strides)

    def portable(self, network: Any) -> "nn.Module":
        return STUNET.portable(network)

    def kept(self, arguments: Mapping[str, Any], voxels: Sequence[int]) -> list[Kept]:
        encoders, one = arguments["encoders"], STUNET.kept(arguments, voxels)
        # Fusion also keeps the concatenation; what it makes of the bottlenecks is kept for the upsampling, and with
        # checkpointing what it makes of any stage, as the input of a level that is computed again.
        encoder = [
            Kept(encoders * (kept.all + kept.output) + last * kept.output, (encoders + 1) * kept.output)
            for kept, last in zip(one, [*[0] * (len(voxels) - 1), 1], strict=False)
        ]
        return encoder + one[len(voxels) :]

    def width(self, arguments: Mapping[str, Any]) -> int:
        return STUNET.width(arguments)

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        encoders = arguments["encoders"]
        if type(encoders) is not int or not 2 <= encoders <= MOST:
            return f"encoders {encoders!r} must be 2 to {MOST}"
        return STUNET.problem(arguments)

    def describe(self, arguments: Mapping[str, Any]) -> str:
        return f"{STUNET.describe(arguments)} with {arguments['encoders']} encoders"

    def label(self, arguments: Mapping[str, Any]) -> str:
        return f"{STUNET.label(arguments)} with {arguments['encoders']} encoders"

    def place(self, name: str) -> Place:
        if match := _STAGE.match(name):
            return Place(ENCODER, stage) if (stage := int(match[2])) else Place(STEM, 0)
        return super().place(name)

    def layout(self, network: "nn.Module") -> Layout:
        return Layout(self, len(self.modules(network, FUSION)), len(self.modules(network, DECODER)))

    def modules(self, network: "nn.Module", part: str) -> "list[nn.Module]":
        """Return the modules of a part by level, those of all encoders at a level one after the other."""
        if part not in (STEM, ENCODER):
            return super().modules(network, part)
        encoders: Any = network.encoders
        levels = list(zip(*encoders, strict=True))
        return [stage for level in levels[: 1 if part == STEM else None] for stage in level]

    def features(self, network: "nn.Module", x_BCDHW: "Tensor") -> "list[Tensor]":
        """Return the fused features of all stages, finest first, each (B, C', D / s, H / s, W / s)."""
        return network.encode(x_BCDHW)  # type: ignore[operator]

    def sources(self, network: "nn.Module") -> "list[nn.Module]":
        """Return an STU-Net for each encoder, which shares it with the network."""
        return [network.with_one_encoder(index) for index in range(len(network.encoders))]  # type: ignore[arg-type, operator]


def _has(shapes: Shapes, encoder: int) -> bool:
    return f"encoders.{encoder}.0.0.conv1.weight" in shapes


def _as_stunet(shapes: Shapes, encoder: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an STU-Net with this encoder, whose heads are those of all."""
    own = f"encoders.{encoder}."
    renamed = {f"conv_blocks_context.{name.removeprefix(own)}": s for name, s in shapes.items() if name.startswith(own)}
    return renamed | {name: shape for name, shape in shapes.items() if not name.startswith("encoders.")}


MULTI_ENCODER = _MultiEncoder(
    class_name="stunet.networks.MultiEncoderSTUNet",
    title="multi-encoder STU-Net",
    parts={
        "encoders": ENCODER,
        "fusion_layers": FUSION,
        "upsample_layers": UPSAMPLING,
        "conv_blocks_localization": DECODER,
        "seg_outputs": HEADS,
    },
    inputs=frozenset(f"encoders.{each}.0.0.conv{n}.weight" for each in range(MOST) for n in (1, 3)),
    required=frozenset({"size", "encoders"}),
)
