"""Low-rank adapters: nothing changes before the first step, what is saved is what was computed, resume is exact."""

import pytest
import torch
from torch import Tensor, nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.errors import WeightsError
from stunet.networks import STUNet, build
from stunet.trainers.finetune.lora import adapters_state, add, load, merged_state
from stunet.trainers.finetune.strategies import find, groups, set_trainable
from tests import nnunet_networks
from tests.loops import for_each
from tests.nnunet_networks import BOTH

STRIDES = [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
STEM = "conv_blocks_context.0.0.conv1.weight"
LORA = find("lora")


def network(seed: int = 0) -> STUNet:
    torch.manual_seed(seed)
    return build("T", STRIDES, num_classes=3)


def adapted(rank: int = 2, seed: int = 0, fresh: tuple[str, ...] = ()) -> tuple[STUNet, torch.optim.SGD]:
    net = network()
    add(net, rank, seed, fresh)
    set_trainable(net, LORA.phases[0], fresh)
    return net, torch.optim.SGD(groups(net, LORA, fresh), 0.05, momentum=0.9, weight_decay=1e-3)


def image() -> Tensor:
    return torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def steps(net: nn.Module, optimizer: torch.optim.SGD, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        net(image()).square().mean().backward()
        optimizer.step()


def test_before_the_first_step_nothing_has_changed() -> None:
    net, _ = adapted()
    assert torch.equal(net(image()), network()(image()))
    merged, base = merged_state(net), network().state_dict()
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_the_merged_weights_compute_what_the_trained_network_computes() -> None:
    net, optimizer = adapted()
    before = net(image()).detach()
    steps(net, optimizer, 3)
    stock = network(seed=5)
    stock.load_state_dict(merged_state(net))
    assert torch.equal(stock(image()), net(image()))
    assert not torch.allclose(net(image()), before, rtol=0.01)


def test_only_adapters_and_heads_have_changed_after_training() -> None:
    net, optimizer = adapted()
    steps(net, optimizer, 3)
    base = network().state_dict()
    changed = {name for name, value in merged_state(net).items() if not torch.equal(value, base[name])}
    convolutions = {f"{name}.weight" for name, module in network().named_modules() if isinstance(module, nn.Conv3d)}
    untrained_head = {"seg_outputs.0.weight"}  # without deep supervision
    assert changed == convolutions - untrained_head | {"seg_outputs.1.bias"}
    for name, value in adapters_state(net).items():
        module, _, kind = name.partition(".parametrizations.weight.")
        assert (kind == "original") == (value.shape == base[f"{module}.weight"].shape)
        if kind == "original":
            assert torch.equal(value, base[f"{module}.weight"])


@for_each("rank", [1, 2, 5])
def test_what_training_adds_has_the_rank_of_the_adapters(rank: int) -> None:
    net, optimizer = adapted(rank)
    steps(net, optimizer, 2)
    name = "conv_blocks_context.2.0.conv2.weight"
    change = (merged_state(net)[name] - network().state_dict()[name]).flatten(1)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == rank


def test_the_first_step_is_that_of_full_fine_tuning_projected() -> None:
    name = "conv_blocks_context.1.0.conv1"
    whole, (net, _) = network(), adapted()
    for one in (whole, net):
        one(image()).square().mean().backward()
    gradient = whole.get_parameter(f"{name}.weight").grad
    down = net.get_parameter(f"{name}.parametrizations.weight.0.down").detach()
    up = net.get_parameter(f"{name}.parametrizations.weight.0.up").grad
    assert gradient is not None
    assert up is not None
    torch.testing.assert_close(down @ down.T, torch.eye(2))
    torch.testing.assert_close(up @ down, gradient.flatten(1) @ down.T @ down, rtol=1e-4, atol=1e-6)


def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one() -> None:
    whole, stopped, resumed = adapted(), adapted(), adapted(seed=9)
    steps(*whole, 4)
    steps(*stopped, 2)
    load(resumed[0], merged_state(stopped[0]), adapters_state(stopped[0]))
    resumed[1].load_state_dict(stopped[1].state_dict())
    steps(*resumed, 2)
    expected, found = whole[0].state_dict(), resumed[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@for_each("architecture", BOTH)
def test_a_weight_with_several_names_has_one_adapter_and_one_sum(architecture: NNUNet) -> None:
    def make() -> tuple[nn.Module, torch.optim.SGD]:
        net = nnunet_networks.network(architecture)
        add(net, 2, 0, ())
        set_trainable(net, LORA.phases[0], ())
        return net, torch.optim.SGD(groups(net, LORA, ()), 0.05, momentum=0.9)

    net, optimizer = make()
    adapters = [name for name, _ in net.named_parameters() if name.endswith(".down")]
    upsampling = [name for name in adapters if name.startswith("decoder.transpconvs")]
    assert len(upsampling) == 2
    assert all(architecture.canonical(name) == name for name in adapters)
    before, stock = net(image()).detach(), nnunet_networks.network(architecture)
    steps(net, optimizer, 2)
    merged = merged_state(net)
    assert merged.keys() == stock.state_dict().keys()
    stock.load_state_dict(merged)
    assert torch.equal(stock(image()), net(image()))
    assert not torch.equal(before, net(image()))
    assert len({value.data_ptr() for value in merged.values()}) == len(list(stock.parameters()))
    resumed, _ = make()
    load(resumed, merged, adapters_state(net))
    assert torch.equal(resumed(image()), net(image()))


def test_the_same_seed_gives_the_same_adapters_whatever_was_drawn_before() -> None:
    first, _ = adapted(seed=3)
    torch.rand(7)
    second, other = adapted(seed=3)[0], adapted(seed=4)[0]
    state = first.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())
    assert any(not torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_a_fresh_convolution_trains_itself_without_an_adapter() -> None:
    net, optimizer = adapted(fresh=(STEM,))
    assert STEM in dict(net.named_parameters())
    steps(net, optimizer, 1)
    assert not torch.equal(net.get_parameter(STEM), network().get_parameter(STEM))


def test_few_parameters_train() -> None:
    net, _ = adapted()
    counted, total = set_trainable(net, LORA.phases[0], ())
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained if not name.startswith("seg_outputs")} == {"up", "down"}
    assert counted < total / 5
    assert total > sum(p.numel() for p in network().parameters())


def test_the_states_of_a_network_without_adapters_are_its_own_and_none() -> None:
    net = network()
    assert merged_state(net).keys() == net.state_dict().keys()
    assert adapters_state(net) == {}
    other = network(seed=5)
    load(other, merged_state(net), {})
    assert torch.equal(other(image()), net(image()))


def test_adapters_of_another_rank_are_refused_and_nothing_is_loaded() -> None:
    (net, _), (other, optimizer) = adapted(rank=2), adapted(rank=3)
    steps(other, optimizer, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError, match="are not the"):
        load(net, merged_state(other), adapters_state(other))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(WeightsError, match="0 tensors of adapters"):
        load(net, merged_state(net), {})


def test_half_precision_around_the_network_leaves_the_weights_in_full() -> None:
    net, optimizer = adapted()
    steps(net, optimizer, 2)
    convolution = net.conv_blocks_context[1][0].conv1
    with torch.autocast("cpu", torch.bfloat16):
        inside = convolution.weight
    assert torch.equal(inside, convolution.weight)
