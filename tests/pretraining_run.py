"""A pre-training of the phantom with any method, for tests."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stunet import workspace
from stunet.architectures.nnunet_unet import NNUNet
from stunet.files import read_json
from stunet.networks import build
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan, StartingWeights
from stunet.trainers.pretraining import STUNetPretrainer
from stunet.weights.checkpoints import save_checkpoint
from tests.stock_plans import stock_plans

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "batch_size": 2}


def make_pretrainer(
    dataset: str,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    weights: StartingWeights | None = None,
    network: NNUNet | None = None,
    **overrides: Any,
) -> STUNetPretrainer:
    """A pre-training of STU-Net-T, or of one of nnU-Net's networks as nnU-Net plans it."""
    monkeypatch.setenv("nnUNet_results", str(results))
    plan = Plan(stock_plans(dataset, network)) if network else read_plan(plan_path(dataset, "STUNetPlans_T"))
    dataset_json = read_json(workspace.preprocessed_dataset(dataset) / "dataset.json")
    plan = plan.with_ours(plan={}, train={}, pretext=method)  # so that the batch remains
    derived = derive(plan, dataset_json, overrides={**SHORT, **overrides}, weights=[weights] if weights else ())
    return STUNetPretrainer(derived.to_json(), "3d_fullres", "all", dataset_json, torch.device("cpu"))


def everything(trainer: STUNetPretrainer) -> torch.Tensor:
    """Return all tensors of network and pretext as one vector."""
    return torch.cat([value.detach().double().flatten() for value in trainer.pretext.state_dict().values()])


def write_weights(planned: str, path: Path, method: str | None, transfers: str = "encoder") -> Path:
    """Write a checkpoint of a pre-training of the phantom, or of a training on two classes."""
    plans = read_plan(plan_path(planned, "STUNetPlans_T")).to_json()
    strides = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    torch.manual_seed(99)
    labels = {"background": 0} if method else {"background": 0, "liver": 1}
    arguments = {
        "plans": {**plans, "configurations": {"3d_fullres": plans["configurations"]["3d_fullres"]}},
        "configuration": "3d_fullres",
        "dataset_json": {"channel_names": {"0": "CT"}, "labels": labels},
    }
    own = {"pretext": {"method": method, "transfers": transfers, "state": {}}} if method else {}
    network = build("T", strides, 1, 1 if method else 2)
    network.apply(network.initialize)
    save_checkpoint({"network_weights": network.state_dict(), "init_args": arguments, "stunet": own}, path)
    return path
