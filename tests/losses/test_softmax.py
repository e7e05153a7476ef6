"""The softmax losses against nnU-Net's, and against plain references in double precision."""

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from stunet.errors import DataError
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.losses import DiceCE, PartitionDiceCE
from tests.loops import for_each
from tests.losses_reference import (
    IGNORED,
    a_batch,
    assert_same,
    ignoring,
    partition_dice_ce,
    value_and_gradient,
)

# Outputs 0 to 5; values 6 and 7 are unions. Each sample leaves other classes unannotated.
GROUPS = torch.tensor([[0, 1, 0, 6, 6, 0], [0, 7, 2, 3, 7, 0]])
VALUES = 8


def nnunets(batch_dice: bool, ignore_label: int | None = None, **weights: float) -> nn.Module:
    """As nnUNetTrainer._build_loss has it."""
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(options, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss, **weights)


def labelled(target: Tensor, groups: Tensor = GROUPS) -> Tensor:
    """A target of classes as label files of these groups have it."""
    return torch.stack([group[one.long()] for group, one in zip(groups, target, strict=True)])


both_dice = for_each("batch_dice", [True, False])
with_and_without_ignored = for_each("ignore_label", [None, IGNORED])


@both_dice
@with_and_without_ignored
@for_each("chunk", [None, 50])
def test_value_and_gradient_are_nnunets(batch_dice: bool, ignore_label: int | None, chunk: int | None) -> None:
    logits, target = a_batch()
    target = target if ignore_label is None else ignoring(target)
    ours = value_and_gradient(DiceCE(batch_dice, ignore_label, chunk=chunk), logits, target)
    assert_same(ours, value_and_gradient(nnunets(batch_dice, ignore_label), logits, target))


def test_a_batch_without_foreground_gives_what_nnunet_gives() -> None:
    logits, target = a_batch()
    for loss, stock in ((DiceCE(dice), nnunets(dice)) for dice in (True, False)):
        assert_same(value_and_gradient(loss, logits, 0 * target), value_and_gradient(stock, logits, 0 * target))


def test_a_batch_that_is_ignored_altogether_has_no_gradient() -> None:
    logits, target = a_batch()
    target[:] = IGNORED
    value, gradient = value_and_gradient(DiceCE(True, IGNORED), logits, target)
    assert value == nnunets(True, IGNORED)(logits, target)
    assert not gradient.any()


def test_two_dimensions_weights_and_strange_strides_are_nnunets() -> None:
    logits, target = (x[:, :, 0] for x in a_batch())
    loss, stock = DiceCE(True, dice_weight=0.3, ce_weight=2.0), nnunets(True, weight_dice=0.3, weight_ce=2.0)
    ours = value_and_gradient(loss, logits.transpose(2, 3), target.transpose(2, 3))
    assert_same(ours, value_and_gradient(stock, logits.transpose(2, 3), target.transpose(2, 3)))


def test_logits_that_no_exponential_can_hold_give_what_nnunet_gives() -> None:
    logits, target = a_batch()
    ours = value_and_gradient(DiceCE(True), 100 * logits, target)
    assert_same(ours, value_and_gradient(nnunets(True), 100 * logits, target))


@both_dice
@with_and_without_ignored
def test_gradients_are_those_of_the_value(batch_dice: bool, ignore_label: int | None) -> None:
    logits, target = (x[..., :1, :1, :3] for x in a_batch(dtype=torch.float64))
    if ignore_label is not None:
        target[0, ..., 1] = ignore_label
    logits = logits.clone().requires_grad_()
    plain = DiceCE(batch_dice, ignore_label, chunk=2)
    assert torch.autograd.gradcheck(lambda x: plain(x, target), logits)
    target = torch.where(target == IGNORED, IGNORED, labelled(target.clamp_max(5)))
    partition = PartitionDiceCE(VALUES, batch_dice, ignore_label, chunk=2)
    assert torch.autograd.gradcheck(lambda x: partition(x, target, GROUPS), logits)


