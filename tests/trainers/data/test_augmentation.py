"""Adding an augmentation takes a file of its own and one line in a table; without any, data stay as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from stunet.trainers.data import augmentation
from stunet.trainers.data.loader import SampleLoader, patched_loaders
from stunet.trainers.supervised import STUNetTrainer
from tests.loops import for_each
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


REGIONS = {"background": 0, "all": [1, 2, 3, 4, 5], "liver": 2}


@for_each(
    ("configuration", "more"),
    [("3d_fullres", {}), ("2d", {}), ("3d_fullres", {"labels": REGIONS, "regions_class_order": [1, 2]})],
)
def test_without_augmentation_samples_are_those_of_nnunets_trainer_without(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str, more: dict[str, Any]
) -> None:
    values = {"augment": "none", "stages": 3, **more}  # with two, there is one head and no deep supervision
    trainer = make_trainer(planned, tmp_path, monkeypatch, configuration=configuration, **values)
    assert "-augnone" in trainer.plan.name
    trainer.initialize()
    ours: SampleLoader = trainer.get_dataloaders()[0]._loader.dataset.source  # type: ignore[attr-defined]
    assert trainer.inference_allowed_mirroring_axes is None
    plans = {**trainer.my_init_kwargs["plans"], "continue_training": False}
    theirs = nnUNetTrainerNoDA(plans, configuration, 0, trainer.dataset_json, torch.device("cpu"))
    theirs.initialize()
    with patched_loaders(trainer.sample_loader()):
        stock: SampleLoader = theirs.get_dataloaders()[0].loader

    def drawn(loader: SampleLoader, seed: int) -> dict[str, Any]:
        np.random.seed(seed)
        return loader.sample(seed % 2)

    samples = [drawn(ours, seed) for seed in range(4)]
    for seed, sample in enumerate(samples):
        expected = drawn(stock, seed)
        assert sample["keys"] == expected["keys"]
        assert torch.equal(sample["data"], expected["data"])
        assert len(sample["target"]) == len(expected["target"]) > 1
        assert all(map(torch.equal, sample["target"], expected["target"]))
    ours.transforms = None
    for seed, sample in enumerate(samples):
        plain = drawn(ours, seed)
        assert torch.equal(sample["data"], plain["data"])
        if not more:
            assert torch.equal(sample["target"][0], plain["target"].clamp(min=0))


def test_without_augmentation_a_cascade_gets_the_previous_labels_unchanged(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, augment="none")
    arguments = (8, 8, 8), (-0.5, 0.5), [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), False
    more = {"use_mask_for_norm": [True], "is_cascaded": True, "foreground_labels": [1, 2]}
    ours, theirs = (each.get_training_transforms(*arguments, **more) for each in (trainer, nnUNetTrainerNoDA))
    image, labels = torch.randn(1, 8, 8, 8), torch.randint(-1, 3, (2, 8, 8, 8), dtype=torch.int16)
    for _ in range(3):
        mine, stock = (each(image=image.clone(), segmentation=labels.clone()) for each in (ours, theirs))
        assert torch.equal(mine["image"], stock["image"])
        assert torch.equal(mine["image"], torch.cat([image, labels[1:] == 1, labels[1:] == 2]))
        assert all(map(torch.equal, mine["segmentation"], stock["segmentation"]))
