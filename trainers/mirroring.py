"""How is an image with left and right classes mirrored between left and right? The classes change sides with it.

Only for training: at test time nnU-Net averages mirrored predictions without exchanging classes, so that axis is left
out there. supervised.py has the plan's value, which is off by default.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import MirrorTransform

from stunet.annotations import Annotations
from stunet.datasets.check import left_right_pairs
from stunet.errors import DataError


def mirrored_values(annotations: Annotations) -> dict[int, int]:
    """The value in label files of each label's mirror image: of the left kidney that of the right one, and vice versa.

    Raises:
        DataError: A case annotates a label without its mirror image, which would be taken for background.
    """
    opposite = {leaf: leaf for leaf in annotations.leaves}
    for left, right in left_right_pairs(opposite):
        opposite |= {left: right, right: left}
    found = {value: value for value in annotations.values.values()}  # a label may be annotated nowhere
    kinds = {case.labels: name for name, case in annotations.cases.items()} or {annotations.leaves: ""}
    for labels, case in kinds.items():
        by_leaves = {frozenset(annotations.labels[label]): label for label in labels}
        for leaves, label in by_leaves.items():
            image = by_leaves.get(frozenset(opposite[leaf] for leaf in leaves))
            if image is None:
                raise DataError(
                    f"mirror=swap: case {case!r} annotates {label!r} without its mirror image", "--set mirror=auto"
                )
            found[annotations.values[label]] = annotations.values[image]
    return found


class MirrorSides(MirrorTransform):
    """nnU-Net's mirroring, after which labels have the values of their mirror images.

    Args:
        axes: Of the patch, that may be mirrored.
        sides: Those of them that run between left and right.
        values: From mirrored_values(); others stay.
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