@both_dice
@with_and_without_ignored
def test_a_partition_is_the_loss_of_merged_probabilities(batch_dice: bool, ignore_label: int | None) -> None:
    logits, target = a_batch(dtype=torch.float64)
    target = labelled(target) if ignore_label is None else ignoring(labelled(target))
    loss = PartitionDiceCE(VALUES, batch_dice, ignore_label, chunk=64)
    slow = value_and_gradient(lambda x: partition_dice_ce(x, target, GROUPS, VALUES, batch_dice, ignore_label), logits)
    assert_same(value_and_gradient(loss, logits, target, GROUPS), slow, 1e-12)


@for_each("seed", range(5))
def test_any_partition_is_the_loss_of_merged_probabilities(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, target = a_batch(9, torch.float64, seed)
    groups = torch.randint(12, (2, 9), generator=generator)
    groups[:, 0] = 0
    target = labelled(target, groups)
    slow = value_and_gradient(lambda x: partition_dice_ce(x, target, groups, 12, True), logits)
    assert_same(value_and_gradient(PartitionDiceCE(12, True), logits, target, groups), slow, 1e-12)


@both_dice
def test_complete_labels_are_the_ordinary_loss(batch_dice: bool) -> None:
    logits, target = a_batch()
    complete = torch.arange(6).expand(2, -1)
    ours = value_and_gradient(PartitionDiceCE(VALUES, batch_dice), logits, target, complete)
    assert_same(ours, value_and_gradient(DiceCE(batch_dice), logits, target), 0)


def test_probabilities_are_merged_and_not_logits() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    loss = PartitionDiceCE(2, True, dice_weight=0)
    value = loss(logits, torch.zeros(1, 1, 1, 1, 1), torch.tensor([[0, 0, 1]]))
    assert torch.exp(-value).item() == pytest.approx(0.860, abs=5e-4)  # the sum of the logits makes it 0.924


def test_probabilities_too_small_for_a_float_keep_their_gradient() -> None:
    logits = torch.tensor([-200.0, -201.0, 0.0]).view(1, 3, 1, 1, 1)
    loss = PartitionDiceCE(2, True, dice_weight=0)
    value, gradient = value_and_gradient(loss, logits, torch.ones(1, 1, 1, 1, 1), torch.tensor([[1, 1, 0]]))
    assert value.item() == pytest.approx(200 - torch.tensor(-1.0).exp().log1p().item())
    torch.testing.assert_close(gradient.flatten(), torch.tensor([-0.731059, -0.268941, 1.0]))


def test_what_is_not_annotated_moves_only_within_the_background() -> None:
    logits, target = a_batch(dtype=torch.float64)
    groups = torch.tensor([[0, 1, 0, 3, 4, 0]]).expand(2, -1)
    _, gradient = value_and_gradient(PartitionDiceCE(5, True, dice_weight=0), logits, labelled(target, groups), groups)
    background = logits[:, [0, 2, 5]].softmax(1)
    torch.testing.assert_close(gradient[:, [0, 2, 5]], background * gradient[:, [0, 2, 5]].sum(1, keepdim=True))


# A case of the second source has a liver whose mask includes the tumour, and kidneys without sides.
ABDOMEN = Annotations(
    leaves=("kidney_left", "kidney_right", "liver", "tumour", "spleen"),
    sets={"kidney": ("kidney_left", "kidney_right"), "liver and tumour": ("liver", "tumour")},
    sources={"all": CaseSource(("kidney_left", "kidney_right", "liver", "tumour", "spleen")), "some": CaseSource(())},
    cases={
        "all_1": AnnotatedCase("all", ("kidney_left", "kidney_right", "liver", "tumour", "spleen")),
        "some_1": AnnotatedCase("some", ("kidney", "liver and tumour")),
    },
)


def test_coarse_labels_and_organs_with_their_tumours_are_sums_of_leaves() -> None:
    logits, _ = a_batch(dtype=torch.float64)
    target = torch.randint(6, logits[:, :1].shape, generator=torch.Generator().manual_seed(0))
    values = len(ABDOMEN.values)
    groups = torch.stack([torch.from_numpy(ABDOMEN.groups(case)) for case in ("all_1", "some_1")])
    assert groups[1].tolist() == [0, 6, 6, 7, 7, 0]
    target = labelled(target, groups)
    p = logits[1].softmax(0)
    q = torch.stack([p[0] + p[5], p[1] + p[2], p[3] + p[4]]).clamp_min(1e-300)
    of_sample = nn.functional.nll_loss(q.log().flatten(1).T, (target[1] - 5).clamp_min(0).flatten())
    alone = PartitionDiceCE(values, False, dice_weight=0)(logits[1:], target[1:], groups[1:])
    torch.testing.assert_close(alone, of_sample)
    together = PartitionDiceCE(values, True)(logits, target, groups)
    torch.testing.assert_close(together, partition_dice_ce(logits, target, groups, values, True))


def test_batch_dice_pools_over_the_samples_that_annotate() -> None:
    logits, target = a_batch(dtype=torch.float64)
    groups = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 0, 0]])
    dice = PartitionDiceCE(6, True, ce_weight=0)
    value = dice(logits, labelled(target, groups), groups)
    first = [
        dice(logits[:1], torch.where(target[:1] == c, c, 0), torch.tensor([[0, *(c * (i == c) for i in range(1, 6))]]))
        for c in range(2, 6)
    ]
    only_1 = torch.tensor([[0, 1, 0, 0, 0, 0]]).expand(2, -1)
    pooled = dice(logits, labelled(target, only_1), only_1)
    torch.testing.assert_close(value, torch.stack([pooled, *first]).mean())


