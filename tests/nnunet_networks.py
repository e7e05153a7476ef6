"""nnU-Net's own networks in small, for tests: their arguments as nnU-Net's plans have them, and the networks."""

from typing import Any

import torch
from torch import nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
FEATURES = [4, 8, 8]  # the last two are alike, as in the deep stages of nnU-Net's plans
BOTH: list[NNUNet] = [PLAIN_UNET, RESENC]


def arguments(architecture: NNUNet, **others: Any) -> dict[str, Any]:
    """The arguments of a network, by default of three stages in 3D; those of others as nnU-Net writes them."""
    strides = others.get("strides", STRIDES)
    stages, ndim = len(strides), len(strides[0])
    repeats = [2] * stages if architecture is PLAIN_UNET else [1, 2, 2, 2, 2][:stages]
    return {
        "n_stages": stages,
        "features_per_stage": [*FEATURES, 8, 8][:stages],
        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": [*KERNELS, [3, 3, 3], [3, 3, 3]][:stages] if ndim == 3 else [[3, 3]] * stages,
        "strides": strides,
        architecture.repeats: repeats,
        "n_conv_per_stage_decoder": [architecture.usual_decoder] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    } | others


def network(architecture: NNUNet, channels: int = 1, classes: int = 3, seed: int = 0, **others: Any) -> nn.Module:
    """An initialised network; nnU-Net's residual blocks are only initialised with norms that have parameters."""
    torch.manual_seed(seed)
    given = arguments(architecture, **others)
    made = architecture.build(channels, classes, given)
    return made.apply(made.initialize) if architecture.dimensions(given).affine else made  # type: ignore[arg-type]
