"""Losses written plainly, with everything one-hot, and batches to compare with: what the tests of losses share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPE = (5, 6, 7)
IGNORED = 9
SMOOTH = 1e-5


def a_batch(classes: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of two samples, and a target of the loader's type in which classes 2 and 5 do not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, classes, *SHAPE), generator=generator, dtype=torch.float64)
    present = torch.tensor([c for c in range(classes) if c not in (2, 5)])
    target = present[torch.randint(len(present), (2, 1, *SHAPE), generator=generator)].to(torch.int16)
    return logits.to(dtype), target


def ignoring(target: Tensor) -> Tensor:
    """The target with planes that are ignored."""
    target = target.clone()
    target[:, :, 1:3] = IGNORED
    return target


def value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *more)
    value.backward()
    assert logits.grad is not None
    assert value.dtype == torch.promote_types(logits.dtype, torch.float32)
    return value.detach(), logits.grad


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], tolerance: float = 1e-6) -> None:
    """Value and gradient, relative to theirs."""
    assert abs(ours[0] - theirs[0]) <= tolerance * max(1, abs(theirs[0]))
    assert (ours[1].double() - theirs[1]).norm() <= tolerance * theirs[1].double().norm()


def dice(p: Tensor, y: Tensor, annotated: Tensor, batch_dice: bool) -> Tensor:
    """Mean soft Dice over what is annotated, of (B, V, N) and (B, V)."""
    right, found, true = ((x * annotated[..., None]).sum(2) for x in (p * y, p, y))
    if batch_dice:
        right, found, true, annotated = right.sum(0), found.sum(0), true.sum(0), annotated.any(0)
    each = (2 * right + SMOOTH) / (found + true + SMOOTH)
    return each[annotated].mean() if annotated.any() else each.sum() * 0


def partition_dice_ce(
    logits: Tensor, target: Tensor, groups: Tensor, values: int, batch_dice: bool, ignore_label: int | None = None
) -> Tensor:
    """Merged probabilities, then their Dice and cross entropy."""
    target = target.flatten(1).long()
    kept = torch.ones_like(target) if ignore_label is None else (target != ignore_label).long()
    member = F.one_hot(groups, values).to(logits)  # (B, C, V)
    q = torch.einsum("bcn,bcv->bvn", logits.softmax(1).flatten(2), member)
    y = F.one_hot(target * kept, values).to(q).transpose(1, 2)
    entropy = -((q * y).sum(1).log() * kept).sum() / kept.sum()
    annotated = member.any(1)
    annotated[:, 0] = False
    return entropy - dice(q * kept[:, None], y * kept[:, None], annotated, batch_dice)


def masked_sigmoid(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor,
    inside: Tensor,
    batch_dice: bool,
    ignore_label: int | None = None,
) -> Tensor:
    """Dice and binary cross entropy over pairs of a sample and an output that it annotates."""
    target = target.flatten(1).long()
    kept = torch.ones_like(target) if ignore_label is None else (target != ignore_label).long()
    y = torch.stack([table[:, one] for table, one in zip(inside, target * kept, strict=True)]).to(logits)
    counted = kept[:, None] * annotated[..., None]
    entropy = F.binary_cross_entropy_with_logits(logits.flatten(2), y, reduction="none")
    p = logits.sigmoid().flatten(2)
    return (entropy * counted).sum() / counted.sum() - dice(p * counted, y * counted, annotated, batch_dice)
