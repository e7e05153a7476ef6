"""Fine-tuning strategies: learning rates as published, which parameters train when, and what frozen ones cost."""

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

from stunet.architectures.base import Layout
from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import UsageError
from stunet.networks import STUNet, build
from stunet.trainers.finetune.strategies import (
    ADAPTERS,
    ALL,
    DEFAULT,
    QUARTERS,
    STRATEGIES,
    Schedule,
    describe,
    find,
    groups,
    has_ramps,
    kept_stages,
    part_of,
    phase_of,
    quarter_of,
    rate,
    set_trainable,
    trainable,
)
from tests import nnunet_networks
from tests.loops import for_each
from tests.nnunet_networks import BOTH

HEADS = tuple(f"seg_outputs.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias"))


def network(stages: int = 3) -> STUNet:
    torch.manual_seed(0)
    return build("T", [(1, 1, 1)] + (stages - 1) * [(2, 2, 2)], num_classes=3)


def layout(stages: int) -> Layout:
    return Layout(STUNET, stages, stages - 1)


def rates(name: str, epochs: int) -> list[float]:
    return [rate(STRATEGIES[name], epoch, epochs) for epoch in range(epochs)]


def trained(name: str, epoch: int = 0, stages: int = 6, fresh: tuple[str, ...] = ()) -> set[str]:
    """The modules (first two parts of a parameter's name) that train in an epoch of 1000."""
    phase = phase_of(find(name), epoch, 1000)
    names = [parameter for parameter, _ in network(stages).named_parameters()]
    return {".".join(n.split(".")[:2]) for n in names if trainable(phase, n, layout(stages), fresh)}


def modules(stages: int = 6, **indices: range) -> set[str]:
    return {f"{module}.{i}" for module, numbers in indices.items() for i in numbers}


