"""Pre-training of two datasets with the commands: in one process and in two, stopped and continued, then fine-tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from stunet.files import read_json, write_json

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


@pytest.mark.parametrize("method", ["rot", "simclr", "moco", "byol", "dino", "mae"])
@pytest.mark.parametrize(
    ("start", "values"),
    [
        (["torchrun", "--nproc_per_node", 2, "-m", "stunet.cli.pretrain"], ["accumulation=2"]),
        (["stunet_pretrain", "-num_gpus", 2, "--fsdp"], ["accumulation=2"]),
    ],
    ids=["torchrun", "FSDP2"],
)
def test_several_processes_compute_what_one_does(
    place: "Place", tmp_path: Path, method: str, start: Sequence[Any], values: Sequence[str]
) -> None:
    place.run("stunet_pretrain", *command(method), nnUNet_results=tmp_path / "one")
    out = place.run(*start, *command(method, values=values), nnUNet_results=tmp_path / "two")
    assert out.count("held-out ") == 1
    check_same(tmp_path)


def check_same(tmp_path: Path) -> None:
    """Compare the results below `one` and `two`."""
    one, two = (read_json(run_folder(tmp_path / name) / "pretraining.json") for name in ("one", "two"))
    for key in ("train_losses", "val_losses"):  # mae's begin at 6, and grow apart by rounding
        np.testing.assert_allclose(one[key], two[key], rtol=1e-4, atol=2e-5, err_msg=key)
    assert two["untrained"] == pytest.approx(one["untrained"], abs=1e-5)
    files = [run_folder(tmp_path / name) / "checkpoint_final.pth" for name in ("one", "two")]
    ours, theirs = (torch.load(file, weights_only=True) for file in files)
    torch.testing.assert_close(theirs["network_weights"], ours["network_weights"], rtol=0, atol=2e-5)
    # Teachers, queues and heads are whole, too.
    whole, gathered = ours["stunet"]["pretext"], theirs["stunet"]["pretext"]
    assert whole.keys() == gathered.keys()
    torch.testing.assert_close(gathered["state"], whole["state"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", [["-num_gpus", 2], ["-num_gpus", 2, "--fsdp"]], ids=["DDP", "FSDP2"])
def test_several_processes_start_from_weights_as_one_does(
    place: "Place", tmp_path: Path, options: Sequence[Any]
) -> None:
    place.run("stunet_pretrain", *command("rot"), nnUNet_results=tmp_path / "first")
    further = command("byol", "--pretrained", run_folder(tmp_path / "first").parent)
    place.run("stunet_pretrain", *further, nnUNet_results=tmp_path / "one")
    place.run("stunet_pretrain", *options, *further, nnUNet_results=tmp_path / "two")
    check_same(tmp_path)
    one, two = (read_json(run_folder(tmp_path / name) / "transfer_report.json") for name in ("one", "two"))
    assert one == two
    assert (one["coverage"], one["transfer"]) == (1, "encoder")


def test_images_without_labels_are_pretrained_on_and_the_result_is_finetuned(place: "Place", tmp_path: Path) -> None:
    raw = place.raw.with_name("Dataset050_Images")
    (raw / "imagesTr").mkdir(parents=True)
    for path in (place.raw / "imagesTr").iterdir():
        (raw / "imagesTr" / path.name).symlink_to(path)
    description = read_json(place.raw / "dataset.json")
    write_json(raw / "dataset.json", {**description, "labels": {"background": 0}})
    for options, name in ((["--size", "T", "--spacing", "none"], "T_native"), (["--like", 997], "T_like997")):
        out = place.run("stunet_plan_and_preprocess", "-d", 50, *options)
        assert f"STUNetPlans_{name}" in out
    values = ["num_epochs=2", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "batch_size=2"]
    pretrain = ["stunet_pretrain", "-d", 50, "--like", 997, "-device", "cpu"]
    out = place.run(*pretrain, "--set", *values, nnUNet_results=tmp_path)
    assert out.startswith("held-out explained variance ")
    both = ["stunet_pretrain", "-d", 50, 997, "-p", "STUNetPlans_T_like997", "-device", "cpu", "--set", *values]
    place.run(*both, nnUNet_results=tmp_path)
    models = sorted(tmp_path.glob("*/STUNetPretrainer__*"))
    assert len(models) == 2
    train = ["stunet_train", 997, "3d_fullres", 0, "-device", "cpu", "--pretrained", models[0], "--set", *values]
    place.run(*train, nnUNet_results=tmp_path)
