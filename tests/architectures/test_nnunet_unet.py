"""nnU-Net's networks, next to the classes of dynamic_network_architectures: names, parts, counts, and recognition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from stunet import architectures
from stunet.architectures.base import DECODER, ENCODER, HEADS, OTHER, STEM, UPSAMPLING, Place
from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.plans import memory
from stunet.plans.memory import Network
from stunet.weights.recognition import recognise
from tests.loops import for_each
from tests.nnunet_networks import BOTH, STRIDES, arguments, network
from tests.plans.test_memory import saved_bytes

IN_2D: dict[str, Any] = {"strides": [[1, 1], [2, 2], [2, 2]]}
# What plans differ in, besides depth and width.
VARIANTS: list[dict[str, Any]] = [
    {},
    IN_2D,
    {"strides": [*STRIDES, [1, 2, 2]], "conv_bias": False},
    {"strides": [*STRIDES, [1, 1, 1]], "features_per_stage": [2, 4, 6, 8]},
    {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5}},
    {"norm_op_kwargs": {"eps": 1e-5}, "nonlin": "torch.nn.modules.activation.ReLU"},
    {"n_conv_per_stage_decoder": [3, 1], "kernel_sizes": [[3, 5, 5], [1, 3, 3], [3, 3, 3]]},
    {"norm_op": None, "norm_op_kwargs": None, "nonlin": "torch.nn.GELU", "nonlin_kwargs": {}},
    {"nonlin_kwargs": None},
]  # fmt: skip


@for_each("architecture", BOTH)
def test_it_builds_what_nnunet_builds_and_plans_say(architecture: NNUNet) -> None:
    given = arguments(architecture)
    imports = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    torch.manual_seed(0)
    stock = get_network_from_plans(architecture.class_name, given, imports, 2, 3, deep_supervision=True)
    ours = architectures.of_class(architecture.class_name).build(2, 3, {**given, "deep_supervision": True})
    assert type(ours) is type(stock)
    assert architectures.of_network(stock) is architecture
    ours.load_state_dict(stock.state_dict())
    image = torch.randn(1, 2, 8, 16, 16)
    assert all(torch.equal(one, other) for one, other in zip(ours(image), stock(image), strict=True))
    assert architecture.problem(given) is None
    assert [list(stride) for stride in architecture.strides(ours)] == STRIDES
    architecture.deeply_supervise(ours, False)
    assert torch.equal(ours(image), stock(image)[0])


@for_each("architecture", BOTH)
def test_every_alias_leads_to_the_name_that_its_parameter_has(architecture: NNUNet) -> None:
    for variant in (VARIANTS[0], VARIANTS[4], {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}):
        net = network(architecture, **variant)
        state = net.state_dict()
        own = {name for name, _ in net.named_parameters()} | {name for name, _ in net.named_buffers()}
        assert {architecture.canonical(name) for name in state} == own
        assert len(state) > 2 * len(own)
        for name, value in state.items():
            assert state[architecture.canonical(name)].data_ptr() == value.data_ptr(), name
            assert architecture.place(name) == architecture.place(architecture.canonical(name))


@for_each("architecture", BOTH)
def test_tensors_tell_everything_that_shapes_depend_on(architecture: NNUNet) -> None:
    for variant in VARIANTS:
        given, state = arguments(architecture, **variant), network(architecture, 2, 5, **variant).state_dict()
        found = recognise(state, Path("x"))
        assert found.architecture is architecture
        assert (found.size, found.stages, found.channels, found.classes) == (None, given["n_stages"], 2, 5)
        assert (found.ndim, found.strides) == (len(given["strides"][0]), given["strides"])
        assert architecture.comparable(found.planned) == architecture.comparable(given), variant
        if variant in VARIANTS[:4]:
            assert {**found.planned, "strides": given["strides"]} == given
        built = {name: value.shape for name, value in found.build().state_dict().items()}
        assert built == {name: value.shape for name, value in state.items()}


@for_each("architecture", BOTH)
def test_an_encoder_alone_is_recognised_and_what_it_does_not_tell_is_marked(architecture: NNUNet) -> None:
    given = {"n_conv_per_stage_decoder": [3, 3]}
    state = network(architecture, **given).state_dict()
    without_heads = recognise({name: value for name, value in state.items() if "seg_layers" not in name}, Path("x"))
    assert (without_heads.classes, without_heads.strides, without_heads.assumed) == (0, STRIDES, frozenset())
    alone = recognise({name: value for name, value in state.items() if name.startswith("encoder.")}, Path("x"))
    assert (alone.classes, alone.strides, alone.assumed) == (0, None, {"n_conv_per_stage_decoder"})
    usual = [architecture.usual_decoder] * 2
    assert alone.arguments == without_heads.arguments | {"n_conv_per_stage_decoder": usual}


@for_each("architecture", BOTH)
def test_a_network_of_which_parts_are_missing_or_wrong_is_refused(architecture: NNUNet) -> None:
    state = network(architecture).state_dict()
    block = "encoder.stages.1.blocks.0" if architecture is RESENC else "encoder.stages.1.0.convs.0"
    for part, message in (
        (block, "lacks parts of its encoder"),
        ("encoder.stages.1", "lacks parts of its encoder"),
        ("decoder.stages.1", "lacks parts of its decoder"),
        ("decoder.transpconvs.0", "lacks parts of its decoder"),
    ):
        holed = {name: v for name, v in state.items() if not architecture.canonical(name).startswith(f"{part}.")}
        with pytest.raises(WeightsError, match=message):
            recognise(holed, Path("x"))
    wrong = {
        name: value[:1] if name == "decoder.stages.0.convs.0.norm.bias" else value for name, value in state.items()
    }
    with pytest.raises(WeightsError, match=r"is not a .* U-Net of 3 stages of 4-8-8 channels .* 'decoder.*has shape"):
        recognise(wrong, Path("x"))


@for_each("architecture", BOTH)
def test_parameters_are_counted_as_torch_counts_them(architecture: NNUNet) -> None:
    for variant in VARIANTS:
        net, given = network(architecture, 2, 5, **variant), arguments(architecture, **variant)
        counted = Network(given, 2, 5, architecture=architecture)
        assert memory.parameters(counted, given["strides"]) == sum(p.numel() for p in net.parameters()), variant
        encoder = sum(p.numel() for name, p in net.named_parameters() if architecture.is_encoder(name))
        assert architecture.encoder_parameters(given, 2, given["strides"]) == encoder


@for_each("architecture", BOTH)
def test_counted_activations_equal_what_autograd_keeps(architecture: NNUNet) -> None:
    for variant in VARIANTS:
        given = arguments(architecture, **variant)
        patch = (16, 32, 32)[-len(given["strides"][0]) :]
        counted = Network(given, 1, 3, architecture=architecture)
        kept = memory.activation_bytes(counted, patch, given["strides"]) * memory.SINGLE // memory.HALF
        image = torch.zeros(1, 1, *patch).nbytes
        net = network(architecture, deep_supervision=True, **variant)
        assert saved_bytes(net, (1, 1, *patch)) == pytest.approx(kept + image, rel=0.01), variant


@for_each("architecture", BOTH)
def test_plans_with_lists_for_more_stages_are_counted_as_those_with_fewer(architecture: NNUNet) -> None:
    deep = arguments(architecture, strides=[*STRIDES, [2, 2, 2]])
    few, more = (Network(each, 1, 3, architecture=architecture) for each in (arguments(architecture), deep))
    assert memory.parameters(few, STRIDES) == memory.parameters(more, STRIDES)
    assert memory.activation_bytes(few, (16, 16, 16), STRIDES) == memory.activation_bytes(more, (16, 16, 16), STRIDES)
    assert (architecture.width(deep), architecture.label(deep)) == (4, architecture.title)


@for_each("architecture", BOTH)
def test_features_decoder_and_heads_make_up_the_network(architecture: NNUNet) -> None:
    for variant in ({}, IN_2D):
        net = network(architecture, deep_supervision=True, **variant)
        image = torch.randn(1, 1, 8, 16, 16) if variant == {} else torch.randn(1, 1, 16, 16)
        features = architecture.features(net, image)
        assert all(torch.equal(one, other) for one, other in zip(features, net.encoder(image), strict=True))
        outputs = net(image)
        assert torch.equal(architecture.head(net)(architecture.decode(net, features)), outputs[0])
        coarser = architecture.modules(net, HEADS)[0](architecture.decode(net, features, levels=1))
        assert torch.equal(coarser, outputs[-1])
        assert (architecture.width_of(net), architecture.channels(net)) == (4, 1)


def test_every_tensor_has_its_part_and_its_depth() -> None:
    for architecture, places in (
        (PLAIN_UNET, {"encoder.stages.0.0.convs.1.norm.bias": (Place(STEM, 0), 0)}),
        (
            RESENC,
            {
                "encoder.stem.convs.0.conv.weight": (Place(STEM, 0), 0),
                "encoder.stages.0.blocks.0.conv1.conv.weight": (Place(ENCODER, 0), 0),
            },
        ),
    ):
        net = network(architecture)
        layout = architecture.layout(net)
        assert (layout.stages, layout.levels) == (3, 2)
        last = next(name for name in net.state_dict() if name.startswith("encoder.stages.2"))
        for name, (place, block) in {
            **places,
            last: (Place(ENCODER, 2), 2),
            "decoder.transpconvs.0.weight": (Place(UPSAMPLING, 0), 3),
            "decoder.stages.1.convs.0.conv.weight": (Place(DECODER, 1), 4),
            "decoder.seg_layers.1.bias": (Place(HEADS, 1), 5),
        }.items():
            assert (architecture.place(name), layout.block_of(name)) == (place, block), name
        assert architecture.place("decoder.other.0.weight").part == OTHER
        assert architecture.at_level("decoder.stages.1.convs.0.conv.bias", 0) == "decoder.stages.0.convs.0.conv.bias"
        stem = [net.encoder.stem] if architecture is RESENC else []
        assert architecture.blocks(net) == [*stem, *net.encoder.stages, *net.decoder.stages]


@for_each("architecture", BOTH)
def test_arguments_that_no_network_has_are_a_problem(architecture: NNUNet) -> None:
    for wrong, message in (
        ({"conv_op": "os.system"}, "conv_op 'os.system' is not one of the classes that are known here: .*Conv2d"),
        ({"norm_op": "torch.nn.Conv3d"}, "norm_op 'torch.nn.Conv3d' is not one of the classes"),
        ({"nonlin": "torch.nn.PReLU"}, "nonlin 'torch.nn.PReLU' is not one of"),
        ({"conv_op": None}, "conv_op None is not one of"),
        ({"norm_op": "torch.nn.InstanceNorm2d"}, "'torch.nn.InstanceNorm2d' is not for 3D"),
        ({"n_stages": "3"}, "n_stages '3' must be 2 to 20"),
        ({"features_per_stage": [4, 8]}, r"features_per_stage \[4, 8\] must be 3 positive integers"),
        ({architecture.repeats: [1, 0, 1]}, f"{architecture.repeats} .* must be 3 positive integers"),
        ({"n_conv_per_stage_decoder": [1, 1, 1]}, "n_conv_per_stage_decoder .* must be 2 positive integers"),
        ({"kernel_sizes": [[3, 3, 3], [3, 3, 2], [3, 3, 3]]}, "kernel_sizes .* 3 entries of 3 odd numbers"),
        ({"strides": [[1, 1, 1]]}, "must have an entry for each of 3 stages"),
        ({"conv_bias": 1}, "conv_bias 1 must be true or false"),
        ({"norm_op_kwargs": {"device": "cuda"}}, "norm_op_kwargs .* by the names affine, eps, momentum"),
        ({"nonlin_kwargs": {"inplace": [True]}}, "nonlin_kwargs .* must be numbers"),
    ):
        given = arguments(architecture) | wrong
        with pytest.raises(ValueError, match=message):
            architecture.build(1, 2, given)
    single = {"features_per_stage": 4, "kernel_sizes": 3, architecture.repeats: 1, "n_conv_per_stage_decoder": 1}
    assert architecture.problem(arguments(architecture, **single)) is None
    assert isinstance(network(architecture, **single), torch.nn.Module)
    with pytest.raises(ValueError, match="inplace"):
        architecture.build(1, 2, arguments(architecture, nonlin="torch.nn.GELU"))


@for_each("architecture", BOTH)
def test_the_training_graph_is_compiled_without_a_break(architecture: NNUNet) -> None:
    net, image = network(architecture, deep_supervision=True, strides=STRIDES[:2]), torch.randn(2, 1, 8, 8, 8)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for ours, theirs in zip(compiled(image), net(image), strict=True):
        torch.testing.assert_close(ours, theirs)
    sum(head.square().mean() for head in compiled(image)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert architectures.of_network(compiled._orig_mod) is architecture
