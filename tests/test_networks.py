"""Is our network the published one? Compared with published figures, the official outputs and slow references.

How it trains (checkpointing, compilation, precision, several processes) stands in test_networks_training.py.
"""

import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stunet.networks import (
    SIZES,
    InstanceNorm,
    Pointwise3d,
    ResidualBlock,
    ShapeError,
    Size,
    STUNet,
    Upsample,
    build,
    with_layers_of_torch,
)
from tests.loops import for_each

ISOTROPIC = [(1, 1, 1)] + 5 * [(2, 2, 2)]
SHALLOW = [(1, 1, 1), (2, 2, 2), (1, 2, 2)]  # three stages: enough for what does not depend on depth


def tiny(deep_supervision: bool = True) -> STUNet:
    torch.manual_seed(0)
    return STUNet(2, 3, Size(4, 2), SHALLOW, deep_supervision)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Upsampling first, then the convolution; `published.undo()` brings ours back."""

    def forward(self: Upsample, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))

    monkeypatch.setattr(Upsample, "forward", forward)
    return monkeypatch


# The published network


def test_names_and_shapes_are_the_official_ones(data: Path) -> None:
    official = json.loads((data / "stunet_official" / "state_dict_keys_S.json").read_text())
    with torch.device("meta"):
        network = build("S", ISOTROPIC)
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == official


@for_each("case", ["S_totalseg_strides", "S_thin", "tiny_depth3"])
def test_every_head_returns_what_the_official_network_returns(data: Path, case: str) -> None:
    assert_official(data / "stunet_official", case)


@pytest.mark.slow
@for_each("case", ["S_isotropic_2ch", "B_isotropic"])
def test_every_head_of_size_b_and_of_two_channels_returns_what_the_official_network_returns(
    data: Path, case: str
) -> None:
    assert_official(data / "stunet_official", case)


def assert_official(folder: Path, case: str) -> None:
    """Compare every head with the recorded values, statistics and shapes of a golden case."""
    spec = json.loads((folder / "network_golden.json").read_text())[case]
    size = Size(spec["dims"][0], spec["depth"][0])
    with torch.device("meta"):
        network = STUNet(spec["inch"], spec["classes"], size, [(1, 1, 1), *spec["strides"]])
    fill(network)
    n = np.arange(math.prod(spec["shape"]))
    x = torch.from_numpy((np.sin(n * 0.37) + np.cos(n * 0.011)).astype(np.float32)).view(spec["shape"])
    with torch.inference_mode():
        heads = network.eval()(x)
    assert [list(head.shape) for head in heads] == spec["head_shapes"]
    with np.load(folder / "network_golden.npz") as golden:
        for k, head in enumerate(heads):
            mean, std, low, high = golden[f"{case}/head{k}_mean_std_min_max"]
            values = head.flatten()[torch.from_numpy(golden[f"{case}/head{k}_positions"])].numpy()
            error = np.abs(values - golden[f"{case}/head{k}_values"]).max()
            found = np.array([head.mean(), head.std(), head.min(), head.max()])
            assert error < 1e-4 * max(-low, high), f"head {k}"
            assert np.abs(found - [mean, std, low, high]).max() < 1e-4 * max(-low, high), f"head {k}"


def fill(network: nn.Module) -> None:
    """The parameters of the golden cases, by the rule in the data's README."""
    state = network.state_dict()
    for i, (name, parameter) in enumerate(sorted(state.items())):
        v = np.sin(np.arange(parameter.numel()) * 12.9898 + (i + 1) * 78.233) * 43758.5453
        v = v - np.floor(v) - 0.5
        if parameter.ndim > 1:
            v *= 2 * math.sqrt(3 / math.prod(parameter.shape[1:]))
        else:
            v = 1 + 0.2 * v if "norm" in name and name.endswith("weight") else 0.2 * v
        state[name] = torch.from_numpy(v.astype(np.float32)).view(parameter.shape)
    network.load_state_dict(state, assign=True)


@for_each(("size", "parameters"), [("S", 14_596_941), ("B", 58_262_669), ("L", 440_302_605), ("H", 1_457_326_221)])
def test_parameter_counts_are_the_published_ones(size: str, parameters: int) -> None:
    with torch.device("meta"):
        network = build(size, ISOTROPIC, num_classes=105)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("size", "tera", "digits"), [("S", 0.129, 3), ("B", 0.506, 3), ("L", 3.8, 2), ("H", 12.59, 2)])
def test_multiply_adds_are_the_published_ones_less_seven_eighths_of_the_upsampling(
    published: pytest.MonkeyPatch, size: str, tera: float, digits: int
) -> None:
    with torch.device("meta"):
        network = STUNet(1, 105, size, ISOTROPIC)
        x = torch.empty(1, 1, 128, 128, 128)
    of_published = multiply_adds(network, x)
    published.undo()
    upsampling = 0
    for stage in range(1, 6):
        voxels_above = (128 // 2 ** (stage - 1)) ** 3
        upsampling += SIZES[size].channels(stage) * SIZES[size].channels(stage - 1) * voxels_above
    assert round(of_published / 1e12, digits) == tera
    assert multiply_adds(network, x) == of_published - upsampling * 7 // 8


def multiply_adds(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


# What we compute differently


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 1), (3, 2)])
def test_convolving_before_upsampling_equals_convolving_after(published: pytest.MonkeyPatch, stride: tuple) -> None:
    layer = Upsample(len(stride), 4, 3, stride).double()
    x = image(2, 4, *(3,) * len(stride), dtype=torch.float64)
    after = layer(x)
    published.undo()
    torch.testing.assert_close(layer(x), after, rtol=1e-12, atol=1e-12)


