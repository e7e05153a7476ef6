"""Fine-tuning with real commands: from one training's weights to another's model, by one process and by two."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

EPOCHS = 3  # of "warmup" the first has a frozen encoder
VALUES = [f"num_epochs={EPOCHS}", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "batch_size=2"]


def train(place: "Place", results: Path, *options: Any) -> Path:
    """Fine-tunes from the model of fold 1; the fold's folder."""
    source = place.model("3d_fullres")
    command = ("stunet_train", 997, "3d_fullres", 0, "-device", "cpu", "--pretrained", source, *options)
    place.run(*command, "--set", *VALUES, nnUNet_results=results)
    (model,) = results.glob("*/STUNetTrainer__*__3d_fullres")
    return model / "fold_0"


def weights(fold: Path) -> dict[str, torch.Tensor]:
    return torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]


@pytest.fixture(scope="module")
def alone(trained: "Place", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fold's folder after `warmup` in one process."""
    return train(trained, tmp_path_factory.mktemp("alone"), "--finetune", "warmup")


def test_the_report_says_that_everything_was_taken(trained: "Place", alone: Path) -> None:
    report = read_json(alone / "transfer_report.json")
    assert report["coverage"] == 1
    assert {fate["kind"] for fate in report["tensors"]} == {"copied", "head"}
    block = read_json(alone.parent / "plans.json")["stunet"]
    assert block["finetune"] == "warmup"
    assert block["weights"]["sha256"] == report["sha256"]


def test_two_processes_release_the_encoder_together(trained: "Place", alone: Path, tmp_path: Path) -> None:
    together = weights(train(trained, tmp_path, "--finetune", "warmup", "-num_gpus", 2))
    source = torch.load(trained.model("3d_fullres") / "fold_0" / "checkpoint_final.pth", weights_only=True)
    stem = "conv_blocks_context.0.0.conv1.weight"
    assert set(together) == set(weights(alone))
    assert not torch.equal(together[stem], source["network_weights"][stem])


def test_stock_nnunet_predicts_with_a_model_that_adapters_were_merged_into(trained: "Place", tmp_path: Path) -> None:
    model = train(trained, tmp_path, "--finetune", "lora").parent
    folders = ("-i", trained.raw / "imagesTs", "-o", tmp_path / "stock")
    trained.run("nnUNetv2_predict_from_modelfolder", *folders, "-m", model, "-f", 0, "-device", "cpu")
    command = ("stunet_predict", "-i", trained.raw / "imagesTs", "-o", tmp_path / "ours", "--model", model, "-f", 0)
    trained.run(*command, "--precision", "fp32")
    ours, stock = trained.read(tmp_path / "ours"), trained.read(tmp_path / "stock")
    assert ours.keys() == stock.keys()
    # These images are one window, at whose rim nnU-Net's half precision decides: see test_stock_tools.py.
    assert all((ours[name] == stock[name]).mean() > 0.95 for name in ours)


def test_an_experiment_compares_weights_with_training_from_scratch(trained: "Place", tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(trained.model("3d_fullres"))
    lines = [
        "dataset = 997",
        'size = "T"',
        'weights = { scratch = "none", ours = "weights" }',
        'strategies = ["full"]',
        "cases = [2]",
        "seeds = [0, 1]",
        "[set]",
        *VALUES,
    ]
    (tmp_path / "few.toml").write_text("\n".join(lines))
    command = ("stunet_experiment", tmp_path / "few.toml", "-device", "cpu", "-j", 2)
    trained.run(*command, nnUNet_results=tmp_path / "results")
    scratch, ours = read_json(tmp_path / "few" / "summary.json")
    assert (scratch["line"], ours["line"], ours["baseline"]) == ("scratch full", "ours full", "scratch full")
    assert ours["difference"] == pytest.approx(ours["dice"] - scratch["dice"])
    assert len(list((tmp_path / "few" / "logs").iterdir())) == 4
    assert (tmp_path / "few" / "summary.png").stat().st_size > 10_000
