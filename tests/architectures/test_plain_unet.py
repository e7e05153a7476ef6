"""The plain U-Net: its stem, and activations before norms."""

import pytest

from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.plans import memory
from stunet.plans.memory import Network
from tests.nnunet_networks import STRIDES, arguments, network
from tests.plans.test_memory import saved_bytes


def test_activations_before_norms_take_the_same_memory() -> None:
    net, patch = network(PLAIN_UNET, nonlin_first=True), (16, 32, 32)
    kept = memory.activation_bytes(Network(arguments(PLAIN_UNET), 1, 3, architecture=PLAIN_UNET), patch, STRIDES)
    assert saved_bytes(net, (1, 1, *patch)) == pytest.approx(2 * kept + 4 * 16 * 32 * 32, rel=0.01)
    assert {PLAIN_UNET.canonical(name) for name in net.state_dict()} == {name for name, _ in net.named_parameters()}


def test_the_first_stage_is_the_stem_and_the_image_is_its_input() -> None:
    net = network(PLAIN_UNET, channels=2)
    assert PLAIN_UNET.modules(net, "stem") == [net.encoder.stages[0]]
    assert PLAIN_UNET.channels(net) == 2
    assert PLAIN_UNET.describe(arguments(PLAIN_UNET, norm_op=None)) == (
        "3 stages of 4-8-8 channels and 2-2-2 convolutions, no norm"
    )
