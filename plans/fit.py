"""Fit patch and batch to a network size and a memory target: the largest patch first, then the largest batch.

Only values of one configuration (spacing, median shape, ...) go in, so that the planner and derive() agree: planning
for L gives the same as planning for B and deriving L. Read next: memory.py and topology.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stunet.errors import DataError, OutOfMemoryError
from stunet.plans import memory, topology
from stunet.plans.memory import Network
from stunet.plans.topology import Strides
from stunet.sizes import FOR_TESTS, SIZES

MIN_BATCH = 2  # nnU-Net's UNet_min_batch_size
MIN_PATCH = 32  # voxels: an axis is not shrunk below this; smaller images keep their own size
LARGEST_PATCH = {3: 256**3, 2: 2048**2}  # voxels; where shrinking starts (nnU-Net's initial patch)
MOST_COMPARED = 128  # samples per step, where they are compared with each other (Zhang et al. 2022, arXiv:2209.12157)
DATASET_SHARE = 0.05  # maximum share of the training voxels in one batch, against overfitting (nnU-Net's rule)


@dataclass(frozen=True)
class Fit:
    """Patch (voxels per axis), batch (samples) and strides that fit, and their estimated memory in GiB.

    `arguments` are the network's in the plan, strides included.
    """

    patch: list[int]
    batch: int
    strides: Strides
    memory_gb: float
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class MemoryTarget:
    """What to fit into: GPU memory in GiB, stages (None: all that the patch supports), correction factor of a probe."""

    memory_gb: float
    stages: int | None = topology.DEFAULT_STAGES
    correction: float = 1.0


def fit(
    network: Network,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    voxels_in_dataset: float,
    target: MemoryTarget,
    strides: Strides | None = None,
) -> Fit:
    """Return the largest patch, then the largest batch, whose training step fits into the target.

    The patch starts isotropic in mm and no larger than the median image. While it is too large, the axis that is
    longest relative to the median image shrinks. The batch grows only into memory that the patch leaves over. In
    pre-training the patch is never larger than `median_shape`, not even to be divisible: padding teaches nothing.

    Args:
        network: The architecture.
        spacing: mm per axis.
        median_shape: Voxels per axis of the median image at this spacing; in pre-training, of what scans contain.
        voxels_in_dataset: Total number of training voxels, which limits the batch.
        target: Memory and stages.
        strides: Those of the network, where they must stay; None: those that suit the patch.

    Raises:
        OutOfMemoryError: Not even the smallest patch fits; the message names the size that would.
        DataError: In pre-training, scans are smaller than strides that must stay allow.
    """
    shape = [max(1, round(n)) for n in median_shape]
    rounded = topology.round_down if network.demand else topology.round_up
    stays, rule = strides is not None, topology.rule_for(network.architecture.depth_by_patch, strides)
    patch, strides = rounded(initial_patch(spacing, shape), spacing, target.stages, rule)
    if not all(patch):
        raise DataError(
            f"the strides of the {network.label} need {topology.divisor(strides)} voxels, and scans have {shape}",
            "a finer spacing, or weights of a network with fewer stages",
        )
    patch = topology.larger_than_one(patch, strides) if stays else patch
    network = network if stays else network.laid_out(strides, spacing)
    floor = [min(MIN_PATCH, n) for n in patch]
    while (needed := memory.estimate(network, patch, MIN_BATCH, strides, target.correction)) > target.memory_gb:
        shrunk = _shrink(patch, shape, spacing, target.stages, floor, rule)
        if shrunk is None or (stays and topology.larger_than_one(shrunk, strides) != shrunk):
            raise OutOfMemoryError(
                f"{network.label} needs {needed:.1f} GB even with its smallest patch {patch}; "
                f"the target is {target.memory_gb:g} GB",
                _advice(network, patch, strides, target),
            )
        patch, strides = rounded(shrunk, spacing, target.stages, rule)
        network = network if stays else network.laid_out(strides, spacing)
    batch = largest_batch(network, patch, strides, voxels_in_dataset, target)
    needed = memory.estimate(network, patch, batch, strides, target.correction)
    return Fit(patch, batch, strides, needed, network.arguments)


def initial_patch(spacing: Sequence[float], shape: Sequence[int], voxels: int | None = None) -> list[int]:
    """Return a patch that is isotropic in mm, has about `voxels` voxels, and is no larger than the image."""
    budget = voxels or LARGEST_PATCH[len(spacing)]
    edge_mm = (budget * math.prod(spacing)) ** (1 / len(spacing))
    return [min(max(1, round(edge_mm / pitch)), n) for pitch, n in zip(spacing, shape, strict=True)]


def largest_batch(
    network: Network, patch: Sequence[int], strides: Strides, voxels_in_dataset: float, target: MemoryTarget
) -> int:
    """Return the largest batch that fits into the target and DATASET_SHARE of the dataset, but at least MIN_BATCH.

    Where a pre-training compares samples with each other, all of the dataset may be in a batch, up to MOST_COMPARED.
    """
    # The estimate is linear in the batch: two values give the slope, without a search.
    fixed = memory.estimate(network, patch, 0, strides, target.correction)
    per_sample = memory.estimate(network, patch, 1, strides, target.correction) - fixed
    fitting = math.floor((target.memory_gb - fixed) / per_sample)
    patches = voxels_in_dataset / math.prod(patch)
    share = round(DATASET_SHARE * patches)
    if network.demand and network.demand.compares:
        share = min(MOST_COMPARED, round(patches))
    return max(MIN_BATCH, min(fitting, share))


def corrected(
    network: Network, measure: Callable[[Fit], float], search: Callable[[float], Fit], target_gb: float, rounds: int = 4
) -> tuple[Fit, float, float]:
    """Fit, measure the fit on a real device, and fit again with the measured factor until the target is met.

    Args:
        network: The architecture.
        measure: Returns the peak GiB of a real training step.
        search: Returns the fit for a correction factor.
        target_gb: What the measurement must not exceed.
        rounds: Maximum number of measurements.

    Returns:
        The fit, its measured GiB, and the correction factor.

    Raises:
        OutOfMemoryError: The last measurement is still above the target.
    """
    factor = 1.0
    for _ in range(rounds):
        fitted = search(factor)
        measured = measure(fitted)
        if measured <= target_gb:
            return fitted, measured, factor
        network = replace(network, arguments=fitted.arguments)
        fixed = memory.estimate(network, fitted.patch, 0, fitted.strides)
        growing = memory.estimate(network, fitted.patch, fitted.batch, fitted.strides) - fixed
        # 2 % more than measured, so that the next fit aims below the target and not at it.
        factor = 1.02 * (measured - fixed) / growing
    raise OutOfMemoryError(
        f"after {rounds} probes a step still takes {measured:.1f} GB; the target is {target_gb:g} GB",
        "a smaller network",
    )


def _shrink(
    patch: list[int],
    shape: list[int],
    spacing: Sequence[float],
    stages: int | None,
    floor: list[int],
    rule: topology.Rule,
) -> list[int] | None:
    """Shrink the axis that is longest relative to the median image, of those above their floor; None if none is."""
    for axis in sorted(range(len(patch)), key=lambda a: patch[a] / shape[a], reverse=True):
        candidate = topology.smaller(patch, axis, spacing, stages, floor[axis], rule)
        if candidate is not None:
            return candidate
    return None


def _advice(network: Network, patch: Sequence[int], strides: Strides, target: MemoryTarget) -> str:
    """Return the hint: the largest size that fits with this patch, or the memory that even the smallest size needs."""
    # Only STU-Net comes in sizes; other architectures have their dimensions in the plan.
    if "size" not in network.arguments:
        return f"a GPU with more memory than {target.memory_gb:g} GB (-gpu_memory_target)"
    offered = sorted(SIZES.keys() - {FOR_TESTS}, key=lambda size: -SIZES[size].width)
    for size in offered:
        smaller = network.with_arguments(size=size)
        fits = memory.estimate(smaller, patch, MIN_BATCH, strides, target.correction) <= target.memory_gb
        if fits and SIZES[size].width < SIZES[network.arguments["size"]].width:
            return f"--size {size}, which fits into {target.memory_gb:g} GB"
    smallest = network.with_arguments(size=offered[-1], checkpointing=False)
    least = memory.estimate(smallest, patch, MIN_BATCH, strides, target.correction)
    more = f"a GPU with more memory (-gpu_memory_target {math.ceil(least)})"
    return f"{more}: even size {offered[-1]} needs {least:.1f} GB here"
