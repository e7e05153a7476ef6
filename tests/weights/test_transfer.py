"""Does a network get from a file what fits, and is the report of it true?"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.architectures.stunet import STUNET
from stunet.errors import UsageError, WeightsError
from stunet.networks import Size, STUNet, build
from stunet.plans.plan import Plan
from stunet.weights.checkpoints import save_weights
from stunet.weights.matching import inflate_channels
from stunet.weights.reading import Weights, read_weights
from stunet.weights.recognition import recognise
from stunet.weights.report import KINDS, TransferReport
from stunet.weights.transfer import transfer, verify
from tests.loops import for_each

NAMES = ["background", "spleen", "kidney_left", "kidney_right", "liver", "stomach"]


def strides(stages: int, ndim: int = 3) -> list[list[int]]:
    return [[1] * ndim, *([2] * ndim for _ in range(stages - 1))]


def network(stages: int = 3, channels: int = 1, classes: int = 3, seed: int = 0, size: str | Size = "T") -> STUNet:
    torch.manual_seed(seed)
    made = build(size, strides(stages), channels, classes)
    for parameter in made.parameters():  # biases too: no two networks share a value
        nn.init.normal_(parameter, std=0.1)
    return made


def weights_of(source: STUNet, classes: Sequence[str] = (), channels: Sequence[str] = (), **known: Any) -> Weights:
    """What read_weights() gives for a checkpoint of this network with its plans."""
    tensors = {name: value.clone() for name, value in source.state_dict().items()}
    planned = {
        "architecture": {"arch_kwargs": {"strides": [list(stride) for stride in source.strides]}},
        "normalization_schemes": ["CTNormalization"],
        "spacing": [3.0, 1.5, 1.5],
    }
    dataset = {
        "labels": {name: value for value, name in enumerate(classes)},
        "channel_names": {str(n): name for n, name in enumerate(channels)},
    }
    path = Path("given.pth")
    plan = Plan({"configurations": {"c": planned}})
    made = Weights(path, "nnU-Net v2", tensors, recognise(tensors, path), plan, "c", dataset)
    return replace(made, **known)


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def kinds(report: TransferReport) -> dict[str, str]:
    return {fate.target: fate.kind for fate in report.tensors if fate.target}


# Fates


def test_the_same_network_becomes_a_copy_bit_for_bit() -> None:
    source, target = network(seed=1), network(seed=2)
    report = transfer(target, weights_of(source, NAMES[:3], ["CT"]), classes=NAMES[:3], channels=["ct"])
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(source(x), target(x))
    assert set(kinds(report).values()) == {"copied", "head"}
    assert (report.coverage, report.warnings, report.fresh) == (1, (), frozenset())
    assert [row[0] for row in report.table()[1]] == ["stem", "encoder 1", "encoder 2", "decoder", "heads"]


@settings(max_examples=25, deadline=None)
@given(
    stages=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    classes=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    cascade=st.integers(0, 2),
    head=st.sampled_from([None, "slice", "reset"]),
)
def test_every_tensor_has_exactly_one_fate(
    stages: tuple[int, int], channels: tuple[int, int], classes: tuple[int, int], cascade: int, head: str | None
) -> None:
    source = network(stages[0], channels[0], classes[0], seed=1)
    target = network(stages[1], channels[1] + cascade, classes[1], seed=2)
    weights, before = weights_of(source, NAMES[: classes[0]]), copy_of(target.state_dict())
    report = transfer(target, weights, classes=NAMES[: classes[1]], cascade_channels=cascade, head=head)

    assert [fate.target for fate in report.tensors if fate.target] == list(before)
    sources = [fate.source for fate in report.tensors if fate.source]
    assert sorted(sources) == sorted(weights.tensors)
    for fate in report.tensors:
        assert fate.kind in KINDS
        assert (fate.target is None) == (fate.kind == "unused")
    for fate in report.tensors:
        if fate.target and not fate.source:
            assert torch.equal(before[fate.target], target.state_dict()[fate.target])
        if fate.kind == "copied":
            assert torch.equal(weights.tensors[str(fate.source)], target.state_dict()[str(fate.target)])
    assert report.coverage == 1
    assert sum(int(n) for row in report.table()[1] for n in row[2:] if n != "-") == len(report.tensors)


@for_each(("ours", "theirs"), [(3, 5), (6, 4), (2, 4)])
def test_levels_are_matched_by_their_resolution(ours: int, theirs: int) -> None:
    source, target = network(theirs, seed=1), network(ours, seed=2)
    report = transfer(target, weights_of(source, NAMES[:3]), classes=NAMES[:3])
    common = min(ours, theirs)
    for k in range(common):
        assert_same(source.conv_blocks_context[k], target.conv_blocks_context[k])
    for k in range(1, common):  # from the end: the finest resolution
        assert_same(source.upsample_layers[-k], target.upsample_layers[-k])
        assert_same(source.conv_blocks_localization[-k], target.conv_blocks_localization[-k])
        assert_same(source.seg_outputs[-k], target.seg_outputs[-k])
    drawn = [fate for fate in report.tensors if fate.kind == "missing"]
    assert bool(drawn) == (ours > theirs)
    assert {fate.target for fate in drawn} == report.fresh
    (warning,) = report.warnings
    assert f"{ours} stages and the weights have {theirs}" in warning
    assert any(fate.kind == "unused" for fate in report.tensors) == (theirs > ours)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_encoder_alone_is_loaded_and_the_rest_is_drawn() -> None:
    weights, target = weights_of(network(seed=1)), network(seed=2)
    encoder = {name: value for name, value in weights.tensors.items() if name.startswith("conv_blocks_context")}
    report = transfer(target, replace(weights, tensors=encoder, network=recognise(encoder, weights.path)))
    assert report.coverage == 1
    assert report.fresh == {name for name in target.state_dict() if not name.startswith("conv_blocks_context")}
    assert "the weights have no heads" in report.lines()[-1]


@for_each(
    ("known", "asked"),
    [({}, "encoder"), ({"pretext": "rot", "transfers": "encoder"}, None), ({"pretext": "mae"}, "encoder")],
)
def test_of_the_encoder_alone_nothing_else_is_taken(known: dict[str, Any], asked: str | None) -> None:
    source, target = network(seed=1), network(seed=2)
    before = copy_of(target.state_dict())
    report = transfer(target, weights_of(source, NAMES[:3], **known), classes=NAMES[:3], transfer=asked)
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name] if STUNET.is_encoder(name) else before[name])
    assert report.coverage == 1
    assert report.fresh == {name for name in before if not STUNET.is_encoder(name)}
    assert {fate.source for fate in report.tensors if fate.kind == "unused"} == report.fresh
    assert any(line.startswith("transferred: stem and encoder; decoder") for line in report.lines())
    assert report.to_json()["transfer"] == "encoder"


@for_each("asked", [None, "all"])
def test_of_a_pretext_that_trains_all_the_decoder_is_taken_and_its_heads_never_are(asked: str | None) -> None:
    # Volume fusion has a head of five rows, and a file may say that these are classes.
    source, target = network(seed=1), network(seed=2)
    before = copy_of(target.state_dict())
    weights = weights_of(source, NAMES[:3], pretext="vf", transfers="encoder" if asked else "all")
    report = transfer(target, weights, classes=NAMES[:3], transfer=asked)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("seg_outputs") else source.state_dict()[name])
    assert "as the heads of 'vf', which trained the weights without labels, are of no classes" in report.lines()[-1]
    assert report.lines()[1].startswith("pre-training: vf, images of 1 channel(s), at 3 x 1.5 x 1.5 mm")


def test_half_precision_is_cast_to_the_networks_type(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    weights = weights_of(source, NAMES[:3])
    meta = {"plans": weights.plan.with_name("p").content, "configuration": "c", "dataset": weights.dataset}
    save_weights(tmp_path / "half.safetensors", weights.tensors, meta, half=True)
    transfer(target, read_weights(tmp_path / "half.safetensors"), classes=NAMES[:3], head="slice")
    for name, value in target.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, source.state_dict()[name].half().float())


# The input


@given(channels=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_response_to_equal_channels_survives_any_way_of_channel_numbers(channels: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, channels[0], 3, 3, 3, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 1, 6, 6, 6, dtype=torch.float64, generator=generator)
    expected = F.conv3d(x.expand(-1, channels[0], -1, -1, -1), weight)
    for count in channels[1:]:
        weight = inflate_channels(weight, count, 0)
        torch.testing.assert_close(F.conv3d(x.expand(-1, count, -1, -1, -1), weight), expected)


def test_first_keeps_the_first_channels_and_adds_zeros() -> None:
    weight = torch.randn(4, 2, 3, 3, 3)
    more = inflate_channels(weight, 3, 0, "first")
    assert torch.equal(more[:, :2], weight)
    assert not more[:, 2].any()
    assert torch.equal(inflate_channels(weight, 1, 0, "first"), weight[:, :1])


@for_each("stem", ["repeat", "first"])
def test_a_network_with_more_channels_and_a_cascade_starts_as_the_one_without(stem: str) -> None:
    source, target = network(seed=1), network(channels=3 + 2, seed=2)
    report = transfer(target, weights_of(source, NAMES[:3]), classes=NAMES[:3], cascade_channels=2, stem=stem)
    image, one_hot = torch.randn(1, 1, 16, 16, 16), torch.randint(2, (1, 2, 16, 16, 16)).float()
    others = image if stem == "repeat" else torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        ours = target(torch.cat([image, others, others, one_hot], 1))
        torch.testing.assert_close(ours, source(image), rtol=1e-5, atol=1e-5)
    assert {name for name, kind in kinds(report).items() if kind == "inflated"} == STUNET.inputs
    assert report.fresh == STUNET.inputs
    assert [line for line in report.lines() if "1 -> 3 image channels" in line and "2 one-hot" in line]


def test_nothing_of_a_cascade_gets_into_a_network_without_one_nor_into_another_cascade() -> None:
    source = network(channels=1 + 2, seed=1)
    weights = weights_of(source, NAMES[:3], ["CT"])  # one name: the other two channels are one-hot
    alone, cascade = network(seed=2), network(channels=1 + 2, seed=3)
    transfer(alone, weights, classes=NAMES[:3])
    transfer(cascade, weights, classes=NAMES[:3], cascade_channels=2)
    for name in STUNET.inputs:
        assert torch.equal(alone.state_dict()[name], weights.tensors[name][:, :1])
        assert torch.equal(cascade.state_dict()[name][:, :1], weights.tensors[name][:, :1])
        assert not cascade.state_dict()[name][:, 1:].any()


def test_channels_of_another_name_are_warned_of() -> None:
    weights = weights_of(network(channels=2), NAMES[:3], ["T1", "FLAIR"])
    report = transfer(network(channels=2), weights, classes=NAMES[:3], channels=["flair", "T2"])
    assert len(report.warnings) == 1
    assert "are T1, FLAIR, the dataset's flair, T2: they are taken in this order" in report.warnings[0]


def test_channels_take_the_weights_of_their_names_in_whatever_order() -> None:
    source, target = network(channels=3, seed=1).eval(), network(channels=3, seed=2).eval()
    weights = weights_of(source, NAMES[:3], ["CT", "PET", "T1"])
    assert weights.plan
    plan = weights.plan.with_configuration("c", normalization_schemes=["CTNormalization", "A", "B"])
    weights = replace(weights, plan=plan)
    schemes = ["B", "CTNormalization", "A"]
    report = transfer(target, weights, classes=NAMES[:3], channels=["t1", "CT", "PET"], normalization=schemes)
    assert [text.rpartition(": ")[2] for text in report.warnings] == ["each takes the weights of its name"]
    image = torch.randn(1, 3, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(target(image[:, [2, 0, 1]]), source(image))


# Heads


def test_rows_of_every_head_follow_their_names() -> None:
    source, target = network(4, classes=6, seed=1), network(3, classes=4, seed=2)
    before = copy_of(target.state_dict())
    wanted = ["background", "Liver", "kidney", "tumor of unknown kind"]
    report = transfer(target, weights_of(source, NAMES), classes=wanted)
    for k in (1, 2):
        for value in ("weight", "bias"):
            ours, theirs = getattr(target.seg_outputs[-k], value), getattr(source.seg_outputs[-k], value)
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[4])
            torch.testing.assert_close(ours[2], (theirs[2] + theirs[3]) / 2)
            assert torch.equal(ours[3], before[f"seg_outputs.{2 - k}.{value}"][3])
    assert report.fresh == {name for name in before if name.startswith("seg_outputs")}
    assert report.heads.unused == ("spleen", "stomach")


def test_a_reset_leaves_all_heads_as_drawn() -> None:
    target = network(seed=2)
    before = copy_of(target.state_dict())
    report = transfer(target, weights_of(network(seed=1), NAMES[:3]), classes=NAMES[:3], head="reset")
    heads = {name for name in before if name.startswith("seg_outputs")}
    assert report.fresh == heads
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in heads)
    assert {fate.source for fate in report.tensors if fate.kind == "unused"} == heads


# Warnings and the report


def test_other_strides_are_named_and_unknown_ones_too() -> None:
    source, target = network(), network()
    weights = weights_of(source, NAMES[:3])
    kwargs = weights.plan.content["configurations"]["c"]["architecture"]["arch_kwargs"]
    kwargs["strides"] = [[1, 1, 1], [2, 2, 2], [1, 1, 2]]
    (warning,) = transfer(target, weights, classes=NAMES[:3]).warnings
    assert "[1, 1, 2]" in warning
    assert "[2, 2, 2]]" in warning
    (warning,) = transfer(target, replace(weights, plan=None), classes=NAMES[:3]).warnings
    assert "unknown" in warning


@for_each(
    ("normalization", "spacing", "expected"),
    [
        (None, None, []),
        (["CTNormalization", "CTNormalization"], [2.0, 1.0, 2.25], []),
        (["ZScoreNormalization"], [3.0, 1.5, 1.5], ["by CTNormalization, the plan normalises by ZScoreNormalization"]),
        (["CTNormalization"], [3.0, 1.5, 2.3], ["3 x 1.5 x 1.5 mm, the plan has 3 x 1.5 x 2.3 mm"]),
        (["CTNormalization"], [3.0, 0.9, 1.5], ["3 x 1.5 x 1.5 mm, the plan has 3 x 0.9 x 1.5 mm"]),
        (
            ["CTNormalization", "ZScoreNormalization"],
            [9.0, 9.0, 9.0],
            ["normalises by CTNormalization, Z", "9 x 9"],
        ),
    ],
)
def test_other_intensities_and_another_spacing_are_named(
    normalization: list[str] | None, spacing: list[float] | None, expected: list[str]
) -> None:
    weights = weights_of(network(channels=2), channels=["a", "b"])
    report = transfer(network(channels=2), weights, normalization=normalization, spacing=spacing)
    assert len(report.warnings) == len(expected)
    for part, warning in zip(expected, report.warnings, strict=True):
        assert part in warning


@for_each(("std", "warned"), [(271.5, False), (16.6, True)])
def test_ct_that_is_normalised_by_a_much_smaller_spread_is_named(std: float, warned: bool) -> None:
    given = weights_of(network())
    plan = given.plan.with_values(foreground_intensity_properties_per_channel={"0": {"std": 270.0}})
    here = {"0": {"std": std}}
    schemes = ["CTNormalization"]
    report = transfer(network(), replace(given, plan=plan), normalization=schemes, intensities=here)
    assert [f"divided by 270 HU, the plan divides by {std:.0f}" in text for text in report.warnings] == [True] * warned


def test_axes_that_run_another_way_are_named() -> None:
    for transposed, orientation, mirrored, expected in (
        ([0, 1, 2], "LPS", (), None),
        (None, None, (), None),
        ([0, 1, 2], None, (), None),
        ([1, 0, 2], None, (), "axes in the order [0, 1, 2], the plan has [1, 0, 2]"),
        (
            [1, 0, 2],
            "LPS",
            (),
            "those of the plan run towards P, S, L: they know the same structures from another side",
        ),
        ([1, 0, 2], "LSP", (), None),  # the same in the end
        (
            [0, 1, 2],
            "RAS",
            (),
            "towards S, P, L, those of the plan run towards S, A, R: they know the same",
        ),
        ([0, 1, 2], "RAS", (1, 2), None),
        ([0, 1, 2], "RAS", (2,), "mirrored"),
        ([0, 1, 2], "RAS", None, None),
    ):
        given = weights_of(network(), mirror_axes=mirrored)
        plan = given.plan.with_values(transpose_forward=[0, 1, 2]).with_ours(orientation="LPS")
        known = {"transposition": transposed, "orientation": orientation}
        found = transfer(network(), replace(given, plan=plan), **known).warnings
        assert [expected in text for text in found] == [True] * bool(expected), (known, found)


def test_what_weights_do_not_say_of_their_images_is_passed_over() -> None:
    bare = weights_of(network(), plan=None)
    report = transfer(network(), bare, normalization=["CTNormalization"], spacing=[9.0, 9.0, 9.0])
    assert report.warnings == ("the strides that the weights were trained with are unknown",)


def test_the_report_is_json_with_everything_in_it() -> None:
    report = transfer(network(classes=6), weights_of(network(), NAMES[:3], entry="X"), classes=NAMES, sha256="ab")
    document = json.loads(json.dumps(report.to_json()))
    assert (document["sha256"], document["entry"], document["coverage"]) == ("ab", "X", 1)
    assert len(document["tensors"]) == len(report.tensors)
    assert document["heads"]["rows"][1] == {"target": "kidney_left", "sources": ["kidney_left"], "closest": []}
    assert list(document) == ["weights", "sha256", "entry", "coverage", "heads", "warnings", "tensors"]


# Bad input


def refused(target: nn.Module, weights: Weights, pattern: str, **arguments: Any) -> WeightsError:
    """The error, after it has been seen that the network is as it was."""
    before = copy_of(target.state_dict())
    with pytest.raises(WeightsError, match=pattern) as caught:
        transfer(target, weights, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    return caught.value


def test_another_size_is_refused_with_both_names_and_the_way_out() -> None:
    weights = weights_of(build("S", strides(3)))
    error = refused(network(), weights, r"size S \(16 .* size T \(4")
    assert "--size S" in error.hint
    weights = weights_of(build(Size(4, 2), strides(3)))  # the same width, but deeper
    assert "--size" not in refused(network(), weights, r"no published size \(4 .* 2 block").hint


def test_2d_weights_do_not_go_into_a_3d_network() -> None:
    assert "-c 2d" in refused(network(), weights_of(build("T", strides(3, 2))), "2D weights.* 3D").hint


def test_a_network_that_is_no_stunet_is_refused() -> None:
    refused(nn.Conv3d(1, 1, 3), weights_of(network()), "Conv3d")


@for_each("value", [float("nan"), float("inf")])
@for_each("name", ["conv_blocks_context.0.0.conv1.weight", "seg_outputs.1.bias"])
def test_nan_is_refused_before_anything_is_loaded(name: str, value: float) -> None:
    weights = weights_of(network(seed=1), NAMES[:3])
    weights.tensors[name].view(-1)[-1] = value
    refused(network(seed=2), weights, re.escape(name), classes=NAMES[:3])


def test_too_little_of_the_encoder_is_refused_with_the_largest_gaps() -> None:
    weights = weights_of(network(seed=1))
    for block in ("2.0", "1.0"):
        del weights.tensors[f"conv_blocks_context.{block}.conv2.weight"]
    error = refused(network(seed=2), weights, r"would give \d\d% of the encoder")
    assert error.message.index("2.0.conv2.weight") < error.message.index("1.0.conv2.weight")
    assert "only a part" in error.message


def test_tensors_of_another_shape_are_missing_and_both_shapes_are_named() -> None:
    weights = weights_of(network(seed=1))
    weights.tensors["conv_blocks_context.2.0.conv2.weight"] = torch.randn(16, 8, 3, 3, 3)
    message = refused(network(seed=2), weights, "other convolutions").message
    assert "(16, 8, 3, 3, 3) instead of (16, 16, 3, 3, 3)" in message
    weights = weights_of(network(seed=1))
    weights.tensors["upsample_layers.0.conv.bias"] = torch.randn(3)
    report = transfer(network(seed=2), weights)
    assert report.fresh - {"upsample_layers.0.conv.bias"} == {f for f in report.fresh if f.startswith("seg_outputs")}
    assert "(3,) instead of (8,)" in json.dumps(report.to_json())


def test_weights_without_a_common_name_are_refused() -> None:
    weights = weights_of(network())
    renamed = {f"net.{name}": value for name, value in weights.tensors.items()}
    refused(network(seed=2), replace(weights, tensors=renamed), "would give 0%")


def test_unknown_stems_and_a_wrong_number_of_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="'mean'"):
        transfer(network(), weights_of(network()), stem="mean")
    with pytest.raises(UsageError, match="unknown transfer 'decoder'"):
        transfer(network(), weights_of(network()), transfer="decoder")
    with pytest.raises(ValueError, match="2 names for the 3 rows"):
        transfer(network(), weights_of(network()), classes=NAMES[:2])


def test_verify_sees_a_single_bit() -> None:
    loaded = torch.ones(3)
    verify("seg_outputs.0.bias", loaded.clone(), loaded)
    with pytest.raises(WeightsError, match=r"'seg_outputs\.0\.bias'"):
        verify("seg_outputs.0.bias", loaded + 1e-7, loaded)
