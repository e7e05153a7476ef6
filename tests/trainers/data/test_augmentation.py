"""Adding an augmentation takes a file of its own and one line in a table."""

from pathlib import Path

import pytest
import torch

from stunet.trainers.data import augmentation
from stunet.trainers.supervised import STUNetTrainer
from tests.trainers.data.toy_transform import Offset
from tests.trainers.test_trainer import make_trainer


def first_batches(trainer: STUNetTrainer) -> list[torch.Tensor]:
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    return [next(loader)["data"] for loader in loaders]


def test_a_transform_that_is_added_to_the_table_augments_the_training_and_nothing_else(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = first_batches(make_trainer(planned, tmp_path / "plain", monkeypatch))
    monkeypatch.setattr(augmentation, "ADDED", [(Offset, 1.0)])
    training, validation = first_batches(make_trainer(planned, tmp_path / "added", monkeypatch))
    again = first_batches(make_trainer(planned, tmp_path / "again", monkeypatch))[0]
    assert (training.mean() - plain[0].mean()) > 50
    assert torch.equal(training, again)  # it draws from the generators that are seeded for each sample
    assert torch.equal(validation, plain[1])


def test_a_transform_takes_the_place_of_one_of_nnunets(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = {**augmentation.REPLACED, "GaussianBlurTransform": lambda **options: Offset()}
    monkeypatch.setattr(augmentation, "REPLACED", replaced)
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    trainer.initialize()
    steps = trainer.get_dataloaders()[0]._loader.dataset.source.transforms.transforms  # type: ignore[attr-defined]
    names = [type(getattr(step, "transform", step)).__name__ for step in steps]
    assert names[:3] == ["CornerVote", "GaussianNoiseTransform", "Offset"]
