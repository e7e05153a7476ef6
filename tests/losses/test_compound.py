"""What all losses share: several resolutions, several processes, and memory."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stunet.losses import DeepSupervision, DiceCE, MaskedSigmoid, PartitionDiceCE
from stunet.trainers.data.batches import positions_of
from tests.loops import for_each
from tests.losses.test_pieces import KINDS, in_pieces
from tests.losses_reference import IGNORED, a_batch, value_and_gradient
from tests.processes import on_two_ranks

COMPLETE = torch.arange(6).expand(2, -1)
REGIONS = (torch.ones(2, 6, dtype=torch.bool), torch.eye(6, dtype=torch.bool).expand(2, -1, -1))


def test_resolutions_are_weighted_as_nnunet_does() -> None:
    logits, target = zip(*(a_batch(seed=seed) for seed in range(3)), strict=True)
    logits = [x.requires_grad_() for x in logits]
    weights = [0.75, 0.25, 0.0]
    ours = DeepSupervision(DiceCE(True), weights)(logits, target)
    ours.backward()
    torch.testing.assert_close(ours, DeepSupervisionWrapper(DiceCE(True), weights)(logits, target))
    assert [x.grad is None for x in logits] == [False, False, True]


def test_what_is_annotated_goes_to_every_resolution() -> None:
    logits, target = zip(*(a_batch(seed=seed) for seed in range(2)), strict=True)
    partition = DeepSupervision(PartitionDiceCE(6, True), [0.5, 0.5])(logits, target, COMPLETE)
    torch.testing.assert_close(partition, DeepSupervision(DiceCE(True), [0.5, 0.5])(logits, target))
    assert DeepSupervision(MaskedSigmoid(True), [0.5, 0.5])(logits, target, *REGIONS).isfinite()


def test_a_missing_resolution_is_an_error() -> None:
    logits, target = a_batch()
    with pytest.raises(ValueError, match="shorter"):
        DeepSupervision(DiceCE(True), [0.5, 0.5])([logits], [target])


class Memory(TorchDispatchMode):
    """Keeps the memory that operations allocate, large pieces only, so that no address is used twice."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.large: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.nbytes() > 4 * self.elements:
                self.large[storage._cdata] = storage
        return result


@for_each(
    ("loss", "more"),
    [(DiceCE(True, chunk=16), ()), (PartitionDiceCE(6, True, chunk=16), (COMPLETE.clamp_max(2),)),
     (MaskedSigmoid(True, chunk=16), REGIONS)],
)  # fmt: skip
def test_nothing_as_large_as_the_logits_is_made_but_their_gradient(loss: nn.Module, more: tuple) -> None:
    logits, target = a_batch()
    target = target.clamp_max(2 if isinstance(loss, PartitionDiceCE) else 5)
    with Memory(2 * target.numel()) as memory:  # two numbers per voxel are kept
        loss(logits.requires_grad_(), target, *more).backward()
    assert logits.grad is not None
    allowed = {x.untyped_storage().data_ptr() for x in (logits, logits.grad)}
    assert {storage.data_ptr() for storage in memory.large.values()} == allowed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@for_each(
    ("loss", "more"),
    [(DiceCE(True), ()), (PartitionDiceCE(6, True), (COMPLETE,)), (MaskedSigmoid(True), REGIONS)],
)
def test_a_gpu_computes_what_the_cpu_computes(loss: nn.Module, more: tuple) -> None:
    logits, target = a_batch(dtype=torch.float16)
    expected = value_and_gradient(loss, logits, target, *more)
    with torch.autocast("cuda"):
        found = value_and_gradient(loss, logits.cuda(), target.cuda(), *more)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


def check_shares(rank: int) -> None:
    """Compare what a process computes from its share of a batch with what one process computes from all of it."""

    def mine(*inputs: torch.Tensor) -> list[torch.Tensor]:
        positions = positions_of(len(inputs[0]), rank, 2)
        return [x[positions.start : positions.stop] for x in inputs]

    for make, criterion in KINDS.values():
        for ignored, batch_dice, samples in product((False, True), (False, True), (2, 3)):  # one and one; two and one
            batch, options = [x[:samples] for x in make(ignored)], (batch_dice, IGNORED if ignored else None)
            whole, of_whole = value_and_gradient(criterion(*options), *batch)
            share = mine(*batch)
            sizes, weight = [1] * len(share[0]), 2 * len(share[0]) / samples
            loss = criterion(*options, ddp=True)
            for way in (loss, partial(_in_pieces, loss, sizes, batch_dice)):  # also in micro-batches
                value, gradient = value_and_gradient(lambda *x, way=way, weight=weight: weight * way(*x), *share)
                distributed.all_reduce(value)
                torch.testing.assert_close(value / 2, whole)
                torch.testing.assert_close(gradient / 2, *mine(of_whole))

    logits, target = a_batch()
    stock = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": True}
    stock = DC_and_CE_loss(stock, {}, dice_class=MemoryEfficientSoftDiceLoss)
    for ours, theirs in zip(
        value_and_gradient(DiceCE(True, ddp=True), *mine(logits, target)),
        value_and_gradient(stock, *mine(logits, target)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def _in_pieces(loss: Any, sizes: list[int], batch_dice: bool, *x: torch.Tensor) -> torch.Tensor:
    return in_pieces(loss, x, sizes, batch_dice)


@pytest.mark.process
def test_two_processes_have_the_loss_and_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    on_two_ranks(check_shares, tmp_path / "store")
