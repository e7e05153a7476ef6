"""Estimate how much GPU memory a training step of a network takes, before running it.

    memory = OVERHEAD + PARAMETER_BYTES * parameters + ACTIVATION_FACTOR * activations + loss

Activations are what autograd keeps for the backward pass in half precision. The architecture counts those of its blocks
(Architecture.kept); here follow the heads: their logits and the gradient of these. The loss works on a chunk of them at
a time (losses/), but nnU-Net's for regions keeps LOSS_COPIES more of them in float32.

In self-supervised pre-training, views of the patch take its place, each a share of it (demand.py), and what is not
trained takes no gradient or momentum.

The count equals torch's saved tensors (tests). The other constants are **from published figures**, not measured by us:
5.2, 8.8 and 26.5 GB for S, B and L (nnU-Net, documentation/resenc_presets.md; patch 128x128x128, batch 2), which the
model reproduces within 4 % for the published form of the network and nnU-Net's loss. Of nnU-Net's own networks the
same page says 7.7 GB (default) and 9.1, 22.7 and 36.6 GB (ResEnc M, L, XL), without the patches. With those that its
planners give LiTS the model says 7.2, 9.1, 22.0 and 36.8 GB: at most 7 % off. `stunet_plan_and_preprocess --probe`
measures the memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stunet.architectures.base import Architecture
from stunet.architectures.stunet import STUNET
from stunet.losses.overlap import ELEMENTS
from stunet.machine import GIB
from stunet.plans.demand import Demand
from stunet.plans.topology import Strides, kernels_for

OVERHEAD_GB = 2.3  # CUDA context, cuDNN workspaces, allocator
PARAMETER_BYTES = 14  # float32 weights, gradients and momentum, and the half-precision copy that autocast makes
ACTIVATION_FACTOR = 1.3  # temporary gradients and fragmentation on top of what is kept
LOSS_COPIES = 5  # float32 copies of the logits in nnU-Net's Dice and cross entropy, including one-hot targets
LOSS_KEPT = 2  # float32 numbers per voxel that our loss keeps
CHUNK_COPIES = 4  # float32 copies of a chunk of the logits in our loss
RESTORED_COPIES = 3  # float32 copies of restored images in a loss on voxels: difference, square, mask
HALF, SINGLE = 2, 4  # bytes


@dataclass(frozen=True)
class Network:
    """What the memory of a network depends on, besides patch and batch.

    Args:
        arguments: Those of its class in the plan; strides are given besides.
        channels: Input channels, including the one-hot labels of a cascade's previous stage.
        classes: Segmentation heads, including background.
        regions: Whether the heads are overlapping regions and the loss is nnU-Net's.
        architecture: Which network it is.
        demand: What its self-supervised pre-training asks for; None: it is trained to segment.
    """

    arguments: Mapping[str, Any]
    channels: int
    classes: int
    regions: bool = False
    architecture: Architecture = STUNET
    demand: Demand | None = None

    @property
    def label(self) -> str:
        """Its name for users, such as STU-Net-B."""
        return self.architecture.label(self.arguments)

    def with_arguments(self, **arguments: Any) -> "Network":
        """Return the network with these arguments instead of its own."""
        return replace(self, arguments={**self.arguments, **arguments})

    def laid_out(self, strides: Strides, spacing: Sequence[float]) -> "Network":
        """Return the network with these strides, and kernels that suit the spacing where its architecture has some."""
        kernels = kernels_for(strides, spacing) if self.architecture.depth_by_patch else None
        return replace(self, arguments=self.architecture.laid_out(self.arguments, strides, kernels))


def estimate(network: Network, patch: Sequence[int], batch: int, strides: Strides, correction: float = 1.0) -> float:
    """Return the peak memory of a mixed-precision training step in GiB.

    Args:
        network: The architecture.
        patch: Voxels per axis.
        batch: Samples per step.
        strides: One entry per stage, the first all ones.
        correction: Factor on the activations, as measured by a probe.
    """
    activations = batch * activation_bytes(network, patch, strides)
    loss = batch * loss_bytes(network, patch, strides)
    # A probe corrects only what grows with the batch; parameters are known exactly.
    fixed = _fixed(network, strides, PARAMETER_BYTES) + chunk_bytes(network, patch)
    return OVERHEAD_GB + (fixed + correction * (ACTIVATION_FACTOR * activations + loss)) / GIB


def least(network: Network, patch: Sequence[int], batch: int, strides: Strides, single: bool) -> float:
    """Return the GiB that a training step needs at least, on any device: no overhead, nothing temporary.

    Args:
        network: The architecture.
        patch: Voxels per axis.
        batch: Samples at a time.
        strides: One entry per stage.
        single: Whether activations are kept in single precision, as on the CPU.
    """
    # activation_bytes() counts in half precision.
    value = SINGLE // HALF if single else 1
    fixed = _fixed(network, strides, 3 * SINGLE)  # weights, gradients, momentum
    return (fixed + value * batch * activation_bytes(network, patch, strides)) / GIB


def parameters(network: Network, strides: Strides) -> int:
    """Return the number of parameters of the network."""
    return network.architecture.parameters(network.arguments, network.channels, network.classes, strides)


def activation_bytes(network: Network, patch: Sequence[int], strides: Strides) -> int:
    """Return the bytes per sample that autograd keeps between forward and backward pass, without the loss."""
    voxels = _voxels(patch, strides)
    blocks = network.architecture.kept(network.arguments, voxels)
    # How often each block computes, in shares of the patch.
    shares = [1.0] * len(blocks)
    if demand := network.demand:
        shares = [sum(demand.encoded)] * len(voxels) + [sum(demand.decoded)] * (len(blocks) - len(voxels))
    counted = list(zip(blocks, shares, strict=True))
    if not network.arguments.get("checkpointing", False):
        return round(HALF * sum(block.all * share for block, share in counted))
    # outputs of all blocks, and everything of the one that is being recomputed
    return round(HALF * (sum(b.output * share for b, share in counted) + max(b.all * min(1, s) for b, s in counted)))


def loss_bytes(network: Network, patch: Sequence[int], strides: Strides) -> int:
    """Return the bytes per sample of all heads' logits, and of their gradient or of the copies in nnU-Net's loss.

    In pre-training those of the decoder's outputs, of the loss on them, of the views of the image, and of a teacher.
    """
    if demand := network.demand:
        outputs = (demand.outputs or network.channels) * sum(demand.decoded) * (2 * HALF + RESTORED_COPIES * SINGLE)
        own = math.prod(patch) * (outputs + network.channels * sum(demand.encoded) * SINGLE)
        blocks = network.architecture.kept(network.arguments, _voxels(patch, strides))
        # A teacher only has the block at a time that it is in.
        return round(own + HALF * demand.teacher * max(block.all for block in blocks))
    per_voxel = network.classes * 2 * HALF + LOSS_KEPT * SINGLE
    if network.regions:
        per_voxel = network.classes * (HALF + LOSS_COPIES * SINGLE)
    # Every resolution has a head except the lowest, the bottleneck.
    return sum(per_voxel * voxels for voxels in _voxels(patch, strides)[:-1])


def chunk_bytes(network: Network, patch: Sequence[int]) -> int:
    """Return the bytes that our loss works on at a time."""
    return (
        0
        if network.regions or network.demand
        else CHUNK_COPIES * SINGLE * min(ELEMENTS, network.classes * math.prod(patch))
    )


def _fixed(network: Network, strides: Strides, each: int) -> float:
    """Return the bytes that do not depend on the batch, `each` per parameter that is trained."""
    everything, demand = parameters(network, strides), network.demand
    if demand is None:
        return each * everything
    encoder = network.architecture.encoder_parameters(network.arguments, network.channels, strides)
    trained = (everything if demand.decoded else encoder) + demand.parameters
    # Of what is not trained, and of a teacher, the weights; a teacher's in half precision as well.
    still = everything + demand.parameters - trained
    teacher = (SINGLE + HALF) * trained if demand.teacher else 0
    return each * trained + SINGLE * (still + demand.stored) + teacher


def _voxels(patch: Sequence[int], strides: Strides) -> list[int]:
    """Return the number of voxels of the feature maps per stage."""
    total = math.prod(patch)
    voxels = []
    for stride in strides:
        total //= math.prod(stride)
        voxels.append(total)
    return voxels