def test_only_the_heads_that_are_asked_for_are_computed() -> None:
    network = tiny()
    computed = []
    for level, head in enumerate(network.seg_outputs):
        head.register_forward_hook(lambda *_, level=level: computed.append(level))
    network(image(1, 2, 8, 8, 8))
    assert computed == [0, 1]
    computed.clear()
    network.decoder.deep_supervision = False
    network(image(1, 2, 8, 8, 8))
    assert computed == [1]


@for_each("shape", [(2, 3, 4, 5, 6), (1, 3, 7, 5)])
def test_our_instance_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm = InstanceNorm(3).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = image(*shape, dtype=torch.float64)
    torch.testing.assert_close(norm(x), F.instance_norm(x, weight=norm.weight, bias=norm.bias))


@for_each("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_pointwise_convolution_as_a_matrix_product_is_the_convolution(layout: torch.memory_format) -> None:
    head = Pointwise3d(4, 5, 1).double()
    x = image(2, 4, 3, 5, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 5, 3, 5, 7, dtype=torch.float64)
    ours, theirs = head(x), F.conv3d(x, head.weight, head.bias)
    torch.testing.assert_close(ours, theirs)
    inputs = [x, head.weight, head.bias]
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights))


def test_a_residual_block_is_two_convolutions_with_norm_and_a_shortcut() -> None:
    for project in (True, False):
        block = ResidualBlock(3, 4, 4, (1, 1, 1), project).double()
        x = image(1, 4, 4, 4, 4, dtype=torch.float64)
        y = F.leaky_relu(F.instance_norm(block.conv1(x)), 0.01)
        shortcut = block.conv3(x) if block.conv3 is not None else x
        expected = F.leaky_relu(F.instance_norm(block.conv2(y)) + shortcut, 0.01)
        torch.testing.assert_close(block(x), expected)


# Saving and building


def test_pickling_and_saving_keep_the_network(tmp_path: Path) -> None:
    network, x = tiny(), image(1, 2, 8, 8, 8)
    copy = pickle.loads(pickle.dumps(network))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other = STUNet(2, 3, Size(4, 2), SHALLOW)
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for k, logits in enumerate(network(x)):
        assert torch.equal(copy(x)[k], logits)
        assert torch.equal(other(x)[k], logits)


def test_nnunet_builds_and_initialises_it_from_a_plan() -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    arch = {
        "network_class_name": "stunet.networks.STUNet",
        "arch_kwargs": {"size": "T", "strides": [list(stride) for stride in SHALLOW]},
        "_kw_requires_import": [],
    }
    network = get_network_from_plans(*arch.values(), 2, 3, allow_init=True, deep_supervision=True)
    assert isinstance(network, STUNet)
    assert network.decoder.deep_supervision
    assert not network.seg_outputs[0].bias.any()
    assert network.conv_blocks_context[0][0].conv1.in_channels == 2


@for_each("stages", [4, 5, 6, 7])
@for_each("ndim", [2, 3])
def test_four_to_seven_stages_in_two_and_three_dimensions(stages: int, ndim: int) -> None:
    strides = [(1,) * ndim] + [(2,) * ndim if k < 3 else (1,) * (ndim - 1) + (2,) for k in range(stages - 1)]
    network = STUNet(1, 2, "T", strides)
    shape = (*(8,) * (ndim - 1), 2**stages)
    heads = network(image(1, 1, *shape))
    assert [tuple(head.shape) for head in heads] == [
        (1, 2, *(n // math.prod(s[axis] for s in strides[: k + 1]) for axis, n in enumerate(shape)))
        for k in range(stages - 1)
    ]


@for_each("channels", [1, 2, 5])
def test_any_number_of_input_channels(channels: int) -> None:
    network = build("T", SHALLOW, input_channels=channels, num_classes=7)
    assert network(image(1, channels, 4, 8, 8)).shape == (1, 7, 4, 8, 8)


# Bad input


@for_each(
    ("shape", "says"),
    [
        ((1, 2, 8, 6, 8), r"\(1, 2, 8, 6, 8\).*multiples of \(2, 4, 4\)"),
        ((1, 2, 2, 4, 4), "at least one of them a larger one"),
        ((1, 2, 8, 8), "5 axes"),
        ((2, 8, 8, 8), "5 axes"),
        ((1, 3, 8, 8, 8), r"2 channel\(s\)"),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_would(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ShapeError, match=says) as caught:
        tiny()(torch.zeros(shape))
    assert caught.value.hint


@for_each(
    ("strides", "says"),
    [
        ([(1, 1, 1)], "two or more"),
        ([], "two or more"),
        ([(1, 1, 1), (2, 2)], "2 or 3 positive"),
        ([(1,), (2,)], "2 or 3 positive"),
        ([(1, 1, 1), (2, 0, 2)], "positive"),
        ([(2, 2, 2), (2, 2, 2)], "begin with ones"),
    ],
)
def test_strides_that_are_no_strides_are_refused(strides: Sequence, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        STUNet(1, 2, "T", strides)


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown size 'M'; known: T, S, B, L, H"):
        STUNet(1, 2, "M", SHALLOW)


@for_each("ndim", [2, 3])
def test_with_layers_of_torch_a_network_computes_the_same(ndim: int) -> None:
    strides = [[1] * ndim, [2] * ndim, [2] * ndim]
    network, image = build("T", strides, 1, 3).eval(), torch.randn(1, 1, *[16] * ndim)
    for norm in (module for module in network.modules() if isinstance(module, InstanceNorm)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    with torch.inference_mode():
        expected = network(image)
        found = with_layers_of_torch(network)
        torch.testing.assert_close(found(image), expected, rtol=1e-4, atol=1e-4)
    assert not [module for module in found.modules() if isinstance(module, InstanceNorm | Pointwise3d)]
