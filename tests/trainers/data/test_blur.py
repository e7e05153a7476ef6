"""Blurring: nnU-Net's numbers, whichever of convolution and FFT is faster."""

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import GaussianBlurTransform

from stunet.trainers.data.blur import Blur


def test_blurring_is_nnunets_and_does_not_depend_on_what_was_faster() -> None:
    image = torch.randn(1, 24, 20, 16, generator=torch.Generator().manual_seed(0))
    options = {"blur_sigma": (0.5, 1.0), "synchronize_channels": False, "p_per_channel": 1, "benchmark": True}
    ours, theirs = Blur(**options), GaussianBlurTransform(**options)
    for direct in (True, False):
        theirs.benchmark = not direct
        found = []
        for blur in (ours, theirs):
            torch.manual_seed(0)
            np.random.seed(0)
            found.append(blur(image=image.clone())["image"])
        assert torch.equal(*found) or not direct
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert not ours.benchmark_use_fft
