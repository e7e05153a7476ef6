"""Names of tensors in files: what wraps a network, encoders under other names or none, and several names of one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.weights.naming import all_names, official_tensors
from stunet.weights.recognition import recognise
from tests.loops import for_each
from tests.nnunet_networks import BOTH, network

FILE = Path("x.pth")


def official(architecture: NNUNet, seed: int = 0) -> dict[str, Tensor]:
    """Each tensor of a network once, under its official name."""
    state = network(architecture, seed=seed).state_dict()
    return {name: value for name, value in state.items() if architecture.canonical(name) == name}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@for_each("architecture", BOTH)
def test_every_tensor_is_taken_once_whatever_names_a_file_has(architecture: NNUNet) -> None:
    state = network(architecture).state_dict()
    whole = official(architecture)
    only_aliases = {name: value for name, value in state.items() if "all_modules" in name or ".conv." not in name}
    doubled = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    for given in (state, whole, only_aliases, doubled):
        assert same(official_tensors(given, FILE), whole)
    assert same(all_names(whole, state, architecture), dict(state))
    assert all_names(whole | {"more": torch.ones(1)}, state, architecture).keys() == {*state, "more"}


@for_each("architecture", BOTH)
@for_each("prefix", ["network.", "module.", "module.net.", "_orig_mod.backbone.", "student.module."])
def test_a_network_is_found_in_whatever_wraps_it(architecture: NNUNet, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in network(architecture).state_dict().items()}
    assert same(official_tensors(state, FILE), official(architecture))


@for_each("architecture", BOTH)
@for_each("prefix", ["", "backbone.resenc.", "online_encoder.", "encoder."])
def test_an_encoder_alone_is_found_under_other_names_and_under_none(architecture: NNUNet, prefix: str) -> None:
    encoder = {name: value for name, value in official(architecture).items() if architecture.is_encoder(name)}
    given = {f"{prefix}{name.removeprefix('encoder.')}": value for name, value in encoder.items()}
    found = official_tensors(given | {"projector.weight": torch.ones(2, 2)}, FILE)
    assert encoder.keys() <= found.keys()
    assert recognise(found, FILE).architecture is architecture
    assert found.keys() - encoder.keys() <= {"projector.weight"}


def test_of_several_networks_the_one_that_is_meant_is_taken() -> None:
    online, teacher = official(RESENC, 1), official(RESENC, 2)
    given = {f"online_{name}": value for name, value in online.items() if name.startswith("encoder.")}
    given |= {f"target_{name}": value for name, value in teacher.items() if name.startswith("encoder.")}
    found = official_tensors(given, FILE, "target_encoder.stages")
    assert all(torch.equal(value, teacher[name]) for name, value in found.items())
    with pytest.raises(WeightsError, match=r"several networks: online_encoder\., target_encoder\."):
        official_tensors(given, FILE)
    usual = official_tensors(given | online, FILE)
    assert all(torch.equal(usual[name], value) for name, value in online.items())


def test_two_values_of_one_tensor_are_damage() -> None:
    state = {name: value.clone() for name, value in network(RESENC).state_dict().items()}
    assert same(official_tensors(state, FILE), official(RESENC))
    state["encoder.stem.convs.0.all_modules.0.weight"] += 1
    with pytest.raises(
        WeightsError, match=r"'encoder.stem.convs.0.conv.weight' and .*all_modules.* names of one tensor"
    ):
        official_tensors(state, FILE)
    for name in state:
        state[name] = torch.full_like(state[name], torch.nan)
    assert official_tensors(state, FILE).keys() == official(RESENC).keys()  # it is check_finite() that refuses them


def test_a_decoder_without_skip_connections_is_left_out() -> None:
    state = dict(network(RESENC).state_dict())
    encoder = {name for name in official(RESENC) if name.startswith("encoder.")}
    for name in [name for name in state if name.startswith("decoder.stages.") and state[name].ndim == 5]:
        state[name] = state[name][:, : len(state[name])].clone()
    state["decoder.seg_layer.weight"] = torch.ones(1, 4, 1, 1, 1)
    found = official_tensors(state, FILE)
    assert found.keys() == encoder | {"decoder.seg_layer.weight"}
    assert recognise(found, FILE).assumed
