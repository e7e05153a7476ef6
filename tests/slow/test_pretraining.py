"""Pre-training of two datasets with the commands: in one process and in two, stopped and continued, then fine-tuned."""

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

STEPS = 4
VALUES = [f"num_epochs={STEPS}", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "batch_size=4"]
VALUES += ["initial_lr=0.0001", "momentum=0.9", "patch_size=[16,24,24]"]


def command(method: str, *options: Any, values: Sequence[str] = ()) -> list[Any]:
    return ["-d", 997, "--method", method, "-device", "cpu", *options, "--set", *VALUES, *values]


def run_folder(results: Path) -> Path:
    (model,) = results.glob("*/STUNetPretrainer__*")
    return model / "fold_all"


@pytest.mark.parametrize("method", ["rot", "simclr"])
@pytest.mark.parametrize(
    ("start", "values"),
    [
        (["torchrun", "--nproc_per_node", 2, "-m", "stunet.cli.pretrain"], ["accumulation=2"]),
        (["stunet_pretrain", "-num_gpus", 2, "--fsdp"], []),
    ],
    ids=["torchrun, micro-batches", "FSDP2"],
)
def test_several_processes_compute_what_one_does(
    place: "Place", tmp_path: Path, method: str, start: Sequence[Any], values: Sequence[str]
) -> None:
    place.run("stunet_pretrain", *command(method), nnUNet_results=tmp_path / "one")
    out = place.run(*start, *command(method, values=values), nnUNet_results=tmp_path / "two")
    assert out.count("held-out ") == 1
    one, two = (read_json(run_folder(tmp_path / name) / "pretraining.json") for name in ("one", "two"))
    for key in ("train_losses", "val_losses"):
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=2e-5, err_msg=key)
    files = [run_folder(tmp_path / name) / "checkpoint_final.pth" for name in ("one", "two")]
    ours, theirs = (torch.load(file, weights_only=True)["network_weights"] for file in files)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-5)
