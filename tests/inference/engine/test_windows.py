"""Tests of inference/engine/windows.py: logits are nnU-Net's sliding window in float64, some planes at a time."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor, nn

from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.engine.windows import SlidingWindow
from stunet.networks import STUNet
from tests.loops import for_each

CLASSES = 3
CPU = torch.device("cpu")


def network(ndim: int = 3, seed: int = 0, classes: int = CLASSES) -> STUNet:
    torch.manual_seed(seed)
    return STUNet(1, classes, "T", [(1,) * ndim, (2,) * ndim], deep_supervision=False).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(4))


def sliding(
    networks: Sequence[nn.Module], patch: Sequence[int], mirror: Sequence[int] = (), **options: Any
) -> SlidingWindow:
    """Ours, in float32."""
    members = [each.state_dict() for each in networks] if len(networks) > 1 else []
    classes = options.pop("classes", CLASSES)
    return SlidingWindow(
        ReadyNetwork(copy.deepcopy(networks[0]), members, CPU, "fp32", mirror), patch, classes, **options
    )


def logits_of(windows: SlidingWindow, image_CDHW: Tensor, **options: Any) -> Tensor:
    """All slabs together, (K, D, H, W) in the axes of the image."""
    order = windows.order(image_CDHW.shape[1:])
    shape = [image_CDHW.shape[1 + axis] for axis in order]
    found, done = torch.full((*shape, windows.classes), torch.nan), 0
    for start, logits in windows.slabs(image_CDHW, **options):
        assert start == max(0, done - 1), "a slab begins with the last plane of the one before"
        if done:
            torch.testing.assert_close(logits[0].float(), found[start], atol=0, rtol=0)
        done = start + len(logits)
        found[start:done] = logits
    assert done == shape[0]
    return found.permute(3, *(order.index(axis) for axis in range(3)))


def nnunet(net: nn.Module, patch: Sequence[int], mirror: Sequence[int], step: float) -> nnUNetPredictor:
    """nnU-Net's predictor with this network, and all that its sliding window asks for."""
    stock = nnUNetPredictor(tile_step_size=step, device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    stock.configuration_manager = SimpleNamespace(patch_size=tuple(patch))
    stock.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    stock.network, stock.allowed_mirroring_axes = net, tuple(mirror) or None
    return stock


def exact(
    networks: Sequence[nn.Module],
    image_CDHW: Tensor,
    patch: Sequence[int],
    mirror: Sequence[int] = (),
    step: float = 0.5,
) -> Tensor:
    """nnU-Net's windows, padding, Gaussian and mirroring, with network and sums in float64."""
    padded, own = pad_nd_image(image_CDHW.double(), tuple(patch), "constant", {"value": 0}, True, None)
    gaussian = compute_gaussian(tuple(patch), value_scaling_factor=10, dtype=torch.float64, device=CPU)
    sums = torch.zeros(CLASSES, *padded.shape[1:], dtype=torch.float64)
    weights = torch.zeros(padded.shape[1:], dtype=torch.float64)
    for net in networks:
        stock = nnunet(copy.deepcopy(net).double(), patch, mirror, step)
        for window in stock._internal_get_sliding_window_slicers(padded.shape[1:]):
            sums[window] += stock._internal_maybe_mirror_and_predict(padded[window][None])[0] * gaussian
            weights[window[1:]] += gaussian
    return (sums / weights)[(slice(None), *own[1:])]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@for_each(
    ("shape", "patch", "mirror", "step"),
    [
        ((17, 9, 8), (8, 8, 8), (0, 1, 2), 0.5),  # longest in each axis
        ((9, 19, 8), (8, 8, 8), (1,), 0.5),
        ((9, 10, 19), (8, 8, 8), (), 0.5),
        ((9, 8, 8), (8, 8, 8), (), 0.5),  # one voxel more than a window
        ((8, 8, 8), (8, 8, 8), (0, 2), 0.5),
        ((14, 9, 8), (8, 8, 8), (), 0.3),
        ((17, 12, 9), (8, 8, 8), (), 1.0),
        ((13, 25, 8), (4, 12, 8), (2,), 0.75),
        ((3, 5, 6), (8, 8, 8), (0,), 0.5),  # smaller than a window on all axes
        ((5, 19, 7), (8, 8, 8), (), 0.5),
        ((1, 13, 15), (8, 8, 8), (), 0.5),
        ((19, 4, 1), (8, 8, 8), (), 0.5),
        ((2, 11, 14), (8, 8), (0, 1), 0.5),  # slices
        ((10, 6, 9), (8, 8), (1,), 0.5),
        ((1, 9, 22), (8, 12), (), 0.6),
    ],
)
def test_logits_are_nnunets_in_float64_and_never_farther_from_them_than_its_own(
    shape: tuple[int, ...], patch: tuple[int, ...], mirror: tuple[int, ...], step: float
) -> None:
    net, voxels = network(len(patch)), image(*shape)
    windows, seen = sliding([net], patch, mirror, step_size=step), []
    expected = exact([net], voxels, patch, mirror, step)
    stock = nnunet(copy.deepcopy(net), patch, mirror, step)
    ours = logits_of(windows, voxels, on_window=lambda: seen.append(1))
    theirs = stock.predict_sliding_window_return_logits(voxels)
    assert error(ours, expected) < 1e-5
    assert error(ours, expected) < error(theirs, expected)
    assert len(seen) == windows.count(shape)
    assert error(logits_of(windows, voxels, half=True), expected) < 1.5 * error(theirs, expected)


def test_folds_are_averaged_and_each_window_is_counted_for_each() -> None:
    networks, voxels = [network(seed=seed) for seed in range(3)], image(18, 9, 8)
    windows, seen = sliding(networks, (8, 8, 8), (0,)), []
    expected = exact(networks, voxels, (8, 8, 8), (0,))
    assert error(logits_of(windows, voxels, on_window=lambda: seen.append(1)), expected) < 1e-5
    assert len(seen) == windows.count((18, 9, 8)) == 3 * sliding(networks[:1], (8, 8, 8)).count((18, 9, 8))
    assert error(logits_of(windows, voxels), expected) < 1e-5  # also when the last fold is still loaded


@for_each("half", [False, True])
@for_each("axis", [0, 1, 2])
def test_the_memory_for_logits_does_not_grow_with_the_length_of_a_scan(axis: int, half: bool) -> None:
    windows, kept = sliding([network()], (8, 8, 8)), []
    for length in (16, 64):
        shape = [10, 10, 10]
        shape[axis] = length
        slabs = windows.slabs(image(*shape), half)
        kept.append({slab.logits_DHWK.untyped_storage().nbytes() for slab in slabs})
        assert kept[-1] == {windows.logits_bytes(shape, half)}
    assert kept[0] == kept[1]


class Limited(nn.Module):
    """A network on a device that has room for so many windows."""

    def __init__(self, net: nn.Module, room: int) -> None:
        super().__init__()
        self.net, self.room, self.batches = net, room, []

    def forward(self, windows_BCDHW: Tensor) -> Tensor:
        if len(windows_BCDHW) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.batches.append(len(windows_BCDHW))
        return self.net(windows_BCDHW)


@for_each("room", [1, 3, 10**6])
def test_fewer_windows_at_a_time_where_memory_is_short_give_the_same_logits(room: int) -> None:
    net, voxels = network(), image(20, 17, 9)
    limited = Limited(copy.deepcopy(net), room)
    windows = SlidingWindow(ReadyNetwork(limited, [], CPU, "fp32"), (8, 8, 8), CLASSES)
    assert error(logits_of(windows, voxels), exact([net], voxels, (8, 8, 8))) < 1e-5
    assert sum(limited.batches) == windows.count((20, 17, 9))
    assert max(limited.batches) <= room
    if room > 1:
        assert max(limited.batches) > 1
    limited.batches.clear()
    logits_of(windows, voxels)
    assert sum(limited.batches) == windows.count((20, 17, 9))


def test_a_device_without_room_for_one_window_is_an_error() -> None:
    windows = SlidingWindow(ReadyNetwork(Limited(network(), 0), [], CPU, "fp32"), (8, 8, 8), CLASSES)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        list(windows.slabs(image(20, 9, 9)))


def test_other_errors_of_the_network_are_not_taken_for_lack_of_memory() -> None:
    windows = sliding([network()], (7, 7, 7))  # which the strides do not divide
    with pytest.raises(ValueError, match="multiples of"):
        list(windows.slabs(image(9, 9, 9)))


def test_the_image_is_left_as_it_was_and_a_second_one_is_not_mixed_with_the_first() -> None:
    windows, first, second = sliding([network()], (8, 8, 8)), image(17, 9, 9), image(9, 21, 9) + 1
    kept = first.clone()
    expected = logits_of(windows, first)
    logits_of(windows, second)
    unfinished = windows.slabs(second)
    next(unfinished)
    torch.testing.assert_close(logits_of(windows, first), expected, atol=0, rtol=0)
    assert torch.equal(first, kept)
