"""Restorative pretexts: restore what was hidden or deformed, or tell how two patches were mixed.

Encoder and decoder are trained. Where the skip connections would make the task trivial they are off: the decoder gets
zeros in their place, so its weights have the shapes of the whole network. Read next: corruptions.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.trainers.pretexts import corruptions
from stunet.trainers.pretexts.base import ALL, COUNTS, Outcome, Patches, Pretext, Rows, Setting, average
from stunet.trainers.pretexts.draws import Draws, integers

MASKED = 0.75  # of the blocks, as in nnssl; S3D tried 0.6 to 0.9 (Wald et al. 2025, arXiv:2410.23132): no difference
BLOCKS = 10  # per axis at most: 16 voxels in nnssl's patch of 160
SMALLEST = 4  # voxels of a block's side: less could be interpolated
BOXES = (10, 40)  # per mixed patch
MIXED = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the pasted patch: the classes of volume fusion
LEAST_SIDE, LARGEST = 8, 0.625  # of a box: voxels, share of the patch's side
EPSILON = 1e-5


class Restoration(Pretext):
    """Restore patches. Subclasses corrupt them, and say which voxels count.

    The measure is the share of the variance that is explained, which is 0 for whoever answers with the mean of each
    channel.
    """

    trains = ALL
    measure = "explained variance"

    def __init__(self, network: nn.Module, setting: Setting, skips: bool) -> None:
        super().__init__(network, setting)
        self.skips = skips

    @property
    def chance(self) -> float:
        return 0.0

    def corrupt(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Return what the network sees, and which voxels it has to restore, (B, 1, ...), bool; None for all."""
        return images, None

    def compute(self, patches: Patches) -> Rows:
        images, valid, draws, *_ = patches
        corrupted, hidden = self.corrupt(images, draws)
        return errors(self.restore(corrupted), images, valid if hidden is None else valid & hidden)

    def restore(self, images: Tensor) -> Tensor:
        """Return the network's answer, of the images' shape."""
        return self.architecture.head(self.network)(decoded(self, images, self.skips))

    def loss(self, rows: Rows) -> Outcome:
        return average(rows["error"], rows[COUNTS]), {self.measure: explained_variance(rows)}

    def pictures(self, patches: Patches) -> Rows:
        images = patches.images
        corrupted, hidden = self.corrupt(images, patches.draws)
        output = self.restore(corrupted)
        if hidden is not None:  # what is visible is not the network's work
            output = torch.where(hidden, output, images)
        return {"input": corrupted, "output": output, "target": images}


class Autoencoder(Restoration):
    """Reproduce the patch (AE); with skip connections, an exercise in copying."""