def lr_after(scheduler: object, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    scheduler.step(epoch)  # type: ignore[attr-defined]
    return optimizer.param_groups[0]["lr"]


def test_sawtooth_has_the_rates_of_the_reference_at_its_boundaries() -> None:
    expected = {0: 4e-5, 24: 1e-3, 25: 1e-3, 49: 5.52e-5, 50: 2e-5, 99: 1e-3, 100: 1e-3, 999: 1e-3 * (1 / 900) ** 0.9}
    found = {epoch: 1e-3 * rate(STRATEGIES["sawtooth"], epoch, 1000) for epoch in expected}
    assert found == pytest.approx(expected, rel=1e-3)


def test_full_is_the_schedule_of_nnunet() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    theirs = PolyLRScheduler(optimizer, 1e-3, 120)
    expected = [lr_after(theirs, optimizer, epoch) for epoch in range(120)]
    assert [1e-3 * r for r in rates("full", 120)] == pytest.approx(expected, rel=1e-12)


def test_ramp_is_the_warm_up_of_nnunet_with_50_of_1000_epochs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    rising = Lin_incr_LRScheduler(optimizer, 1e-3, 50)
    falling = PolyLRScheduler_offset(optimizer, 1e-3, 1000, 50)
    expected = [lr_after(rising if epoch < 50 else falling, optimizer, epoch) for epoch in range(1000)]
    assert [1e-3 * r for r in rates("ramp", 1000)] == pytest.approx(expected, rel=1e-12)


def test_warmup_has_the_full_rate_while_the_encoder_is_frozen_and_again_after_it() -> None:
    found = rates("warmup", 1000)
    assert found[:51] == [1.0] * 51
    assert found[51] < 1


@for_each("epochs", [1, 2, 3, 10, 19, 20, 150, 1000])
def test_rates_are_positive_and_reach_but_never_exceed_the_peak(epochs: int) -> None:
    for name in STRATEGIES:
        found = rates(name, epochs)
        assert all(0 < r <= 1 for r in found), name
        assert max(found) == 1, name


@for_each("name", STRATEGIES)
def test_phases_come_in_order_and_are_left_out_only_where_there_are_too_few_epochs(name: str) -> None:
    strategy = STRATEGIES[name]
    for epochs in (1, 2, 3, 10, 1000):
        seen = [strategy.phases.index(phase_of(strategy, epoch, epochs)) for epoch in range(epochs)]
        assert seen == sorted(seen)
        assert len(set(seen)) == min(epochs, len(strategy.phases))
        assert seen[-1] == len(strategy.phases) - 1
        assert phase_of(strategy, epochs, epochs) == strategy.phases[-1]  # a finished training is resumed


def test_phases_scale_with_the_number_of_epochs() -> None:
    sawtooth = STRATEGIES["sawtooth"]
    assert [phase_of(sawtooth, e, 100) is sawtooth.phases[0] for e in (4, 5)] == [True, False]
    assert rates("ramp", 100)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_strategies_are_described_phase_by_phase() -> None:
    assert describe(find("sawtooth"), 1000, 1e-3, pretrained=True) == [
        "epochs 1-50: learning rate rising to 0.001 in 25, falling; trains decoder, heads",
        "epochs 51-1000: learning rate rising to 0.001 in 50, falling; trains encoder, decoder, heads",
    ]
    assert describe(find("warmup"), 1, 1e-2, pretrained=False) == [
        "epochs 1-1: learning rate from 0.01, falling; trains everything"
    ]


def test_a_ramp_of_one_epoch_is_none() -> None:
    assert [has_ramps(find("ramp"), epochs) for epochs in (1, 20, 29, 30, 1000)] == [False, False, False, True, True]
    assert has_ramps(find("full"), 1)


@for_each(
    ("name", "epoch", "expected"),
    [
        ("linear", 0, modules(seg_outputs=range(5))),
        ("decoder", 0, modules(conv_blocks_localization=range(5), upsample_layers=range(5))),
        (
            "encoder-frozen",
            0,
            modules(conv_blocks_localization=range(5), upsample_layers=range(5), seg_outputs=range(5)),
        ),
        ("quarter-1", 0, modules(conv_blocks_context=range(3))),
        ("quarter-2", 0, modules(conv_blocks_context=range(3, 6))),
        ("quarter-3", 0, modules(conv_blocks_localization=range(3), upsample_layers=range(3))),
        (
            "quarter-4",
            0,
            modules(conv_blocks_localization=range(3, 5), upsample_layers=range(3, 5), seg_outputs=range(5)),
        ),
    ],
)
def test_strategies_train_what_they_say(name: str, epoch: int, expected: set[str]) -> None:
    assert trained(name, epoch) == expected


@for_each("name", ["sawtooth", "warmup"])
def test_the_encoder_waits_for_fifty_of_a_thousand_epochs(name: str) -> None:
    assert trained(name, 49) == trained("encoder-frozen")
    assert trained(name, 50) == trained("full")


def test_all_parameters_train_with_full_ramp_shallow_and_layerwise() -> None:
    every = {".".join(n.split(".")[:2]) for n, _ in network(6).named_parameters()}
    assert [trained(name) == every for name in ("full", "ramp", "shallow", "layerwise")] == [True] * 4


@for_each("name", STRATEGIES)
def test_what_is_not_pre_trained_trains_in_every_phase(name: str) -> None:
    stem, names = "conv_blocks_context.0.0.conv1.weight", dict(network().named_parameters())
    for phase in find(name).phases:
        assert trainable(phase, stem, layout(6), {stem})
        assert all(trainable(phase, name, layout(3), names) for name in names)


@for_each("stages", range(2, 9))
def test_every_parameter_has_one_quarter_and_the_encoder_is_the_first_two(stages: int) -> None:
    quarters: dict[str, set[str]] = {quarter: set() for quarter in QUARTERS}
    for name, _ in network(stages).named_parameters():
        quarters[quarter_of(name, layout(stages))].add(part_of(name, STUNET))
    assert [quarters[q] for q in QUARTERS[:2]] == [{"encoder"}] * 2
    assert quarters[QUARTERS[2]] == {"decoder"}
    assert quarters[QUARTERS[3]] == ({"decoder", "heads"} if stages > 2 else {"heads"})


def test_upsampling_belongs_to_the_decoder_level_that_it_leads_to() -> None:
    names = "upsample_layers.1.conv.weight", "conv_blocks_localization.1.0.conv1.weight"
    assert [layout(6).block_of(name) for name in names] == [7, 7]


def test_three_quarters_of_six_stages_are_five() -> None:
    assert [kept_stages(find("shallow"), stages) for stages in (6, 5, 4, 2)] == [5, 4, 3, 2]
    assert kept_stages(find("ramp"), 6) == 6


def test_names_of_other_networks_are_refused() -> None:
    for call in (lambda name: part_of(name, STUNET), layout(6).block_of):
        with pytest.raises(ValueError, match=r"'encoder\.stages\.0' is not a parameter of STU-Net"):
            call("encoder.stages.0")


def test_an_unknown_strategy_is_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match="unknown fine-tuning strategy 'sawtoth'; did you mean 'sawtooth'"):
        find("sawtoth")
    assert find(DEFAULT) is STRATEGIES["ramp"]


