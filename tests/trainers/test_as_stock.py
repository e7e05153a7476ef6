"""Training nnU-Net's networks gives what nnU-Net's own trainer gives, from the same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import DataError, WeightsError
from stunet.files import read_json
from stunet.plans.plan import Plan
from stunet.runs.launch import Run, starting_point
from stunet.trainers.supervised import STUNetTrainer
from stunet.workspace import preprocessed_dataset
from tests.loops import for_each
from tests.stock_plans import stock_plans

STEPS = 20
CPU = torch.device("cpu")
REGIONS = {"labels": {"background": 0, "all": [1, 2], "one": 1}, "regions_class_order": [1, 2]}


def both_trainers(
    dataset: str, architecture: NNUNet, folder: Path, patch: pytest.MonkeyPatch, description: dict[str, Any]
) -> tuple[nnUNetTrainer, STUNetTrainer]:
    """nnU-Net's trainer and ours, with networks of the same initial weights."""
    patch.setenv("nnUNet_results", str(folder))
    dataset_json = read_json(preprocessed_dataset(dataset) / "dataset.json") | description
    stock, ours = (
        kind({**stock_plans(dataset, architecture), "continue_training": False}, "3d_fullres", 0, dataset_json, CPU)
        for kind in (nnUNetTrainer, STUNetTrainer)
    )
    torch.manual_seed(0)  # the plan's seed, where it sets none
    stock.initialize()
    ours.initialize()
    for name, value in stock.network.state_dict().items():
        assert torch.equal(value, ours.network.state_dict()[name])
    return stock, ours


def batches(trainer: nnUNetTrainer) -> list[dict[str, Any]]:
    """Batches of noise, the target at each resolution: labels, or a mask for each region."""
    generator = torch.Generator().manual_seed(0)
    labels, shape = trainer.label_manager, trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    assert scales is not None
    sizes = [[round(n * share) for n, share in zip(shape, each, strict=True)] for each in scales]
    channels = labels.num_segmentation_heads if labels.has_regions else 1
    values = 2 if labels.has_regions else labels.num_segmentation_heads
    return [
        {
            "data": torch.randn(2, 1, *shape, generator=generator),
            "target": [torch.randint(values, (2, channels, *size), generator=generator).float() for size in sizes],
            "keys": ["a", "b"],
        }
        for _ in range(STEPS)
    ]


@for_each(("architecture", "description"), [(PLAIN_UNET, {}), (RESENC, {}), (RESENC, REGIONS)])
def test_losses_and_weights_are_those_of_nnunets_trainer(
    architecture: NNUNet, description: dict[str, Any], planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit for regions. Our loss for labels sums the voxels chunk by chunk, which rounds otherwise."""
    stock, ours = both_trainers(planned, architecture, tmp_path, monkeypatch, description)
    before = stock.network.decoder.seg_layers[-1].weight.clone()
    limit = 0 if stock.label_manager.has_regions else 1e-6
    for batch in batches(stock):
        theirs, own = (trainer.train_step(batch)["loss"] for trainer in (stock, ours))
        assert abs(float(theirs) - float(own)) <= limit
    found = ours.network.state_dict()
    for name, value in stock.network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=limit)
    assert (stock.network.decoder.seg_layers[-1].weight - before).abs().max() > 0.01


def write_epoch(trainer: nnUNetTrainer, name: str) -> Path:
    """The state after a first epoch of a few steps, as nnU-Net logs and saves it."""
    log = {"mean_fg_dice": 0.5, "dice_per_class_or_region": [0.5], "train_losses": 0.1, "val_losses": 0.2, "lrs": 0.01}
    for key, value in (log | {"epoch_start_timestamps": 1.0, "epoch_end_timestamps": 2.0}).items():
        trainer.logger.log(key, value, 0)
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=-1)
    path = Path(trainer.output_folder) / name
    trainer.save_checkpoint(str(path))
    return path


def test_a_training_of_nnunets_trainer_goes_on_here_as_it_would_there(
    pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = both_trainers(pre.name, RESENC, tmp_path / "results", monkeypatch, {})
    first = batches(stock)
    for batch in first[:3]:
        stock.train_step(batch)
    path = write_epoch(stock, "checkpoint_latest.pth")
    run = Run(pre.name, Plan(stock_plans(pre.name, RESENC)), "3d_fullres", 0, device="cpu", resume=True)
    assert starting_point(run) == path
    ours.load_checkpoint(str(path))
    stock.load_checkpoint(str(path))
    assert ours.current_epoch == stock.current_epoch == 1
    assert ours._best_ema == stock._best_ema
    assert ours.logger.get_value("mean_fg_dice", step=-1) == 0.5
    for trainer in (stock, ours):
        trainer.lr_scheduler.step(trainer.current_epoch)
    for batch in first[3:8]:
        theirs, own = (trainer.train_step(batch)["loss"] for trainer in (stock, ours))
        assert abs(float(theirs) - float(own)) <= 1e-6
    for name, value in stock.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, rtol=0, atol=1e-6)


def test_what_cannot_go_on_here_says_what_can_be_done_with_it(
    pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = both_trainers(pre.name, PLAIN_UNET, tmp_path / "results", monkeypatch, {})
    run = Run(pre.name, Plan(stock_plans(pre.name, PLAIN_UNET)), "3d_fullres", 0, device="cpu", resume=True)
    with pytest.raises(DataError, match="nothing to continue"):
        starting_point(run)
    path = write_epoch(stock, "checkpoint_best.pth")
    assert starting_point(run) == path
    content = torch.load(path, weights_only=False)
    for changes, message in (
        ({"trainer_name": "nnUNetTrainerNoMirroring"}, "was trained by 'nnUNetTrainerNoMirroring'"),
        ({"optimizer_state": ...}, "lacks optimizer_state, without which no training goes on"),
    ):
        torch.save({key: value for key, value in {**content, **changes}.items() if value is not ...}, path)
        with pytest.raises(WeightsError, match=message) as caught:
            ours.load_checkpoint(str(path))
        assert caught.value.hint.startswith(f"--pretrained {path} in place of --c")
    path.rename(path.with_name("checkpoint_final.pth"))
    with pytest.raises(DataError, match="nnUNetv2_train has trained this fold to the end") as caught:
        starting_point(run)
    assert caught.value.hint.startswith(f"--pretrained {path.parent.parent} in place of --c")
