"""Adapt a network with batch normalisation to the intensities of other data without training it on them.

At inference, such a network normalises by running statistics of its training data. These are recomputed, by torch's
update_bn, over patches of the target's preprocessed cases, without augmentation; no weight changes. Networks that
normalise each image by itself, as STU-Net does, have no such statistics.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from stunet.errors import DataError, WeightsError, first_few
from stunet.files import atomic_folder, json_differences, read_json, write_json
from stunet.inference.model import ModelFolder, open_model
from stunet.inference.network import build
from stunet.models.record import RECORD
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan
from stunet.preprocessing.checks import check_data
from stunet.preprocessing.dataset import CONFIGURATION_SETTINGS, PLAN_SETTINGS, preprocessed_cases
from stunet.preprocessing.stored import StoredCases
from stunet.weights.checkpoints import check_finite, check_weights, load_trained, save_checkpoint
from stunet.weights.reading import read_weights
from stunet.workspace import preprocessed_dataset

log = logging.getLogger("stunet")

SEED = 0  # for drawing patches


@dataclass(frozen=True)
class BatchNormModel:
    """A model folder whose network has running statistics, named in `statistics`; one checkpoint per fold."""

    model: ModelFolder
    configuration: str
    planned: Any
    network: torch.nn.Module
    checkpoints: list[dict[str, Any]]
    statistics: list[str]


def open_batch_norm(source: Path) -> BatchNormModel | None:
    """Open the model in a file, or in a folder with all folds; None if its network has no running statistics.

    Raises:
        WeightsError: The weights cannot be read, or are not those of the plans.
        DataError: Not a model folder, or a cascade, whose second input is not among the preprocessed cases.
    """
    if source.is_file():
        if any(name.endswith("running_mean") for name in read_weights(source).tensors):
            raise WeightsError(
                f"{str(source)!r} has running statistics, and they are collected for a whole model",
                "give the model folder, with plans.json and dataset.json",
            )
        return None
    model = open_model(source)
    checkpoints = [load_trained(path) for path in model.checkpoint_files]
    name = checkpoints[0]["init_args"]["configuration"]
    _, planned, network = build(_as_trained(model, name, checkpoints[0].get("trainer_name")), name)
    for path, checkpoint in zip(model.checkpoint_files, checkpoints, strict=True):
        check_weights(path, network, checkpoint["network_weights"])
    statistics = _statistics(network)
    if statistics and planned.previous_stage_name:
        raise DataError(
            f"{name} of {str(source)!r} is a cascade: it also sees predictions of {planned.previous_stage_name}",
            f"take the model of {planned.previous_stage_name}",
        )
    return BatchNormModel(model, name, planned, network, checkpoints, statistics) if statistics else None


def recollect(
    source: BatchNormModel,
    dataset: str,
    *,
    batches: int,
    configuration: str | None = None,
    target: Path | None = None,
    device: str = "cpu",
    on_batch: Callable[[], None] = lambda: None,
) -> Path:
    """Write a copy of a model with the running statistics of a dataset, and return its folder.

    Args:
        source: From open_batch_norm().
        dataset: Full name of a dataset that is preprocessed as the model's plans specify.
        batches: Number of batches, of the plan's batch and patch size, from random cases and positions.
        configuration: Configuration of the dataset's plans; by default named like the model's.
        target: Must not exist; by default next to the model, with the dataset's name appended.
        device: Where the network runs.
        on_batch: Called after every batch of every fold.

    Raises:
        DataError: There are no matching data, or `target` exists.
        WeightsError: Statistics became NaN or infinite.
    """
    folder, network = source.model.folder.resolve(), source.network
    cases = _find_cases(source.model, source.configuration, dataset, configuration or source.configuration)
    target = target or folder.with_name(f"{folder.name}-bn-{dataset}")
    with atomic_folder(target) as part:
        for path, checkpoint in zip(source.model.checkpoint_files, source.checkpoints, strict=True):
            network.load_state_dict(checkpoint["network_weights"])
            # A generator per fold, with the same seed: every fold sees the same patches.
            patches = _patches(cases, source.planned.patch_size, source.planned.batch_size, batches, on_batch)
            # It resets the statistics, and averages all batches with equal weight instead of a momentum.
            update_bn(patches, network.to(device), torch.device(device))
            state = network.cpu().state_dict()
            counted = {name: state[name] for name in source.statistics}
            check_finite(counted, path)
            (part / path.parent.name).mkdir()
            # Only the statistics are replaced: all other tensors stay those of the file, bit by bit.
            content = checkpoint | {"network_weights": checkpoint["network_weights"] | counted}
            save_checkpoint(content, part / path.parent.name / path.name)
        for file in ("plans.json", "dataset.json"):
            shutil.copyfile(folder / file, part / file)
        write_json(part / RECORD, {"source": str(folder), "statistics": {"dataset": dataset, "batches": batches}})
    return target


def _as_trained(model: ModelFolder, configuration: str, trainer: str | None) -> ModelFolder:
    """Return the model with the norm it was trained with: nnUNetTrainerBN swaps it, and the plans do not record it."""
    planned = model.plan.configuration(configuration)
    if trainer != "nnUNetTrainerBN" or not planned.has_network:
        return model
    axes = planned.network_arguments["conv_op"][-2:]  # torch.nn.modules.conv.Conv3d
    norm = {"norm_op": f"torch.nn.BatchNorm{axes}", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    return replace(model, plan=model.plan.with_network(configuration, **norm))


def _statistics(network: torch.nn.Module) -> list[str]:
    """Return the names of the running statistics in the network's state; shared modules appear under both names."""
    return [
        f"{name}.{buffer}"
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        for buffer, _ in module.named_buffers(recurse=False)
    ]


