"""Predictive pretexts: recognise how a cube was turned, where a part of a patch lies, or how its parts were shuffled.

Only the encoder is trained. Patches are not mirrored by the trainer: with mirroring a rotation by 180 degrees could not
be recognised, and left and right of the anatomy tell where a part lies. Short-cuts are taken away: parts neither touch
nor lie on a fixed grid, so edges that continue give nothing away. Nor does padding: they lie inside the box around the
voxels that count, and a patch whose box has no room for them takes no part.

Zhang et al. 2022, "Dive into the details of self-supervised learning for medical image analysis" (arXiv:2209.12157),
have the heads and the numbers below.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product
from itertools import permutations as every_order

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.trainers.pretexts.base import (
    COUNTS,
    Outcome,
    Patches,
    Pretext,
    Rows,
    Setting,
    average,
    check_size,
    mlp,
    pooled,
)
from stunet.trainers.pretexts.draws import flags, integers, permutations
from stunet.trainers.pretexts.views import bounds, corners, cut, inside

HIDDEN, EMBEDDED = 1024, 64  # widths of the heads
NEAR_ISOTROPIC = 1.25  # ratio of spacings up to which the blur does not tell along which axis a cube lies
MOST_ALIKE = 0.95  # of the scans have to be so
NEAR_CUBIC = 1.5  # ratio of a patch's sides up to which a plane of equal sides leaves out little of it
NEIGHBOURS = 8  # of the central part, that are asked about in each patch
ORDERS, DISTANCE = 100, 5  # orders of eight cubes, and in how many places any two differ at least (of 8)
JITTER = 0.25  # of a cell's side: how much smaller a part is than its cell, so that it has room to move
TURNED = 1 / 3  # of the cubes about each of two axes
NOISY, DROPPED = 0.5, 0.5  # share of the cubes that are masked, and of their voxels


class Rotation(Pretext):
    """Recognise by which multiple of 90 degrees a cube was turned (ROT): 10 classes, or 4 in the plane of the slices.

    The classes are no turn, and 90, 180 and 270 degrees about each axis. Where the spacing along an axis differs, that
    of the plan or that of the scans, its blur would give the turn away, so only turns about that axis remain. Where no
    plane has two similar axes, only half turns do.
    """

    measure = "accuracy"

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        planes = list(combinations(range(setting.ndim), 2))
        quarters = [plane for plane in planes if _similar(setting, plane)]
        planes = quarters or planes
        self.turns = [(0, planes[0]), *((k, plane) for plane in planes for k in ((1, 2, 3) if quarters else (2,)))]
        # Planes of quarter turns have equal sides.
        turned = {axis for plane in quarters for axis in plane}
        side = min((setting.patch[axis] for axis in turned), default=0)
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
        places, counts = inside(patches.valid, self.size, draws)
        labels, turned = integers(draws, len(self.turns)), []
        for cube, label in zip(cut(images, places, self.size), labels.tolist(), strict=True):
            k, plane = self.turns[label]
            turned.append(torch.rot90(cube, k, (plane[0] + 1, plane[1] + 1)))
        logits = self.head(pooled(self.features(torch.stack(turned))[-1]))
        return {"logits": logits, "labels": labels.to(images.device), COUNTS: counts.to(logits)}

    def loss(self, rows: Rows) -> Outcome:
        loss, accuracy = cross_entropy(rows, self.chance)
        return loss, {self.measure: accuracy}


class _Parts(Pretext):
    """Cuts a part out of each cell of a grid of `cells` per axis; it can move in its cell, so parts rarely touch.

    The grid is that of the box around the voxels that count. Parts have the same size in all samples: in a smaller box
    they have less room to move.
    """

    cells: int

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        cell = [n // self.cells for n in setting.patch]
        self.size = [n - max(1, round(JITTER * n)) for n in cell]
        check_size(self, self.size, f"one of {self.cells} parts per axis")
        self.grid = torch.tensor(list(product(range(self.cells), repeat=setting.ndim)))
        linear = nn.Linear(self.widths[-1], EMBEDDED, bias=False)
        self.embed = nn.Sequential(linear, nn.LayerNorm(EMBEDDED), nn.ReLU(inplace=True))

    def parts(self, patches: Patches) -> tuple[Tensor, Tensor]:
        """Return the parts, (B, cells^axes, C, *size), in the order of the grid, and which samples count, (B,)."""
        images, valid, draws, *_ = patches
        lows, highs = bounds(valid)
        cell, size = (highs - lows) // self.cells, torch.tensor(self.size)
        counts = (cell > size).all(1)
        # The others are cut from anywhere.
        lows = lows * counts[:, None]
        cell = torch.where(counts[:, None], cell, torch.tensor(images.shape[2:]) // self.cells)
        places = (lows[:, None] + self.grid * cell[:, None]) + corners(draws, cell - size, len(self.grid))
        parts = [cut(images, places[:, place], self.size) for place in range(len(self.grid))]
        return torch.stack(parts, 1), counts.to(images)

    def embeddings(self, parts: Tensor) -> Tensor:
        """Return what the encoder makes of parts: (B, N, C, ...) -> (B, N, EMBEDDED).

        What all parts of a sample have in common is subtracted: at first it is nearly everything, and Jigsaw does not
        learn. The published heads normalise over the batch instead, which would couple samples.
        """
        features = pooled(self.features(parts.flatten(0, 1))[-1]).unflatten(0, parts.shape[:2])
        return self.embed(features - features.mean(1, keepdim=True))


class Position(_Parts):
    """Recognise which of the neighbours of the central part another part is (RPL): 26 classes in 3D, 8 in 2D.

    Each patch is asked about NEIGHBOURS of them; the published method asks about one, and learns more slowly.
    """

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
        (parts, counts), labels = self.parts(patches), permutations(draws, len(self.grid) - 1)[:, :NEIGHBOURS]
        chosen = torch.cat([torch.full_like(labels[:, :1], self.center), labels + (labels >= self.center)], 1)
        embedded = self.embeddings(parts[torch.arange(len(parts))[:, None], chosen])
        centers = embedded[:, :1].expand(-1, NEIGHBOURS, -1)
        logits = self.head(torch.cat([centers, embedded[:, 1:]], 2))
        return {"logits": logits, "labels": labels.to(images.device), COUNTS: counts}

    def loss(self, rows: Rows) -> Outcome:
        loss, accuracy = cross_entropy(rows, self.chance)
        return loss, {self.measure: accuracy}


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
        (parts, counts), labels = self.parts(patches), integers(draws, len(self.orders))
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
        rows = {"logits": self.order(embedded), "labels": labels.to(images.device), COUNTS: counts}
        for name, target in targets.items():
            rows |= {f"{name} logits": self.heads[name](embedded), f"{name} labels": target.float().to(images.device)}
        return rows

    def loss(self, rows: Rows) -> Outcome:
        loss, accuracy = cross_entropy(rows, self.chance)
        measures = {self.measure: accuracy}
        for name in self.flags:
            answer, target = rows[f"{name} logits"], rows[f"{name} labels"]
            entropy = F.binary_cross_entropy_with_logits(answer, target, reduction="none")
            loss = loss + average(entropy.mean(1), rows[COUNTS])
            measures[name] = average(((answer > 0) == target.bool()).float().mean(1), rows[COUNTS])
        return loss, measures


@lru_cache(maxsize=2)
def far_orders(count: int) -> np.ndarray:
    """Return orders of `count` things that differ in at least DISTANCE places, (ORDERS, count); fewer if there are.

    Greedily: each is one of those that are farthest from all before it (Noroozi and Favaro 2016, arXiv:1603.09246).
    """
    every = np.array(list(every_order(range(count))), dtype=np.int64)
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


def cross_entropy(rows: Rows, chance: float) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of `logits` and `labels`, and the accuracy, of the samples that count.

    Logits are (B, classes), or for several answers per sample (B, N, classes); labels are without the last axis.
    """
    logits, labels, counts = rows["logits"], rows["labels"], rows[COUNTS]
    entropy = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").reshape(len(labels), -1)
    right = (logits.argmax(-1) == labels).float().reshape(len(labels), -1)
    return average(entropy.mean(1), counts), average(right.mean(1), counts, chance)


def _similar(setting: Setting, plane: tuple[int, int]) -> bool:
    """Return whether a quarter turn in a plane cannot be told from the spacing, and leaves out little of the patch."""

    def alike(values: Sequence[float], limit: float) -> bool:
        low, high = sorted(values[axis] for axis in plane)
        return high <= limit * low

    acquired = [alike(spacing, NEAR_ISOTROPIC) for spacing in setting.acquired]
    planned = alike(setting.spacing, NEAR_ISOTROPIC) and alike(setting.patch, NEAR_CUBIC)
    return planned and sum(acquired) >= MOST_ALIKE * len(acquired)


def _where(chosen: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Return `these` parts where `chosen` (B, N) is true, and the others elsewhere."""
    return torch.where(chosen.to(these.device)[(..., *(None,) * (these.ndim - 2))], these, others)
