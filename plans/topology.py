"""Choose the strides that a patch supports: how often, and in which order, the network halves each axis.

There are two rules: STU-Net's for a number of stages that is chosen, and nnU-Net's for its own networks, where the
number of stages follows from the patch and the kernels from the spacing.

Sizes and spacings are in array order (D, H, W in 3D; H, W in 2D), voxels and mm. Read next: fit.py.
"""

import math
from collections.abc import Callable, Sequence

MIN_EDGE = 4  # voxels that a halved axis keeps at the bottleneck (nnU-Net's UNet_featuremap_min_edge_length)
MAX_HALVINGS = 5  # per axis, as in the published networks
DEFAULT_STAGES = 6  # the published depth: pre-trained weights have six stages
AUTO_STAGES = (4, 7)  # the range of `--stages auto`

Strides = list[list[int]]
# Returns the strides for a patch (voxels), a spacing (mm), and a number of stages or None.
Rule = Callable[[Sequence[int], Sequence[float], int | None], Strides]


def strides_for(patch: Sequence[int], spacing: Sequence[float], stages: int | None) -> Strides:
    """Return STU-Net's strides per stage (`stages` entries, the first all ones) for a patch with this voxel spacing.

    Without a number of stages, there are as many as the patch supports.

    Each stage halves the axes that are fine enough: less than twice as coarse as the finest axis that can still be
    halved, and never more than twice as coarse as any other axis. Deep stages that find no axis to halve keep strides
    of one, so that on small volumes a network keeps its number of stages (and can load weights of that depth).
    """
    stages = stages or supported_stages(patch, spacing)
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


def strides_by_patch(patch: Sequence[int], spacing: Sequence[float], most: int | None = None) -> Strides:
    """Return nnU-Net's strides (its get_pool_and_conv_props), at most so many: as many as the patch supports.

    Each stage halves the axes that are less than twice as coarse as the finest one that can still be halved. A single
    axis has to be a half longer for that than several.
    """
    size, pitch = list(patch), list(spacing)
    strides = [[1] * len(size)]
    while most is None or len(strides) < most:
        long_enough = [axis for axis in range(len(size)) if size[axis] >= 2 * MIN_EDGE]
        finest = min((pitch[axis] for axis in long_enough), default=math.inf)
        halved = [axis for axis in long_enough if pitch[axis] / finest < 2]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * MIN_EDGE):
            break
        strides.append([2 if axis in halved else 1 for axis in range(len(size))])
        for axis in halved:
            size[axis], pitch[axis] = math.ceil(size[axis] / 2), 2 * pitch[axis]
    # A decoder needs a second stage, also where nnU-Net finds none.
    return strides if len(strides) > 1 else [*strides, [1] * len(size)]


def kernels_for(strides: Strides, spacing: Sequence[float]) -> list[list[int]]:
    """Return nnU-Net's kernel sizes per stage: 3, but 1 along an axis until the others have become as coarse.

    Those of the last stage are 3.
    """
    pitch, kernel, kernels = list(spacing), [1] * len(spacing), []
    for stride in strides[1:]:
        # Once it is 3, it stays so.
        kernel = [3 if size == 3 or here / min(pitch) < 2 else 1 for size, here in zip(kernel, pitch, strict=True)]
        kernels.append(kernel)
        pitch = [here * step for here, step in zip(pitch, stride, strict=True)]
    return [*kernels, [3] * len(pitch)]


def rule_for(depth_by_patch: bool, strides: Strides | None = None) -> Rule:
    """Return the rule for an architecture (Architecture.depth_by_patch), or one that always gives these strides."""
    if strides:
        return lambda patch, spacing, stages: strides
    return strides_by_patch if depth_by_patch else strides_for


def divisor(strides: Strides) -> list[int]:
    """Return what each axis of the patch must be a multiple of: the product of its strides."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


def larger_than_one(patch: Sequence[int], strides: Strides) -> list[int]:
    """Return the patch, twice as long along its longest axis if the last stage is left with a single voxel.

    Instance norm needs more than one.
    """
    if list(patch) != divisor(strides):
        return list(patch)
    longest = max(range(len(patch)), key=lambda axis: patch[axis])
    return [2 * n if axis == longest else n for axis, n in enumerate(patch)]


def minimum(strides: Strides) -> list[int]:
    """Return the smallest patch these strides are meant for: MIN_EDGE bottleneck voxels along every halved axis."""
    return [d * MIN_EDGE if d > 1 else 1 for d in divisor(strides)]


def round_up(
    patch: Sequence[int], spacing: Sequence[float], stages: int | None, rule: Rule = strides_for
) -> tuple[list[int], Strides]:
    """Return the smallest patch that is not below `patch` and divisible by its own strides, with those strides."""
    current = list(patch)
    while True:
        strides = rule(current, spacing, stages)
        rounded = [math.ceil(n / d) * d for n, d in zip(current, divisor(strides), strict=True)]
        if rounded == current:
            return current, strides
        # A larger patch may allow another halving, which changes its divisor: repeat until nothing changes.
        current = rounded


def round_down(
    patch: Sequence[int], spacing: Sequence[float], stages: int | None, rule: Rule = strides_for
) -> tuple[list[int], Strides]:
    """Return a patch that is not above `patch` and divisible by its own strides, with those strides."""
    current = list(patch)
    while True:
        strides = rule(current, spacing, stages)
        rounded = [n // d * d for n, d in zip(current, divisor(strides), strict=True)]
        if rounded == current:
            return current, strides
        current = rounded


def smaller(
    patch: Sequence[int], axis: int, spacing: Sequence[float], stages: int | None, floor: int, rule: Rule = strides_for
) -> list[int] | None:
    """Return the patch with `axis` at its next smaller size that the strides divide, or None at the floor (voxels)."""
    for size in range(patch[axis] - 1, floor - 1, -1):
        candidate = [size if a == axis else n for a, n in enumerate(patch)]
        if round_up(candidate, spacing, stages, rule)[0] == candidate:
            return candidate
    return None
