"""Regional pretexts: tell which part of a patch, of an image, or of a feature map something comes from.

VoCo contrasts crops by their overlap with the cells of a grid. Global and local contrast (Chaitanya et al. 2020,
arXiv:2006.10511) are two steps: the encoder learns to tell the parts of a volume from each other, then the decoder, on
top of that encoder, to tell regions of its own feature maps from each other.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts.augment import STANDARD, disturb, size_of_view, two_views
from stunet.trainers.pretexts.base import (
    CASE,
    COUNTS,
    DECODER,
    Outcome,
    Patches,
    Pretext,
    Rows,
    Setting,
    average,
    bottleneck,
    check_size,
)
from stunet.trainers.pretexts.contrastive import Contrast, everywhere, head, hits, nt_xent, similarities
from stunet.trainers.pretexts.draws import integers, permutations
from stunet.trainers.pretexts.momentum import Projection, follow, spread, teacher_of
from stunet.trainers.pretexts.views import corners, cut, inside

HIDDEN, EMBEDDED = 1024, 256
BASES, TARGETS = 4, 4  # per axis at most; random crops per patch, as in nnssl
MOMENTUM = 0.9  # VoCo's
EPSILON = 1e-6
PARTITIONS = 4  # of a volume along its first axis
SLABS, THICKNESS = 2, 0.25  # per patch, in two views each; share of the patch's side: together as many voxels as it has
TEMPERATURE = 0.1
LEVELS, REGIONS, SIDE = 3, 13, 3  # of the decoder; of a feature map; voxels of a region's side
LOCAL_WIDTH = 64


class VoCo(Pretext):
    """Tell by how much a crop overlaps each base, a cell of a grid over the patch (VoCo).

    Wu et al. 2024 (arXiv:2402.17300), with the losses of its published code. A teacher takes part in each comparison:
    without one the loss did not fall (MIC-DKFZ/nnssl, issue 22). The measure is how often the base with the largest
    overlap is the most similar one. The grid lies inside the box around the voxels that count: a patch whose box has no
    room for it takes no part, since its padding would tell the cells.
    """

    measure = "accuracy"
    above_chance = True
    kept = ("features", "taught")

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        self.cells = [self._cells(axis) for axis in range(setting.ndim)]
        self.size = [n // cells for n, cells in zip(setting.patch, self.cells, strict=True)]
        check_size(self, self.size, "a base crop")
        if math.prod(self.cells) < 2:
            raise UsageError(
                f"patch {' x '.join(map(str, setting.patch))}: the network's strides leave room for a single base crop",
                "--set patch_size with larger sides, --stages with fewer, or --method mae",
            )
        self.bases = torch.tensor(list(product(*map(range, self.cells)))) * torch.tensor(self.size)
        self.project = Projection(sum(self.widths), *head(sum(self.widths), HIDDEN, EMBEDDED))
        self.teacher, self.teacher_project = teacher_of(network), teacher_of(self.project)

    def _cells(self, axis: int) -> int:
        """Return how many bases an axis has: at most BASES, and each leaves more than one voxel in the last stage."""
        for cells in range(BASES, 1, -1):
            size = [n // cells for n in self.setting.patch]
            if bottleneck(self, size)[axis] > 1:
                return cells
        return 1

    @property
    def chance(self) -> float:
        """The accuracy of whoever always answers with the base that most crops are closest to."""
        shares = []
        for cells, side in zip(self.cells, self.size, strict=True):
            distances = (torch.arange((cells - 1) * side + 1)[:, None] - torch.arange(cells) * side).abs()
            closest = distances == distances.amin(1, keepdim=True)
            shares.append(float(closest.float().mean(0).max()))
        return math.prod(shares)

    def compute(self, patches: Patches) -> Rows:
        images, draws = patches.images, patches.draws
        grid = [cells * side for cells, side in zip(self.cells, self.size, strict=True)]
        first, counts = inside(patches.valid, grid, draws)
        targets = corners(draws, torch.tensor(grid) - torch.tensor(self.size), TARGETS)
        places = first[:, None] + torch.cat([targets, self.bases.expand(len(images), -1, -1)], 1)
        crops = [cut(images, places[:, crop], self.size) for crop in range(places.shape[1])]
        if self.setting.augment == STANDARD:
            crops = [disturb(crop, draws) for crop in crops]
        seen = torch.stack(crops, 1)
        student, features = self._embeddings(self.network, self.project, seen)
        with torch.no_grad():
            teacher, taught = self._embeddings(self.teacher, self.teacher_project, seen)
        ours, our_bases = student[:, :TARGETS], student[:, TARGETS:]
        theirs, their_bases = teacher[:, :TARGETS], teacher[:, TARGETS:]
        similar = (overlap(ours, their_bases) + overlap(theirs, our_bases)) / 2
        shares = shared(targets, self.bases, self.size).to(similar)
        best = shares.gather(2, similar.argmax(2, keepdim=True))[..., 0]
        return {
            "loss": position_loss(similar, shares) + separation_loss(our_bases),
            "found": (best == shares.amax(2)).float().mean(1),
            "crops": ours.detach(),
            "features": features,
            "taught": taught,
            COUNTS: counts.to(similar),
        }

    def loss(self, rows: Rows) -> Outcome:
        found = average(rows["found"], rows[COUNTS], self.chance)
        measures = {self.measure: found, "spread": spread(rows["crops"].flatten(0, 1))}
        return average(rows["loss"], rows[COUNTS]), measures

    def teachers(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.teacher, self.network), (self.teacher_project, self.project)]

    def update(self, rows: Rows) -> None:
        if (counted := rows[COUNTS] > 0).any():
            self.project.observe(rows["features"][counted])
            self.teacher_project.observe(rows["taught"][counted])
        for teacher, student in self.teachers():
            follow(teacher, student, MOMENTUM)

    def _embeddings(self, network: nn.Module, project: nn.Module, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised embeddings of crops, (B, N, C, ...) -> (B, N, EMBEDDED), and their features."""
        features = everywhere(self.architecture.features(network, crops.flatten(0, 1)))
        embedded = F.normalize(project(features).float())
        return embedded.unflatten(0, crops.shape[:2]), features.detach().unflatten(0, crops.shape[:2])


