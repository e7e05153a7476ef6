"""Mirror images with left and right classes along the left-right axis, exchanging these classes as well.

For training only: at test time nnU-Net averages mirrored predictions without exchanging classes, so that axis is left
out there. supervised.py reads the plan's value; this is off by default.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import MirrorTransform


class MirrorSides(MirrorTransform):
    """nnU-Net's mirroring, after which labels get the values of their mirror images.

    Args:
        allowed_axes: Axes of the patch that may be mirrored.
        sides: Those of the axes that run between left and right.
        values: The result of annotations.mirrored_values(); other values are unchanged.
    """

    def __init__(self, allowed_axes: Iterable[int], sides: Collection[int], values: dict[int, int]) -> None:
        super().__init__(tuple(allowed_axes))
        self.sides = frozenset(sides)
        highest = max(values) + 1  # the ignore label, if there is one
        self.table = torch.tensor([*(values.get(value, value) for value in range(highest + 1)), -1])  # -1: outside

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        flipped = super()._apply_to_segmentation(segmentation, **params)
        # Mirrored twice, what was left is on the left again.
        if len(self.sides.intersection(params["axes"])) % 2 == 0:
            return flipped
        return self.table.to(flipped.dtype)[flipped.long()]
