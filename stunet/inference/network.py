"""Build the network that a model's plans describe, and check that the weights were trained with it.

Plans name classes, and nnU-Net imports whatever they name. Model folders come from anywhere, so only the networks of
stunet.architectures and of nnU-Net's own library are built here.
"""

import pydoc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet import architectures
from stunet.errors import DataError, WeightsError, closest
from stunet.files import json_differences
from stunet.inference.model import ModelFolder
from stunet.plans.plan import Plan

TRUSTED = ("torch.nn.", "dynamic_network_architectures.")


def build(model: ModelFolder, configuration: str) -> tuple[Any, Any, torch.nn.Module]:
    """Return plans and configuration as nnU-Net's own classes, and the network, whose weights are not set.

    Raises:
        DataError: The plans lack the configuration, do not describe a network, or describe one of another package.
    """
    file, hint = str(model.folder / "plans.json"), "copy plans.json from the training"
    known = list(model.plan.configurations)
    if configuration not in known:
        raise DataError(f"no configuration {configuration!r} in {file!r}{closest(configuration, known)}", hint)
    try:
        plans = PlansManager(model.plan.to_json())
        manager = plans.get_configuration(configuration)
        # Before get_network_from_plans(), which imports every name that the plans contain.
        _check_classes(manager, file)
        classes = plans.get_label_manager(model.dataset).num_segmentation_heads
        inputs = determine_num_input_channels(plans, manager, model.dataset)
        if architecture := architectures.find(manager.network_arch_class_name):
            arguments = {**manager.network_arch_init_kwargs, "deep_supervision": False}
            with torch.device("meta"):  # weights are loaded next; initialising an STU-Net L first takes seconds
                network = architecture.build(inputs, classes, arguments)
            network.to_empty(device="cpu")  # nothing was allocated; loading fills it
        else:
            with torch.random.fork_rng(devices=[]):  # on the CPU, as it may hold more than weights
                network = get_network_from_plans(
                    manager.network_arch_class_name,
                    manager.network_arch_init_kwargs,
                    manager.network_arch_init_kwargs_req_import,
                    inputs,
                    classes,
                    allow_init=False,
                    deep_supervision=False,
                )
    # nnU-Net does not check plans: mistakes in them show as whatever the code that meets them raises.
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise DataError(f"{file!r} does not describe the network of {configuration!r}: {what}", hint) from error
    return plans, manager, network


def _check_classes(configuration: Any, file: str) -> None:
    arguments = configuration.network_arch_init_kwargs
    parts = [arguments[key] for key in configuration.network_arch_init_kwargs_req_import]
    for name in (configuration.network_arch_class_name, *parts):
        if name is not None and name not in architectures.TABLE and not _is_trusted(name):
            raise DataError(
                f"{file} wants {name!r} imported for its network; nothing was imported",
                "networks of other packages: nnUNetv2_predict, if you trust where this model comes from",
            )


def _is_trusted(name: str) -> bool:
    """Return whether a name leads to a network class, not through a trusted module to something else such as `os`."""
    if not name.startswith(TRUSTED):
        return False
    found = pydoc.locate(name)
    # None: nnU-Net then looks for the last part of the name, in dynamic_network_architectures only.
    return found is None or (isinstance(found, type) and issubclass(found, torch.nn.Module))


def check_function(path: Path, checkpoint: Mapping[str, Any], plan: Plan, configuration: str) -> None:
    """Refuse weights trained in a network of the same shapes that computes something else: nothing would fail.

    Raises:
        WeightsError: The checkpoint's own plans have other strides, activations or norms than `plan`.
    """
    trained_with = Plan(checkpoint["init_args"].get("plans") or {})
    if configuration not in trained_with.configurations:
        return
    before, now = (each.configuration(configuration) for each in (trained_with, plan))
    pairs = [("strides", before.known_strides, now.known_strides)]
    architecture = architectures.find(str(before.network_class))
    if architecture and before.network_class == now.network_class:
        one, other = map(architecture.untold, (before.network_arguments, now.network_arguments))
        pairs += [(what, one[what], other[what]) for what in one]
    for what, trained, given in pairs:
        if trained is not None and json_differences(trained, given):
            raise WeightsError(
                f"{str(path)!r} was trained with {what} {trained}, and plans.json says {given}",
                "put the plans.json and the checkpoint of one training together",
            )