def test_without_anything_annotated_the_loss_is_zero() -> None:
    logits, target = a_batch()
    for batch_dice in (True, False):
        loss = PartitionDiceCE(6, batch_dice)
        value, gradient = value_and_gradient(loss, logits, 0 * target, torch.zeros(2, 6, dtype=torch.long))
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max() < 1e-9


@for_each("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_nothing_more(dtype: torch.dtype) -> None:
    logits, target = a_batch(dtype=dtype)
    target = labelled(target)
    value, gradient = value_and_gradient(PartitionDiceCE(VALUES, True), 1000 * logits / 1000, target, GROUPS)
    exact = value_and_gradient(PartitionDiceCE(VALUES, True), (1000 * logits / 1000).double(), target, GROUPS)
    assert gradient.dtype == dtype
    assert_same((value, exact[1]), exact)
    assert_same((value, gradient), exact, torch.finfo(dtype).eps)


def test_autocast_changes_nothing() -> None:
    logits, target = a_batch()
    expected = value_and_gradient(DiceCE(True), logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(value_and_gradient(DiceCE(True), logits, target), expected, 0)


@for_each("value", [5, -1])
def test_a_value_that_is_no_class_is_an_error(value: int) -> None:
    logits, target = a_batch(5)
    target[1, 0, 0, 0, 0] = value
    with pytest.raises(DataError, match=f"sample 1 of the batch has voxels of the value {value}, but .* 0, 1, 2, 3, 4"):
        DiceCE(True)(logits, target)


@for_each("value", [2, 99])
def test_a_value_that_a_sample_does_not_annotate_is_an_error(value: int) -> None:
    logits, target = a_batch(5)
    target[1, 0, 0, 0, 0] = value
    with pytest.raises(DataError, match=f"sample 1 of the batch has voxels of the value {value}, but .* 0, 1, 3, 4"):
        PartitionDiceCE(VALUES, True)(logits, target, torch.tensor([[0, 1, 0, 3, 4]]).expand(2, -1))


def test_groups_of_another_head_are_an_error() -> None:
    logits, target = a_batch(5)
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        PartitionDiceCE(VALUES, True)(logits, target, GROUPS)
