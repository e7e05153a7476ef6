"""How often cases are drawn, and how each label is judged in the cases that annotate it: against slow references."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from stunet.evaluation.metrics import confusion
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.trainers.partial.drawing import case_probabilities, expected_samples
from stunet.trainers.partial.tables import count_annotated, count_groups
from stunet.trainers.partial.validation import compare, predicted_values, summarise

SOURCES = {
    "small": CaseSource(("kidney_left", "kidney_right", "liver")),
    "large": CaseSource(("kidney",), weight=3.0),
}
CASES = {
    **{f"small_{i}": AnnotatedCase("small", SOURCES["small"].labels) for i in range(4)},
    **{f"large_{i}": AnnotatedCase("large", SOURCES["large"].labels) for i in range(16)},
    "liver": AnnotatedCase("small", ("liver",)),
}
FOUND = Annotations(
    ("kidney_left", "kidney_right", "liver"), {"kidney": ("kidney_left", "kidney_right")}, SOURCES, CASES
)
SIGMOID = Annotations(FOUND.leaves, FOUND.sets, SOURCES, CASES, "sigmoid")
BOTH = ["small_0", "large_0"]


def test_a_source_is_drawn_by_its_weight_and_the_square_root_of_its_size() -> None:
    drawn = case_probabilities(FOUND, [name for name in CASES if name != "liver"])
    assert drawn.sum() == pytest.approx(1)
    assert drawn[:4].sum() / drawn[4:].sum() == pytest.approx(4**0.5 / (3 * 16**0.5))
    assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1


def test_samples_are_expected_of_the_labels_that_cases_annotate() -> None:
    found = expected_samples(FOUND, ["small_0", "large_0", "liver"], 100)
    assert list(found) == ["kidney_left", "kidney_right", "liver", "kidney"]
    assert found["kidney"] == pytest.approx(100 * 3 / (3 + 2 * 2**-0.5))
    assert found["liver"] == pytest.approx(2 * found["kidney_left"])


def test_a_prediction_is_folded_to_what_each_sample_annotates() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator)
    groups = torch.stack([torch.from_numpy(FOUND.groups(case)) for case in BOTH])
    target = torch.stack([group[torch.randint(0, 4, (1, 3, 4, 5), generator=generator)] for group in groups])
    target[:, :, 0, 0] = 5
    counted = count_groups(logits, target, groups, values=5, ignore=5)
    for value in range(1, 5):
        slow = np.zeros(3, int)
        for winner, true, group in zip(logits.argmax(1), target[:, 0], groups, strict=True):
            here, inside, kept = group[winner] == value, true == value, true != 5
            slow += [int((x & kept).sum()) for x in (here & inside, here & ~inside, inside & ~here)]
        assert counted[:, value - 1].tolist() == slow.tolist()


def test_regions_are_counted_in_the_samples_that_annotate_them() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator)
    annotated, inside = (torch.from_numpy(np.stack(x)) for x in zip(*map(SIGMOID.regions, BOTH), strict=True))
    target = torch.stack([torch.randint(0, 4, (1, 3, 4, 5), generator=generator), torch.full((1, 3, 4, 5), 4)])
    target[:, :, 0, 0] = 5
    counted = count_annotated(logits, target, annotated, inside, ignore=5)
    kept = target != 5
    left, kidney = logits[0, 1] > 0, logits[:, 0] > 0  # outputs: kidney, left, right, liver
    assert counted[0, 1] == (left & (target[0, 0] == 1) & kept[0, 0]).sum()
    assert counted[1, 1] == (left & (target[0, 0] != 1) & kept[0, 0]).sum()
    true = torch.stack([(target[0, 0] == 1) | (target[0, 0] == 2), target[1, 0] == 4])
    assert counted[2, 0] == (~kidney & true & kept[:, 0]).sum()


def test_metrics_of_a_complete_case_are_nnunets_and_a_coarse_label_is_the_union_of_its_leaves(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    true, guessed = generator.integers(0, 4, (2, 6, 7, 8)).astype(np.uint8)
    for name, array in (("true", true), ("guessed", guessed)):
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / f"{name}.nii.gz")
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("true", "guessed")]
    theirs = compute_metrics(*files, SimpleITKIO(), [1, 2, 3, (1, 2)])["metrics"]
    names = predicted_values(FOUND)
    ours = compare(confusion(true.astype(np.uint16), guessed.astype(np.uint16)), FOUND, "small_0", names)
    assert ours == theirs
    coarse = np.where((true == 1) | (true == 2), 4, 0).astype(np.uint16)
    found = compare(confusion(coarse, guessed.astype(np.uint16)), FOUND, "large_0", names)
    assert found == {(1, 2): theirs[(1, 2)]}


def test_means_are_over_the_cases_that_annotate_a_label() -> None:
    cases = [{1: {"Dice": 0.5}, 2: {"Dice": np.nan}}, {1: {"Dice": 1.0}, (1, 2): {"Dice": 0.2}}]
    means, overall = summarise(cases, {"a": 1, "b": 2, "c": 3, "ab": (1, 2)})
    assert means == {1: {"Dice": 0.75}, (1, 2): {"Dice": 0.2}}
    assert overall == {"Dice": 0.75}
    assert summarise(cases[1:], {"ab": (1, 2)})[1] == {"Dice": 0.2}
