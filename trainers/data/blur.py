"""nnU-Net's Gaussian blur, without the benchmark that lets its rounding depend on the load of the machine."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import GaussianBlurTransform


class Blur(GaussianBlurTransform):
    """Blurs by convolution; nnU-Net's times convolution and FFT in each process, and takes the faster one.

    The two round differently. For the kernels used in training, the convolution is faster at every patch size.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "benchmark": False})
