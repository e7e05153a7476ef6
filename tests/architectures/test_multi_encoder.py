"""A network with several encoders: what it computes, what stands where in it, its memory, and how it is recognised."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from stunet.architectures import find_network, with_encoders
from stunet.architectures.base import DECODER, ENCODER, FUSION, STEM, Place
from stunet.architectures.multi_encoder import MULTI_ENCODER
from stunet.architectures.stunet import STUNET
from stunet.errors import UsageError, WeightsError
from stunet.networks import MultiEncoderSTUNet, STUNet, build
from stunet.plans import memory
from stunet.plans.memory import Network
from stunet.trainers.finetune import lora, strategies
from stunet.weights.recognition import recognise
from tests.loops import for_each
from tests.plans.test_memory import saved_bytes
from tests.test_networks_training import image, step
from tests.toy_network import TOY

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
ARGUMENTS = {"size": "T", "strides": STRIDES, "encoders": 2}


def network(
    encoders: int = 2, initialised: bool = True, strides: list[list[int]] = STRIDES, **arguments: bool
) -> MultiEncoderSTUNet:
    torch.manual_seed(0)
    made = MultiEncoderSTUNet(1, 3, "T", strides, encoders, **arguments)
    if initialised:
        made.apply(made.initialize)
    return made


def test_features_of_a_stage_are_concatenated_and_convolved() -> None:
    net, x = network(initialised=False, deep_supervision=False), image(2, 1, 8, 8, 8)
    sources = MULTI_ENCODER.sources(net)
    each = [STUNET.features(source, x) for source in sources]
    fused = []
    for stage, (one, other) in enumerate(zip(*each, strict=True)):
        convolution = net.fusion_layers[2 - stage].conv
        fused.append(F.conv3d(torch.cat((one, other), 1), convolution.weight, convolution.bias))
    for ours, theirs in zip(MULTI_ENCODER.features(net, x), fused, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(net(x), net.seg_outputs[-1](STUNET.decode(net, fused)))


def test_it_starts_as_the_mean_of_its_encoders() -> None:
    net, x = network(3), image(1, 1, 8, 8, 8)
    each = [STUNET.features(source, x) for source in MULTI_ENCODER.sources(net)]
    for fused, *outputs in zip(MULTI_ENCODER.features(net, x), *each, strict=True):
        torch.testing.assert_close(fused, torch.stack(outputs).mean(0))
    for stage in net.encoders[1:]:
        stage.load_state_dict(net.encoders[0].state_dict())
    one = build("T", STRIDES, 1, 3)
    one.load_state_dict(
        {
            name.replace("encoders.0", "conv_blocks_context"): value
            for name, value in net.state_dict().items()
            if not name.startswith(("encoders.1", "encoders.2", "fusion"))
        }
    )
    torch.testing.assert_close(net(x)[0], one(x))


def test_checkpointing_and_compilation_change_nothing() -> None:
    x = image(1, 1, 4, 4, 4)
    expected = step(network(strides=STRIDES[:2]), x)
    compiled = torch.compile(network(strides=STRIDES[:2]), backend="eager", fullgraph=True)
    for other in (step(network(strides=STRIDES[:2], checkpointing=True), x), step(compiled, x)):
        for ours, theirs in zip(other, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@for_each("encoders", [2, 3])
def test_its_parameters_and_memory_are_counted(encoders: int) -> None:
    arguments = {**ARGUMENTS, "encoders": encoders}
    counted = Network(arguments, 1, 3, architecture=MULTI_ENCODER)
    made, patch = network(encoders), (16, 32, 32)
    assert memory.parameters(counted, STRIDES) == sum(p.numel() for p in made.parameters())
    kept = memory.activation_bytes(counted, patch, STRIDES) * memory.SINGLE // memory.HALF
    assert saved_bytes(made, (1, 1, *patch)) == pytest.approx(kept + 4 * 16 * 32 * 32, rel=0.01)
    assert counted.label == f"STU-Net-T with {encoders} encoders"


def test_every_tensor_has_its_part_and_its_depth() -> None:
    net = network()
    layout = MULTI_ENCODER.layout(net)
    assert (layout.stages, layout.levels) == (3, 2)
    places = {
        "encoders.1.0.0.conv1.weight": (Place(STEM, 0), 0),
        "encoders.1.2.0.norm1.bias": (Place(ENCODER, 2), 2),
        "fusion_layers.0.conv.weight": (Place(FUSION, 0), 3),
        "fusion_layers.1.conv.weight": (Place(FUSION, 1), 3),
        "fusion_layers.2.conv.weight": (Place(FUSION, 2), 4),
        "conv_blocks_localization.1.0.conv1.weight": (Place(DECODER, 1), 4),
    }
    for name, (place, block) in places.items():
        assert (MULTI_ENCODER.place(name), layout.block_of(name)) == (place, block), name
    stages = [net.encoders[encoder][stage] for stage in range(3) for encoder in range(2)]
    assert MULTI_ENCODER.blocks(net) == [*stages, *net.conv_blocks_localization]
    assert MULTI_ENCODER.modules(net, STEM) == stages[:2]


def test_strategies_and_adapters_cover_all_encoders() -> None:
    net = network()
    strategies.set_trainable(net, strategies.find("encoder-frozen").phases[0], set())
    trained = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"fusion_layers", "upsample_layers", "conv_blocks_localization", "seg_outputs"}
    groups = strategies.groups(net, strategies.find("layerwise"), set())
    first = {id(parameter) for stage in MULTI_ENCODER.modules(net, STEM) for parameter in stage.parameters()}
    assert {id(parameter) for parameter in groups[-1]["params"]} == first
    lora.add(net, 2, 0, {name for name in net.state_dict() if name.startswith("fusion")})
    adapted = {name.partition(".parametrizations")[0] for name in lora.adapters_state(net)}
    assert {"encoders.0.2.0.conv1", "encoders.1.2.0.conv1"} <= adapted
    assert not any(name.startswith(("fusion", "seg_outputs")) for name in adapted)


def test_it_is_recognised_by_its_tensors() -> None:
    state = network(3).state_dict()
    found = recognise(state, Path("x"))
    assert found.architecture is MULTI_ENCODER
    assert found.planned == {"size": "T", "encoders": 3}
    assert (found.stages, found.channels, found.classes) == (3, 1, 3)
    assert str(found) == "size T (4 channels in the first stage, 1 block(s) per stage) with 3 encoders"
    assert isinstance(found.build(STRIDES), MultiEncoderSTUNet)
    for spoilt in (
        {name: value for name, value in state.items() if not name.startswith(("encoders.1", "encoders.2"))},
        {name: value for name, value in state.items() if not name.startswith("encoders.1.2")},
        {name: value for name, value in state.items() if not name.startswith("encoders.1")},
    ):
        with pytest.raises(WeightsError, match="lacks parts of its encoder"):
            recognise(spoilt, Path("x"))


def test_a_network_is_of_one_architecture_alone() -> None:
    assert find_network(network()) is MULTI_ENCODER
    assert not MULTI_ENCODER.built(STUNet(1, 2, "T", STRIDES))
    assert with_encoders(STUNET, {"size": "T"}, 2) == (MULTI_ENCODER, {"size": "T", "encoders": 2})
    assert with_encoders(MULTI_ENCODER, {"size": "T", "encoders": 2}, 1) == (STUNET, {"size": "T"})
    with pytest.raises(UsageError, match="a ToyNet has one encoder, not 2"):
        with_encoders(TOY, {"width": 4}, 2)


@for_each("encoders", [1, 5, True, "two"])
def test_other_numbers_of_encoders_are_a_problem(encoders: object) -> None:
    assert MULTI_ENCODER.problem({**ARGUMENTS, "encoders": encoders}) == f"encoders {encoders!r} must be 2 to 4"
    assert MULTI_ENCODER.problem(ARGUMENTS) is None
