"""The loss of a training: nnU-Net's steps with another way to compute them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.losses import DeepSupervision, DiceAndEntropy
from stunet.trainers.supervised import STUNetTrainer
from tests.loops import for_each
from tests.trainers.test_trainer import make_trainer

IGNORE = {"background": 0, "spine": 1, "liver": 2, "spleen": 3, "kidney_left": 4, "ignore": 5}
REGIONS = {"background": 0, "organs": [1, 2, 3, 4, 5], "kidneys": [4, 5]}


def a_step(trainer: STUNetTrainer, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and weights after one step from the weights that the trainer has now."""
    network = copy.deepcopy(trainer.network)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    loss = trainer.train_step(copy.deepcopy(batch))["loss"]
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])
    trainer.network = network
    return torch.from_numpy(loss), weights


@for_each("labels", [None, IGNORE, REGIONS])
@for_each("stages", [2, 3])  # without and with deep supervision
def test_a_step_is_that_of_nnunets_loss(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: int, labels: dict[str, Any] | None
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, stages=stages, labels=labels, regions_class_order=[1, 2])
    trainer.initialize()
    assert isinstance(trainer.loss, DeepSupervision if stages == 3 else DiceAndEntropy)
    # 5, a kidney, is what the other ignores
    meaning = {"labels": REGIONS, "regions_class_order": [1, 2]} if labels is REGIONS else {}
    plain = make_trainer(planned, tmp_path, monkeypatch, stages=stages, **meaning)
    plain.initialize()
    loaders = plain.get_dataloaders()
    batch = next(loaders[0])
    for loader in loaders:
        loader.close()
    ours = a_step(trainer, batch)
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    theirs = a_step(trainer, batch)
    assert ours[0].dtype == theirs[0].dtype
    for found, expected in zip(ours, theirs, strict=True):
        tolerance = {"rtol": 0, "atol": 0} if labels is REGIONS else {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(found, expected, **tolerance)