def test_strategies_are_sound() -> None:
    known = {*ALL, ADAPTERS, *QUARTERS}
    for name, strategy in STRATEGIES.items():
        ends = [phase.end for phase in strategy.phases]
        assert ends == sorted(set(ends)), name
        assert ends[-1] == 1, name
        assert all(phase.trains and set(phase.trains) <= known for phase in strategy.phases), name
        assert (strategy.lora_rank > 0) == any(ADAPTERS in phase.trains for phase in strategy.phases), name
        assert len(name) + len(strategy.title) < 100, name
    assert {part_of(name, STUNET) for name, _ in network().named_parameters()} == set(ALL)


def test_layerwise_decays_from_the_heads_down_to_the_stem() -> None:
    net = network()
    found = groups(net, find("layerwise"), set())
    assert [g["scale"] for g in found] == pytest.approx([0.75**n for n in range(6)])
    assert {id(p) for p in found[-1]["params"]} == {id(p) for p in net.conv_blocks_context[0].parameters()}
    assert {id(p) for p in found[0]["params"]} == {id(p) for p in net.seg_outputs.parameters()}
    everything = dict(net.named_parameters())
    assert [len(g["params"]) for g in groups(net, find("layerwise"), everything)] == [len(everything)]


def test_a_fresh_tensor_learns_at_the_full_rate_wherever_it_is() -> None:
    net = network()
    stem = "conv_blocks_context.0.0.conv1.weight"
    first = groups(net, find("layerwise"), {stem})[0]
    assert net.get_parameter(stem) in set(first["params"])
    assert first["scale"] == 1


@for_each("name", ["ramp", "layerwise"])
def test_groups_hold_every_parameter_once_and_an_optimizer_continues_with_its_state(name: str) -> None:
    def made() -> tuple[STUNet, torch.optim.SGD, Schedule]:
        net = network()
        optimizer = torch.optim.SGD(groups(net, find(name), HEADS), 1e-3, momentum=0.9)
        return net, optimizer, Schedule(optimizer, find(name), 40, 1e-3)

    def steps(net: STUNet, optimizer: torch.optim.SGD, schedule: Schedule, epochs: range) -> None:
        for epoch in epochs:
            schedule.step(epoch)
            optimizer.zero_grad()
            net(torch.full((1, 1, 8, 8, 8), 1.0).cumsum(2)).square().mean().backward()
            optimizer.step()

    whole, first, second = made(), made(), made()
    grouped = [id(p) for group in whole[1].param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in whole[0].parameters())
    steps(*whole, range(4))
    steps(*first, range(2))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    steps(*second, range(2, 4))
    assert [g["lr"] for g in second[1].param_groups] == [g["lr"] for g in whole[1].param_groups]
    for (parameter, value), other in zip(whole[0].named_parameters(), second[0].parameters(), strict=True):
        assert torch.equal(value, other), parameter


def test_the_counts_are_those_of_the_parameters_that_get_a_gradient() -> None:
    net = network()
    net(torch.randn(1, 1, 8, 8, 8)).mean().backward()
    counted = set_trainable(net, find("linear").phases[0], set())
    heads = sum(p.numel() for p in net.seg_outputs.parameters())
    assert counted == (heads, sum(p.numel() for p in net.parameters()))
    assert all((p.grad is None) == (not p.requires_grad) for p in net.seg_outputs[1].parameters())
    assert all(p.grad is None for p in net.conv_blocks_context.parameters())
    assert set_trainable(net, find("full").phases[0], set()) == (counted[1], counted[1])


