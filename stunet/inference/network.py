"""Which network do a model's plans describe, and were the weights trained with it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.errors import DataError, WeightsError, closest
from stunet.inference.cases import Model
from stunet.plans.resolve import resolve


def build(model: Model, configuration: str) -> tuple[Any, Any, torch.nn.Module]:
    """Plans, configuration and network in nnU-Net's own classes.

    Raises:
        DataError: The plans lack the configuration or do not describe a network.
    """
    file, hint = str(model.folder / "plans.json"), "copy plans.json from the training"
    known = list(model.plans.get("configurations", {}))
    if configuration not in known:
        raise DataError(f"no configuration {configuration!r} in {file!r}{closest(configuration, known)}", hint)
    try:
        plans = PlansManager(model.plans)
        manager = plans.get_configuration(configuration)
        classes = plans.get_label_manager(model.dataset).num_segmentation_heads
        inputs = determine_num_input_channels(plans, manager, model.dataset)
        network = nnUNetTrainer.build_network_architecture(
            plans, manager, inputs, classes, enable_deep_supervision=False
        )
    except (KeyError, TypeError, ValueError, ImportError) as error:
        what = f"{type(error).__name__} {error}"
        raise DataError(f"{file!r} does not describe the network of {configuration!r}: {what}", hint) from error
    return plans, manager, network


def check_strides(path: Path, checkpoint: Mapping[str, Any], plans: Mapping[str, Any], configuration: str) -> None:
    """Refuses weights that were trained with other strides: nothing would fail, and another function be computed.

    Raises:
        WeightsError: The checkpoint's own plans have other strides than `plans`.
    """
    trained_with = checkpoint["init_args"].get("plans") or {}
    if configuration not in trained_with.get("configurations", {}):
        return
    trained, given = (
        resolve(each, configuration).get("architecture", {}).get("arch_kwargs", {}).get("strides")
        for each in (trained_with, plans)
    )
    if trained is not None and trained != given:
        raise WeightsError(
            f"{str(path)!r} was trained with strides {trained}, and plans.json says {given}",
            "put the plans.json and the checkpoint of one training together",
        )
