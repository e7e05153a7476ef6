"""Recognise the STU-Net that tensors belong to: names and shapes determine everything but the strides."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stunet.errors import WeightsError
from stunet.networks import STUNet
from stunet.sizes import SIZES, Size
from stunet.weights.foreign import describe_network

_STEM = "conv_blocks_context.0.0.conv1.weight"
_BLOCK = re.compile(r"conv_blocks_context\.([0-9]{1,2})\.([0-9]{1,2})\.")
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Architecture:
    """`size` is a key of SIZES, or None if width and depth match none of them; `classes` is 0 without heads."""

    size: str | None
    width: int
    depth: int
    stages: int
    channels: int
    classes: int
    ndim: int


def recognise(tensors: Mapping[str, Tensor], path: Path) -> Architecture:
    """Return the STU-Net that the tensors belong to; the decoder and the heads may be missing.

    Raises:
        WeightsError: They belong to another network, which is named, or are inconsistent.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    stem = shapes.get(_STEM, ())
    if len(stem) not in (4, 5):
        raise WeightsError(
            f"{str(path)!r} holds {describe_network(shapes)}, not a STU-Net",
            "stunet_models list shows what can be downloaded",
        )
    for name, value in tensors.items():
        if value.dtype not in _TYPES or not value.numel():
            raise WeightsError(
                f"{str(path)!r}: {name!r} has {value.numel()} values of type {str(value.dtype).removeprefix('torch.')}",
                "weights are float16, bfloat16, float32 or float64: use the checkpoint that training wrote",
            )
    found = {(int(m[1]), int(m[2])) for m in map(_BLOCK.match, shapes) if m}
    stages, depth = (1 + max(block[axis] for block in found) for axis in (0, 1))
    if stages < 2 or len(found) != stages * depth:
        raise WeightsError(
            f"{str(path)!r} lacks parts of its encoder: {len(found)} blocks instead of {stages} stages of {depth}",
            "copy it again from its source",
        )
    width, head = stem[0], shapes.get(f"seg_outputs.{stages - 2}.weight", (0,))
    architecture = Architecture(
        size=next((name for name, size in SIZES.items() if size == Size(width, depth)), None),
        width=width,
        depth=depth,
        stages=stages,
        channels=stem[1],
        classes=head[0],
        ndim=len(stem) - 2,
    )
    _check_shapes(shapes, architecture, path)
    return architecture


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], it: Architecture, path: Path) -> None:
    with torch.device("meta"):
        network = STUNet(it.channels, it.classes or 1, Size(it.width, it.depth), [[1] * it.ndim] * it.stages)
    for name, value in network.state_dict().items():
        if name in shapes and shapes[name] != tuple(value.shape):
            raise WeightsError(
                f"{str(path)!r} is no STU-Net of width {it.width} and depth {it.depth}: {name!r} has shape "
                f"{shapes[name]} instead of {tuple(value.shape)}",
                "copy it again from its source",
            )