@for_each("checkpointing", [False, True])
@for_each("name", ["linear", "decoder", "encoder-frozen", "quarter-3", "quarter-4"])
def test_frozen_parts_ahead_of_what_trains_keep_nothing_for_backward(name: str, checkpointing: bool) -> None:
    net = network(4)
    net.decoder.deep_supervision, net.checkpointing = True, checkpointing
    phase = find(name).phases[0]
    set_trainable(net, phase, set())
    graphs: dict[str, bool] = {}
    for module, child in net.named_modules():
        if module.count(".") == 1 and not module.startswith("seg_outputs"):
            child.register_forward_hook(lambda _, __, out, module=module: graphs.update({module: out.requires_grad}))
    net(torch.randn(1, 1, 16, 16, 16))
    blocks = {layout(4).block_of(n) for n, _ in net.named_parameters() if trainable(phase, n, layout(4), ())}
    assert graphs
    assert {m: g for m, g in graphs.items() if g != (layout(4).block_of(f"{m}.") >= min(blocks))} == {}


def test_linear_keeps_the_features_of_the_decoder_and_nothing_else() -> None:
    net = network()
    net.decoder.deep_supervision = True
    set_trainable(net, find("linear").phases[0], set())
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(torch.randn(2, 1, 16, 16, 16))
    features = 2 * 4 * (4 * 16**3 + 8 * 8**3)  # batch, bytes of float32, width and voxels of both levels
    assert sum(kept.values()) == features
    assert len(outputs) == 2


# nnU-Net's networks of three stages: five blocks, of which the quarters are 0-1, 2, 3 and 4.
UPPER = {"encoder.stem", "encoder.stages.0", "encoder.stages.1"}
COARSE_LEVEL, FINE_LEVEL = ({f"decoder.{part}.{n}" for part in ("transpconvs", "stages")} for n in (0, 1))
BOTH_HEADS = {"decoder.seg_layers.0", "decoder.seg_layers.1"}
DECODER = COARSE_LEVEL | FINE_LEVEL
EVERYTHING = UPPER | {"encoder.stages.2"} | DECODER | BOTH_HEADS


@for_each("architecture", BOTH)
@for_each("fresh", [(), ("decoder.seg_layers.1.weight",)])
def test_strategies_train_the_same_parts_of_nnunets_networks(architecture: NNUNet, fresh: tuple[str, ...]) -> None:
    first = {
        "full": EVERYTHING, "ramp": EVERYTHING, "shallow": EVERYTHING, "layerwise": EVERYTHING,
        "sawtooth": DECODER | BOTH_HEADS, "warmup": DECODER | BOTH_HEADS, "encoder-frozen": DECODER | BOTH_HEADS,
        "linear": BOTH_HEADS, "decoder": DECODER, "quarter-1": UPPER, "quarter-2": {"encoder.stages.2"},
        "quarter-3": COARSE_LEVEL, "quarter-4": FINE_LEVEL | BOTH_HEADS, "lora": BOTH_HEADS,
    }  # fmt: skip
    assert first.keys() == STRATEGIES.keys()
    net = nnunet_networks.network(architecture)
    for name, expected in first.items():
        counted = set_trainable(net, find(name).phases[0], fresh)
        trains = {n: p for n, p in net.named_parameters() if p.requires_grad}
        modules = {".".join(n.split(".")[: 2 if n.startswith("encoder.stem") else 3]) for n in trains if n not in fresh}
        assert modules == {m for m in expected if architecture is RESENC or m != "encoder.stem"}, name
        assert set(fresh) <= trains.keys()
        assert counted == (sum(p.numel() for p in trains.values()), sum(p.numel() for p in net.parameters()))
        assert set_trainable(net, find(name).phases[-1], fresh)[0] >= counted[0]


@for_each("architecture", BOTH)
def test_layers_of_nnunets_networks_decay_down_to_the_stem(architecture: NNUNet) -> None:
    net = nnunet_networks.network(architecture)
    found = groups(net, find("layerwise"), set())
    assert [group["scale"] for group in found] == pytest.approx([0.75**n for n in range(6)])
    stem = [*architecture.modules(net, "stem"), net.encoder.stages[0]]
    assert {id(p) for p in found[-1]["params"]} == {id(p) for module in stem for p in module.parameters()}
    assert sorted(id(p) for g in found for p in g["params"]) == sorted(id(p) for p in net.parameters())
