"""How is an image with left and right classes mirrored between left and right? The classes change sides with it.

Only for training: at test time nnU-Net averages mirrored predictions without exchanging classes, so that axis is left
out there. supervised.py has the plan's value, which is off by default.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import MirrorTransform


class MirrorSides(MirrorTransform):
    """nnU-Net's mirroring, after which labels have the values of their mirror images.

    Args:
        axes: Of the patch, that may be mirrored.
        sides: Those of them that run between left and right.
        values: From annotations.mirrored_values(); others stay.
    """

    def __init__(self, axes: Iterable[int], sides: Collection[int], values: dict[int, int]) -> None:
        super().__init__(tuple(axes))
        self.sides = frozenset(sides)
        highest = max(values) + 1  # the ignore label, if there is one
        self.table = torch.tensor([*(values.get(value, value) for value in range(highest + 1)), -1])  # -1: outside

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        flipped = super()._apply_to_segmentation(segmentation, **params)
        if len(self.sides.intersection(params["axes"])) % 2 == 0:
            return flipped
        return self.table.to(flipped.dtype)[flipped.long()]
