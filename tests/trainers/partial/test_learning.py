"""Half of the cases annotate one half of the organs, half the other: what does a network learn from them?"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from stunet.datasets.phantom import LABELS, make_case
from stunet.evaluation.metrics import confusion
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.losses import DiceCE, PartitionDiceCE
from stunet.networks import STUNet
from stunet.trainers.partial.tables import CaseTables

ORGANS = ("liver", "spleen", "kidney_left", "kidney_right")
SHAPE, CASES, STEPS = (16, 16, 16), 12, 80
SOURCES = {"first": CaseSource(ORGANS[:2]), "second": CaseSource(ORGANS[2:])}
HALVES = Annotations(
    ORGANS,
    {},
    SOURCES,
    {str(i): AnnotatedCase(n, SOURCES[n].labels) for i, n in enumerate(("first", "second") * (CASES // 2))},
)


@pytest.fixture(scope="module")
def phantoms() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, D, H, W), and labels of the four organs, 1 to 4; the last third is held out."""
    made = [make_case(np.random.default_rng((0, index)), SHAPE) for index in range(CASES * 3 // 2)]
    stacked = (np.stack(arrays)[:, None].astype(np.float32) for arrays in zip(*made, strict=True))
    images, labels = map(torch.from_numpy, stacked)
    lookup = torch.zeros(len(LABELS), dtype=torch.int64)
    lookup[[LABELS[organ] for organ in ORGANS]] = torch.arange(1, 1 + len(ORGANS))
    return images / 300, lookup[labels.long()]


def dice_after(
    images: torch.Tensor, labels: torch.Tensor, step: Callable[[torch.Tensor, list[int]], torch.Tensor]
) -> float:
    """The mean Dice over organs and held-out cases of a network that was trained with a loss of (logits, cases)."""
    torch.manual_seed(0)
    network = STUNet(1, 5, size="T", strides=[[1] * 3, [2] * 3, [2] * 3], deep_supervision=False)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for number in range(STEPS):
        cases = [2 * number % CASES, (2 * number + 1) % CASES]
        optimizer.zero_grad()
        step(network(images[cases]), cases).backward()
        optimizer.step()
    with torch.no_grad():
        table = confusion(labels[CASES:].numpy(), network(images[CASES:]).argmax(1, keepdim=True).numpy())
    return float(np.mean([2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(1, 5)]))


@pytest.fixture(scope="module")
def complete(phantoms: tuple[torch.Tensor, torch.Tensor]) -> float:
    loss = DiceCE(batch_dice=True)
    return dice_after(*phantoms, lambda logits, cases: loss(logits, phantoms[1][cases]))


def partial_labels(labels: torch.Tensor, cases: list[int]) -> torch.Tensor:
    groups = [torch.from_numpy(HALVES.groups(str(case))) for case in cases]
    return torch.stack([group[labels[case]] for group, case in zip(groups, cases, strict=True)])


def test_a_network_that_takes_unannotated_organs_for_background_fails(
    phantoms: tuple[torch.Tensor, torch.Tensor], complete: float
) -> None:
    loss = DiceCE(batch_dice=True)
    naive = dice_after(*phantoms, lambda logits, cases: loss(logits, partial_labels(phantoms[1], cases)))
    assert naive < 0.5 * complete


def test_a_network_that_is_told_what_each_case_annotates_learns_as_from_complete_labels(
    phantoms: tuple[torch.Tensor, torch.Tensor], complete: float
) -> None:
    loss, tables = PartitionDiceCE(5, True), CaseTables(HALVES)

    def step(logits: torch.Tensor, cases: list[int]) -> torch.Tensor:
        return loss(logits, partial_labels(phantoms[1], cases), *tables.look_up([str(case) for case in cases]))

    assert dice_after(*phantoms, step) > 0.9 * complete
