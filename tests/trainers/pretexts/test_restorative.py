"""Restorative pretexts: what counts in their losses, and what they start from."""

from typing import Any

import pytest
import torch

from stunet.networks import STUNet
from stunet.trainers.pretexts.base import Setting
from stunet.trainers.pretexts.methods import METHODS, build
from stunet.trainers.pretexts.restorative import MIXED, errors

SETTING = Setting((16, 16, 16), (1.0, 1.0, 1.0), 4, 100)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
EVERYWHERE = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
RESTORATIVE = {name: method for name, method in METHODS.items() if method.family == "restorative"}


def make(method: str, channels: int = 1) -> Any:
    torch.manual_seed(0)
    network = STUNet(channels, channels, "T", STRIDES, deep_supervision=False)
    network.apply(network.initialize)
    return build(method, network, SETTING)


def draws() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(2)]


def images(channels: int = 1) -> torch.Tensor:
    return torch.randn(2, channels, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_what_is_visible_or_does_not_count_has_no_gradient() -> None:
    pretext, seen, valid = make("mae"), images(), EVERYWHERE.clone()
    valid[..., 8:] = False
    output = torch.randn(2, 1, 16, 16, 16, requires_grad=True)
    pretext.restore = lambda corrupted: output
    hidden = pretext.corrupt(seen, draws())[1]
    pretext(seen, valid, draws())[0].backward()
    assert output.grad is not None
    assert torch.equal(output.grad != 0, hidden & valid)


def test_the_measure_is_zero_for_the_mean_and_one_for_the_image() -> None:
    pretext, seen = make("ae"), images()
    mean = seen.flatten(2).mean(2)[..., None, None, None].expand_as(seen)
    measured = [pretext.loss(errors(answer, seen, EVERYWHERE))[1]["explained variance"] for answer in (mean, seen)]
    assert [float(each) for each in measured] == pytest.approx([0, 1], abs=1e-5)
    assert float(pretext.loss(errors(mean, seen, ~EVERYWHERE))[0]) == 0


def test_without_skips_the_decoder_sees_the_last_stage_only() -> None:
    for name, method in RESTORATIVE.items():
        pretext, seen = make(name), []
        for stage in pretext.network.conv_blocks_localization:
            stage.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        pretext(torch.cat([images()] * method.patches, 1), EVERYWHERE, draws())
        skips = [bool(each[:, each.shape[1] // 2 :].any()) for each in seen]
        assert skips == [method.options.get("skips", True)] * 2, name


def test_every_weight_that_requires_a_gradient_gets_one() -> None:
    for name, method in RESTORATIVE.items():
        pretext = make(name, channels=2)
        seen = torch.cat([images(2)] * method.patches, 1)
        pretext(seen, torch.cat([EVERYWHERE] * method.patches, 1), draws())[0].backward()
        assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set(), name


def test_fusion_starts_at_chance_and_has_all_classes() -> None:
    pretext = make("fusion")
    assert pretext.chance == 1 / len(MIXED)
    assert set(pretext._mixture(draws()[0]).unique().tolist()) == set(range(len(MIXED)))
    measures = pretext(torch.cat([images(), images().flip(2)], 1), torch.cat([EVERYWHERE] * 2, 1), draws())[1]
    assert float(measures["recall"]) == pytest.approx(pretext.chance, abs=0.1)


def test_pictures_show_what_the_network_saw_and_answered() -> None:
    shown = make("mae").pictures(images(), draws())
    assert list(shown) == ["input", "output", "target"]
    visible = shown["input"] != 0
    assert torch.equal(shown["output"][visible], shown["target"][visible])
    assert not torch.equal(shown["output"], shown["target"])
