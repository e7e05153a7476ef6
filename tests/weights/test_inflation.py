"""Does a 3D network made of 2D weights compute on a stack of equal slices what the 2D network computes on one?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.architectures.stunet import STUNET
from stunet.errors import UsageError, WeightsError
from stunet.networks import STUNet, build
from stunet.plans.plan import Plan
from stunet.weights.inflation import inflate_depth
from stunet.weights.reading import Weights
from stunet.weights.recognition import recognise
from stunet.weights.transfer import transfer
from tests.loops import for_each

NAMES = ["background", "liver", "spleen"]
FLAT = [[1, 1], [2, 2], [1, 2], [2, 2]]
# The depth may be halved along with the slices, later than they are, or never.
DEPTHS = [(1, 2, 2, 2), (1, 1, 2, 1), (1, 1, 1, 1)]


def deep(depths: Sequence[int]) -> list[list[int]]:
    return [[depth, *flat] for depth, flat in zip(depths, FLAT, strict=True)]


def network(strides: Sequence[Sequence[int]], channels: int = 1, seed: int = 1) -> STUNet:
    torch.manual_seed(seed)
    made = build("T", strides, channels, len(NAMES)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def weights_of(source: STUNet) -> Weights:
    path, tensors = Path("2d.pth"), dict(source.state_dict())
    planned = {"architecture": {"arch_kwargs": {"strides": [list(s) for s in source.strides]}}, "spacing": [1.0, 1.0]}
    dataset = {"labels": {name: i for i, name in enumerate(NAMES)}}
    return Weights(
        path, "nnU-Net v2", tensors, recognise(tensors, path), Plan({"configurations": {"2d": planned}}), "2d", dataset
    )


def inflated(source: STUNet, depths: Sequence[int], way: str, **options: Any) -> STUNet:
    target = network(deep(depths), seed=2)
    transfer(target, weights_of(source), classes=NAMES, inflate=way, **options)
    return target


def repeat_the_border(module: nn.Module) -> None:
    """Pad along the depth with the first and last slice instead of zeros, in all convolutions."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv3d) and conv.padding[0]:
            conv.padding = (0, *conv.padding[1:])  # type: ignore[assignment]
            conv.register_forward_pre_hook(lambda _, x: F.pad(x[0], (0, 0, 0, 0, 1, 1), mode="replicate"))


@torch.inference_mode()
def difference(source: STUNet, target: STUNet, slices: int = 16) -> Tensor:
    """The largest difference in each slice, relative to the largest logit."""
    image = torch.randn(1, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = source(image)
    found = target(image[:, :, None].expand(-1, -1, slices, -1, -1))
    return (found - expected[:, :, None]).abs().amax((0, 1, 3, 4)) / expected.abs().max()


@for_each("depths", DEPTHS)
def test_with_centre_every_slice_is_computed_as_the_image_at_the_border_as_well(depths: Sequence[int]) -> None:
    source = network(FLAT)
    assert difference(source, inflated(source, depths, "centre")).max() < 1e-5


@for_each("depths", DEPTHS)
def test_with_average_it_is_the_padding_with_zeros_alone_that_makes_a_difference(depths: Sequence[int]) -> None:
    source = network(FLAT)
    target = inflated(source, depths, "average")
    found = difference(source, target)
    assert found[[0, -1]].min() > 1e-3
    assert found[len(found) // 2] < found[[0, -1]].min()
    repeat_the_border(target)
    assert difference(source, target).max() < 1e-5


@for_each("stride", [1, 2])
def test_with_average_a_convolution_is_that_of_the_image_away_from_the_border(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=generator)
    image = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=generator)
    expected = F.conv2d(image, kernel, padding=1)[:, :, None]
    volume = image[:, :, None].expand(-1, -1, 10, -1, -1)
    for way, inside in (("average", slice(1, -1 if stride == 1 else None)), ("centre", slice(None))):
        found = F.conv3d(volume, inflate_depth(kernel, way, 3), padding=1, stride=(stride, 1, 1))[:, :, inside]
        torch.testing.assert_close(found, expected.expand_as(found))


def test_kernels_get_the_depth_that_is_asked_for() -> None:
    value = torch.randn(4, 2, 3, 3)
    for depth in (1, 3):
        for way in ("centre", "average"):
            made = inflate_depth(value, way, depth)
            assert made.shape == (4, 2, depth, 3, 3)
            torch.testing.assert_close(made.sum(2), value)
    assert not inflate_depth(value, "centre", 3)[:, :, [0, 2]].any()
    assert torch.equal(inflate_depth(value, "average", 2, lifts=True), torch.stack([value, value], 2))


def test_the_report_says_how_kernels_were_inflated_and_what_is_pre_trained() -> None:
    target = network(deep(DEPTHS[0]), channels=2, seed=2)
    report = transfer(target, weights_of(network(FLAT)), classes=NAMES, inflate="average", spacing=[5.0, 1.0, 1.0])
    assert "kernels: 2D, made 3D by 'average'" in report.lines()
    assert "input: 1 -> 2 image channels, repeated / 2" in report.lines()
    assert (report.coverage, report.warnings, report.to_json()["inflate"]) == (1, (), "average")
    # What was inflated counts as pre-trained, so that strategies freeze it; a second channel does not.
    assert report.fresh == STUNET.inputs
    assert {fate.kind for fate in report.tensors if fate.target and fate.target.endswith("conv2.weight")} == {
        "inflated"
    }
    other = transfer(network([[1, 1, 1], [1, 2, 1], [1, 2, 2]]), weights_of(network(FLAT)), inflate="centre")
    assert [text for text in other.warnings if "strides [[1, 1], [2, 2], [1, 2]], the plan has [[1, 1], [2, 1]" in text]


def test_only_2d_weights_go_into_a_3d_network_and_only_when_asked_to() -> None:
    flat, volume = network(FLAT), network(deep(DEPTHS[0]))
    with pytest.raises(WeightsError, match="holds 2D weights") as caught:
        transfer(volume, weights_of(flat))
    assert "--inflate average" in caught.value.hint
    for target, given in ((volume, volume), (flat, flat), (flat, volume)):
        with pytest.raises(UsageError, match="--inflate makes 2D weights 3D"):
            transfer(target, weights_of(given), inflate="centre")
    with pytest.raises(UsageError, match="unknown inflate 'middle'"):
        transfer(volume, weights_of(flat), inflate="middle")
