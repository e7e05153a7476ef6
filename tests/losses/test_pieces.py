"""A batch in pieces, shares of processes and micro-batches: losses and gradients add up to those of the whole batch."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from stunet.losses import DeepSupervision, DiceAndEntropy, DiceCE, MaskedSigmoid, PartitionDiceCE, RegionDiceCE
from tests.loops import for_each
from tests.losses.test_sigmoid import a_partial_batch
from tests.losses.test_softmax import GROUPS, VALUES, labelled
from tests.losses_reference import IGNORED, a_batch, value_and_gradient

Batch = tuple[Tensor, ...]
SPLITS = ([2, 1], [1, 1, 1], [1, 2])


def three(*inputs: Tensor) -> Batch:
    """Three samples of two, the last one with other logits."""
    logits, *more = inputs
    return torch.cat([logits, 1 - logits[:1]]), *(torch.cat([x, x[:1]]) for x in more)


def unevenly_ignored(target: Tensor) -> Tensor:
    """Another number of voxels of each sample, and of one of them all."""
    target = target.clone()
    target[0, :, 1:3], target[1] = IGNORED, IGNORED
    return target


def as_regions(target: Tensor, ignored: bool) -> Tensor:
    """(B, R, ...) bool of three regions that overlap, and with `ignored` a channel that says what is ignored."""
    regions = [target > 0, target > 1, target == 4]
    return torch.cat([(x & (target != IGNORED)) for x in regions] + [target == IGNORED] * ignored, dim=1)


def complete(ignored: bool) -> Batch:
    logits, target = three(*a_batch(dtype=torch.float64))
    return logits, unevenly_ignored(target) if ignored else target


def partitions(ignored: bool) -> Batch:
    logits, target = a_batch(dtype=torch.float64)
    logits, target, groups = three(logits, labelled(target), GROUPS)
    groups[2], target[2] = torch.zeros(6, dtype=torch.long), 0  # annotates nothing
    return logits, unevenly_ignored(target) if ignored else target, groups


def sigmoids(ignored: bool) -> Batch:
    logits, target, *more = three(*a_partial_batch())
    return logits, unevenly_ignored(target) if ignored else target, *more


def regions(ignored: bool) -> Batch:
    logits, target = complete(ignored)
    return logits[:, :3], as_regions(target, ignored)


KINDS: dict[str, tuple[Callable[[bool], Batch], Callable[..., DiceAndEntropy]]] = {
    "softmax": (complete, DiceCE),
    "partitions": (partitions, lambda *options, **more: PartitionDiceCE(VALUES, *options, **more)),
    "sigmoids": (sigmoids, MaskedSigmoid),
    "regions": (regions, RegionDiceCE),
}
each_kind = for_each("kind", KINDS)
each_option = for_each("ignored", [False, True])
both_dice = for_each("batch_dice", [True, False])


def cut(batch: Sequence[Any], sizes: list[int]) -> list[list[Any]]:
    """The pieces of a batch; of lists, which are resolutions, by resolution."""
    pieces = zip(
        *([list(level) for level in zip(*(x.split(sizes) for x in y), strict=True)] if isinstance(y, list)
          else y.split(sizes) for y in batch),
        strict=True,
    )  # fmt: skip
    return [list(piece) for piece in pieces]


def in_pieces(loss: Any, batch: Sequence[Any], sizes: list[int], batch_dice: bool) -> Tensor:
    """The loss as a trainer computes it: first what the pieces have together, then each with its gradient."""
    pieces = cut(batch, sizes)
    totals = reduce(add, [loss.totals(piece[0] if batch_dice else None, *piece[1:]) for piece in pieces])
    totals = totals.all_reduce()
    weights = [size / sum(sizes) for size in sizes]
    return torch.stack([w * loss(*piece, totals=totals) for w, piece in zip(weights, pieces, strict=True)]).sum()


@each_kind
@each_option
@both_dice
def test_pieces_of_any_size_add_up_to_the_batch(kind: str, ignored: bool, batch_dice: bool) -> None:
    make, criterion = KINDS[kind]
    batch, loss = make(ignored), criterion(batch_dice, IGNORED if ignored else None)
    expected = value_and_gradient(loss, *batch)
    for sizes in SPLITS:
        found = value_and_gradient(lambda *x, sizes=sizes: in_pieces(loss, x, sizes, batch_dice), *batch)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@each_kind
def test_pieces_add_up_at_every_resolution(kind: str) -> None:
    make, criterion = KINDS[kind]
    (logits, target, *more), options = make(True), (True, IGNORED)
    loss = DeepSupervision(criterion(*options), [0.6, 0.4, 0])
    levels = [x.clone().requires_grad_() for x in (logits, logits[..., ::2], logits)]
    targets = [target, target[..., ::2], target]
    loss(levels, targets, *more).backward()
    expected = [x.grad.clone() for x in levels[:2]]  # type: ignore[union-attr]
    for x in levels:
        x.grad = None
    value = in_pieces(loss, (levels, targets, *more), [2, 1], True)
    value.backward()
    torch.testing.assert_close(value, loss(levels, targets, *more), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close([x.grad for x in levels[:2]], expected, rtol=1e-12, atol=1e-14)
    assert levels[2].grad is None


@each_kind
@both_dice
def test_a_batch_that_is_ignored_altogether_has_a_loss_in_pieces_too(kind: str, batch_dice: bool) -> None:
    make, criterion = KINDS[kind]
    logits, target, *more = make(True)
    target[:] = True if target.dtype == torch.bool else IGNORED
    loss = criterion(batch_dice, IGNORED)
    expected = value_and_gradient(loss, logits, target, *more)
    found = value_and_gradient(lambda *x: in_pieces(loss, x, [2, 1], batch_dice), logits, target, *more)
    torch.testing.assert_close(found, expected)


@each_option
@both_dice
@for_each("dtype", [torch.float32, torch.bfloat16])
def test_regions_have_nnunets_value_and_gradient_to_the_last_bit(
    ignored: bool, batch_dice: bool, dtype: torch.dtype
) -> None:
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": True, "ddp": False}
    stock = DC_and_BCE_loss({}, options, use_ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)
    logits, target = regions(ignored)
    for target_type in (torch.bool, torch.float32):
        inputs = logits.to(dtype), target.to(target_type)
        found = value_and_gradient(RegionDiceCE(batch_dice, IGNORED if ignored else None), *inputs)
        for ours, theirs in zip(found, value_and_gradient(stock, *inputs), strict=True):
            assert torch.equal(ours, theirs)
