"""Predictive pretexts: labels are what was done to the image, first losses are at chance, and padding tells nothing."""

from typing import Any

import numpy as np
import pytest
import torch

from stunet.errors import UsageError
from stunet.networks import STUNet
from stunet.trainers.pretexts.base import Setting
from stunet.trainers.pretexts.methods import METHODS, build
from stunet.trainers.pretexts.predictive import DISTANCE, ORDERS, far_orders, stretch
from stunet.trainers.pretexts.views import crop

PREDICTIVE = {name: method for name, method in METHODS.items() if method.family == "predictive"}
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def make(method: str, patch: tuple[int, ...] = (24, 24, 24), spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Any:
    torch.manual_seed(0)
    network = STUNet(1, 1, "T", [stride[: len(patch)] for stride in STRIDES], deep_supervision=False)
    network.apply(network.initialize)
    return build(method, network, Setting(patch, spacing, 4, 100))


def draws(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def images(count: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.randn(count, 1, *(shape or (24, 24, 24)), generator=torch.Generator().manual_seed(1))
    return made, torch.ones_like(made, dtype=torch.bool)


def test_first_losses_are_at_chance() -> None:
    for name, expected in (("rot", 2.303), ("rpl", 3.258), ("jigsaw", 4.605), ("rkb", 5.878), ("rkb-plus", 6.571)):
        pretext = make(name)
        assert pretext.chance_loss == pytest.approx(expected, abs=1e-3)
        assert float(pretext(*images(8), draws(8))[0].detach()) == pytest.approx(expected, abs=0.15), name


def test_every_weight_that_requires_a_gradient_gets_one() -> None:
    for name in PREDICTIVE:
        pretext = make(name)
        pretext(*images(2), draws(2))[0].backward()
        assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set(), name


def test_turning_back_by_the_label_gives_the_cube() -> None:
    pretext, seen = make("rot"), []
    pretext.features = lambda cubes: (seen.append(cubes), [cubes.expand(-1, pretext.widths[-1], -1, -1, -1)])[1]
    found, valid = images(12)
    labels = pretext.compute(found, valid, draws(12))["labels"]
    for turned, cube, label in zip(seen[0], crop(found, pretext.size, draws(12)), labels.tolist(), strict=True):
        k, plane = pretext.turns[label]
        assert torch.equal(torch.rot90(turned, -k, (plane[0] + 1, plane[1] + 1)), cube)
    every = {tuple(np.rot90(np.arange(27).reshape(3, 3, 3), k, plane).ravel()) for k, plane in pretext.turns}
    assert len(every) == 10


def test_turns_stay_in_the_plane_where_the_slices_are_thick() -> None:
    for spacing, size, plane in (((3.0, 1.0, 1.0), [24, 16, 16], (1, 2)), ((1.0, 1.0, 2.0), [20, 20, 16], (0, 1))):
        pretext = make("rot", (24, 20, 16), spacing)
        assert pretext.turns == [(0, plane), (1, plane), (2, plane), (3, plane)]
        assert pretext.size == size
    assert len(make("rot", (24, 20, 16), (1.0, 1.2, 1.2)).turns) == 10
    assert len(make("rot", (24, 20), (1.0, 1.0)).turns) == 4


def test_orders_differ_in_at_least_five_places() -> None:
    orders = far_orders(8)
    assert orders.shape == (ORDERS, 8)
    assert (np.sort(orders, 1) == np.arange(8)).all()
    different = (orders[:, None] != orders[None]).sum(2)
    assert different[~np.eye(ORDERS, dtype=bool)].min() >= DISTANCE
    assert different[~np.eye(ORDERS, dtype=bool)].mean() > 6.8


def test_cubes_are_in_the_order_of_their_label_and_turned_as_their_flags_say() -> None:
    pretext, seen = make("rkb"), []
    pretext.embeddings = lambda parts: (seen.append(parts), torch.zeros(len(parts), 8, 64))[1]
    found, valid = images(4)
    rows = pretext.compute(found, valid, draws(4))
    before = pretext.parts(found, valid, draws(4))
    for sample in range(4):
        order = pretext.orders[rows["labels"][sample]]
        for place in range(8):
            cube = before[sample, order[place]]
            if rows["first labels"][sample, place]:
                cube = cube.flip(2, 3)
            if rows["last labels"][sample, place]:
                cube = cube.flip(1, 2)
            assert torch.equal(seen[0][sample, place], cube)
    assert not (rows["first labels"] * rows["last labels"]).any()


def test_the_neighbour_is_where_its_label_says() -> None:
    pretext, seen = make("rpl"), []
    pretext.embeddings = lambda pair: (seen.append(pair), torch.zeros(len(pair), 2, 64))[1]
    # Each voxel holds the number of its cell.
    cells = torch.arange(27.0).view(3, 3, 3)
    for axis in range(3):
        cells = cells.repeat_interleave(8, axis)
    found = cells.expand(30, 1, 24, 24, 24)
    labels = pretext.compute(found, torch.ones_like(found, dtype=torch.bool), draws(30))["labels"]
    assert (seen[0][:, 0] == 13).all()
    assert torch.equal(seen[0][:, 1, 0, 0, 0, 0], (labels + (labels >= 13)).float())


def test_margins_look_like_the_anatomy_next_to_them() -> None:
    found, valid = images(1, 8, 8, 8)
    inside = torch.zeros_like(valid)
    inside[..., 2:6, :, 3:] = True
    stretched = stretch(found * inside, inside)
    assert torch.equal(stretched[..., 2:6, :, 3:], found[..., 2:6, :, 3:])
    assert torch.equal(stretched[..., 0, :, 3:], found[..., 2, :, 3:])
    assert torch.equal(stretched[..., 7, :, 0], found[..., 5, :, 3])
    assert stretch(found, valid) is found


def test_a_patch_whose_parts_leave_one_voxel_is_refused() -> None:
    for name in ("rpl", "jigsaw"):
        with pytest.raises(UsageError, match="of which the network's strides leave one"):
            make(name, (8, 8, 8))
    make("rot", (8, 8, 8))
