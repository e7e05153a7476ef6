"""Open weights of any kind for their encoder: its network, and the plan that says how images are preprocessed.

The head may be of a pretext, of other classes, or missing, and so may the decoder. weights/reading.py reads the file.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.architectures.base import ENCODER, FUSION, STEM
from stunet.errors import DataError, WeightsError
from stunet.inference.model import ModelFolder
from stunet.inference.network import check_function
from stunet.models.metadata import check_input
from stunet.models.registry import CONFIGURATION, look_up, plan_of
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan
from stunet.provenance import check_model
from stunet.weights.checkpoints import check_finite, load_trained
from stunet.weights.folders import model_folder
from stunet.weights.naming import all_names
from stunet.weights.reading import Weights, read_weights, unfinished
from stunet.weights.v2 import make_plan
from stunet.workspace import FINAL

log = logging.getLogger("stunet")


@dataclass(frozen=True)
class Encoder:
    """An encoder with what it was trained with.

    Attributes:
        path: The file of the weights.
        model: How images are found and read.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        network: The network; only its encoder has weights.
        name: What the network is, such as STU-Net-B.
    """

    path: Path
    model: ModelFolder
    plans: Any
    configuration: Any
    network: torch.nn.Module
    name: str


def open_encoder(path: Path, fold: int | str | None = None, checkpoint: str = FINAL) -> Encoder:
    """Open a file of weights, or a model folder.

    Args:
        path: The file or folder; the folder of a dataset stands for the only model in it.
        fold: Of a model folder; None: the lowest that was trained. Features of several are not comparable.
        checkpoint: Name of the checkpoint in the fold.

    Raises:
        DataError: The fold or the checkpoint does not exist.
        WeightsError: Weights cannot be read, are incomplete, or nothing says how their images were preprocessed.
    """
    weights = read_weights(_file(path, fold, checkpoint))
    _refuse_cascade(weights)
    weights = _planned(weights)
    assert weights.plan is not None
    assert weights.configuration is not None
    planned = weights.plan.configuration(weights.configuration)
    check_input(weights)
    labels = {"labels": {}, "file_ending": ".nii.gz"}
    dataset = {**labels, **{key: value for key, value in (weights.dataset or {}).items() if value is not None}}
    folder = weights.path.parent.parent if weights.path.parent.name.startswith("fold_") else weights.path.parent
    name = weights.path.parent.name.removeprefix("fold_")
    model = ModelFolder(folder, weights.plan, dataset, (name,), weights.path.name)
    plans = PlansManager(weights.plan.to_json())
    _check_training(weights, model)
    title = weights.network.architecture.label(planned.network_arguments)
    return Encoder(weights.path, model, plans, plans.get_configuration(weights.configuration), _network(weights), title)


def _file(path: Path, fold: int | str | None, checkpoint: str) -> Path:
    """Return what read_weights() is to read."""
    path = model_folder(path) if path.is_dir() else path
    if fold is None and checkpoint == FINAL:
        if what := unfinished(path):
            log.warning("%s", what)
        return path
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is a file of weights, without folds", "leave out -f and -chk")
    there = sorted(path.glob(f"fold_*/{checkpoint}"), key=lambda file: (len(file.parent.name), file))
    found = [file for file in there if fold is None or file.parent.name == f"fold_{fold}"]
    if not found:
        known = " ".join(file.parent.name.removeprefix("fold_") for file in there)
        others = sorted({file.name for file in path.glob("fold_*/*.pth")})
        hint = f"-f {known.split()[0]}" if known else f"-chk {others[0]}" if others else "give a trained model"
        which, has = ("no fold", "a") if fold is None else (f"fold {fold}", "no")
        raise DataError(f"{which} of {str(path)!r} has {has} {checkpoint} (trained: {known or 'none'})", hint)
    return found[0]


def _check_training(weights: Weights, model: ModelFolder) -> None:
    """Refuse a checkpoint of a model folder whose plans.json is that of another training, as prediction does.

    Raises:
        WeightsError: Images would be preprocessed, or the network computed, in another way than in training.
    """
    plans = model.folder / "plans.json"
    if weights.kind != "nnU-Net v2" or not weights.path.parent.name.startswith("fold_") or not plans.is_file():
        return
    content, configuration, plan = load_trained(weights.path), str(weights.configuration), read_plan(plans)
    check_function(weights.path, content, plan, configuration)
    for warning in check_model(weights.path, content["init_args"], plan, configuration, model.folds[0], model.dataset):
        log.warning("warning: %s", warning)


def _refuse_cascade(weights: Weights) -> None:
    if not weights.plan or not weights.configuration:
        return
    if previous := weights.plan.configuration(weights.configuration).previous_stage:
        raise WeightsError(
            f"{str(weights.path)!r} is the second stage of a cascade, whose input is also the first one's segmentation",
            f"the model of {previous}, or of another configuration",
        )


def _planned(weights: Weights) -> Weights:
    """Return the weights with a complete plan and dataset: their own, and nnU-Net's defaults where nothing is said.

    Raises:
        WeightsError: Spacing, patch, normalisation or strides are unknown.
    """
    entry = look_up(weights.entry) if weights.entry else None
    if not weights.strides and entry and not entry.missing and not entry.has_plans:
        weights = replace(weights, plan=plan_of(entry), configuration=CONFIGURATION)
    plan, configuration = weights.plan, weights.configuration
    planned = plan.configuration(configuration) if plan and configuration else None
    values: dict[str, Any] = {
        "strides": weights.strides or weights.network.strides,
        "spacing": weights.spacing,
        "patch": planned.get("patch_size") if planned else None,
        "normalisation": weights.normalization,
    }
    if planned and planned.get("resampling_fn_data") == "no_resampling_hack":
        values["spacing"] = values["spacing"] or [1.0] * weights.network.ndim  # not used
    if lacking := [name for name, value in values.items() if not value]:
        raise WeightsError(
            f"{str(weights.path)!r} does not say how its images were preprocessed: unknown {', '.join(lacking)}",
            "import it with the plans of its training: stunet_models import FILE --name NAME --pkl X.model.pkl, "
            "or give its model folder",
        )
    assert plan is not None
    assert planned is not None
    assert configuration is not None
    defaults = make_plan(
        plan.dataset_name,
        configuration,
        None,
        strides=values["strides"],
        spacing=values["spacing"],
        patch_size=values["patch"],
        median_shape=values["patch"],
        normalization=values["normalisation"],
        mirror_axes=(),
    )
    own = _given(defaults.own_values(configuration)) | _given(planned.content) | {"spacing": values["spacing"]}
    whole = Plan({**_without_ours(defaults), **_given(plan.content)}).with_configuration(configuration, **own)
    channels = weights.channels or [str(n) for n in range(weights.network.channels)]
    if len(channels) != weights.network.channels:
        raise WeightsError(
            f"{str(weights.path)!r} takes {weights.network.channels} channel(s), and {len(channels)} are named",
            "use the dataset.json of the training that made it",
        )
    dataset = {**(weights.dataset or {}), "channel_names": {str(n): name for n, name in enumerate(channels)}}
    return replace(weights, plan=whole.reduced_to(configuration), dataset=dataset)


def _given(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}


def _without_ours(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in plan.content.items() if key != "stunet"}


def _network(weights: Weights) -> torch.nn.Module:
    """Return the network with the weights of its encoder; the memory of its other parts is not initialised.

    Raises:
        WeightsError: The encoder is incomplete, or not that of the plan.
    """
    assert weights.plan is not None
    assert weights.configuration is not None
    found, planned = weights.network, weights.plan.configuration(weights.configuration)
    architecture = found.architecture
    try:
        with torch.device("meta"):  # initialising takes seconds
            network = architecture.build(found.channels, found.classes or 1, planned.network_arguments)
    except ValueError as error:
        what = f"{str(weights.path)!r}: no network can be built as its plans say: {error}"
        raise WeightsError(what, "use the plans.json of the training that made it") from None
    needed = {name: value for name, value in network.state_dict().items() if _is_encoder(architecture.place(name).part)}
    given = all_names(weights.tensors, needed, architecture)
    tensors = {name: given[name] for name in needed if name in given}
    lacking = sorted(name for name in needed if name not in tensors or tensors[name].shape != needed[name].shape)
    if lacking:
        raise WeightsError(
            f"{str(weights.path)!r} has no complete encoder: {len(lacking)} of {len(needed)} tensors are missing or of "
            f"another shape, such as {lacking[0]!r}",
            "the checkpoint and the plans of one training",
        )
    check_finite(tensors, weights.path, architecture)
    network.to_empty(device="cpu")
    network.load_state_dict(tensors, strict=False)
    return network


def _is_encoder(part: str) -> bool:
    return part in (STEM, ENCODER, FUSION)
