"""Pooling while windows pass: equal to the mean over dense feature maps, however the image is tiled."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stunet.architectures.base import HEADS
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.errors import DataError
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.engine.pooling import Interpolated, Labelled, Points, Pool, Whole, pool
from stunet.inference.engine.windows import SlidingWindow
from stunet.networks import STUNet
from tests.loops import for_each

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
BLOCKS = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


class Local(ReadyNetwork):
    """An encoder that sees no further than its blocks: means over them, of the image and of its square."""

    def __init__(self) -> None:
        super().__init__(STUNet(1, 2, "T", STRIDES), (), torch.device("cpu"), "fp32")
        self.seen = 0

    def features(self, windows_BCDHW: Tensor, until: str = "encoder") -> list[Tensor]:
        self.seen += len(windows_BCDHW)
        return [functional.avg_pool3d(torch.cat((windows_BCDHW, windows_BCDHW**2), 1), block) for block in BLOCKS]


def spread(stage_CDHW: Tensor, block: Sequence[int]) -> Tensor:
    """The value at every voxel."""
    for axis, size in enumerate(block):
        stage_CDHW = stage_CDHW.repeat_interleave(size, 1 + axis)
    return stage_CDHW


def labels_of(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(4, size=tuple(shape), p=[0.9, 0.06, 0.039, 0.001]).astype(np.uint8)


def own_grid(shape: Sequence[int]) -> list[np.ndarray]:
    return [np.arange(n) for n in shape]


def test_with_one_window_it_is_the_mean_over_the_dense_maps() -> None:
    torch.manual_seed(0)
    network = STUNet(1, 2, "T", STRIDES)
    network.apply(network.initialize)
    ready = ReadyNetwork(network, (), torch.device("cpu"), "fp32")
    shape = (8, 16, 16)
    image, labels = torch.randn(1, *shape), labels_of(shape)
    with torch.inference_mode():
        dense = ready.features(image[None])
    classes = {"one": [1, 1], "two or three": [2, 3], "none": [9]}
    at = np.array([[0, 0, 0], [7, 15, 3], [3, 4, 11]])
    whole, labelled, points = Whole(shape), Labelled(labels, own_grid(shape), classes), Points(at)
    pool(SlidingWindow(ready, shape, 0), image, [whole, labelled, points])
    assert labelled.voxels == {"one": int((labels == 1).sum()), "two or three": int((labels > 1).sum())}
    for n, block in enumerate(BLOCKS):
        voxels = spread(dense[n][0], block)
        torch.testing.assert_close(whole.means()[n][0], dense[n][0].mean((1, 2, 3)))
        for row, mask in enumerate((labels == 1, labels > 1)):
            torch.testing.assert_close(labelled.means()[n][row], voxels[:, torch.from_numpy(mask)].mean(1))
        torch.testing.assert_close(points.means()[n], voxels[:, *at.T].T)


@for_each(("shape", "step"), list(itertools.product([(12, 20, 28), (5, 33, 16)], [1.0, 0.5, 0.3])))
def test_tiling_changes_nothing_where_the_network_sees_single_voxels(shape: tuple[int, ...], step: float) -> None:
    image, labels = torch.randn(1, *shape, generator=torch.manual_seed(1)), labels_of(shape, 1)
    whole, labelled = Whole(shape), Labelled(labels, own_grid(shape), {"1": [1], "3": [3]})
    at = np.array([[n // 3 for n in shape], [n - 1 for n in shape]])
    points = Points(at)
    pool(SlidingWindow(Local(), (8, 16, 16), 0, step), image, [whole, labelled, points])
    both = torch.cat((image, image**2))
    torch.testing.assert_close(whole.means()[0][0], both.mean((1, 2, 3)))
    for row, value in enumerate((1, 3)):
        torch.testing.assert_close(labelled.means()[0][row], both[:, torch.from_numpy(labels == value)].mean(1))
    torch.testing.assert_close(points.means()[0], both[:, *at.T].T)


def test_tiling_changes_nothing_at_any_stage_where_blocks_stay_the_same() -> None:
    shape = (8, 32, 48)
    image, labels = torch.randn(1, *shape, generator=torch.manual_seed(1)), labels_of(shape, 2)
    found: list[list[list[Tensor]]] = []
    for patch in (shape, (8, 16, 16)):
        pools: list[Pool] = [Whole(shape), Labelled(labels, own_grid(shape), {"2": [2]})]
        pool(SlidingWindow(Local(), patch, 0, 0.5), image, pools)
        found.append([each.means() for each in pools])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_small_structure_counts_with_its_share_of_a_coarse_block() -> None:
    shape = (8, 16, 16)
    image = torch.randn(1, *shape, generator=torch.manual_seed(1))
    labels = np.zeros(shape, np.uint8)
    labels[0, 3, 3], labels[0, 3, 4:7] = 1, 1  # a voxel of one block of the last stage, three of the next
    labelled = Labelled(labels, own_grid(shape), {"1": [1]})
    network = Local()
    pool(SlidingWindow(network, shape, 0), image, [labelled])
    first, second = (image[:, :2, :4, x : x + 4].mean((1, 2, 3)) for x in (0, 4))
    torch.testing.assert_close(labelled.means()[2][0, :1], (first + 3 * second) / 4)


def test_labels_on_a_grid_of_their_own_count_voxel_by_voxel() -> None:
    shape = (8, 16, 16)
    image = torch.randn(1, *shape, generator=torch.manual_seed(1))
    for fine in ((16, 40, 24), (3, 16, 10)):  # finer, and coarser, than the image
        labels = labels_of(fine, 3)
        labels[0, 0, 0] = 1
        places = [np.floor((np.arange(n) + 0.5) * new / n).astype(int) for n, new in zip(fine, shape, strict=True)]
        labelled = Labelled(labels, places, {"1": [1]})
        pool(SlidingWindow(Local(), (8, 8, 8), 0, 0.5), image, [labelled])
        z, y, x = (at[n] for at, n in zip(places, (labels == 1).nonzero(), strict=True))
        torch.testing.assert_close(labelled.means()[0][0, 0], image[0, z, y, x].mean())


def test_windows_that_no_row_is_in_are_not_computed() -> None:
    shape, network = (8, 16, 64), Local()
    labels = np.zeros(shape, np.uint8)
    labels[4, 8, 2] = 1
    calls: list[int] = []
    windows = SlidingWindow(network, (8, 16, 16), 0, 0.5)
    pool(windows, torch.zeros(1, *shape), [Labelled(labels, own_grid(shape), {"1": [1]})], lambda: calls.append(1))
    assert network.seen == 1
    assert len(calls) == windows.count(shape) == 7


def test_slices_of_a_2d_network_are_pooled() -> None:
    network = STUNet(1, 2, "T", [[1, 1], [2, 2], [2, 2]])
    network.apply(network.initialize)
    ready = ReadyNetwork(network, (), torch.device("cpu"), "fp32")
    image = torch.randn(1, 3, 16, 16)
    whole = Whole((3, 16, 16))
    pool(SlidingWindow(ready, (16, 16), 0), image, [whole])
    with torch.inference_mode():
        dense = ready.features(image.transpose(0, 1))
    for mean, stage in zip(whole.means(), dense, strict=True):
        torch.testing.assert_close(mean[0], stage.mean((0, 2, 3)))


def test_nan_is_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        pool(SlidingWindow(Local(), (8, 16, 16), 0), torch.full((1, 8, 16, 16), torch.nan), [Whole((8, 16, 16))])


def plain_unet() -> torch.nn.Module:
    arguments = {
        **PLAIN_UNET.usual(3), "n_stages": 3, "features_per_stage": [4, 8, 16], "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": STRIDES, "n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2,
    }  # fmt: skip
    return PLAIN_UNET.build(1, 2, arguments)


@pytest.mark.parametrize("architecture", ["stunet", "plain"])
def test_places_between_voxels_get_what_interpolated_maps_have_there(architecture: str) -> None:
    torch.manual_seed(0)
    shape = (8, 16, 16)
    network = STUNet(1, 2, "T", STRIDES) if architecture == "stunet" else plain_unet()
    ready = ReadyNetwork(network, (), torch.device("cpu"), "fp32")
    image = torch.randn(1, *shape)
    voxels = np.array(list(itertools.product((0, 3, 7), (0, 5, 15), (0, 8, 15))))
    windows = SlidingWindow(ready, shape, 0)
    pooled = Interpolated(voxels)
    pool(windows, image, [pooled], until=HEADS)
    with torch.inference_mode():
        dense = ready.features(image[None], HEADS)
    assert len(pooled.means()) == len(dense) == len(ready.blocks(HEADS))
    for found, stage in zip(pooled.means(), dense, strict=True):
        whole = functional.interpolate(stage, shape, mode="trilinear")[0]
        expected = whole[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T
        torch.testing.assert_close(found, expected, atol=1e-6 * float(whole.abs().max()), rtol=0)
    between = Interpolated(np.array([[3.5, 4.25, 0.0]]))
    pool(windows, image, [between], until=HEADS)
    finest = dense[0][0]
    expected = 0.5 * (finest[:, 3:5, 4, 0].sum(1) * 0.75 + finest[:, 3:5, 5, 0].sum(1) * 0.25)
    torch.testing.assert_close(between.means()[0][0], expected, atol=1e-5, rtol=1e-5)
    assert between.means()[-1].shape == (1, 2)


def test_a_place_that_several_windows_see_is_averaged_with_their_weights_and_others_are_not_computed() -> None:
    image = torch.randn(1, 8, 16, 40)
    network = Local()
    windows = SlidingWindow(network, (8, 16, 16), 0)
    found = Interpolated(np.array([[2.0, 7.0, 11.0]]))
    pool(windows, image, [found])
    assert network.seen == 2  # of four
    torch.testing.assert_close(found.means()[0][0], torch.stack([image[0, 2, 7, 11], image[0, 2, 7, 11] ** 2]))
