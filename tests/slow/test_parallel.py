"""One training in one process, in several, and in micro-batches (gloo, CPU): the same losses, whoever computes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

STEPS = 10
VALUES = [f"num_epochs={STEPS}", "num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1", "batch_size=4"]
VALUES += ["initial_lr=0.001"]  # with nnU-Net's 0.01 the first ten steps make 1e-4 of a rounding error


def command(*options: Any, configuration: str = "3d_fullres", values: Sequence[str] = ()) -> list[Any]:
    return [997, configuration, 0, "-device", "cpu", *options, "--set", *VALUES, *values]


def torchrun(*options: Any, processes: int = 2) -> list[Any]:
    return ["torchrun", "--nproc_per_node", processes, *options, "-m", "stunet.cli.train"]


def fold(results: Path) -> Path:
    (model,) = results.glob("*/STUNetTrainer__*")
    return model / "fold_0"


def checkpoint(results: Path) -> dict[str, Any]:
    return torch.load(fold(results) / "checkpoint_final.pth", weights_only=True)


def losses(results: Path) -> np.ndarray:
    """Training and validation loss of each step."""
    logged = checkpoint(results)["logging"]
    found = np.array([logged["train_losses"], logged["val_losses"], logged["mean_fg_dice"]])
    assert found.shape == (3, STEPS)
    return found


@pytest.fixture(scope="module")
def alone(place: "Place") -> Path:
    """Results of the training in one process."""
    results = place.root / "alone"
    place.run("stunet_train", *command(), nnUNet_results=results)
    return results


@pytest.mark.parametrize(
    ("start", "values"),
    [
        (["torchrun", "--nproc_per_node", 2, "-m", "stunet.cli.train"], []),
        (["stunet_train", "-num_gpus", 2], ["accumulation=2"]),
    ],
    ids=["two processes", "two processes with two micro-batches each"],
)
def test_several_processes_compute_what_one_does(
    place: "Place", alone: Path, tmp_path: Path, start: Sequence[Any], values: Sequence[str]
) -> None:
    out = place.run(*start, *command(values=values), nnUNet_results=tmp_path)
    assert out.count("mean validation Dice") == 1
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0, atol=1e-5)
    theirs = checkpoint(alone)["network_weights"]
    for name, weight in checkpoint(tmp_path)["network_weights"].items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)
    mean = [
        read_json(fold(run) / "validation" / "summary.json")["foreground_mean"]["Dice"] for run in (alone, tmp_path)
    ]
    assert mean[0] == pytest.approx(mean[1], abs=1e-3)
