"""Online evaluation: the numbers of nnU-Net's own validation step, on real batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import ConvertSegmentationToRegionsTransform, nnUNetTrainer

from stunet import workspace
from stunet.files import read_json
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.trainers import steps
from stunet.trainers.metrics import count_labels, count_regions
from stunet.trainers.supervised import STUNetTrainer
from tests.loops import for_each

PLAIN = {"background": 0, "spine": 1, "liver": 2, "spleen": 3, "kidney_left": 4, "kidney_right": 5}
IGNORE = {"background": 0, "spine": 1, "liver": 2, "spleen": 3, "kidney_left": 4, "ignore": 5}
REGIONS = {"background": 0, "organs": [1, 2, 3, 4, 5], "kidneys": [4, 5]}
BOTH = {"background": 0, "organs": [1, 2, 3, 4], "spleen": 3, "ignore": 5}


@pytest.fixture
def trainer_of(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict, int], STUNetTrainer]:
    """Makes a trainer for these labels and so many stages, with its network."""

    def make(labels: dict[str, Any], stages: int) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        description = read_json(workspace.preprocessed_dataset(planned) / "dataset.json") | {"labels": labels}
        if labels in (REGIONS, BOTH):
            description["regions_class_order"] = [1, 2]
        plan = read_plan(plan_path(planned, "STUNetPlans_T"))
        plans = derive(plan, description, stages=stages, overrides={"batch_size": 2}).to_json()
        trainer = STUNetTrainer(plans, "3d_fullres", 0, description, torch.device("cpu"))
        trainer.initialize()
        return trainer

    return make


def batches(trainer: STUNetTrainer, number: int) -> list[dict]:
    loaders = trainer.get_dataloaders()
    found = [next(loaders[1]) for _ in range(number)]
    for loader in loaders:
        loader.close()
    return found


def in_regions(target: torch.Tensor, manager: Any) -> torch.Tensor:
    """(B, 1, ...) as nnU-Net's augmentation turns it into (B, regions, ...)."""
    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    convert = ConvertSegmentationToRegionsTransform([*manager.foreground_regions, *ignored], channel_in_seg=0)
    return torch.stack([convert._apply_to_segmentation(case) for case in target])


@for_each("labels", [PLAIN, IGNORE, REGIONS, BOTH])
@for_each("stages", [2, 3])  # without and with deep supervision
def test_a_step_gives_what_nnunets_gives(
    trainer_of: Callable[[dict, int], STUNetTrainer], labels: dict[str, Any], stages: int
) -> None:
    trainer = trainer_of(labels, stages)
    manager = trainer.label_manager
    for batch in batches(trainer_of(PLAIN, stages), 2):
        targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        if manager.has_regions:
            targets = [in_regions(target, manager) for target in targets]
        batch["target"] = targets if isinstance(batch["target"], list) else targets[0]
        with torch.no_grad():
            ours = steps.evaluate(trainer, batch)
            theirs = nnUNetTrainer.validation_step(trainer, batch)  # last: it overwrites the target
        np.testing.assert_equal(ours, theirs)
        assert {name: value.dtype for name, value in ours.items()} == dict.fromkeys(theirs, np.float32)
        assert (ours["tp_hard"] + ours["fn_hard"]).sum() > 100
        assert ours["fp_hard"].sum() > 100


def test_labels_are_counted_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, 7, generator=generator)
    target = torch.randint(0, 5, (2, 1, 6, 5, 7), generator=generator)
    found, counts = logits.argmax(1, keepdim=True), count_labels(logits, target, ignore_label=4)
    for number, label in enumerate((1, 2, 3)):
        expected = [(found == label) & (target == label), (found == label) & (target != label) & (target != 4)]
        expected.append((found != label) & (target == label))
        assert counts[:, number].tolist() == [int(voxels.sum()) for voxels in expected]


@for_each("kind", [torch.bool, torch.float32, torch.int16])
def test_regions_are_counted_as_one_by_one(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 5, 7, generator=generator)
    target = torch.randint(0, 2, (2, 3, 6, 5, 7), generator=generator)
    counts = count_regions(logits, target.to(kind), ignore_label=3)
    for region in range(2):
        found, true, annotated = logits[:, region] > 0, target[:, region] == 1, target[:, 2] == 0
        expected = [found & true & annotated, found & ~true & annotated, ~found & true & annotated]
        assert counts[:, region].tolist() == [int(voxels.sum()) for voxels in expected]
