"""Moving averages: teachers, whose weights are those of the trained modules, and statistics of features."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Student = TypeVar("Student", bound=nn.Module)
MEMORY = 0.9  # what statistics keep in a step
EPSILON = 1e-5


class Projection(nn.Module):
    """Layers for features that are standardised by their mean and deviation over the images of earlier steps.

    Averaged over space, features of a new network are nearly the same for all images, and so are embeddings made of
    them: contrast does not begin, or ends in a collapse. Batch normalisation, which the published heads have, takes
    away what is common, but a sample's result then depends on the others of its batch. Here it does not.

    Args:
        width: Number of features.
        layers: What follows.
    """

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Return what the layers make of features, (B, width)."""
        return self.layers((features - self.mean) * torch.rsqrt(self.variance + EPSILON))

    def observe(self, features: Tensor) -> None:
        """Update the statistics, after a step, with the features of all its samples, (..., width)."""
        features = features.flatten(0, -2).to(self.mean)
        memory = MEMORY if self.steps else 0.0
        self.mean.lerp_(features.mean(0), 1 - memory)
        self.variance.lerp_(features.var(0, unbiased=False), 1 - memory)
        self.steps += 1


def teacher_of(student: Student) -> Student:
    """Return a copy that no gradient changes."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's weights towards the student's: momentum * teacher + (1 - momentum) * student."""
    for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
        theirs.lerp_(ours.detach(), 1 - momentum)


def rising(start: float, step: int, steps: int) -> float:
    """Return a momentum that rises from `start` to 1 along a cosine (Grill et al. 2020, arXiv:2006.07733)."""
    return 1 - (1 - start) * (math.cos(math.pi * min(step / steps, 1)) + 1) / 2


def spread(embeddings: Tensor) -> Tensor:
    """Return how far normalised embeddings (B, E) spread: 1 where they are even in all directions, 0 if all are equal.

    The mean standard deviation over dimensions times sqrt(E) (Chen and He 2021, arXiv:2011.10566).
    """
    return embeddings.float().std(0, unbiased=False).mean() * math.sqrt(embeddings.shape[1])
