"""Views: how far they overlap, and what they leave as it is."""

import math
from dataclasses import replace

import torch

from stunet.trainers.pretexts.augment import DEGREES, DISTURBANCES, SIDE, bend_gamma, stretch_contrast, turn, view
from stunet.trainers.pretexts.base import Setting
from tests.pretext_inputs import make_draws, make_patches, patches_of

SETTING = Setting((10, 12, 14), (1.0, 1.0, 1.0), 4, 100)


def test_two_crops_overlap_by_more_than_a_quarter() -> None:
    for shape in ((10, 12, 14), (24, 24, 24), (31, 17, 7), (160, 160, 160)):
        size = [math.ceil(SIDE * n) for n in shape]
        # The farthest that two crops can be apart: from one corner to the opposite one.
        common = math.prod(2 * side - n for side, n in zip(size, shape, strict=True))
        assert common / (2 * math.prod(size) - common) > 0.25


def test_crops_are_inside_and_differ() -> None:
    index = torch.arange(10.0 * 12 * 14).view(1, 1, 10, 12, 14).expand(8, -1, -1, -1, -1)
    seen = view(patches_of(index), replace(SETTING, augment="none"))
    assert seen.shape == (8, 1, 8, 10, 12)
    first = seen[:, 0, 0, 0, 0].long()
    corners = torch.stack([first // 168, first // 14 % 12, first % 14], 1)
    assert len({tuple(each) for each in corners.tolist()}) > 4
    for image, corner in zip(seen[:, 0], corners.tolist(), strict=True):
        box = tuple(slice(a, a + n) for a, n in zip(corner, (8, 10, 12), strict=True))
        assert torch.equal(image, index[0, 0][box])


def test_safe_views_show_the_whole_patch_with_its_intensities() -> None:
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (20, 30, 40)), indexing="ij"))
    blob = torch.exp(-4 * (grid**2).sum(0))[None, None].expand(4, -1, -1, -1, -1)
    turned = turn(blob, make_draws(4), (1.0, 1.0, 1.0))
    assert turned.shape == blob.shape
    assert torch.allclose(turned[:, 0, 9:11, 14:16, 19:21], blob[:, 0, 9:11, 14:16, 19:21], atol=0.02)
    assert not torch.equal(turned[0], turned[1])
    # Voxels move on circles: distances to the middle stay, in voxels, whatever the sides.
    ball = ((grid * torch.tensor([10.0, 15.0, 20.0]).view(3, 1, 1, 1)).norm(dim=0) < 6).float()[None, None]
    kept = turn(ball.expand(4, -1, -1, -1, -1), make_draws(4), (1.0, 1.0, 1.0))
    assert ((kept > 0.5) != (ball > 0.5)).float().mean() < 0.01


def test_safe_views_are_turned_in_millimetres() -> None:
    # Each voxel holds where it is along the first axis in mm: its slope across the slices is the tangent of the tilt.
    height = (torch.arange(16.0) * 5).view(1, 1, 16, 1, 1).expand(20, 1, 16, 24, 24).contiguous()
    middle = turn(height, make_draws(20), (5.0, 1.0, 1.0))[:, 0, 8, 8:16, 8:16]
    slopes = torch.stack([middle.diff(dim=axis).mean((1, 2)) for axis in (1, 2)])
    assert 0.05 < float(slopes.norm(dim=0).max()) < math.tan(math.radians(2**0.5 * DEGREES)) + 0.01


def test_views_lie_where_voxels_count_if_there_is_room() -> None:
    patches = make_patches(30, 10, 12, 14)
    patches.valid[:, :, :2] = False
    patches.valid[:, :, :, 4:] = False  # no room along the second axis
    padding = patches.images.masked_fill(~patches.valid, 1000.0)
    seen = view(patches._replace(images=padding), replace(SETTING, augment="none"))
    assert seen.shape == (30, 1, 8, 10, 12)
    assert all(bool((image[0] != 1000).any((1, 2)).all()) for image in seen), "planes that are padding"


def test_views_have_full_precision_inside_of_autocast() -> None:
    for augment in ("standard", "safe"):
        one = view(make_patches(20, 10, 12, 14), replace(SETTING, augment=augment))
        with torch.autocast("cpu", torch.bfloat16):
            other = view(make_patches(20, 10, 12, 14), replace(SETTING, augment=augment))
        assert torch.equal(one, other), augment


def test_channels_are_changed_by_their_own_statistics() -> None:
    image = torch.randn(2, 8, 9, 10, generator=torch.Generator().manual_seed(3))
    far = image + torch.tensor([0.0, 1000.0]).view(2, 1, 1, 1)
    for change in (stretch_contrast, bend_gamma):
        changed, expected = (change(each, make_draws(1)[0]) for each in (far, image))
        assert torch.allclose(changed[0], expected[0], atol=1e-5), change
        assert torch.allclose(changed[1] - 1000, expected[1], atol=1e-2), change


def test_every_change_of_intensity_changes_and_keeps_the_shape() -> None:
    for shape in ((2, 8, 9, 10), (1, 12, 10)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        for _, change in DISTURBANCES:
            changed = change(image, make_draws(1)[0])
            assert changed.shape == image.shape
            assert torch.isfinite(changed).all()
            assert not torch.equal(changed, image), change
            assert torch.isfinite(change(torch.zeros(shape), make_draws(1)[0])).all(), change


def test_views_depend_on_the_generators_alone() -> None:
    one, other = (view(make_patches(4, 10, 12, 14), SETTING) for _ in range(2))
    assert torch.equal(one, other)
    part = make_patches(4, 10, 12, 14)
    last = part._replace(**{name: getattr(part, name)[2:] for name in part._fields})
    assert torch.equal(view(last, SETTING), one[2:])
