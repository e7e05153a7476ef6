"""A network in a group of one process: what DDP waits for, and FSDP2's states, which are those of the whole network."""

from collections.abc import Iterator

import pytest
import torch

from stunet.architectures.nnunet_unet import NNUNet
from stunet.networks import STUNet
from stunet.trainers.distributed import sharding
from stunet.trainers.distributed.group import Member, join_group
from tests import nnunet_networks
from tests.loops import for_each
from tests.nnunet_networks import BOTH
from tests.pretext_inputs import make_patches, make_pretext

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    with join_group(Member(0, 0, 1), "cpu"):
        yield


def network() -> STUNet:
    torch.manual_seed(0)
    return STUNet(1, 2, "T", STRIDES, deep_supervision=True)


def optimizer(module: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)


def step(module: torch.nn.Module, sgd: torch.optim.SGD) -> None:
    """As in training, the lowest head has no part in the loss."""
    sgd.zero_grad()
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    sum(logits.square().mean() for logits in module(image)[:-1]).backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    sgd.step()


def test_ddp_does_not_wait_for_the_head_that_deep_supervision_leaves_out() -> None:
    alone, wrapped = network(), sharding.data_parallel(network())
    assert all(p.requires_grad for p in wrapped.parameters())
    first, second = optimizer(alone), optimizer(wrapped)
    for _ in range(2):  # DDP complains in the second step
        step(alone, first)
        step(wrapped, second)
    assert sharding.unwrap(wrapped).seg_outputs[0].weight.grad is None
    for ours, theirs in zip(wrapped.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_dealt_network_trains_and_is_saved_as_the_whole_one() -> None:
    alone, dealt = network(), sharding.shard(network())
    first, second = optimizer(alone), optimizer(dealt)
    for _ in range(2):
        step(alone, first)
        step(dealt, second)
    torch.testing.assert_close(sharding.gather(dealt.state_dict()), dict(alone.state_dict()), rtol=0, atol=1e-6)
    ours, theirs = sharding.optimizer_state(second), sharding.optimizer_state(first)
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=1e-6)


@for_each("architecture", BOTH)
def test_a_network_whose_tensors_have_several_names_is_gathered_and_stored_once(architecture: NNUNet) -> None:
    alone, dealt, replica = (nnunet_networks.network(architecture, deep_supervision=True) for _ in range(3))
    sharded, wrapped = sharding.shard(dealt), sharding.data_parallel(replica)
    for module in (alone, sharded, wrapped):
        sgd = optimizer(module)
        for _ in range(2):
            step(module, sgd)
    found, expected = sharding.full_state(sharded, sharded.state_dict()), dict(alone.state_dict())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(dict(replica.state_dict()), expected, rtol=0, atol=0)
    for state in (found, sharding.full_state(replica, replica.state_dict())):
        sizes = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
        assert sum(sizes.values()) == sum(4 * parameter.numel() for parameter in alone.parameters())
    other = nnunet_networks.network(architecture, seed=1)
    sharding.shard(other).load_state_dict(sharding.shard_like(found, other.state_dict()))
    torch.testing.assert_close(sharding.full_state(other, other.state_dict()), found, rtol=0, atol=0)


def test_states_go_from_one_network_to_one_dealt_otherwise() -> None:
    alone, dealt = network(), sharding.shard(network())
    first, second = optimizer(alone), optimizer(dealt)
    step(alone, first)
    dealt.load_state_dict(sharding.shard_like(alone.state_dict(), dealt.state_dict()))
    sharding.load_optimizer(second, sharding.optimizer_state(first))
    step(alone, first)
    step(dealt, second)
    torch.testing.assert_close(sharding.gather(dealt.state_dict()), dict(alone.state_dict()), rtol=0, atol=1e-6)


def test_a_sharded_pretext_learns_what_the_whole_one_does_and_its_teacher_follows() -> None:
    for method in ("mae", "byol", "dino", "pcrl", "local"):
        alone, sharded = make_pretext(method), make_pretext(method)
        sharding.shard(sharded)
        for pretext in (alone, sharded):
            sgd = optimizer(pretext)
            for _ in range(2):
                sgd.zero_grad()
                loss, _, kept = pretext(make_patches(2, 16, 16, 16))
                loss.backward()
                sgd.step()
                with torch.no_grad():
                    pretext.update(kept)
                    pretext(make_patches(2, 16, 16, 16), only="compute")  # as in the validation, or in micro-batches
        ours, theirs = sharding.gather(sharded.own_state()), alone.own_state()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        weights = sharding.gather(sharded.network.state_dict())
        torch.testing.assert_close(weights, dict(alone.network.state_dict()), rtol=0, atol=1e-5)


@for_each("wrap", [sharding.data_parallel, sharding.shard])
def test_gradients_that_stay_add_up(wrap: type) -> None:
    module = wrap(network())
    image = torch.randn(
        2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2)
    )  # no activation that rounding lifts over 0
    for part, stay in ((image[:1], True), (image[1:], False)):
        with sharding.skip_gradient_sync(module, stay):
            (sum(logits.square().sum() for logits in module(part)[:-1])).backward()
    whole = network()
    sum(logits.square().sum() for logits in whole(image)[:-1]).backward()
    gradients = sharding.gather({name: p.grad for name, p in sharding.unwrap(module).named_parameters()})
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == [
        "seg_outputs.0.weight",
        "seg_outputs.0.bias",
    ]
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-3)
