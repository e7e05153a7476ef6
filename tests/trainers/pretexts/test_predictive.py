"""Predictive pretexts: labels are what was done to the image, first losses are at chance, and padding tells nothing."""

import numpy as np
import pytest
import torch

from stunet.errors import UsageError
from stunet.trainers.pretexts.methods import METHODS
from stunet.trainers.pretexts.predictive import DISTANCE, ORDERS, far_orders, stretch
from stunet.trainers.pretexts.views import crop
from tests.pretext_inputs import make_draws, make_patches, make_pretext, patches_of

PREDICTIVE = {name: method for name, method in METHODS.items() if method.family == "predictive"}
PATCH = (24, 24, 24)


def test_first_losses_are_at_chance() -> None:
    for name, expected in (("rot", 2.303), ("rpl", 3.258), ("jigsaw", 4.605), ("rkb", 5.878), ("rkb-plus", 6.571)):
        pretext = make_pretext(name, PATCH)
        assert pretext.chance_loss == pytest.approx(expected, abs=1e-3)
        assert float(pretext(make_patches(8, *PATCH))[0].detach()) == pytest.approx(expected, abs=0.15), name


def test_every_weight_that_requires_a_gradient_gets_one() -> None:
    for name in PREDICTIVE:
        pretext = make_pretext(name, PATCH)
        pretext(make_patches(2, *PATCH))[0].backward()
        assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set(), name


def test_turning_back_by_the_label_gives_the_cube() -> None:
    pretext, seen = make_pretext("rot", PATCH), []
    pretext.features = lambda cubes: (seen.append(cubes), [cubes.expand(-1, pretext.widths[-1], -1, -1, -1)])[1]
    patches = make_patches(12, *PATCH)
    labels = pretext.compute(patches)["labels"]
    cubes = crop(patches.images, pretext.size, make_draws(12))
    for turned, cube, label in zip(seen[0], cubes, labels.tolist(), strict=True):
        k, plane = pretext.turns[label]
        assert torch.equal(torch.rot90(turned, -k, (plane[0] + 1, plane[1] + 1)), cube)
    every = {tuple(np.rot90(np.arange(27).reshape(3, 3, 3), k, plane).ravel()) for k, plane in pretext.turns}
    assert len(every) == 10


def test_turns_stay_in_the_plane_where_the_slices_are_thick() -> None:
    for spacing, size, plane in (((3.0, 1.0, 1.0), [24, 16, 16], (1, 2)), ((1.0, 1.0, 2.0), [20, 20, 16], (0, 1))):
        pretext = make_pretext("rot", (24, 20, 16), spacing)
        assert pretext.turns == [(0, plane), (1, plane), (2, plane), (3, plane)]
        assert pretext.size == size
    assert len(make_pretext("rot", (24, 20, 16), (1.0, 1.2, 1.2)).turns) == 10
    assert len(make_pretext("rot", (24, 20), (1.0, 1.0)).turns) == 4


def test_orders_differ_in_at_least_five_places() -> None:
    orders = far_orders(8)
    assert orders.shape == (ORDERS, 8)
    assert (np.sort(orders, 1) == np.arange(8)).all()
    different = (orders[:, None] != orders[None]).sum(2)
    assert different[~np.eye(ORDERS, dtype=bool)].min() >= DISTANCE
    assert different[~np.eye(ORDERS, dtype=bool)].mean() > 6.8


def test_cubes_are_in_the_order_of_their_label_and_turned_as_their_flags_say() -> None:
    pretext, seen = make_pretext("rkb", PATCH), []
    pretext.embeddings = lambda parts: (seen.append(parts), torch.zeros(len(parts), 8, 64))[1]
    rows = pretext.compute(make_patches(4, *PATCH))
    before = pretext.parts(make_patches(4, *PATCH))
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
    pretext, seen = make_pretext("rpl", PATCH), []
    pretext.embeddings = lambda pair: (seen.append(pair), torch.zeros(len(pair), 2, 64))[1]
    # Each voxel holds the number of its cell.
    cells = torch.arange(27.0).view(3, 3, 3)
    for axis in range(3):
        cells = cells.repeat_interleave(8, axis)
    found = cells.expand(30, 1, 24, 24, 24)
    labels = pretext.compute(patches_of(found))["labels"]
    assert (seen[0][:, 0] == 13).all()
    assert torch.equal(seen[0][:, 1, 0, 0, 0, 0], (labels + (labels >= 13)).float())


def test_margins_look_like_the_anatomy_next_to_them() -> None:
    patches = make_patches(1, 8, 8, 8)
    found, inside = patches.images, torch.zeros_like(patches.valid)
    inside[..., 2:6, :, 3:] = True
    stretched = stretch(patches_of(found * inside, inside))
    assert torch.equal(stretched[..., 2:6, :, 3:], found[..., 2:6, :, 3:])
    assert torch.equal(stretched[..., 0, :, 3:], found[..., 2, :, 3:])
    assert torch.equal(stretched[..., 7, :, 0], found[..., 5, :, 3])
    assert stretch(patches) is found


def test_a_patch_whose_parts_leave_one_voxel_is_refused() -> None:
    for name in ("rpl", "jigsaw"):
        with pytest.raises(UsageError, match="of which the network's strides leave one"):
            make_pretext(name, (8, 8, 8))
    make_pretext("rot", (8, 8, 8))
