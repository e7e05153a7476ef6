"""Predictive pretexts: labels are what was done to the image, first losses are at chance, and padding tells nothing."""

from typing import Any

import numpy as np
import pytest
import torch

from stunet.errors import UsageError
from stunet.trainers.pretexts.methods import METHODS
from stunet.trainers.pretexts.predictive import DISTANCE, ORDERS, far_orders
from stunet.trainers.pretexts.views import cut, inside
from tests.pretext_inputs import make_draws, make_patches, make_pretext, patches_of

PREDICTIVE = {name: method for name, method in METHODS.items() if method.family == "predictive"}
PATCH = (24, 24, 24)


def test_first_losses_are_at_chance() -> None:
    for name, expected in (("rot", 2.303), ("rpl", 3.258), ("jigsaw", 4.605), ("rkb", 5.878), ("rkb-plus", 6.571)):
        pretext = make_pretext(name, PATCH)
        assert pretext.chance_loss == pytest.approx(expected, abs=1e-3)
        # Flags begin at 0.693, and their chance is 0.637: that a third is set has to be learned.
        assert float(pretext(make_patches(8, *PATCH))[0].detach()) == pytest.approx(expected, abs=0.2), name


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
    cubes = cut(patches.images, inside(patches.valid, pretext.size, make_draws(12))[0], pretext.size)
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


def test_only_turns_that_nothing_but_the_anatomy_tells_are_asked_for() -> None:
    def planes(*arguments: Any, **more: Any) -> set[tuple[int, tuple[int, int]]]:
        return set(make_pretext("rot", *arguments, **more).turns[1:])

    in_plane, halves = {(k, (1, 2)) for k in (1, 2, 3)}, {(2, plane) for plane in ((0, 1), (0, 2), (1, 2))}
    thick, thin = (5.0, 1.0, 1.0), (1.0, 1.0, 1.0)
    assert planes(PATCH, acquired=[thick] * 3) == in_plane, "resampled: their blur lies along the first axis"
    assert planes(PATCH, acquired=[thin] * 9 + [thick]) == in_plane, "a tenth of the scans"
    assert len(planes(PATCH, acquired=[thin] * 39 + [thick])) == 9
    assert planes((16, 32, 32)) == in_plane, "a cube would leave out most of the patch"
    assert planes(PATCH, (5.0, 1.0, 3.0)) == halves
    pretext = make_pretext("rot", (24, 20), (3.0, 1.0))
    assert (pretext.turns, pretext.size) == ([(0, (0, 1)), (2, (0, 1))], [24, 20])
    assert float(pretext(make_patches(2, 24, 20))[0].detach()) == pytest.approx(pretext.chance_loss, abs=0.2)


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
    before, _ = pretext.parts(make_patches(4, *PATCH))
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


def test_neighbours_are_where_their_labels_say() -> None:
    pretext, seen = make_pretext("rpl", PATCH), []
    pretext.embeddings = lambda parts: (seen.append(parts), torch.zeros(*parts.shape[:2], 64))[1]
    # Each voxel holds the number of its cell.
    cells = torch.arange(27.0).view(3, 3, 3)
    for axis in range(3):
        cells = cells.repeat_interleave(8, axis)
    found = cells.expand(30, 1, 24, 24, 24)
    labels = pretext.compute(patches_of(found))["labels"]
    assert (seen[0][:, 0] == 13).all()
    assert torch.equal(seen[0][:, 1:, 0, 0, 0, 0], (labels + (labels >= 13)).float())
    assert all(len(set(each.tolist())) == 8 for each in labels)


def test_parts_lie_inside_the_box_around_the_voxels_that_count() -> None:
    padding = 1000.0
    for name, shape in (("rot", (24, 24, 28)), ("rpl", PATCH), ("jigsaw", PATCH)):
        pretext, seen = make_pretext(name, shape), []
        features = pretext.features
        pretext.features = lambda images, seen=seen, features=features: (seen.append(images), features(images))[1]
        patches = make_patches(20, *shape)
        patches.valid[..., :2], patches.valid[..., shape[2] - 1 :] = False, False
        patches.images[~patches.valid] = padding
        counts = pretext.compute(patches)["counts"]
        assert counts.all(), name
        assert (seen[0] != padding).all(), name


def test_a_patch_whose_box_is_too_small_takes_no_part() -> None:
    for name in PREDICTIVE:
        pretext, patches = make_pretext(name, PATCH), make_patches(4, *PATCH)
        patches.valid[[1, 3], :, :, 14:] = False
        patches.valid[3] = False
        rows = pretext.compute(patches)
        assert rows["counts"].tolist() == [1, 0, 1, 0]
        loss, measures = pretext.loss(rows)
        alone, alone_measures = pretext.loss({key: value[[0, 2]] for key, value in rows.items()})
        assert torch.allclose(loss, alone), name
        assert measures == alone_measures, name
        loss, measures = pretext.loss({key: value[[1, 3]] for key, value in rows.items()})
        assert float(loss.detach()) == 0
        assert float(measures["accuracy"]) == pytest.approx(pretext.chance)


def test_gradients_of_parts_add_up_where_samples_do_not_count() -> None:
    pretext, patches = make_pretext("rpl", PATCH), make_patches(4, *PATCH)
    patches.valid[1] = False
    pretext(patches)[0].backward()
    expected = pretext.head[0].weight.grad.clone()
    pretext.zero_grad()
    for part in (slice(0, 1), slice(1, 2), slice(2, 4)):
        draws = make_draws(4)[part]
        some = patches._replace(images=patches.images[part], valid=patches.valid[part], draws=draws)
        (pretext(some)[0] * len(draws) / 4).backward()
    assert torch.allclose(pretext.head[0].weight.grad, expected, atol=1e-6)


def test_a_patch_whose_parts_leave_one_voxel_is_refused() -> None:
    for name in ("rpl", "jigsaw"):
        with pytest.raises(UsageError, match="of which the network's strides leave one"):
            make_pretext(name, (8, 8, 8))
    make_pretext("rot", (8, 8, 8))