class Global(Contrast):
    """Slabs of the same part of a volume are alike, whatever the image; those of other parts are not (G^D).

    The images have to be aligned roughly: the parts are quarters of the first axis. The measure is how often the
    slab of another image that is the most similar one is of the same part, as Cohen's kappa: 0 is as often as by
    chance. That depends on the batch, since patches that are smaller than the image show its middle more often.
    """

    measure = "kappa"

    @property
    def thickness(self) -> int:
        """The voxels of a slab along the first axis."""
        return max(1, round(THICKNESS * self.setting.patch[0]))

    @property
    def chance(self) -> float:
        return 0.0

    def view_size(self) -> list[int]:
        return size_of_view([self.thickness, *self.setting.patch[1:]], self.setting)

    def compute(self, patches: Patches) -> Rows:
        size, still = [self.thickness, *patches.images.shape[3:]], [0] * (self.setting.ndim - 1)
        embedded, features, parts = [], [], []
        for _ in range(SLABS):
            firsts, part = self._places(patches)
            slabs, valid = (
                cut(each, torch.tensor([[first, *still] for first in firsts]), size)
                for each in (patches.images, patches.valid)
            )
            views, pooled = self.embed(two_views(patches._replace(images=slabs, valid=valid), self.setting))
            embedded.append(torch.stack(views, 1))
            features.append(pooled)
            parts.append(part)
        labels = torch.stack(parts, 1).to(patches.images.device)
        return {"slabs": torch.stack(embedded, 1), "parts": labels, "features": torch.cat(features, 1)}

    def _places(self, patches: Patches) -> tuple[list[int], Tensor]:
        """Draw a slab of each patch, from the parts that it has evenly: its first voxel, and its part, (B,)."""
        side = self.setting.patch[0]
        offsets = torch.arange(side - self.thickness + 1)
        firsts, parts = [], []
        for draw, (low, high) in zip(patches.draws, patches.places.tolist(), strict=True):
            part = ((low + (offsets + self.thickness / 2) / side * (high - low)) * PARTITIONS).floor().long()
            present = part[(part >= 0) & (part < PARTITIONS)].unique()  # and not in the padding around the image
            chosen = present[int(integers([draw], len(present)))]
            having = offsets[part == chosen]
            firsts.append(int(having[int(integers([draw], len(having)))]))
            parts.append(chosen)
        return firsts, torch.stack(parts)

    def loss(self, rows: Rows) -> Outcome:
        slabs = rows["slabs"].float()
        count, views = slabs.shape[1:3]
        flat = slabs.flatten(0, 2)
        part = rows["parts"].repeat_interleave(views, 1).flatten()
        case = rows[CASE].repeat_interleave(count * views)
        others, same = case[:, None] != case, part[:, None] == part
        found = similarities(flat, flat).masked_fill(~others, -torch.inf).argmax(1)
        compared = others.any(1).float()
        right = average((part[found] == part).float(), compared)
        chance = average((same & others).sum(1) / others.sum(1).clamp_min(1), compared)
        kappa = (right - chance) / (1 - chance).clamp_min(EPSILON)
        return partition_loss(flat, part, TEMPERATURE), {self.measure: kappa, "spread": spread(flat.detach())}


