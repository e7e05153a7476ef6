"""Self-distillation: a student that sees any part of a patch answers as a teacher that sees most of it (DINO).

Caron et al. 2021 (arXiv:2104.14294), with the encoder of a convolutional network. Centring keeps one answer from
winning, which the entropy of the mean answer shows: 1 is even, 0 a single one. Sharpening keeps the answers from
becoming even, which their sharpness shows: 1 is certain, 0 even.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts.augment import size_of_view, view
from stunet.trainers.pretexts.base import CASE, Outcome, Patches, Pretext, Rows, Setting, check_size
from stunet.trainers.pretexts.contrastive import by_sample, chance_among, everywhere, nearest, similarities
from stunet.trainers.pretexts.momentum import Projection, follow, rising, spread, teacher_of

PROTOTYPES = 1024  # answers; 65,536 for a million photographs
HIDDEN, BOTTLENECK = 1024, 256
GLOBAL, LOCAL, LOCALS = 0.8, 0.5, 4  # sides of crops as shares of the patch's, number of local ones
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
MOMENTUM, CENTER_MOMENTUM = 0.996, 0.9


class Distillation(Pretext):
    """Answer as the teacher does for another crop of the same patch; the teacher sees global crops only.

    The measure is how often the nearest of the batch's teacher embeddings is that of the same patch.
    """

    measure = "retrieval"
    above_chance = True
    coupled = True  # the measure
    kept = ("teacher", "features", "taught")
    center: Tensor
    step: Tensor
    teacher_prototypes: nn.Linear

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        super().__init__(network, setting)
        if setting.batch_size < 2:
            raise UsageError("a batch of 1: the centre of the answers is that of a batch", "--set batch_size=8")
        for fraction, what in ((GLOBAL, "a global crop"), (LOCAL, "a local crop")):
            check_size(self, size_of_view(setting.patch, setting, fraction), what)
        width = sum(self.widths)
        self.project = Projection(
            width,
            *(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()),
            nn.Linear(HIDDEN, BOTTLENECK),
        )
        self.prototypes = nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        self.teacher = teacher_of(network)
        self.teacher_project = teacher_of(self.project)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.register_buffer("center", torch.zeros(PROTOTYPES))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def chance(self) -> float:
        return chance_among(self.setting)

    @property
    def chance_loss(self) -> float:
        return math.log(PROTOTYPES)

    def compute(self, patches: Patches) -> Rows:
        wide = [view(patches, self.setting, GLOBAL) for _ in range(2)]
        narrow = [view(patches, self.setting, LOCAL) for _ in range(LOCALS)]
        # Crops of one size go through the encoder together.
        (seen, features), (more, others) = (
            self._bottlenecks(self.network, self.project, crops) for crops in (wide, narrow)
        )
        with torch.no_grad():
            taught, theirs = self._bottlenecks(self.teacher, self.teacher_project, wide)
            answers = torch.stack([answer(self.teacher_prototypes, each) for each in taught], 1)
        students = torch.stack([answer(self.prototypes, each) for each in (*seen, *more)], 1)
        return {
            **{"students": students, "teacher": answers, "one": seen[0], "other": taught[1]},
            **{"features": torch.cat([features, others], 1), "taught": theirs},
        }

    def loss(self, rows: Rows) -> Outcome:
        students = (rows["students"].float() / STUDENT_TEMPERATURE).log_softmax(-1)
        teachers = ((rows["teacher"].float() - self.center) / TEACHER_TEMPERATURE).softmax(-1)
        # Each global crop's answer is that of all other crops.
        pairs = [
            -(teachers[:, one] * students[:, other]).sum(-1)
            for one in range(teachers.shape[1])
            for other in range(students.shape[1])
            if one != other
        ]
        teachers = teachers.flatten(0, 1)
        return torch.stack(pairs).mean(), {
            self.measure: nearest(rows["one"].detach(), rows["other"], rows[CASE]),
            "spread": spread(rows["one"].detach()),
            "entropy": evenness(teachers.mean(0)),
            "sharpness": 1 - evenness(teachers).mean(),
        }

    def teachers(self) -> list[tuple[nn.Module, nn.Module]]:
        return [
            (self.teacher, self.network),
            (self.teacher_project, self.project),
            (self.teacher_prototypes, self.prototypes),
        ]

    def update(self, rows: Rows) -> None:
        self.project.observe(rows["features"])
        self.teacher_project.observe(rows["taught"])
        momentum = rising(MOMENTUM, int(self.step), self.setting.steps)
        for teacher, student in self.teachers():
            follow(teacher, student, momentum)
        self.center.lerp_(rows["teacher"].float().flatten(0, 1).mean(0), 1 - CENTER_MOMENTUM)
        self.step += 1

    def _bottlenecks(self, network: nn.Module, project: nn.Module, crops: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the normalised embeddings of crops of the same size, (B, BOTTLENECK) each, and their features."""
        features = everywhere(self.architecture.features(network, torch.cat(crops)))
        return list(F.normalize(project(features)).chunk(len(crops))), by_sample(features, len(crops))


def answer(prototypes: nn.Linear, embeddings: Tensor) -> Tensor:
    """Return the cosines of embeddings (B, E) with prototypes (K, E): (B, K)."""
    return similarities(embeddings, F.normalize(prototypes.weight))


def evenness(probabilities: Tensor) -> Tensor:
    """Return the entropy of answers (..., K) as a share of the largest possible one, (...)."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1) / math.log(probabilities.shape[-1])
