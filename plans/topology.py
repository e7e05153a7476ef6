"""Choose the strides that a patch supports: how often, and in which order, the network halves each axis.

Sizes and spacings are in array order (D, H, W in 3D; H, W in 2D), voxels and mm. Read next: fit.py.
"""

import math
from collections.abc import Sequence

MIN_EDGE = 4  # voxels that a halved axis keeps at the bottleneck (nnU-Net's UNet_featuremap_min_edge_length)
MAX_HALVINGS = 5  # per axis, as in the published networks
DEFAULT_STAGES = 6  # the published depth: pre-trained weights have six stages
AUTO_STAGES = (4, 7)  # the range of `--stages auto`

Strides = list[list[int]]


def strides_for(patch: Sequence[int], spacing: Sequence[float], stages: int) -> Strides:
    """Return strides per stage (`stages` entries, the first all ones) for a patch with this voxel spacing.

    Each stage halves the axes that are fine enough: less than twice as coarse as the finest axis that can still be
    halved, and never more than twice as coarse as any other axis. Deep stages that find no axis to halve keep strides
    of one, so that on small volumes a network keeps its number of stages (and can load weights of that depth).
    """
    size, pitch = list(patch), list(spacing)
    halvings = [0] * len(size)
    strides = [[1] * len(size)]
    for _ in range(stages - 1):
        # These two are nnU-Net's rules (get_pool_and_conv_props), except that its depth follows from them.
        open_axes = [a for a in range(len(size)) if size[a] >= 2 * MIN_EDGE and halvings[a] < MAX_HALVINGS]
        finest_open = min((pitch[a] for a in open_axes), default=math.inf)
        # This one is ours: an axis that cannot be halved any more counts, too, so no axis becomes far coarser than it.
        limit = 2 * min(pitch)
        stride = [
            2 if a in open_axes and pitch[a] < 2 * finest_open and pitch[a] <= limit else 1 for a in range(len(size))
        ]
        for axis, factor in enumerate(stride):
            size[axis] = math.ceil(size[axis] / factor)
            pitch[axis] *= factor
            halvings[axis] += factor - 1
        strides.append(stride)
    return strides


def supported_stages(patch: Sequence[int], spacing: Sequence[float]) -> int:
    """Return the number of stages for `--stages auto`: one more than the stages that halve an axis, 4 to 7."""
    low, high = AUTO_STAGES
    halving = sum(max(stride) > 1 for stride in strides_for(patch, spacing, high))
    return min(max(halving + 1, low), high)


def divisor(strides: Strides) -> list[int]:
    """Return what each axis of the patch must be a multiple of: the product of its strides."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


def minimum(strides: Strides) -> list[int]:
    """Return the smallest patch these strides are meant for: MIN_EDGE bottleneck voxels along every halved axis."""
    return [d * MIN_EDGE if d > 1 else 1 for d in divisor(strides)]


def round_up(patch: Sequence[int], spacing: Sequence[float], stages: int) -> tuple[list[int], Strides]:
    """Return the smallest patch that is not below `patch` and divisible by its own strides, with those strides."""
    current = list(patch)
    while True:
        strides = strides_for(current, spacing, stages)
        rounded = [math.ceil(n / d) * d for n, d in zip(current, divisor(strides), strict=True)]
        if rounded == current:
            return current, strides
        # A larger patch may allow another halving, which changes its divisor: repeat until nothing changes.
        current = rounded


def round_down(patch: Sequence[int], spacing: Sequence[float], stages: int) -> tuple[list[int], Strides]:
    """Return a patch that is not above `patch` and divisible by its own strides, with those strides."""
    current = list(patch)
    while True:
        strides = strides_for(current, spacing, stages)
        rounded = [n // d * d for n, d in zip(current, divisor(strides), strict=True)]
        if rounded == current:
            return current, strides
        current = rounded


def smaller(patch: Sequence[int], axis: int, spacing: Sequence[float], stages: int, floor: int) -> list[int] | None:
    """Return the patch with `axis` at its next smaller size that the strides divide, or None at the floor (voxels)."""
    for size in range(patch[axis] - 1, floor - 1, -1):
        candidate = [size if a == axis else n for a, n in enumerate(patch)]
        if round_up(candidate, spacing, stages)[0] == candidate:
            return candidate
    return None
