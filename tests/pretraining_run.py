"""A pre-training of the phantom with any method, for tests."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stunet import workspace
from stunet.files import read_json
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.trainers.pretraining import STUNetPretrainer

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "batch_size": 2}


def make_pretrainer(
    dataset: str, results: Path, monkeypatch: pytest.MonkeyPatch, method: str, **overrides: Any
) -> STUNetPretrainer:
    monkeypatch.setenv("nnUNet_results", str(results))
    plan = read_plan(plan_path(dataset, "STUNetPlans_T"))
    dataset_json = read_json(workspace.preprocessed_dataset(dataset) / "dataset.json")
    derived = derive(plan, dataset_json, overrides={**SHORT, **overrides}).with_ours(pretext=method)
    return STUNetPretrainer(derived.to_json(), "3d_fullres", "all", dataset_json, torch.device("cpu"))


def everything(trainer: STUNetPretrainer) -> torch.Tensor:
    """Return all tensors of network and pretext as one vector."""
    return torch.cat([value.detach().double().flatten() for value in trainer.pretext.state_dict().values()])
