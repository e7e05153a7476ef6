"""Kernels in another network: along thin axes, for other strides, and with a depth that they lacked."""

import torch
from torch.nn import functional as F

from stunet.weights.kernels import can_fit, change, fit
from tests.loops import for_each


def test_a_kernel_along_a_thin_axis_is_a_sum_which_computes_the_same_on_what_is_constant_along_it() -> None:
    kernel, image = torch.randn(5, 2, 3, 3, 3), torch.randn(1, 2, 1, 8, 8)
    volume = image.expand(-1, -1, 6, -1, -1)
    expected = F.conv3d(volume, kernel, padding=1)[:, :, 1:-1]  # without the slices that meet padding
    found = F.conv3d(volume, fit(kernel, (1, 3, 3), lifts=False), padding=(0, 1, 1))[:, :, 1:-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    constant = torch.ones(1, 2, 7, 7, 7)
    everywhere = (F.conv3d(constant, each)[0, :, 0, 0, 0] for each in (kernel, fit(kernel, (1, 1, 1), lifts=False)))
    torch.testing.assert_close(*everywhere, rtol=1e-4, atol=1e-4)
    assert torch.equal(fit(fit(kernel[:, :, 1:2], (3, 3, 3), lifts=False), (1, 3, 3), lifts=False), kernel[:, :, 1:2])


def test_a_kernel_that_grows_computes_what_it_did() -> None:
    kernel, volume = torch.randn(5, 2, 1, 3, 3), torch.randn(1, 2, 6, 8, 8)
    grown = fit(kernel, (3, 5, 3), lifts=False)
    assert grown.shape == (5, 2, 3, 5, 3)
    expected = F.conv3d(volume, kernel, padding=(0, 1, 1))
    torch.testing.assert_close(F.conv3d(volume, grown, padding=(1, 2, 1)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(fit(fit(kernel, (3, 3, 3), lifts=False)[:, :, 1:2], (1, 3, 3), lifts=False), kernel)


def test_upsampling_by_another_factor_gives_what_is_constant_along_the_axis() -> None:
    kernel, volume = torch.randn(2, 5, 1, 2, 2), torch.randn(1, 2, 3, 4, 4)
    longer = fit(kernel, (2, 2, 2), lifts=True)
    expected = F.conv_transpose3d(volume, kernel, stride=(1, 2, 2)).repeat_interleave(2, 2)
    torch.testing.assert_close(F.conv_transpose3d(volume, longer, stride=2), expected)
    assert torch.equal(fit(longer, (1, 2, 2), lifts=True), kernel)
    mean = fit(torch.tensor([1.0, 3.0, 5.0, 7.0])[None, None], (2,), lifts=True)
    assert mean.flatten().tolist() == [2, 6]


@for_each("way", ["centre", "average"])
def test_2d_kernels_get_the_depth_of_the_network(way: str) -> None:
    kernel, image = torch.randn(5, 2, 3, 3), torch.randn(1, 2, 8, 8)
    expected = F.conv2d(image, kernel, padding=1)[:, :, None]
    for depth in (1, 3):
        volume = image[:, :, None].expand(-1, -1, depth, -1, -1)
        found = F.conv3d(volume, fit(kernel, (depth, 3, 3), False, way), padding=(depth // 2, 1, 1))
        torch.testing.assert_close(found[:, :, depth // 2 : depth // 2 + 1], expected, rtol=1e-4, atol=1e-4)
    lifted = fit(kernel[..., :2, :2], (2, 2, 2), True, way)
    assert torch.equal(lifted, kernel[..., :2, :2][:, :, None].repeat(1, 1, 2, 1, 1))


def test_what_would_lose_the_function_is_not_made_to_fit() -> None:
    for given, wanted, lifts, fits in (
        ((3, 3, 3), (1, 3, 3), False, True),
        ((5, 3, 3), (3, 3, 3), False, False),
        ((3, 3, 3), (5, 3, 3), False, True),
        ((3, 3, 3), (4, 3, 3), False, False),
        ((3, 3), (3, 3, 3), False, False),
        ((2, 2, 2), (1, 2, 2), True, True),
        ((2, 2, 2), (3, 2, 2), True, False),
        ((), (), False, True),
    ):
        assert can_fit(given, wanted, lifts) is fits, (given, wanted)
    assert can_fit((3, 3), (1, 3, 3), False, "centre")
    assert change((3, 3, 3), (1, 3, 3)) == "3x3x3 -> 1x3x3"
