"""Training nnU-Net's networks gives what nnU-Net's own trainer gives, from the same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.files import read_json
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
