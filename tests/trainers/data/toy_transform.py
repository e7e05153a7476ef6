"""An augmentation that somebody adds: this file, and one line in the table of augmentation.py."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import BasicTransform


class Offset(BasicTransform):
    """Add one random number to all intensities."""

    def get_parameters(self, **sample: Any) -> dict[str, Any]:
        return {"offset": 100 + torch.rand(1).item()}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return img + params["offset"]

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        return segmentation
