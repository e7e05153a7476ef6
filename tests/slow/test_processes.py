"""Training with two processes on the CPU: one model comes out, and a signal to the parent stops both in order."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow


EPOCHS = 3


def two(*options: str) -> list[Any]:
    """The command that trains with two processes."""
    values = (f"num_epochs={EPOCHS}", "num_iterations_per_epoch=4", "num_val_iterations_per_epoch=2", "batch_size=2")
    return ["stunet_train", 997, "3d_fullres", 0, "-device", "cpu", "-num_gpus", 2, *options, "--set", *values]


def fold(results: Path) -> Path:
    (model,) = results.glob("*/STUNetTrainer__*__3d_fullres")
    return model / "fold_0"


@pytest.fixture(scope="module")
def trained_by_two(place: "Place") -> Path:
    """The fold's folder after an undisturbed training with two processes."""
    results = place.root / "two"
    place.run(*two(), nnUNet_results=results)
    return fold(results)


def test_two_processes_train_one_model_and_validate_each_case_once(place: "Place", trained_by_two: Path) -> None:
    names = sorted(path.name for path in trained_by_two.glob("*.pth"))
    assert names == ["checkpoint_best.pth", "checkpoint_final.pth"]
    checkpoint = torch.load(trained_by_two / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == EPOCHS
    assert not any(name.startswith("module.") for name in checkpoint["network_weights"])
    summary = read_json(trained_by_two / "validation" / "summary.json")
    references = sorted(case["reference_file"] for case in summary["metric_per_case"])
    expected = sorted((place.preprocessed / "gt_segmentations").glob("phantom_00[0-3].nii.gz"))
    assert references == [str(path) for path in expected]


def test_sigterm_to_the_parent_leaves_a_state_that_c_continues_to_the_same_end(
    place: "Place", trained_by_two: Path, tmp_path: Path
) -> None:
    with place.start(*two(), nnUNet_results=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 1/3"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "the same command with --c" in rest
    assert (fold(tmp_path) / "checkpoint_latest.pth").is_file()
    assert not (fold(tmp_path) / "checkpoint_final.pth").exists()

    place.run(*two("--c"), nnUNet_results=tmp_path)
    continued, whole = (
        torch.load(folder / "checkpoint_final.pth", weights_only=True) for folder in (fold(tmp_path), trained_by_two)
    )
    assert continued["current_epoch"] == EPOCHS
    for name, tensor in whole["network_weights"].items():
        torch.testing.assert_close(continued["network_weights"][name], tensor)
