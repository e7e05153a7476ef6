"""The softmax losses against nnU-Net's, and against plain references in double precision."""

from collections.abc import Callable

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from stunet.losses import DiceCE, PartitionDiceCE

SHAPE = (5, 6, 7)
IGNORED = 9


def a_batch(classes: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of two samples, and a target of the loader's type in which classes 2 and 5 do not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, classes, *SHAPE), generator=generator, dtype=torch.float64)
    present = torch.tensor([c for c in range(classes) if c not in (2, 5)])
    target = present[torch.randint(len(present), (2, 1, *SHAPE), generator=generator)].to(torch.int16)
    return logits.to(dtype).requires_grad_(), target


def ignoring(target: Tensor) -> Tensor:
    target = target.clone()
    target[:, :, 1:3] = IGNORED
    return target


def nnunets(batch_dice: bool, ignore_label: int | None = None) -> nn.Module:
    """As nnUNetTrainer._build_loss has it."""
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(options, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *more)
    value.backward()
    assert logits.grad is not None
    assert value.dtype == torch.promote_types(logits.dtype, torch.float32)
    return value.detach(), logits.grad


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], tolerance: float = 1e-6) -> None:
    assert abs(ours[0] - theirs[0]) <= tolerance * max(1, abs(theirs[0]))
    assert (ours[1].double() - theirs[1]).norm() <= tolerance * theirs[1].double().norm()


def by_the_book(
    logits: Tensor, target: Tensor, groups: Tensor, values: int, batch_dice: bool, ignore_label: int | None
) -> Tensor:
    """The loss of a partition, written with everything one-hot: merged probabilities, then Dice and cross entropy."""
    p = logits.softmax(1).flatten(2)
    target = target.flatten(1).long()
    kept = (target != (-1 if ignore_label is None else ignore_label)).to(p)[:, None]
    member = nn.functional.one_hot(groups, values).to(p)  # (B, C, V)
    annotated = member.any(1)
    q = torch.einsum("bcn,bcv->bvn", p, member)
    y = nn.functional.one_hot(torch.where(kept[:, 0] > 0, target, 0), values).to(p).transpose(1, 2) * kept
    entropy = -((q * y).sum(1) + (1 - kept[:, 0])).log().sum() / kept.sum().clamp_min(1)
    right, found, true = ((x * kept * annotated[..., None]).sum(2)[:, 1:] for x in (q * y, q, y))
    annotated = annotated[:, 1:]
    if batch_dice:
        right, found, true, annotated = right.sum(0), found.sum(0), true.sum(0), annotated.any(0)
    dice = ((2 * right + 1e-5) / (found + true + 1e-5))[annotated]
    return entropy - (dice.mean() if annotated.any() else 0)


@pytest.mark.parametrize("ignore_label", [None, IGNORED])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("chunk", [None, 50])
def test_value_and_gradient_are_nnunets(batch_dice: bool, ignore_label: int | None, chunk: int | None) -> None:
    logits, target = a_batch()
    target = target if ignore_label is None else ignoring(target)
    ours = value_and_gradient(DiceCE(batch_dice, ignore_label, chunk=chunk), logits, target)
    assert_same(ours, value_and_gradient(nnunets(batch_dice, ignore_label), logits, target))


def test_a_batch_that_is_ignored_altogether_has_no_gradient() -> None:
    logits, target = a_batch()
    target[:] = IGNORED
    value, gradient = value_and_gradient(DiceCE(True, IGNORED), logits, target)
    assert value == nnunets(True, IGNORED)(logits, target)
    assert not gradient.any()


@pytest.mark.parametrize("ignore_label", [None, IGNORED])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_partition_is_the_loss_of_merged_probabilities(batch_dice: bool, ignore_label: int | None) -> None:
    logits, target = a_batch(dtype=torch.float64)
    groups = torch.tensor([[0, 1, 0, 6, 6, 0], [0, 7, 2, 3, 7, 0]])  # 6: classes 3 and 4; 7: classes 1 and 4
    target = torch.stack([group[one.long()] for group, one in zip(groups, target, strict=True)])
    target = target if ignore_label is None else ignoring(target)
    ours = value_and_gradient(PartitionDiceCE(8, batch_dice, ignore_label, chunk=64), logits, target, groups)
    slow = value_and_gradient(lambda *x: by_the_book(*x, 8, batch_dice, ignore_label), logits, target, groups)
    assert_same(ours, slow, 1e-12)
