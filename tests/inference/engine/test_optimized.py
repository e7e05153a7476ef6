"""Tests of inference/engine/optimized.py: the form that is fast on a device computes what the network computes."""

import copy
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from stunet.errors import UsageError
from stunet.inference.engine.optimized import PRECISIONS, ReadyNetwork, has_bf16, prepare, resolve_precision
from stunet.networks import STUNet
from tests.loops import for_each

CPU = torch.device("cpu")
# bfloat16 has 8 bits: one rounding is 2^-9 of a value; those of all layers here add up to less than this.
BF16 = 0.05


def stunet(ndim: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return STUNet(2, 5, "T", [(1,) * ndim, (2,) * ndim], deep_supervision=False)


def unet(ndim: int, residual: bool, affine: bool = True) -> nn.Module:
    """nnU-Net's own networks, whose norms are torch's instance norms."""
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "input_channels": 2, "n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3] * ndim] * 2,
        "strides": [[1] * ndim, [2] * ndim], "num_classes": 5, "n_conv_per_stage_decoder": [1], "conv_bias": True,
        "conv_op": (nn.Conv2d, nn.Conv3d)[ndim - 2], "norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d)[ndim - 2],
        "norm_op_kwargs": {"eps": 1e-5, "affine": affine}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    net = (
        ResidualEncoderUNet(n_blocks_per_stage=1, **options)
        if residual
        else PlainConvUNet(n_conv_per_stage=1, **options)
    )
    for norm in net.modules():
        if isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) and affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return net


NETWORKS = {
    "STUNet": lambda: stunet(3),
    "STUNet of slices": lambda: stunet(2),
    "PlainConvUNet": lambda: unet(3, residual=False),
    "PlainConvUNet of slices": lambda: unet(2, residual=False),
    "PlainConvUNet without weights in its norms": lambda: unet(3, residual=False, affine=False),
    "ResidualEncoderUNet": lambda: unet(3, residual=True),
    "convolutions that pad on their own": lambda: nn.Sequential(
        nn.Conv3d(2, 4, 3, padding="same"), nn.Conv3d(4, 5, 3, padding=1, padding_mode="replicate")
    ),
}


def windows(net: nn.Module, batch: int = 2) -> Tensor:
    is_3d = any(isinstance(module, nn.Conv3d) for module in net.modules())
    return torch.randn(batch, 2, *([8, 12, 6] if is_3d else [8, 12]), generator=torch.Generator().manual_seed(2))


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@for_each("name", NETWORKS)
def test_every_network_computes_on_the_cpu_what_it_computes_in_float64(name: str) -> None:
    net = NETWORKS[name]().eval()
    inputs = windows(net)
    expected = copy.deepcopy(net).double()(inputs.double())
    exact = ReadyNetwork(copy.deepcopy(net), [], CPU, "fp32")
    assert error(exact(inputs), expected) < 1e-5
    assert error(exact(inputs[:1]), expected[:1]) < 1e-5
    # On any processor, however slowly.
    close = ReadyNetwork(net, [], CPU, "bf16")
    assert close(inputs).dtype == torch.bfloat16
    assert 1e-5 < error(close(inputs), expected) < BF16


@torch.inference_mode()
@for_each("name", ["STUNet", "STUNet of slices", "PlainConvUNet"])
@for_each("axes", [(0,), (1,), (0, 1)])
def test_mirrored_logits_are_averages_over_all_combinations_of_axes(name: str, axes: tuple[int, ...]) -> None:
    net = NETWORKS[name]().eval()
    inputs, exact = windows(net), copy.deepcopy(net).double()
    combinations = [(), *[(axis,) for axis in axes], *([axes] if len(axes) > 1 else [])]
    expected = torch.zeros(())
    for flipped in combinations:
        dims = [2 + axis for axis in flipped]
        expected = expected + exact(inputs.double().flip(dims)).flip(dims) / len(combinations)
    ready = ReadyNetwork(net, [], CPU, "fp32", axes)
    assert ready.is_mirrored
    assert error(ready(inputs), expected) < 1e-5


@torch.inference_mode()
@for_each("name", ["STUNet", "PlainConvUNet", "ResidualEncoderUNet"])
def test_members_take_turns_in_one_network(name: str) -> None:
    nets = [NETWORKS[name]().eval() for _ in range(2)]
    for parameter in nets[1].parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = windows(nets[0])
    members = [net.state_dict() for net in nets]
    kept = copy.deepcopy(members)
    ready = ReadyNetwork(NETWORKS[name](), members, CPU, "fp32")
    assert ready.members == 2
    for member in (0, 1, 1, 0):
        ready.use(member)
        assert error(ready(inputs), copy.deepcopy(nets[member]).double()(inputs.double())) < 1e-5
    for before, after in zip(kept, members, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_prepared_network_is_frozen_and_keeps_the_names_of_its_weights() -> None:
    net = unet(3, residual=True).train()
    names = list(net.state_dict())
    prepared = prepare(net, CPU, "fp32")
    assert list(prepared.state_dict()) == names
    assert not prepared.training
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert not [module for module in prepared.modules() if isinstance(module, nn.InstanceNorm3d)]


def test_norms_with_running_statistics_stay_what_they_are() -> None:
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4, track_running_stats=True, affine=True))
    net(torch.randn(3, 2, 6, 6, 6))
    inputs = torch.randn(1, 2, 6, 6, 6)
    expected = copy.deepcopy(net).eval().double()(inputs.double())
    assert error(ReadyNetwork(net, [], CPU, "fp32")(inputs), expected.detach()) < 1e-5


@for_each(
    ("precision", "device", "what"),
    [
        ("fp64", "cpu", "unknown precision 'fp64'"),
        ("", "cpu", "unknown precision ''"),
        ("fp16", "cpu", "fp16 is for CUDA, not for cpu"),
        ("fp16", "mps", "fp16 is for CUDA, not for mps"),
        ("bf16", "mps", "bf16 is not for mps"),
    ],
)
def test_a_precision_that_a_device_has_not_is_refused(precision: str, device: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        resolve_precision(precision, torch.device(device))
    assert caught.value.hint.startswith("--precision")


def test_auto_is_the_fastest_precision_of_a_device() -> None:
    assert resolve_precision("auto", CPU) == ("bf16" if has_bf16() else "fp32")
    assert [resolve_precision("auto", torch.device(name)) for name in ("cuda", "mps")] == ["fp16", "fp32"]
    for name in PRECISIONS:
        assert resolve_precision(name, torch.device("cuda")) == name
