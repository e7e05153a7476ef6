"""Pretexts of two losses: contrast, which tells images from each other, and restoration, which keeps their details."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.trainers.pretexts.augment import STANDARD, disturb, move
from stunet.trainers.pretexts.base import ALL, COUNTS, Outcome, Patches, Rows, Setting
from stunet.trainers.pretexts.contrastive import MoCo
from stunet.trainers.pretexts.draws import Draws, uniform
from stunet.trainers.pretexts.restorative import errors, explained_variance

MODULATOR = 256  # width
CHANGES = 2  # numbers that describe a target: brightness and contrast
EXTENT = 0.5  # of a change: both are multiplied by up to 1 + EXTENT, and divided likewise


class PCRL(MoCo):
    """MoCo, whose features also have to restore the view (Zhou et al. 2021, arXiv:2108.00462).

    Two restorations, in equal parts, with the weight of the contrast. One is from the student's features, the other
    from a mix of those with the teacher's of the other view, whose target is the mix of both targets. A target is
    changed in brightness and contrast, and the numbers of that change modulate the channels of the last stage. The
    published code mirrors and turns its targets instead, in seven numbers, but what skip connections deliver stays
    where it is. Crops are scaled back to the size of the patch, which the decoder's strides divide. The measure is the
    mean of MoCo's and of the explained variance.
    """

    trains = ALL
    measure = "score"

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        width = self.widths[-1]
        self.modulate = nn.Sequential(
            nn.Linear(CHANGES, MODULATOR), nn.ReLU(inplace=True), nn.Linear(MODULATOR, width), nn.Sigmoid()
        )

    @property
    def chance(self) -> float:
        return super().chance / 2

    def view_size(self) -> list[int]:
        return list(self.setting.patch)

    def compute(self, patches: Patches) -> Rows:
        draws = patches.draws
        (one, target_one, valid_one), (other, target_other, valid_other) = (self._view(patches) for _ in range(2))
        student, teacher = self.features(one), self.taught(other)
        rows = self.pair(student, teacher)
        changes = [self._changes(draws) for _ in range(2)]
        target_one, target_other = (
            change(target, how) for target, how in zip((target_one, target_other), changes, strict=True)
        )
        student, teacher = self._modulated(student, changes[0]), self._modulated(teacher, changes[1])
        share = uniform(draws, 0, 1).to(one.device)  # Beta(1, 1)
        share = torch.maximum(share, 1 - share)
        mixed = [mix(ours, theirs, share) for ours, theirs in zip(student, teacher, strict=True)]
        alone = errors(self._restored(student), target_one, valid_one)
        both = errors(self._restored(mixed), mix(target_one, target_other, share), valid_one & valid_other)
        del alone[COUNTS]  # all samples count in the contrast
        return {**rows, **alone, "mixed error": both["error"]}

    def loss(self, rows: Rows) -> Outcome:
        contrast, measures = super().loss(rows)
        restoration = (rows["error"] + rows["mixed error"]).mean() / 2
        restored = explained_variance(rows)
        score = (measures["retrieval"] + restored) / 2
        return contrast + restoration, {self.measure: score, **measures, "explained variance": restored}

    def pictures(self, patches: Patches) -> Rows:
        seen, target, _ = self._view(patches)
        changes = self._changes(patches.draws)
        output = self._restored(self._modulated(self.features(seen), changes))
        return {"input": seen, "output": output, "target": change(target, changes)}

    def _view(self, patches: Patches) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network sees, the same before its intensities changed, and which voxels count."""
        images, valid, draws, *_ = patches
        moved = move(patches._replace(images=torch.cat([images, valid.to(images)], 1)), self.setting)
        linear = "trilinear" if self.setting.ndim == 3 else "bilinear"
        clean, counts = F.interpolate(moved, tuple(self.setting.patch), mode=linear).split([images.shape[1], 1], 1)
        return disturb(clean, draws) if self.setting.augment == STANDARD else clean, clean, counts > 0.5

    def _changes(self, draws: Draws) -> Tensor:
        """Draw how targets are changed: (B, CHANGES) in [-1, 1]; not at all unless intensities may change."""
        drawn = uniform(draws, -1, 1, CHANGES)
        return (drawn if self.setting.augment == STANDARD else torch.zeros_like(drawn)).to(self.queue)

    def _modulated(self, features: list[Tensor], changes: Tensor) -> list[Tensor]:
        weights = self.modulate(changes)[(..., *(None,) * self.setting.ndim)]
        return [*features[:-1], features[-1] * weights]

    def _restored(self, features: list[Tensor]) -> Tensor:
        return self.architecture.head(self.network)(self.architecture.decode(self.network, features))


def change(images: Tensor, changes: Tensor) -> Tensor:
    """Change brightness and contrast of each sample's channels; (B, CHANGES) in [-1, 1], of which 0 changes nothing."""
    brightness, contrast = ((1 + EXTENT) ** changes)[(..., *(None,) * (images.ndim - 1))].unbind(1)
    mean = images.mean(tuple(range(2, images.ndim)), keepdim=True)
    return ((images - mean) * contrast + mean) * brightness


def mix(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share * one + (1 - share) * other, with a share (B,) for each sample."""
    return other.lerp(one, share.to(one)[(..., *(None,) * (one.ndim - 1))])
