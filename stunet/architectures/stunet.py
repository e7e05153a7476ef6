"""STU-Net: the names of its tensors, its memory, and how to recognise it. networks.py has the network itself."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stunet.architectures.base import DECODER, ENCODER, HEADS, STEM, UPSAMPLING, Architecture, Kept, Recognised, Shapes
from stunet.sizes import SIZES, Size

if TYPE_CHECKING:
    from torch import Tensor, nn

_INPUT = "conv_blocks_context.0.0.conv1.weight"
_BLOCK = re.compile(r"conv_blocks_context\.([0-9]{1,2})\.([0-9]{1,2})\.")


class _STUNet(Architecture):
    def owns(self, shapes: Shapes) -> bool:
        # nnU-Net v1's Generic_UNet has a conv_blocks_context, too, but other blocks in it
        return len(shapes.get(_INPUT, ())) in (4, 5)

    def recognise(self, shapes: Shapes) -> Recognised:
        found = {(int(m[1]), int(m[2])) for m in map(_BLOCK.match, shapes) if m}
        stages, depth = (1 + max(block[axis] for block in found) for axis in (0, 1))
        if stages < 2 or len(found) != stages * depth:
            raise ValueError(f"lacks parts of its encoder: {len(found)} blocks instead of {stages} stages of {depth}")
        width, channels, *kernel = shapes[_INPUT]
        size = Size(width, depth)
        name = next((name for name, known in SIZES.items() if known == size), None)
        classes = shapes.get(f"seg_outputs.{stages - 2}.weight", (0,))[0]
        return Recognised(self, {"size": name or size}, name, stages, channels, classes, len(kernel))

    def build(self, channels: int, classes: int, arguments: Mapping[str, Any]) -> "nn.Module":
        from stunet.networks import STUNet

        return STUNet(channels, classes, **arguments)

    def parameters(
        self, arguments: Mapping[str, Any], channels: int, classes: int, strides: Sequence[Sequence[int]]
    ) -> int:
        return size_of(arguments).parameters(channels, classes, len(strides), len(strides[0]))

    def encoder_parameters(self, arguments: Mapping[str, Any], channels: int, strides: Sequence[Sequence[int]]) -> int:
        return size_of(arguments).encoder_parameters(channels, len(strides), len(strides[0]))

    def run(self, network: Any, function: "Callable[..., Tensor]", *inputs: Any) -> "Tensor":
        return network._run(function, *inputs)

    def portable(self, network: Any) -> "nn.Module":
        from stunet.networks import with_layers_of_torch

        return with_layers_of_torch(network)

    def kept(self, arguments: Mapping[str, Any], voxels: Sequence[int]) -> list[Kept]:
        size = size_of(arguments)
        # A residual block keeps 4 tensors of its output's shape: the outputs of two convolutions and two activations.
        # A decoder level also keeps the concatenation of upsampled features and skip connection, two more.
        outputs = [size.channels(stage) * count for stage, count in enumerate(voxels)]
        encoder = [Kept(4 * size.depth * output, output) for output in outputs]
        return encoder + [Kept(4 * size.depth * output + 2 * output, output) for output in outputs[:-1]]

    def width(self, arguments: Mapping[str, Any]) -> int:
        return size_of(arguments).width

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        size = arguments["size"]
        known = isinstance(size, str) and size in SIZES
        return None if known else f"unknown size {size!r}; known: {', '.join(SIZES)}"

    def describe(self, arguments: Mapping[str, Any]) -> str:
        size, given = size_of(arguments), arguments["size"]
        name = f"size {given}" if isinstance(given, str) else "no published size"
        return f"{name} ({size.width} channels in the first stage, {size.depth} block(s) per stage)"

    def label(self, arguments: Mapping[str, Any]) -> str:
        return f"{self.title}-{arguments['size']}"


def size_of(arguments: Mapping[str, Any]) -> Size:
    """Return the size that a plan names, or that tensors have."""
    size = arguments["size"]
    return size if isinstance(size, Size) else SIZES[size]


STUNET = _STUNet(
    class_name="stunet.networks.STUNet",
    title="STU-Net",
    parts={
        "conv_blocks_context.0": STEM,
        "conv_blocks_context": ENCODER,
        "upsample_layers": UPSAMPLING,
        "conv_blocks_localization": DECODER,
        "seg_outputs": HEADS,
    },
    inputs=frozenset({_INPUT, "conv_blocks_context.0.0.conv3.weight"}),
    required=frozenset({"size"}),
)
