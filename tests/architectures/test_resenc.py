"""The residual-encoder U-Net: stems, bottlenecks and shortcuts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.plans import memory
from stunet.plans.memory import Network
from stunet.weights.recognition import recognise
from tests.loops import for_each
from tests.nnunet_networks import STRIDES, arguments, network
from tests.plans.test_memory import saved_bytes

BOTTLENECK = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
VARIANTS: list[dict[str, Any]] = [
    {"stem_channels": 6},
    {"block": BOTTLENECK, "bottleneck_channels": [2, 4, 4]},
    {"block": BOTTLENECK, "bottleneck_channels": 3, "norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {}},
]


@for_each("variant", VARIANTS)
def test_stems_and_bottlenecks_are_recognised_and_counted(variant: dict[str, Any]) -> None:
    net, given, patch = network(RESENC, **variant), arguments(RESENC, **variant), (16, 32, 32)
    found = recognise(net.state_dict(), Path("x"))
    assert RESENC.comparable(found.planned) == RESENC.comparable(given)
    assert RESENC.problem(found.planned) is None
    counted = Network(given, 1, 3, architecture=RESENC)
    assert memory.parameters(counted, STRIDES) == sum(p.numel() for p in net.parameters())
    kept = memory.activation_bytes(counted, patch, STRIDES) * memory.SINGLE // memory.HALF
    assert saved_bytes(net, (1, 1, *patch)) == pytest.approx(kept + 4 * 16 * 32 * 32, rel=0.01)


def test_bottlenecks_without_their_width_are_a_problem() -> None:
    assert RESENC.problem(arguments(RESENC, block=BOTTLENECK)) == "bottleneck_channels None must be 3 positive integers"
    assert RESENC.problem(arguments(RESENC, stem_channels=0)) == "stem_channels 0 must be a positive integer"
    problem = RESENC.problem(arguments(RESENC, block="os.system"))
    assert problem is not None
    assert problem.startswith("block 'os.system' is not one of the classes that are known here: dynamic")


def test_a_shortcut_is_the_same_with_and_without_a_pooling_before_it() -> None:
    pooled, other = (network(RESENC, strides=[[1, 1, 1], stride, [2, 2, 2]]) for stride in ([2, 2, 2], [1, 1, 1]))
    one, two = ({RESENC.matching(RESENC.canonical(name)) for name in net.state_dict()} for net in (pooled, other))
    assert one == two
    assert pooled.state_dict().keys() != other.state_dict().keys()


def test_bottlenecks_of_which_convolutions_are_missing_are_refused() -> None:
    state = network(RESENC, **VARIANTS[1]).state_dict()
    holed = {n: v for n, v in state.items() if not RESENC.canonical(n).startswith("encoder.stages.1.blocks.0.conv3")}
    with pytest.raises(WeightsError, match="lacks parts of its encoder: those of stage 1"):
        recognise(holed, Path("x"))


def test_openminds_residual_encoder_is_described_in_words() -> None:
    given = arguments(RESENC, strides=[*STRIDES, [2, 2, 2], [2, 2, 2]])
    assert RESENC.describe(given) == "5 stages of 4-8-8-8-8 channels and 1-2-2-2-2 blocks, instance norm"


def test_sides_that_strides_do_not_divide_are_rounded_up_and_others_are_taken_as_before() -> None:
    net, odd, even = network(RESENC), torch.randn(1, 1, 7, 11, 13), torch.randn(1, 1, 8, 16, 16)
    before = net(even)
    with pytest.raises(RuntimeError, match="must match"):
        net(odd)
    assert [tuple(each.shape[2:]) for each in RESENC.features(net, odd)] == [(7, 11, 13), (7, 6, 7), (4, 3, 4)]
    assert torch.equal(net(even), before)
