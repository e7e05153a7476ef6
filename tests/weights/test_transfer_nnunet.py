"""Weights of nnU-Net's networks in plans of others: depth, kernels, channels, heads, the fate of each tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.plans.plan import Plan
from stunet.weights.naming import official_tensors
from stunet.weights.reading import Weights
from stunet.weights.recognition import recognise
from stunet.weights.report import TransferReport
from stunet.weights.transfer import transfer
from tests.loops import for_each
from tests.nnunet_networks import BOTH, KERNELS, STRIDES, arguments, network

NAMES = ["background", "liver", "spleen"]
CUBES = {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 3}


def weights_of(source: nn.Module, architecture: NNUNet, classes: list[str] = NAMES, channels: int = 1) -> Weights:
    """What read_weights() gives for a checkpoint of this network with its plans."""
    path = Path("given.pth")
    tensors = {name: value.clone() for name, value in official_tensors(source.state_dict(), path).items()}
    found = recognise(tensors, path)
    kwargs = {**found.planned, "strides": [list(stride) for stride in architecture.strides(source)]}
    planned = {"architecture": {"network_class_name": architecture.class_name, "arch_kwargs": kwargs}}
    dataset = {
        "labels": {name: value for value, name in enumerate(classes)},
        "channel_names": {str(n): f"MR{n}" for n in range(channels)},
    }
    return Weights(path, "nnU-Net v2", tensors, found, Plan({"configurations": {"c": planned}}), "c", dataset)


def drawn(architecture: NNUNet, seed: int, **others: Any) -> nn.Module:
    """A network no two tensors of which are alike, biases and norms of blocks included."""
    made = network(architecture, seed=seed, **others)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def kinds(report: TransferReport) -> set[str]:
    return {fate.kind for fate in report.tensors if fate.target}


@for_each("architecture", BOTH)
def test_the_same_network_becomes_a_copy_and_each_tensor_has_one_fate(architecture: NNUNet) -> None:
    source, target = drawn(architecture, 1), drawn(architecture, 2)
    report = transfer(target, weights_of(source, architecture), classes=NAMES, channels=["MR0"])
    image = torch.randn(1, 1, 8, 16, 16)
    assert torch.equal(source(image), target(image))
    assert (kinds(report), report.coverage, report.warnings, report.fresh) == ({"copied", "head"}, 1, (), frozenset())
    assert [fate.target for fate in report.tensors] == [name for name, _ in target.named_parameters()]
    assert [row[0] for row in report.table()[1]] == [
        "stem", *(["encoder 0"] if architecture is RESENC else []), "encoder 1", "encoder 2", "decoder", "heads",
    ]  # fmt: skip


@for_each("architecture", BOTH)
def test_kernels_become_sums_along_a_thin_axis_and_the_report_counts_them(architecture: NNUNet) -> None:
    source, target = drawn(architecture, 1, **CUBES), drawn(architecture, 2, strides=STRIDES)
    report = transfer(target, weights_of(source, architecture), classes=NAMES)
    assert report.coverage == 1
    assert kinds(report) == {"copied", "head", "inflated"}
    lines = "\n".join(report.lines())
    assert "input: kernel 3x3x3 -> 1x3x3" in lines
    assert "kernels: 3x3x3 -> 1x3x3 in" in lines
    assert "kernels: 2x2x2 -> 1x2x2 in 1 convolutions" in lines
    assert not report.fresh  # trained for what they do
    one = next(name for name in source.state_dict() if name in architecture.inputs)
    given, found = source.state_dict()[one], target.state_dict()[one]
    assert torch.equal(found, given.sum(2, keepdim=True))


@for_each("architecture", BOTH)
@for_each("norm", [{}, {"norm_op": "torch.nn.BatchNorm3d"}, {"norm_op": None, "norm_op_kwargs": None}])
def test_shorter_kernels_compute_the_same_on_what_is_constant_along_their_axis(
    architecture: NNUNet, norm: dict[str, Any]
) -> None:
    thin = {"strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2]], **norm}
    source, target = (
        drawn(architecture, seed, kernel_sizes=[[depth, 3, 3]] * 3, **thin) for seed, depth in ((1, 3), (2, 1))
    )
    if norm.get("norm_op"):
        for _ in range(20):
            source(torch.randn(2, 1, 4, 16, 16))  # a norm with statistics of its own
    transfer(target, weights_of(source, architecture), classes=NAMES)
    image = torch.randn(1, 1, 1, 16, 16).expand(-1, -1, 24, -1, -1)
    one, other = (net.eval()(image)[:, :, 12] for net in (source, target))  # far from padding
    assert (one - other).norm() < 0.05 * one.norm()


@for_each("architecture", BOTH)
def test_kernels_that_grow_compute_what_they_did(architecture: NNUNet) -> None:
    thin = {"strides": STRIDES, "kernel_sizes": [[1, 3, 3], *KERNELS[1:]]}
    source = drawn(architecture, 1, **thin)
    target = drawn(architecture, 2, strides=STRIDES, kernel_sizes=[[3, 3, 3]] * 3)
    report = transfer(target, weights_of(source, architecture), classes=NAMES)
    image = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(target(image), source(image), rtol=1e-4, atol=1e-4)
    assert "kernels: 1x3x3 -> 3x3x3 in" in "\n".join(report.lines())


@for_each("architecture", BOTH)
@for_each("stages", [2, 4])
def test_levels_are_matched_by_resolution_in_deeper_and_shallower_networks(architecture: NNUNet, stages: int) -> None:
    strides = [*STRIDES, [2, 2, 2]][:stages]
    source, target = drawn(architecture, 1), drawn(architecture, 2, strides=strides)
    report = transfer(target, weights_of(source, architecture), classes=NAMES)
    assert report.coverage == 1
    state, given = target.state_dict(), source.state_dict()
    for name, other in (
        ("decoder.stages.{}.convs.0.conv.weight", 1),
        ("decoder.transpconvs.{}.weight", 1),
        ("decoder.seg_layers.{}.weight", 1),
    ):
        assert torch.equal(state[name.format(stages - 2)], given[name.format(other)])
    common = [name for name in given if name.startswith("encoder.stages.1.")]
    assert all(torch.equal(state[name], given[name]) for name in common)
    fresh = {architecture.place(name) for name in report.fresh}
    assert {place.part for place in fresh} == ({"encoder", "upsampling", "decoder", "heads"} if stages > 3 else set())
    assert any("the plan has" in warning for warning in report.warnings)


def test_a_shortcut_is_found_behind_a_pooling_and_without_one() -> None:
    flat = {"strides": [[1, 1, 1], [1, 1, 1], [2, 2, 2]]}
    source, target = drawn(RESENC, 1), drawn(RESENC, 2, **flat)
    transfer(target, weights_of(source, RESENC), classes=NAMES)
    one, other = (
        net.state_dict()[f"encoder.stages.1.blocks.0.skip.{n}.conv.weight"] for net, n in ((source, 1), (target, 0))
    )
    assert torch.equal(one, other)


@for_each("architecture", BOTH)
def test_other_channels_and_classes_are_taken_as_for_stunet(architecture: NNUNet) -> None:
    source = drawn(architecture, 1, channels=2)
    target = drawn(architecture, 2, channels=3, classes=4)
    given = weights_of(source, architecture, channels=2)
    report = transfer(target, given, classes=["background", "spleen", "new", "liver"], channels=["A", "B", "C"])
    name = min(architecture.inputs)
    expected = source.state_dict()[name].sum(1, keepdim=True).expand(-1, 3, -1, -1, -1) / 3
    torch.testing.assert_close(target.state_dict()[name], expected)
    head, theirs = (net.state_dict()["decoder.seg_layers.1.bias"] for net in (target, source))
    assert torch.equal(head[[0, 1, 3]], theirs[[0, 2, 1]])
    assert "input: 2 -> 3 image channels, the sum of 2 / 3" in report.lines()
    assert {architecture.place(name).part for name in report.fresh} == {"stem", "heads"}


@for_each("architecture", BOTH)
def test_an_encoder_alone_leaves_the_decoder_as_it_was_drawn(architecture: NNUNet) -> None:
    source, target = drawn(architecture, 1), drawn(architecture, 2)
    given = weights_of(source, architecture)
    encoder = {name: value for name, value in given.tensors.items() if architecture.is_encoder(name)}
    before = {name: value.clone() for name, value in target.state_dict().items()}
    alone = replace(given, tensors=encoder, network=recognise(encoder, given.path), pretext="mae", transfers="encoder")
    for weights, options in ((given, {"transfer": "encoder"}), (alone, {})):
        report = transfer(target, weights, **options)
        after = target.state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {architecture.place(name).part for name in changed} == {"stem", "encoder"}
        assert (report.coverage, report.transfer) == (1, "encoder")
        target.load_state_dict(before)


@for_each("architecture", BOTH)
def test_running_statistics_come_along(architecture: NNUNet) -> None:
    own = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5}}
    source, target = drawn(architecture, 1, **own), drawn(architecture, 2, **own)
    source(torch.randn(2, 1, 8, 16, 16))
    transfer(target, weights_of(source, architecture), classes=NAMES)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    with pytest.raises(WeightsError, match=r"holds 3 stages .* batch norm, and .* instance norm: other norm_op"):
        transfer(drawn(architecture, 2), weights_of(source, architecture))


@for_each("architecture", BOTH)
def test_a_bias_before_a_norm_makes_no_difference(architecture: NNUNet) -> None:
    source, target = drawn(architecture, 1), drawn(architecture, 2, conv_bias=False)
    report = transfer(target, weights_of(source, architecture), classes=NAMES)
    assert report.coverage == 1
    back = transfer(drawn(architecture, 3), weights_of(target, architecture), classes=NAMES)
    assert back.coverage > 0.95


@for_each("architecture", BOTH)
def test_networks_of_other_widths_or_blocks_are_refused(architecture: NNUNet) -> None:
    given = weights_of(drawn(architecture, 1), architecture)
    for other, what in (
        ({"features_per_stage": [4, 8, 16]}, "other features_per_stage"),
        ({architecture.repeats: [2, 3, 2]}, f"other {architecture.repeats}"),
    ):
        with pytest.raises(WeightsError, match=what):
            transfer(drawn(architecture, 2, **other), given)
    wide = {"kernel_sizes": [[5, 5, 5]] * 3}
    with pytest.raises(WeightsError, match=r"would give .* of the encoder; missing: .* instead of"):
        transfer(drawn(architecture, 2), weights_of(drawn(architecture, 1, **wide), architecture))
    other = PLAIN_UNET if architecture is RESENC else RESENC
    with pytest.raises(
        WeightsError, match=f"are of {architecture.title}, and the plan's network is {other.network_class().__name__}"
    ):
        transfer(drawn(other, 2), given)


@torch.inference_mode()
@for_each("architecture", BOTH)
@for_each("depths", [(1, 2, 2), (1, 1, 2), (1, 1, 1)])
def test_2d_weights_compute_every_slice_as_they_did_the_image(architecture: NNUNet, depths: tuple[int, ...]) -> None:
    flat = [[1, 1], [2, 2], [2, 2]]
    source = drawn(architecture, 1, strides=flat)
    deep = [[depth, *stride] for depth, stride in zip(depths, flat, strict=True)]
    target = drawn(architecture, 2, strides=deep, kernel_sizes=KERNELS)
    report = transfer(target, weights_of(source, architecture), classes=NAMES, inflate="centre")
    assert (report.coverage, report.fresh) == (1, frozenset())
    image = torch.randn(1, 1, 16, 16)
    expected = source(image)[:, :, None]
    found = target(image[:, :, None].expand(-1, -1, 8, -1, -1))
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-3, atol=1e-3)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def test_arguments_that_shapes_do_not_show_make_no_difference() -> None:
    source = drawn(RESENC, 1)
    target = RESENC.build(1, 3, arguments(RESENC, nonlin="torch.nn.ReLU"))
    transfer(target, weights_of(source, RESENC), classes=NAMES)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in tensors_of(target).items())


def test_what_no_tensor_tells_of_the_function_is_a_warning() -> None:
    given = weights_of(drawn(PLAIN_UNET, 1), PLAIN_UNET)
    assert not transfer(drawn(PLAIN_UNET, 2), given, classes=NAMES, arguments=arguments(PLAIN_UNET)).warnings
    for changes, message in (
        ({"nonlin": "torch.nn.modules.activation.ReLU"}, "activation LeakyReLU negative_slope=0.01, the plan has ReLU"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "the plan has LeakyReLU negative_slope=0.2"),
        ({"nonlin_first": True}, "activation before the norm False, the plan has True"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "eps of the norm 1e-05, the plan has 0.001"),
    ):
        planned = arguments(PLAIN_UNET, **changes)
        target = drawn(PLAIN_UNET, 2, **changes)
        (warning,) = transfer(target, given, classes=NAMES, arguments=planned).warnings
        assert message in warning