class Local(Pretext):
    """Regions of the decoder's feature map are to be recognised after a change of intensity (L^R).

    The encoder stays as it is, which should be that of Global. Positives are the same region of the same image;
    negatives are its other regions. Only the decoder's first levels are trained. Augmentations that leave intensities
    alone make both images equal; regions still have to differ from each other. The measure is how often the region is
    the most similar of all cells of the other image. All ways of changing intensities are used: with brightness and
    contrast alone, as in the paper, the loss before the first step is half as high on hippocampi, and the measure 1.
    """

    trains = DECODER
    levels = LEVELS
    measure = "retrieval"
    above_chance = True

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        convolution = nn.Conv3d if setting.ndim == 3 else nn.Conv2d
        with torch.no_grad():
            shape = self._map(torch.zeros(1, self.architecture.channels(network), *setting.patch)).shape
        self.sides = [min(SIDE, max(1, n // 2)) for n in shape[2:]]
        self.cells = math.prod(n // side for n, side in zip(shape[2:], self.sides, strict=True))
        self.regions = min(REGIONS, self.cells)
        if self.regions < 2:
            raise UsageError(
                f"patch {' x '.join(map(str, setting.patch))}: a single voxel is left at the decoder's level {LEVELS}",
                "--set patch_size with larger sides, or --method global",
            )
        self.project = nn.Sequential(
            convolution(shape[1], LOCAL_WIDTH, 1), nn.ReLU(inplace=True), convolution(LOCAL_WIDTH, LOCAL_WIDTH, 1)
        )

    @property
    def chance(self) -> float:
        return 1 / self.cells

    def compute(self, patches: Patches) -> Rows:
        images, valid, draws, *_ = patches
        pair = [images, images]
        if self.setting.augment == STANDARD:
            pair = [disturb(each, draws, always=True) for each in pair]
        maps = self.project(self._map(torch.cat(pair)))
        chosen = self._choose(valid, maps.shape[2:], draws)
        rows = torch.arange(len(images))[:, None]
        one, every = (F.normalize(cells(each, self.sides).float(), dim=2) for each in maps.chunk(2))
        one, other = one[rows, chosen], every[rows, chosen]
        losses = [nt_xent(a, b, TEMPERATURE)[0] for a, b in zip(one, other, strict=True)]
        similar = similarities(one.detach(), every.detach())
        found = [hits(each, own) for each, own in zip(similar, chosen.to(similar.device), strict=True)]
        return {"loss": torch.stack(losses), "found": torch.stack(found), "regions": one.detach()}

    def loss(self, rows: Rows) -> Outcome:
        measures = {self.measure: rows["found"].mean(), "spread": spread(rows["regions"].flatten(0, 1))}
        return rows["loss"].mean(), measures

    def _map(self, images: Tensor) -> Tensor:
        """Return the output of the last level of the decoder that is trained."""
        with torch.no_grad():
            features = self.features(images)
        return self.architecture.decode(self.network, features, self.levels)

    def _choose(self, valid: Tensor, shape: Sequence[int], draws: Sequence[torch.Generator]) -> Tensor:
        """Draw regions of each sample, (B, R): those without a valid voxel come last, as they look alike."""
        pool = F.adaptive_max_pool3d if self.setting.ndim == 3 else F.adaptive_max_pool2d
        counts = cells(pool(valid.float(), tuple(shape)), self.sides).amax(2).cpu() > 0
        order = permutations(draws, counts.shape[1])
        last = (~counts.gather(1, order)).int()
        return order.gather(1, last.argsort(dim=1, stable=True))[:, : self.regions]


def overlap(crops: Tensor, bases: Tensor) -> Tensor:
    """Return how similar normalised crops (B, T, E) and bases (B, N, E) are: cosines, zero if negative; (B, T, N)."""
    return similarities(crops, bases).relu()


def shared(targets: Tensor, bases: Tensor, size: Sequence[int]) -> Tensor:
    """Return the share of each crop that lies in each base: corners (B, T, axes) and (N, axes) -> (B, T, N)."""
    sides = torch.tensor(size)
    common = (sides - (targets[:, :, None] - bases).abs()).clamp_min(0)
    return (common / sides).prod(-1)


def position_loss(similar: Tensor, shares: Tensor) -> Tensor:
    """Return VoCo's loss of similarities that should equal the shares of overlap; (B, T, N) each -> (B,).

    Where there is an overlap, -log(1 - |difference|), weighted by it; elsewhere the square.
    """
    similar, shares = similar.flatten(1), shares.flatten(1)
    positive = -shares * torch.log(1 - (shares - similar).abs() + EPSILON)
    apart = (shares == 0).float()
    negative = apart * similar**2
    return positive.sum(1) / (shares.sum(1) + EPSILON) + negative.sum(1) / (apart.sum(1) + EPSILON)


def separation_loss(bases: Tensor) -> Tensor:
    """Return the mean squared similarity of any two bases, (B, N, E) -> (B,); of two, the second has no gradient."""
    first, second = torch.triu_indices(bases.shape[1], bases.shape[1], 1, device=bases.device)
    return overlap(bases, bases.detach())[:, first, second].square().mean(1)


def partition_loss(embeddings: Tensor, part: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss in which all of the same part are positives, and the others negatives.

    Chaitanya et al. 2020, eq. 2 and 3: positives do not compete with each other.

    Args:
        embeddings: (N, E), normalised; each part that occurs does so twice at least.
        part: (N,), int64.
        temperature: Divides the cosines.
    """
    similar = similarities(embeddings, embeddings) / temperature
    same = part[:, None] == part
    others = similar.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    positive = same.float().fill_diagonal_(0)
    losses = (torch.logaddexp(similar, others) - similar) * positive
    return (losses.sum(1) / positive.sum(1)).mean()


def cells(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the values of each cell of a grid over feature maps: (B, C, D, H, W) -> (B, cells, C * voxels)."""
    for axis, side in enumerate(sides, 2):
        maps = maps.narrow(axis, 0, maps.shape[axis] // side * side)
    for axis, side in enumerate(sides):
        maps = maps.unfold(axis + 2, side, side)
    ndim = len(sides)
    return maps.movedim(1, 1 + ndim).flatten(1, ndim).flatten(2)
