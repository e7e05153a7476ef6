"""Contrastive pretexts: find the other view of the same patch among others, or predict what a teacher makes of it.

Views are overlapping crops (augment.py). Their embeddings come from all stages of the encoder, averaged over space.
No head normalises over the batch: running statistics and LayerNorm take BatchNorm's place (momentum.py); BYOL learns
without it as well (Richemond et al. 2020, arXiv:2010.10241). The spread of embeddings tells whether they collapse.
Patches of the same image are neither negatives nor candidates of each other: often a patch is nearly all of it.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts.augment import size_of_view, two_views
from stunet.trainers.pretexts.base import (
    CASE,
    Outcome,
    Patches,
    Pretext,
    Rows,
    Setting,
    check_size,
    full_precision,
    pooled,
)
from stunet.trainers.pretexts.momentum import Projection, follow, rising, spread, teacher_of

HIDDEN, EMBEDDED = 1024, 256
SIMCLR_TEMPERATURE = 0.5  # nnssl's
MOCO_TEMPERATURE, MOCO_MOMENTUM = 0.2, 0.999  # MoCo-CXR's and PCRL's
QUEUE = 4096  # keys; MoCo-CXR had 24,576 and PCRL 16,384, of many more images
BYOL_MOMENTUM = 0.996


class Contrast(Pretext):
    """What contrastive pretexts share; the measure is how often a view's nearest neighbour is its other view."""

    measure = "retrieval"
    above_chance = True
    coupled = True  # the measure, even where the loss is not
    kept: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        if setting.batch_size < 2:
            raise UsageError(
                "a batch of 1: a contrastive method tells samples of a batch from each other", "--set batch_size=8"
            )
        check_size(self, self.view_size(), "a view")
        self.project = Projection(sum(self.widths), *head(sum(self.widths), HIDDEN, EMBEDDED))

    def view_size(self) -> list[int]:
        """Return the voxels per axis of what the encoder sees."""
        return size_of_view(self.setting.patch, self.setting)

    def embed(self, views: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return each view's normalised embeddings, (B, EMBEDDED), and the features they are made of, (B, views, F)."""
        # Together, so that the encoder is called once.
        features = everywhere(self.features(torch.cat(list(views))))
        embedded = F.normalize(self.project(features)).chunk(len(views))
        return list(embedded), by_sample(features, len(views))

    def update(self, rows: Rows) -> None:
        self.project.observe(rows["features"])

    @property
    def chance(self) -> float:
        return chance_among(self.setting)


class SimCLR(Contrast):
    """Both views of a patch are each other's positive, all other views in the batch are negatives."""

    @property
    def chance(self) -> float:
        return chance_among(self.setting, views=2)

    def compute(self, patches: Patches) -> Rows:
        (one, other), features = self.embed(two_views(patches, self.setting))
        return {"one": one, "other": other, "features": features}

    def loss(self, rows: Rows) -> Outcome:
        both = torch.cat([rows["one"], rows["other"]])
        loss, found = nt_xent(rows["one"], rows["other"], SIMCLR_TEMPERATURE, rows[CASE])
        return loss, {self.measure: found, "spread": spread(both.detach())}


class MoCo(Contrast):
    """The key of a view, made by a teacher, is to be found among those of earlier batches in a queue.

    The queue is empty at first, so the loss starts at zero and rises as it fills. The measure is among the batch.
    """

    kept = ("features", "taught", "key", CASE)
    coupled = False
    queue: Tensor
    queued_cases: Tensor  # of the keys
    taken: Tensor  # how many keys the queue took in all

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        self.teacher, self.teacher_project = teacher_of(network), teacher_of(self.project)
        self.register_buffer("queue", torch.zeros(QUEUE, EMBEDDED))
        self.register_buffer("queued_cases", torch.zeros(QUEUE, dtype=torch.int64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def compute(self, patches: Patches) -> Rows:
        first, second = two_views(patches, self.setting)
        return self.pair(self.features(first), self.taught(second))

    @torch.no_grad()
    def taught(self, images: Tensor) -> list[Tensor]:
        """Return the features of the teacher's encoder."""
        return self.architecture.features(self.teacher, images)

    def pair(self, features: list[Tensor], taught: list[Tensor]) -> Rows:
        """Return the embeddings of one view's features, and of the other's, which are the teacher's."""
        ours, theirs = everywhere(features), everywhere(taught)
        with torch.no_grad():
            key = F.normalize(self.teacher_project(theirs))
        query = F.normalize(self.project(ours))
        return {"query": query, "key": key, "features": ours.detach(), "taught": theirs.detach()}

    def loss(self, rows: Rows) -> Outcome:
        query, key, case, taken = rows["query"], rows["key"], rows[CASE], int(self.taken)
        same = case[:, None] == self.queued_cases[:taken]
        loss = info_nce(query, key, self.queue[:taken], MOCO_TEMPERATURE, same)
        return loss, {"retrieval": nearest(query.detach(), key, case), "spread": spread(query.detach())}

    def teachers(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.teacher, self.network), (self.teacher_project, self.project)]

    def update(self, rows: Rows) -> None:
        super().update(rows)
        self.teacher_project.observe(rows["taught"])
        for teacher, student in self.teachers():
            follow(teacher, student, MOCO_MOMENTUM)
        keys = rows["key"][-QUEUE:].to(self.queue.dtype)
        places = (int(self.taken) + torch.arange(len(keys), device=keys.device)) % QUEUE
        self.queue[places], self.queued_cases[places] = keys, rows[CASE][-QUEUE:]
        self.taken += len(keys)


class BYOL(Contrast):
    """Predict the teacher's embedding of the other view; there are no negatives."""

    kept = ("features", "taught")
    step: Tensor

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        self.predict = head(EMBEDDED, HIDDEN, EMBEDDED)
        self.teacher, self.teacher_project = teacher_of(network), teacher_of(self.project)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def compute(self, patches: Patches) -> Rows:
        views = torch.cat(two_views(patches, self.setting))
        features = everywhere(self.features(views))
        with torch.no_grad():
            taught = everywhere(self.architecture.features(self.teacher, views))
            target_one, target_other = F.normalize(self.teacher_project(taught)).chunk(2)
        one, other = F.normalize(self.predict(self.project(features))).chunk(2)
        return {
            **{"one": one, "other": other, "target one": target_one, "target other": target_other},
            **{"features": by_sample(features, 2), "taught": by_sample(taught, 2)},
        }

    def loss(self, rows: Rows) -> Outcome:
        agreement = (rows["one"] * rows["target other"] + rows["other"] * rows["target one"]).float().sum(1)
        found = nearest(rows["one"], rows["target other"], rows[CASE])
        return (4 - 2 * agreement).mean(), {self.measure: found, "spread": spread(rows["one"].detach())}

    def teachers(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.teacher, self.network), (self.teacher_project, self.project)]

    def update(self, rows: Rows) -> None:
        super().update(rows)
        self.teacher_project.observe(rows["taught"])
        momentum = rising(BYOL_MOMENTUM, int(self.step), self.setting.steps)
        for teacher, student in self.teachers():
            follow(teacher, student, momentum)
        self.step += 1


def head(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    """Build a projection of one hidden layer."""
    return nn.Sequential(nn.Linear(c_in, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, c_out))


def by_sample(features: Tensor, views: int) -> Tensor:
    """Return the features of views by sample, without gradient: (views * B, F) -> (B, views, F)."""
    return torch.stack(features.detach().chunk(views), 1)


def everywhere(features: list[Tensor]) -> Tensor:
    """Return all stages' features, averaged over space and concatenated: (B, sum of their channels), as in nnssl."""
    return torch.cat([pooled(each) for each in features], 1)


def chance_among(setting: Setting, views: int = 1) -> float:
    """Return how often the positive is found by chance: the mean over samples of a share of the candidates.

    Args:
        setting: Says how many images are held out: batches take their patches from them in turn.
        views: Candidates per sample of another image.
    """
    samples = setting.batch_size
    images = min(setting.held_out or samples, samples)
    patches = [len(range(image, samples, images)) for image in range(images)]
    return sum(count / (views * (samples - count) + 1) for count in patches) / samples


def nt_xent(one: Tensor, other: Tensor, temperature: float, case: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the normalised temperature-scaled cross entropy, and how often the positive is the nearest.

    Chen et al. 2020 (arXiv:2002.05709), eq. 1, the mean over all 2 B views.

    Args:
        one: (B, E), normalised.
        other: The same of the other views.
        temperature: Divides the cosines.
        case: (B,), of which the same are no negatives of each other; None: all differ.
    """
    both = torch.cat([one, other])
    rows = torch.arange(len(both), device=both.device)
    positive, case = rows.roll(len(one)), (rows[: len(one)] if case is None else case).repeat(2)
    similar = without(similarities(both, both), case[:, None] == case, positive) / temperature
    return F.cross_entropy(similar, positive), hits(similar.detach(), positive)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Return the cross entropy of finding each query's key among the keys of a queue.

    He et al. 2020 (arXiv:1911.05722), eq. 1.

    Args:
        query: (B, E), normalised.
        key: (B, E), normalised, without gradient.
        queue: (K, E), normalised.
        temperature: Divides the cosines.
        same: (B, K), bool: which keys are of the query's image, and thus no negatives; None: none.
    """
    positive, negatives = (query * key).float().sum(1, keepdim=True), similarities(query, queue)
    if same is not None:
        negatives = negatives.masked_fill(same, -torch.inf)
    similar = torch.cat([positive, negatives], 1) / temperature
    return F.cross_entropy(similar, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def nearest(one: Tensor, other: Tensor, case: Tensor) -> Tensor:
    """Return how often a patch's other view is nearer than those of other images; (B, E) normalised twice, and (B,)."""
    own = torch.arange(len(one), device=one.device)
    return hits(without(similarities(one, other), case[:, None] == case, own), own)


def without(similar: Tensor, same: Tensor, own: Tensor) -> Tensor:
    """Return similarities (N, M) with -inf where `same` (N, M), bool, but not in column `own` (N,) of each row."""
    return similar.masked_fill(same.scatter(1, own[:, None], False), -torch.inf)


def hits(similar: Tensor, own: Tensor) -> Tensor:
    """Return how often column `own` (N,) of `similar` (N, M) is above all others; in a collapse all are equal."""
    own = own[:, None]
    return (similar.gather(1, own)[:, 0] > similar.scatter(1, own, -torch.inf).amax(1)).float().mean()


def similarities(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosines of normalised embeddings, (..., N, E) and (..., M, E) -> (..., N, M), in single precision."""
    with full_precision(one):
        return one.float() @ other.float().transpose(-1, -2)