class Genesis(Restoration):
    """Restore deformed patches (Models Genesis, MG)."""

    def corrupt(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        return corruptions.genesis(images, draws), None


class Masked(Restoration):
    """Restore hidden blocks from those that are visible (MAE); only hidden voxels count."""

    def corrupt(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        side = max(SMALLEST, round(max(self.setting.patch) / BLOCKS))
        hidden = corruptions.mask_blocks(self.setting.patch, side, MASKED, draws).to(images.device)
        return images.masked_fill(hidden, 0), hidden


class VolumeFusion(Pretext):
    """Tell by which share a patch was mixed into another one, voxel by voxel (Wang et al. 2023, arXiv:2306.16925).

    Samples have twice the channels: the patch, and the one that is pasted into it in boxes.
    """

    trains = ALL
    measure = "recall"

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        convolution = nn.Conv3d if setting.ndim == 3 else nn.Conv2d
        self.classify = convolution(self.architecture.width_of(network), len(MIXED), 1)
        # The pretext has a head of its own, with another number of classes.
        self.architecture.head(network).requires_grad_(False)

    @property
    def chance(self) -> float:
        return 1 / len(MIXED)

    def compute(self, patches: Patches) -> Rows:
        valid, draws = patches.valid, patches.draws
        background, foreground = patches.images.chunk(2, 1)
        classes = torch.stack([self._mixture(draw) for draw in draws]).to(valid.device)
        shares = torch.tensor(MIXED, device=valid.device)[classes][:, None]
        mixed = foreground * shares + background * (1 - shares)
        logits = self.classify(decoded(self, mixed, skips=True)).float()
        one_hot = F.one_hot(classes, len(MIXED)).movedim(-1, 1).to(logits.dtype) * valid.all(1, keepdim=True)
        probabilities = logits.softmax(1) * valid.all(1, keepdim=True)
        overlap, sizes = (probabilities * one_hot).flatten(2).sum(2), (probabilities + one_hot).flatten(2).sum(2)
        dice = ((2 * overlap + EPSILON) / (sizes + EPSILON)).mean(1)
        count = valid.all(1).flatten(1).sum(1)
        entropy = (F.cross_entropy(logits, classes, reduction="none") * valid.all(1)).flatten(1).sum(1)
        hit = one_hot * (logits.argmax(1) == classes)[:, None]
        return {
            "loss": entropy / count.clamp_min(1) - dice,
            "hits": hit.flatten(2).sum(2),
            "voxels": one_hot.flatten(2).sum(2),
            COUNTS: (count > 0).to(logits),
        }

    def scales(self, patches: Patches) -> Tensor:
        background, _ = patches.images.chunk(2, 1)
        return super().scales(patches._replace(images=background))

    def loss(self, rows: Rows) -> Outcome:
        hits, voxels = rows["hits"].sum(0), rows["voxels"].sum(0)
        recall = average(hits / voxels.clamp_min(1), (voxels > 0).to(hits), self.chance)
        return average(rows["loss"], rows[COUNTS]), {self.measure: recall}

    def _mixture(self, draw: torch.Generator) -> Tensor:
        """Draw boxes with a class each; (D, H, W), int64; later boxes lie on earlier ones."""
        patch = self.setting.patch
        classes = torch.zeros(tuple(patch), dtype=torch.int64)
        low, high = BOXES
        for _ in range(low + int(integers([draw], high - low + 1))):
            box = []
            for n in patch:
                most = max(2, int(LARGEST * n))
                least = min(LEAST_SIDE, most - 1)
                side = least + int(integers([draw], most - least + 1))
                first = int(integers([draw], n - side + 1))
                box.append(slice(first, first + side))
            classes[tuple(box)] = int(integers([draw], len(MIXED)))
        return classes


def decoded(pretext: Pretext, images: Tensor, skips: bool) -> Tensor:
    """Return the decoder's output at full resolution, with or without the skip connections."""
    features = pretext.features(images)
    if not skips:
        features = [*(torch.zeros_like(each) for each in features[:-1]), features[-1]]
    return pretext.architecture.decode(pretext.network, features)


def errors(restored: Tensor, images: Tensor, valid: Tensor) -> Rows:
    """Return the mean squared error of each sample, and what explained_variance() needs.

    Args:
        restored: (B, C, D, H, W).
        images: The same.
        valid: (B, 1, D, H, W), bool: the voxels that count; a sample without any does not count.
    """
    voxels = valid.flatten(1).sum(1)

    def total(values: Tensor) -> Tensor:
        return (values * valid).flatten(1).sum(1)

    sums = (images * valid).flatten(2).sum(2)
    center = (sums / voxels.clamp_min(1)[:, None])[(..., *(None,) * (images.ndim - 2))]
    residual = total((restored.float() - images) ** 2)
    return {
        "error": residual / (voxels * images.shape[1]).clamp_min(1),
        "residual": residual,
        "deviation": total((images - center) ** 2),
        COUNTS: (voxels > 0).to(images),
    }


def explained_variance(rows: Rows) -> Tensor:
    """Return the share of the samples' common variance that is explained, from what errors() returned; -1 at least.

    Common, so that a patch of air, which has hardly any, hardly counts.
    """
    residual, deviation = rows["residual"].sum(), rows["deviation"].sum()
    explained = 1 - residual / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)
    return torch.where(deviation > 0, explained.clamp_min(-1), 0.0)
