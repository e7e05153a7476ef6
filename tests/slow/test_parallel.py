"""One training in one process, in several, and in micro-batches (gloo, CPU): the same losses, whoever computes them."""

import os
import signal
import socket
import time
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

TIMEOUT_S = 280

STEPS = 10
VALUES = [f"num_epochs={STEPS}", "num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1", "batch_size=4"]
# A rounding error that lifts an activation over zero changes a gradient by a hundredth: with nnU-Net's 0.01 and 0.99
# ten steps make 1e-4 of that.
VALUES += ["initial_lr=0.0001", "momentum=0.9"]
TORCHRUN = ["torchrun", "--nproc_per_node", 2, "-m", "stunet.cli.train"]


def command(*options: Any, configuration: str = "3d_fullres", values: Sequence[str] = ()) -> list[Any]:
    return [997, configuration, 0, "-device", "cpu", *options, "--set", *VALUES, *values]


def fold(results: Path) -> Path:
    (model,) = results.glob("*/STUNetTrainer__*")
    return model / "fold_0"


def checkpoint(results: Path) -> dict[str, Any]:
    return torch.load(fold(results) / "checkpoint_final.pth", weights_only=True)


def check_losses(results: Path, others: Path) -> None:
    """Sees that two trainings had the same losses of training and validation, and Dice, in each step."""
    ours, theirs = (checkpoint(run)["logging"] for run in (results, others))
    for name, tolerance in (("train_losses", 1e-5), ("val_losses", 1e-5), ("mean_fg_dice", 1e-3)):
        assert len(ours[name]) == STEPS
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def alone(place: "Place") -> Path:
    """Results of the training in one process."""
    results = place.root / "alone"
    place.run("stunet_train", *command(), nnUNet_results=results)
    return results


@pytest.mark.parametrize(
    ("start", "values"),
    [
        (TORCHRUN, []),
        (["stunet_train", "-num_gpus", 2], ["accumulation=2"]),
        (["stunet_train", "-num_gpus", 2, "--fsdp"], []),
    ],
    ids=["torchrun", "micro-batches", "FSDP2"],
)
def test_several_processes_compute_what_one_does(
    place: "Place", alone: Path, tmp_path: Path, start: Sequence[Any], values: Sequence[str]
) -> None:
    out = place.run(*start, *command(values=values), nnUNet_results=tmp_path)
    assert out.count("mean validation Dice") == 1
    check_losses(tmp_path, alone)
    theirs = checkpoint(alone)["network_weights"]
    for name, weight in checkpoint(tmp_path)["network_weights"].items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)
    mean = [
        read_json(fold(run) / "validation" / "summary.json")["foreground_mean"]["Dice"] for run in (alone, tmp_path)
    ]
    assert mean[0] == pytest.approx(mean[1], abs=1e-3)


def test_the_dice_of_a_batch_is_that_of_all_processes_and_micro_batches(place: "Place", tmp_path: Path) -> None:
    results = [tmp_path / str(processes) for processes in (1, 2)]
    for processes, folder in enumerate(results, 1):
        values = [f"accumulation={processes}"]
        options = command("-num_gpus", processes, configuration="2d", values=values)
        place.run("stunet_train", *options, nnUNet_results=folder)
    assert read_json(fold(results[0]).parent / "plans.json")["configurations"]["2d"]["batch_dice"]
    check_losses(results[1], results[0])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([*TORCHRUN, "--fsdp"], ["stunet_train"]),
        (["stunet_train"], ["stunet_train", "-num_gpus", 2, "--fsdp"]),
    ],
    ids=["from two with FSDP2 to one", "from one to two with FSDP2"],
)
def test_a_stopped_training_goes_on_with_another_number_of_processes(
    place: "Place", alone: Path, tmp_path: Path, first: Sequence[Any], then: Sequence[Any]
) -> None:
    with place.start(*first, *command(), nnUNet_results=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"epoch 3/{STEPS}"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert rest.count("the same command with --c") == 1, rest
    assert (fold(tmp_path) / "checkpoint_latest.pth").is_file()
    place.run(*then, *command("--c"), nnUNet_results=tmp_path)
    check_losses(tmp_path, alone)


def test_a_killed_process_is_started_anew_and_the_training_goes_on_from_its_checkpoint(
    place: "Place", alone: Path, tmp_path: Path
) -> None:
    """On two machines, as torchrun sees it: two agents that meet over the network, here the loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    agent = ["torchrun", "--nnodes", 2, "--nproc_per_node", 1, "--max-restarts", 3, "--rdzv-backend", "c10d"]
    agent += ["--rdzv-endpoint", meeting, "--rdzv-id", "loopback", "-m", "stunet.cli.train", *command("--overwrite")]
    # Else both meet in torchrun's own store under their counts of restarts, which differ where one lost a process.
    given = {"nnUNet_results": tmp_path, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": 1}
    with place.start(*agent, **given) as one, place.start(*agent, **given) as two:
        while not any("Epoch 3" in log.read_text() for log in tmp_path.rglob("training_log_*.txt")):
            assert one.poll() is None
            assert two.poll() is None
            time.sleep(0.02)
        (worker,) = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        messages = [process.communicate(timeout=TIMEOUT_S)[1] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), messages
    assert sum(text.count("started again; the latest checkpoint is continued") for text in messages) == 1, messages
    check_losses(tmp_path, alone)
