"""Masked blocks and the deformations of Models Genesis: what they keep, and that the shuffle is the published one."""

import numpy as np
import torch

from stunet.trainers.pretexts.corruptions import LARGEST, WINDOWS, bend, genesis, mask_blocks, paint, shuffle


def draws(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def test_the_same_number_of_whole_blocks_is_hidden_in_every_sample() -> None:
    mask = mask_blocks((8, 12, 10), 4, 0.75, draws(5))[:, 0]
    blocks = mask[:, ::4, ::4, ::4]
    assert blocks.flatten(1).sum(1).tolist() == [14] * 5  # of 2 x 3 x 3
    repeated = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(repeated[..., :10], mask)
    assert len({tuple(each.flatten().tolist()) for each in mask}) == 5


def published_shuffle(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Models Genesis' loop over windows, for one channel."""
    shuffled, shape = image.copy(), image.shape
    for _ in range(WINDOWS):
        sides = [random.integers(1, n // LARGEST + 1) for n in shape]
        firsts = [random.integers(0, n - side + 1) for n, side in zip(shape, sides, strict=True)]
        box = tuple(slice(first, first + side) for first, side in zip(firsts, sides, strict=True))
        shuffled[box] = random.permutation(image[box].ravel()).reshape(sides)
    return shuffled


def test_the_shuffle_moves_voxels_as_the_published_loop_does() -> None:
    shape = (24, 32, 40)
    image = torch.arange(float(np.prod(shape))).view(1, *shape)

    def distances(result: np.ndarray) -> np.ndarray:
        """Return the share of voxels that come from each distance, for each axis."""
        steps = np.abs(np.stack(np.unravel_index(result.astype(int), shape)) - np.stack(np.indices(shape)))
        return np.stack([np.bincount(axis.ravel(), minlength=4) / result.size for axis in steps])

    ours = np.mean([distances(shuffle(image, draw)[0].numpy()) for draw in draws(3)], 0)
    theirs = np.mean([distances(published_shuffle(image[0].numpy(), np.random.default_rng(n))) for n in range(3)], 0)
    assert ours.shape == (3, 4)  # no farther than a tenth of 40 allows
    assert np.allclose(ours, theirs, atol=0.004)
    assert (ours[:, 1] > 0.1).all()


def test_channels_are_shuffled_together() -> None:
    image = torch.randn(1, 24, 24, 24).expand(2, -1, -1, -1)
    shuffled = shuffle(image, draws(1)[0])
    assert torch.equal(shuffled[0], shuffled[1])
    assert not torch.equal(shuffled, image)


def test_intensities_are_bent_monotonically_or_inverted() -> None:
    ramp = torch.linspace(0, 1, 1000).view(1, 10, 10, 10)
    directions = set()
    for draw in draws(20):
        bent = bend(ramp, draw).flatten()
        rises = bool(bent[0] < bent[-1])
        directions.add(rises)
        assert torch.allclose(bent[[0, -1]], torch.tensor([0.0, 1.0] if rises else [1.0, 0.0]), atol=1e-5)
        assert not rises or (bent.diff() >= -1e-6).all()
    assert directions == {True, False}


def test_paint_leaves_boxes_or_puts_noise_into_boxes() -> None:
    image = torch.full((1, 16, 16, 16), 2.0)  # noise is below 1
    shares = [float((paint(image, draw) == 2).float().mean()) for draw in draws(40)]
    # Around boxes of half the patch's sides much is lost, in boxes of a quarter little.
    assert 0 < min(shares) < 0.5 < max(shares) < 1


def test_genesis_stays_in_the_range_of_each_channel() -> None:
    images = torch.randn(6, 2, 12, 12, 12, generator=torch.Generator().manual_seed(0)) * 3 - 100
    deformed = genesis(images, draws(6))
    before, after = images.flatten(2), deformed.flatten(2)
    assert (after.amin(2) >= before.amin(2) - 1e-3).all()
    assert (after.amax(2) <= before.amax(2) + 1e-3).all()
    assert not torch.equal(deformed, images)
    assert torch.isfinite(genesis(torch.zeros(1, 1, 12, 12, 12), draws(1))).all()