def _find_cases(model: ModelFolder, name: str, dataset: str, configuration: str) -> nnUNetBaseDataset:
    """Return the dataset's cases, preprocessed as the model's plans specify."""
    wanted, reasons = _preprocessing(model.plan, name), []
    for path in sorted(preprocessed_dataset(dataset).glob("*.json")):
        content = read_json(path)
        if not isinstance(content, dict) or configuration not in Plan(content).configurations:
            continue
        plan = read_plan(path)
        if changed := json_differences(_preprocessing(plan, configuration), wanted, path.stem):
            reasons.append(first_few(changed))
        elif names := preprocessed_cases(dataset, plan, configuration):
            for warning in check_data(dataset, plan, configuration):
                log.warning("warning: %s", warning)
            folder = str(preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier)
            return infer_dataset_class(folder)(folder, names)
        else:
            reasons.append(f"{path.stem} is not preprocessed")
    moved = model.plan.name
    raise DataError(
        f"no {configuration} data of {dataset} are preprocessed as the model's: "
        f"{'; '.join(reasons) or 'no plans have this configuration'}",
        f"nnUNetv2_move_plans_between_datasets -s {model.plan.dataset_name} -t {dataset} -sp {moved} "
        f"-tp {moved}_moved, then nnUNetv2_preprocess -d {dataset[7:10]} -plans_name {moved}_moved -c {name}",
    )


def _preprocessing(plan: Plan, configuration: str) -> dict[str, Any]:
    """Return the settings that determine the values of preprocessed images."""
    planned = plan.configuration(configuration)
    return {key: plan.get(key) for key in PLAN_SETTINGS} | {key: planned.get(key) for key in CONFIGURATION_SETTINGS}


def _patches(
    cases: nnUNetBaseDataset, patch: list[int], batch_size: int, batches: int, on_batch: Callable[[], None]
) -> Iterator[torch.Tensor]:
    """Yield batches (B, C, D, H, W), or (B, C, H, W) for a 2D patch."""
    random = np.random.default_rng(SEED)
    names, checked = sorted(cases.identifiers), StoredCases(cases)
    shape = [1] * (3 - len(patch)) + list(patch)
    for _ in range(batches):
        chosen = [names[random.integers(len(names))] for _ in range(batch_size)]
        images = [checked.load_case(name)[0] for name in chosen]
        drawn = []
        for name, image in zip(chosen, images, strict=True):
            with checked.reading(name):
                drawn.append(_patch(image, shape, random))
        batch = torch.from_numpy(np.stack(drawn)).float()
        yield batch if len(patch) == 3 else batch[:, :, 0]
        on_batch()


def _patch(image_CDHW: Any, shape: list[int], random: np.random.Generator) -> np.ndarray:
    """Return a patch from a random position; a smaller image is centred in zeros, as in training and prediction."""
    cut, margins = [slice(None)], [(0, 0)]
    for size, length in zip(image_CDHW.shape[1:], shape, strict=True):
        start = int(random.integers(max(size - length, 0) + 1))
        cut.append(slice(start, start + length))
        missing = max(length - size, 0)
        margins.append((missing - missing // 2, missing // 2))  # the larger half first, as nnU-Net's data loader
    return np.pad(image_CDHW[tuple(cut)], margins)
