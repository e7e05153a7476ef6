"""Predictive pretexts: recognise how a patch was turned, where a part of it lies, or how its parts were shuffled.

Only the encoder is trained. The trainer does not mirror their images: anatomy is what tells left from right, and with
mirroring a rotation by 180 degrees could not be recognised.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.trainers.pretexts.base import Outcome, Pretext, Rows, Setting, accuracy, mlp, pooled
from stunet.trainers.pretexts.draws import Draws, integers
from stunet.trainers.pretexts.views import crop

HIDDEN = 1024  # of the heads, as in Zhang et al. 2022, arXiv:2209.12157
NEAR_ISOTROPIC = 1.25  # ratio of the largest to the smallest spacing up to which a turn cannot be told by the blur


class Rotation(Pretext):
    """Recognise by which multiple of 90 degrees a cube was turned (ROT): 10 classes, or 4 in the plane of the slices.

    The classes are no turn, and 90, 180 and 270 degrees about each axis. Where the spacing along an axis differs, its
    blur would give the turn away, so only turns about that axis remain.
    """

    measure = "accuracy"

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        axes = list(range(2, setting.ndim + 2))
        isotropic = max(setting.spacing) <= NEAR_ISOTROPIC * min(setting.spacing)
        # The axis of the largest spacing is across the slices.
        across = max(range(setting.ndim), key=lambda axis: setting.spacing[axis])
        planes = [(a, b) for a in axes for b in axes if a < b] if isotropic else [tuple(set(axes) - {across + 2})]
        self.turns = [(0, (axes[0], axes[1])), *((k, plane) for plane in planes for k in (1, 2, 3))]
        self.side = min(setting.patch) if isotropic else min(n for a, n in enumerate(setting.patch) if a != across)
        self.size = [self.side if isotropic or a != across else n for a, n in enumerate(setting.patch)]
        self.head = mlp(self.widths[-1], HIDDEN, len(self.turns))

    @property
    def chance(self) -> float:
        return 1 / len(self.turns)

    @property
    def chance_loss(self) -> float:
        return math.log(len(self.turns))

    def compute(self, images: Tensor, valid: Tensor, draws: Draws) -> Rows:
        cubes, labels = crop(images, self.size, draws), integers(draws, len(self.turns))
        turned = torch.stack([
            torch.rot90(cube, k, (plane[0] - 1, plane[1] - 1))
            for cube, (k, plane) in zip(cubes, (self.turns[label] for label in labels.tolist()), strict=True)
        ])  # fmt: skip
        return {"logits": self.head(pooled(self.features(turned)[-1])), "labels": labels.to(images.device)}

    def loss(self, rows: Rows) -> Outcome:
        logits, labels = rows["logits"], rows["labels"]
        return F.cross_entropy(logits, labels), {"accuracy": accuracy(logits, labels)}
