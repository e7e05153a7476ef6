"""Estimate how much memory a case needs, stage by stage, and choose what runs at a time so that a limit is kept.

Figures are upper bounds of what arrays take, from the shapes in a file's header;
the limit applies to the whole process, including Python and torch. If memory is short, three things give way, in this
order: cases are no longer read ahead, logits are added in half precision, and finally a case is refused before it is
read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from stunet import architectures
from stunet.errors import OutOfMemoryError
from stunet.inference.engine.windows import SlidingWindow
from stunet.machine import GB

READ = 8  # bytes per voxel and channel while an image is read: as stored in the file, and in float32
PREPROCESS = 8  # bytes per voxel and channel of the larger grid, for the image and its resampled copy
PREPARED = 4  # bytes per voxel and channel of the network's grid, from then on
FEATURES = 8  # approximate number of first-stage feature maps at full resolution that a forward pass holds at a time
EXPORT = 0.25e9  # bytes for the classes of a few planes
WRITE = 5  # bytes per voxel and byte of a label: labels, ITK's copy, and the compressed data


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of each stage, in addition to what the process takes before the first case.

    Attributes:
        prepare: Reading and preprocessing.
        segment: Network and export.
        write: The finished segmentation.
        half_saves: How much less `segment` needs if logits are added in half precision.
    """

    prepare: float
    segment: float
    write: float
    half_saves: float

    @property
    def peak(self) -> float:
        """The peak if the stages run one after the other."""
        return max(self.prepare, self.segment, self.write)


@dataclass(frozen=True)
class Schedule:
    """What runs at a time: whether cases are read ahead, and whether logits are added in half precision."""

    ahead: bool
    half: bool


def need(
    shape: Sequence[int], network_shape: Sequence[int], channels: int, windows: SlidingWindow, configuration: Any
) -> Need:
    """Return the memory need of a case.

    Args:
        shape: Of the image.
        network_shape: Of the image on the network's grid.
        channels: C.
        windows: The network.
        configuration: nnU-Net's ConfigurationManager.
    """
    voxels, network_voxels = math.prod(shape), math.prod(network_shape)
    label_bytes = 1 if windows.classes < 255 else 2
    prepared = PREPARED * channels * network_voxels
    preprocessing = PREPROCESS * channels * max(voxels, network_voxels) + prepared
    logits = windows.logits_bytes(network_shape) if windows.network.device.type == "cpu" else 0
    return Need(
        prepare=max(READ * channels * voxels, preprocessing),
        segment=2 * prepared + logits + _forward(windows, configuration) + label_bytes * voxels + EXPORT,
        write=WRITE * label_bytes * voxels,
        half_saves=logits / 2,
    )


def network_shape(shape: Sequence[int], spacing: Sequence[float], configuration: Any) -> list[int]:
    """Return the shape, on the network's grid, of an image with axes in the plan's order, before it is cropped."""
    target = [*spacing[: len(spacing) - len(configuration.spacing)], *configuration.spacing]  # 2D plans keep slices
    return [int(n) for n in compute_new_shape(shape, spacing, target)]


def schedule(
    case: Need, neighbours: Sequence[Need], base: float, limit: float, limit_name: str = "--max_memory"
) -> Schedule:
    """Choose how a case is processed within a limit.

    Args:
        case: The need of this case.
        neighbours: The needs of this case and of those before and after it, which are written and read while it is
            segmented.
        base: Bytes that the process takes without cases.
        limit: Bytes it may take.
        limit_name: What set the limit, for the message.

    Raises:
        OutOfMemoryError: The case does not fit.
    """
    beside = max(each.prepare for each in neighbours) + max(each.write for each in neighbours)
    if base + case.segment + beside <= limit:
        return Schedule(ahead=True, half=False)
    if base + case.peak <= limit:
        return Schedule(ahead=False, half=False)
    least = base + max(case.prepare, case.segment - case.half_saves, case.write)
    if least <= limit:
        return Schedule(ahead=False, half=True)
    raise OutOfMemoryError(
        f"needs about {least / GB:.2f} GB, more than the {limit / GB:.2f} GB of {limit_name}",
        f"--max_memory {least / GB + 0.1:.1f}GB, or a machine with more memory",
    )


def _forward(windows: SlidingWindow, configuration: Any) -> float:
    """Return the bytes that a forward pass on the CPU takes: features at full resolution, and logits."""
    if windows.network.device.type != "cpu":
        return 0.0
    arguments = configuration.network_arch_init_kwargs
    architecture = architectures.find(configuration.network_arch_class_name)
    width = architecture.width(arguments) if architecture else max(arguments.get("features_per_stage", [32])[:1])
    value = 4 if windows.network.precision == "fp32" else 2
    mirrored = 8 if windows.network.is_mirrored else 0  # the sum in float32, and the logits that are flipped back
    return math.prod(windows.patch) * (FEATURES * width * value + windows.classes * (2 * value + mirrored))
