"""Predictive pretexts: recognise how a cube was turned, where a part of a patch lies, or how its parts were shuffled.

Only the encoder is trained. Patches are not mirrored by the trainer: with mirroring a rotation by 180 degrees could not
be recognised, and left and right of the anatomy tell where a part lies. Short-cuts are taken away: parts neither touch
nor lie on a fixed grid, so edges that continue give nothing away, and nor does padding (see stretch()).

Zhang et al. 2022, "Dive into the details of self-supervised learning for medical image analysis" (arXiv:2209.12157),
have the heads and the numbers below.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts.base import Outcome, Patches, Pretext, Rows, Setting, accuracy, mlp, pooled
from stunet.trainers.pretexts.draws import flags, integers
from stunet.trainers.pretexts.views import crop, cut

HIDDEN, EMBEDDED = 1024, 64  # widths of the heads
NEAR_ISOTROPIC = 1.25  # ratio of spacings up to which the blur does not tell along which axis a cube lies
ORDERS, DISTANCE = 100, 5  # orders of eight cubes, and in how many places any two differ at least (of 8)
JITTER = 0.25  # of a cell's side: how much smaller a part is than its cell, so that it has room to move
TURNED = 1 / 3  # of the cubes about each of two axes
NOISY, DROPPED = 0.5, 0.5  # share of the cubes that are masked, and of their voxels


class Rotation(Pretext):
    """Recognise by which multiple of 90 degrees a cube was turned (ROT): 10 classes, or 4 in the plane of the slices.

    The classes are no turn, and 90, 180 and 270 degrees about each axis. Where the spacing along an axis differs, its
    blur would give the turn away, so only turns about that axis remain.
    """

    measure = "accuracy"

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        axes = range(setting.ndim)
        across = max(axes, key=lambda axis: setting.spacing[axis])  # the slices
        isotropic = setting.ndim == 2 or max(setting.spacing) <= NEAR_ISOTROPIC * min(setting.spacing)
        planes = [(a, b) for a in axes for b in axes if a < b and (isotropic or across not in (a, b))]
        self.turns = [(0, planes[0]), *((k, plane) for plane in planes for k in (1, 2, 3))]
        # Planes of turns have equal sides.
        turned = {axis for plane in planes for axis in plane}
        side = min(setting.patch[axis] for axis in turned)
        self.size = [side if axis in turned else n for axis, n in enumerate(setting.patch)]
        check_size(self, self.size, "a cube")
        self.head = mlp(self.widths[-1], HIDDEN, len(self.turns))

    @property
    def chance(self) -> float:
        return 1 / len(self.turns)

    @property
    def chance_loss(self) -> float:
        return math.log(len(self.turns))

    def compute(self, patches: Patches) -> Rows:
        images, draws = patches.images, patches.draws
        cubes, labels = crop(stretch(patches), self.size, draws), integers(draws, len(self.turns))
        turned = []
        for cube, label in zip(cubes, labels.tolist(), strict=True):
            k, plane = self.turns[label]
            turned.append(torch.rot90(cube, k, (plane[0] + 1, plane[1] + 1)))
        return {"logits": self.head(pooled(self.features(torch.stack(turned))[-1])), "labels": labels.to(images.device)}

    def loss(self, rows: Rows) -> Outcome:
        logits, labels = rows["logits"], rows["labels"]
        return F.cross_entropy(logits, labels), {self.measure: accuracy(logits, labels)}


class _Parts(Pretext):
    """Cuts a part out of each cell of a grid of `cells` per axis; it can move in its cell, so parts rarely touch."""

    cells: int

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        self.cell = [n // self.cells for n in setting.patch]
        self.size = [n - max(1, round(JITTER * n)) for n in self.cell]
        check_size(self, self.size, f"one of {self.cells} parts per axis")
        self.grid = torch.tensor(list(product(range(self.cells), repeat=setting.ndim)))
        self.embed = nn.Sequential(nn.Linear(self.widths[-1], EMBEDDED), nn.LayerNorm(EMBEDDED), nn.ReLU(inplace=True))

    def parts(self, patches: Patches) -> Tensor:
        """Return the parts, (B, cells^axes, C, *size), in the order of the grid."""
        draws = patches.draws
        seen, room = stretch(patches), [n - m for n, m in zip(self.cell, self.size, strict=True)]
        moved = torch.stack([integers(draws, n + 1, len(self.grid)) for n in room], -1)
        corners = self.grid * torch.tensor(self.cell) + moved
        return torch.stack([cut(seen, corners[:, place], self.size) for place in range(len(self.grid))], 1)

    def embeddings(self, parts: Tensor) -> Tensor:
        """Return what the encoder makes of parts: (B, N, C, ...) -> (B, N, EMBEDDED)."""
        flat = self.features(parts.flatten(0, 1))[-1]
        return self.embed(pooled(flat)).unflatten(0, parts.shape[:2])


class Position(_Parts):
    """Recognise which of the neighbours of the central part another part is (RPL): 26 classes in 3D, 8 in 2D."""

    measure = "accuracy"
    cells = 3

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        self.center = len(self.grid) // 2
        self.head = mlp(2 * EMBEDDED, HIDDEN, len(self.grid) - 1)

    @property
    def chance(self) -> float:
        return 1 / (len(self.grid) - 1)

    @property
    def chance_loss(self) -> float:
        return math.log(len(self.grid) - 1)

    def compute(self, patches: Patches) -> Rows:
        images, draws = patches.images, patches.draws
        parts, labels = self.parts(patches), integers(draws, len(self.grid) - 1)
        neighbours = labels + (labels >= self.center)
        pair = torch.stack([parts[:, self.center], parts[torch.arange(len(parts)), neighbours]], 1)
        return {"logits": self.head(self.embeddings(pair).flatten(1)), "labels": labels.to(images.device)}

    def loss(self, rows: Rows) -> Outcome:
        logits, labels = rows["logits"], rows["labels"]
        return F.cross_entropy(logits, labels), {self.measure: accuracy(logits, labels)}


class Cubes(_Parts):
    """Recognise the order of eight shuffled cubes (Jigsaw), with `turns` also which are turned by 180 degrees (RKB).

    A third of the cubes is turned about the first axis, a third about the last. With `masks` it is also to be
    recognised which cubes lack voxels (RKB+). The measure is the accuracy of the order.

    Args:
        network: As in Pretext.
        setting: As in Pretext.
        turns: Whether cubes are turned.
        masks: Whether cubes lack voxels.
        deep: Whether the heads of turns and masks have a hidden layer: with one more than the published RKB they do not
            learn (Zhang et al. 2022, appendix).
    """

    measure = "accuracy"
    cells = 2
    orders: Tensor

    def __init__(
        self, network: nn.Module, setting: Setting, turns: bool = False, masks: bool = False, deep: bool = False
    ) -> None:
        super().__init__(network, setting)
        count = len(self.grid)
        orders = torch.from_numpy(far_orders(count))
        self.register_buffer("orders", orders)  # so that a checkpoint is complete
        self.order = mlp(count * EMBEDDED, HIDDEN, HIDDEN, len(orders))
        self.flags = [*(["first", "last"] if turns else []), *(["mask"] if masks else [])]
        widths = (HIDDEN, HIDDEN) if deep else (HIDDEN,)
        self.heads = nn.ModuleDict({name: mlp(count * EMBEDDED, *widths, count) for name in self.flags})

    @property
    def chance(self) -> float:
        return 1 / len(self.orders)

    @property
    def chance_loss(self) -> float:
        """The entropy of each answer: three states of equal frequency for turns, half of the cubes for masks."""
        third, half = -(TURNED * math.log(TURNED) + (1 - TURNED) * math.log(1 - TURNED)), math.log(2)
        return math.log(len(self.orders)) + sum(half if name == "mask" else third for name in self.flags)

    def compute(self, patches: Patches) -> Rows:
        images, draws = patches.images, patches.draws
        parts, labels = self.parts(patches), integers(draws, len(self.orders))
        parts = parts[torch.arange(len(parts))[:, None], self.orders.cpu()[labels]]
        targets = {}
        if "first" in self.flags:
            state = integers(draws, round(1 / TURNED), parts.shape[1])
            # Half a turn about an axis flips the others; in the plane it is a flip along the axis itself.
            axes = list(range(3, parts.ndim))
            about = {"first": axes[1:], "last": axes[:-1]}
            for value, name in enumerate(about):
                targets[name] = state == value
                parts = _where(targets[name], parts.flip(about[name]), parts)
        if "mask" in self.flags:
            targets["mask"] = flags(draws, NOISY, parts.shape[1])
            lacking = flags(draws, DROPPED, parts.shape[1], 1, *self.size).to(parts.device)
            parts = _where(targets["mask"], parts.masked_fill(lacking, 0), parts)
        embedded = self.embeddings(parts).flatten(1)
        rows = {"logits": self.order(embedded), "labels": labels.to(images.device)}
        for name, target in targets.items():
            rows |= {f"{name} logits": self.heads[name](embedded), f"{name} labels": target.float().to(images.device)}
        return rows

    def loss(self, rows: Rows) -> Outcome:
        logits, labels = rows["logits"], rows["labels"]
        loss, measures = F.cross_entropy(logits, labels), {self.measure: accuracy(logits, labels)}
        for name in self.flags:
            answer, target = rows[f"{name} logits"], rows[f"{name} labels"]
            loss = loss + F.binary_cross_entropy_with_logits(answer, target)
            measures[name] = ((answer > 0) == target.bool()).float().mean()
        return loss, measures


@lru_cache(maxsize=2)
def far_orders(count: int) -> np.ndarray:
    """Return orders of `count` things that differ in at least DISTANCE places, (ORDERS, count); fewer if there are.

    Greedily: each is one of those that are farthest from all before it (Noroozi and Favaro 2016, arXiv:1603.09246).
    """
    every = np.array(list(permutations(range(count))), dtype=np.int64)
    chosen, distance = [0], (every != every[0]).sum(1)
    total = distance.copy()
    while len(chosen) < ORDERS:
        # Of the farthest, the one that differs most from all chosen ones together.
        best = int(np.lexsort((total, distance))[-1])
        if distance[best] < min(DISTANCE, count - 1):
            break
        chosen.append(best)
        new = (every != every[best]).sum(1)
        distance, total = np.minimum(distance, new), total + new
    return every[chosen]


def stretch(patches: Patches) -> Tensor:
    """Return images where the outermost valid voxels continue into what lies beyond along each axis.

    A constant margin would tell where a part lies. The voxels beyond are replaced by the nearest valid plane of the
    patch, so a margin looks like more of the anatomy next to it.
    """
    images, valid, *_ = patches
    if valid.all():
        return images
    stretched = []
    for image, inside in zip(images, valid, strict=True):
        for axis in range(1, image.ndim):
            planes = inside.transpose(0, axis).flatten(1).any(1).nonzero().flatten()
            if len(planes) and len(planes) < image.shape[axis]:
                index = torch.arange(image.shape[axis], device=image.device).clamp(planes[0], planes[-1])
                image = image.index_select(axis, index)
        stretched.append(image)
    return torch.stack(stretched)


def check_size(pretext: Pretext, size: list[int], what: str) -> None:
    """Raise if a part of a patch is so small that the last stage has a single voxel, which cannot be normalised.

    Raises:
        UsageError: The patch is too small for the network's strides.
    """
    if math.prod(bottleneck(pretext, size)) < 2 or min(size) < 1:
        shape = " x ".join(map(str, size))
        raise UsageError(
            f"patch {' x '.join(map(str, pretext.setting.patch))}: {what} has {shape} voxels, of which the network's "
            "strides leave one, and that cannot be normalised",
            "--set patch_size with larger sides, --stages with fewer, or --method mae",
        )


def bottleneck(pretext: Pretext, size: Sequence[int]) -> list[int]:
    """Return the voxels per axis that padded strided convolutions leave of these in the last stage."""
    left = list(size)
    for strides in pretext.architecture.strides(pretext.network):
        left = [-(-n // stride) for n, stride in zip(left, strides, strict=True)]
    return left


def _where(chosen: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Return `these` parts where `chosen` (B, N) is true, and the others elsewhere."""
    return torch.where(chosen.to(these.device)[(..., *(None,) * (these.ndim - 2))], these, others)
