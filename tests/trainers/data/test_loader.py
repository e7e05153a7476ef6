"""Drawing samples one by one: the share of foreground that nnU-Net gives each process, and probabilities."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host

from stunet.trainers.data.batches import positions_of
from stunet.trainers.data.loader import Aliases, SampleLoader, UnlabelledLoader
from tests.loops import for_each


def loader(kind: type, batch_size: int, share: float, cases: int = 3, ignores: bool = False) -> Any:
    data = SimpleNamespace(identifiers=[f"case_{number}" for number in range(cases)])
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=ignores)
    return kind(data, batch_size, (8, 8, 8), (8, 8, 8), labels, oversample_foreground_percent=share)


@for_each("share", [0.0, 0.33, 0.5, 0.9, 1.0])
@for_each("processes", [2, 3, 4])
def test_each_process_shows_as_much_foreground_as_with_nnunet(
    monkeypatch: pytest.MonkeyPatch, share: float, processes: int
) -> None:
    monkeypatch.setattr(host.dist, "get_world_size", lambda: processes)
    for batch_size in range(processes, 13):
        ours = loader(SampleLoader, batch_size, share)
        for rank in range(processes):
            monkeypatch.setattr(host.dist, "get_rank", lambda rank=rank: rank)
            plan = SimpleNamespace(batch_size=batch_size)
            trainer = SimpleNamespace(is_ddp=True, configuration_manager=plan, oversample_foreground_percent=share)
            host.nnUNetTrainer._set_batch_size_and_oversample(trainer)  # type: ignore[arg-type]
            theirs = loader(nnUNetDataLoader, trainer.batch_size, trainer.oversample_foreground_percent)
            positions = positions_of(batch_size, rank, processes)
            assert len(positions) == trainer.batch_size
            decided = []
            for ours.position in positions:
                decided.append(ours.get_do_oversample(0))
            assert decided == [theirs.get_do_oversample(number) for number in range(trainer.batch_size)]


def test_cases_are_drawn_equally_often_or_as_the_weights_say() -> None:
    np.random.seed(0)
    samples = loader(SampleLoader, 2, 0.33, cases=4)
    equal = np.unique([samples.get_indices()[0] for _ in range(4000)], return_counts=True)
    assert equal[0].tolist() == samples.indices
    np.testing.assert_allclose(equal[1] / 4000, 0.25, atol=0.03)
    samples.weigh([3, 0, 1, 4])
    names, counts = np.unique([samples.get_indices()[0] for _ in range(4000)], return_counts=True)
    assert names.tolist() == ["case_0", "case_2", "case_3"]
    np.testing.assert_allclose(counts / 4000, [0.375, 0.125, 0.5], atol=0.03)


def test_patches_of_one_sample_are_of_different_cases_if_there_are() -> None:
    np.random.seed(0)
    for cases in (2, 1):
        samples = loader(UnlabelledLoader, 2, 0.0, cases=cases)
        for _ in range(50):
            first = samples.get_indices()
            samples.before = first
            assert (samples.get_indices() != first) == (cases > 1)
            samples.before = []


def test_cases_that_take_turns_are_all_seen_and_as_many_in_a_batch_as_there_are() -> None:
    for cases, patches in ((7, 1), (2, 1), (7, 2), (1, 2)):
        samples = loader(UnlabelledLoader, 4, 0.0, cases=cases)
        samples.patches = patches
        samples.take_turns(3)
        batches = [[samples.case(position, number) for position in range(4)] for number in range(7)]
        assert {len(set(batch)) for batch in batches} == {min(cases, 4)}
        counts = [sum(batch.count(case) for batch in batches) for case in samples.indices]
        assert set(counts) == {28 // cases}
        # The same whoever draws it, and whatever was drawn before.
        samples.before = [samples.case(2, 5)]
        assert (samples.case(2, 5) == samples.before[0]) == (cases == 1)
        samples.before = []
        assert samples.case(2, 5) == batches[5][2]


def test_images_without_labels_are_drawn_from_anywhere_even_if_voxels_are_ignored() -> None:
    np.random.seed(0)
    samples = loader(UnlabelledLoader, 2, 0.0, ignores=True)
    annotated = {samples.annotated_classes_key: np.array([[0, 10, 10, 10]])}
    corners = {tuple(samples.get_bbox(np.array([100, 100, 100]), False, annotated)[0]) for _ in range(20)}
    assert len(corners) == 20


@for_each("count", [1, 2, 7, 500])
def test_aliases_hold_exactly_the_probabilities(count: int) -> None:
    weights = np.random.default_rng(count).random(count) ** 4
    weights[: count // 3] = 0
    aliases = Aliases(weights)
    held = np.bincount(aliases.other, 1 - aliases.own, minlength=count) + aliases.own
    np.testing.assert_allclose(held / count, weights / weights.sum(), atol=1e-12)


@for_each("weights", [[0.0, 0.0], [1.0, -0.5], [np.nan, 1.0], [], [[1.0]]])
def test_what_is_no_probability_is_refused(weights: list) -> None:
    with pytest.raises(ValueError, match="not probabilities"):
        Aliases(weights)
