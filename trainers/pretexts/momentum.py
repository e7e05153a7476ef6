"""Teachers: modules whose weights are a moving average of the trained ones'."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Student = TypeVar("Student", bound=nn.Module)


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
