"""The masked sigmoid loss against nnU-Net's for regions, and against a plain reference in double precision."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from stunet.errors import DataError
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.losses import MaskedSigmoid
from tests.loops import for_each
from tests.losses_reference import IGNORED, a_batch, assert_same, ignoring, masked_sigmoid, value_and_gradient

# Outputs overlap: the body is everything, `kidney` its two sides. Label files have the values 0 to 6.
LABELS = ("kidney_left", "kidney_right", "liver", "spleen")
ANNOTATIONS = Annotations(
    leaves=LABELS,
    sets={"kidney": ("kidney_left", "kidney_right"), "body": LABELS},
    sources={"all": CaseSource(LABELS), "some": CaseSource(("kidney", "liver")), "none": CaseSource(())},
    cases={
        "all_1": AnnotatedCase("all", LABELS),
        "some_1": AnnotatedCase("some", ("kidney", "liver")),
        "none_1": AnnotatedCase("none", ()),
    },
    head="sigmoid",
)
OUTPUTS = 6


def regions(*cases: str) -> tuple[Tensor, Tensor]:
    annotated, inside = zip(*map(ANNOTATIONS.regions, cases), strict=True)
    return torch.from_numpy(np.stack(annotated)), torch.from_numpy(np.stack(inside))


def a_partial_batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a case with all labels and one without the sides of the kidneys and without spleen."""
    logits, target = a_batch(OUTPUTS, dtype)  # values 0, 1, 3, 4
    target[1] = torch.tensor([0, 5, 5, 3, 0])[target[1].long()]
    return logits, target, *regions("all_1", "some_1")


both_dice = for_each("batch_dice", [True, False])
with_and_without_ignored = for_each("ignore_label", [None, IGNORED])


@both_dice
def test_complete_labels_give_nnunets_value_and_gradient(batch_dice: bool) -> None:
    logits, target = a_batch(OUTPUTS)
    target = target.clamp_max(4)
    annotated, inside = regions("all_1", "all_1")
    assert annotated.all()
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": True, "ddp": False}
    stock = DC_and_BCE_loss({}, options, dice_class=MemoryEfficientSoftDiceLoss)
    masks = inside[0][:, target[:, 0].long()].transpose(0, 1)
    ours = value_and_gradient(MaskedSigmoid(batch_dice), logits, target, annotated, inside)
    assert_same(ours, value_and_gradient(stock, logits, masks))


@both_dice
@with_and_without_ignored
def test_partial_labels_give_what_is_written_plainly(batch_dice: bool, ignore_label: int | None) -> None:
    logits, target, annotated, inside = a_partial_batch()
    target = target if ignore_label is None else ignoring(target)
    loss = MaskedSigmoid(batch_dice, ignore_label, chunk=64)
    ours = value_and_gradient(loss, logits, target, annotated, inside)
    slow = value_and_gradient(lambda x: masked_sigmoid(x, target, annotated, inside, batch_dice, ignore_label), logits)
    assert_same(ours, slow, 1e-12)


@both_dice
@with_and_without_ignored
def test_gradients_are_those_of_the_value(batch_dice: bool, ignore_label: int | None) -> None:
    logits, target, annotated, inside = a_partial_batch()
    logits, target = logits[..., :1, :1, :3].clone().requires_grad_(), target[..., :1, :1, :3].clone()
    if ignore_label is not None:
        target[0, ..., 1] = ignore_label
    loss = MaskedSigmoid(batch_dice, ignore_label, chunk=2)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, annotated, inside), logits)


def test_outputs_that_are_not_annotated_have_no_gradient_and_no_say() -> None:
    logits, target, annotated, inside = a_partial_batch()
    expected, gradient = value_and_gradient(MaskedSigmoid(True), logits, target, annotated, inside)
    of_second = {name for name, known in zip(ANNOTATIONS.outputs, annotated[1].tolist(), strict=True) if known}
    assert of_second == {"kidney", "liver"}
    assert not gradient[~annotated].any()
    assert gradient[annotated].flatten(1).any(1).all()
    logits[~annotated] = torch.nan
    value, gradient = value_and_gradient(MaskedSigmoid(True), logits, target, annotated, inside)
    assert value == expected
    assert not gradient[~annotated].any()


def test_batch_dice_pools_over_the_samples_that_annotate() -> None:
    logits, target, annotated, inside = a_partial_batch()
    loss = MaskedSigmoid(True, ce_weight=0)
    value = loss(logits, target, annotated, inside)
    pooled = []
    for output in range(OUTPUTS):
        samples = annotated[:, output]
        only = torch.arange(OUTPUTS) == output
        one = annotated[samples] & only
        # All labels of the samples stay known: what a voxel may be does not depend on the outputs that count.
        known = inside[samples] | inside[samples].any(1, keepdim=True) & ~only[:, None]
        pooled.append(loss(logits[samples], target[samples], one, known))
    torch.testing.assert_close(value, torch.stack(pooled).mean())


def test_a_sample_without_annotations_counts_nowhere() -> None:
    logits, target = a_batch(OUTPUTS, torch.float64)
    target[1] = 0
    alone = value_and_gradient(MaskedSigmoid(False), logits[:1], target[:1], *regions("all_1"))
    both = value_and_gradient(MaskedSigmoid(False), logits, target, *regions("all_1", "none_1"))
    torch.testing.assert_close(both[0], alone[0])
    torch.testing.assert_close(both[1][:1], alone[1])
    assert not both[1][1].any()
    value, gradient = value_and_gradient(MaskedSigmoid(True), logits[1:], target[1:], *regions("none_1"))
    assert value == 0
    assert not gradient.any()


@for_each("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_nothing_more(dtype: torch.dtype) -> None:
    logits, *more = a_partial_batch(dtype)
    value, gradient = value_and_gradient(MaskedSigmoid(True), logits, *more)
    exact = value_and_gradient(MaskedSigmoid(True), logits.double(), *more)
    assert gradient.dtype == dtype
    assert_same((value, exact[1]), exact)
    assert_same((value, gradient), exact, torch.finfo(dtype).eps)


def test_huge_logits_have_a_finite_loss() -> None:
    logits, *more = a_partial_batch(torch.float32)
    value, gradient = value_and_gradient(MaskedSigmoid(True), 1e4 * logits, *more)
    assert_same((value, gradient), value_and_gradient(MaskedSigmoid(True), 1e4 * logits.double(), *more))


@for_each("value", [1, 7])
def test_a_value_that_a_sample_does_not_annotate_is_an_error(value: int) -> None:
    logits, target, annotated, inside = a_partial_batch()
    target[1, 0, 0, 0, 0] = value
    with pytest.raises(DataError, match=f"sample 1 of the batch has voxels of the value {value}, but .* 0, 3, 5"):
        MaskedSigmoid(True)(logits, target, annotated, inside)


def test_annotations_of_another_head_are_an_error() -> None:
    logits, target, annotated, inside = a_partial_batch()
    with pytest.raises(ValueError, match=r"\(2, 5"):
        MaskedSigmoid(True)(logits[:, :5], target, annotated, inside)
