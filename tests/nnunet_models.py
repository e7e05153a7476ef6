"""Model folders as stock nnU-Net leaves them, with its networks in small, for tests."""

from pathlib import Path
from typing import Any

from torch import nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.files import read_json, write_json
from stunet.weights.checkpoints import save_checkpoint
from tests.nnunet_networks import arguments, network
from tests.predictor_models import make_model

IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def model(folder: Path, architecture: NNUNet, folds: tuple[int, ...] = (0,), **others: Any) -> Path:
    """A folder that stock nnU-Net has trained, cut down to one configuration."""
    make_model(folder, folds)
    plans = read_json(folder / "plans.json")
    planned = plans["configurations"]["3d_fullres"]
    planned["architecture"] = {
        "network_class_name": architecture.class_name,
        "arch_kwargs": arguments(architecture, **others),
        "_kw_requires_import": IMPORTS,
    }
    plans["configurations"] = {"3d_fullres": planned}
    write_json(folder / "plans.json", plans)
    for fold in folds:
        content = {
            "network_weights": trained(architecture, fold, **others).state_dict(),
            "trainer_name": "nnUNetTrainer_250epochs",
            "init_args": {"configuration": "3d_fullres", "plans": plans, "dataset_json": {}, "fold": fold},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        save_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def trained(architecture: NNUNet, fold: int = 0, **others: Any) -> nn.Module:
    made = network(architecture, seed=fold, **others)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()
