"""Write and read nnssl's files of pre-trained networks, which carry the plan for adapting them to a dataset.

nnssl (Wald et al., github.com/MIC-DKFZ/nnssl) saves a checkpoint with an `nnssl_adaptation_plan`: the network, how its
images were preprocessed, and under which names encoder, stem and input convolutions stand. nnU-Net's commands for
pre-trained weights read it with torch.load(weights_only=True) and no map_location, so a file that any machine can load
holds tensors of the CPU and plain values only. reading.py reads the rest of the file; transfer.py uses it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stunet import architectures
from stunet.architectures.base import ENCODER, STEM, Architecture
from stunet.architectures.multi_encoder import MULTI_ENCODER
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import DataError
from stunet.kinds import INTENSITIES, orientation
from stunet.plans.plan import ENCODER_ALONE, TRANSFERS, Configuration, Plan
from stunet.schema import check, optional, table
from stunet.weights.checkpoints import save_checkpoint

ADAPTATION = "nnssl_adaptation_plan"
NOT_RESAMPLED = "no_resampling_hack"  # nnU-Net's function for plans that keep the spacing of each image
# Its parts become part of a plan's name: no path, no "__", which nnU-Net splits folder names at.
_METHOD = re.compile(r"[A-Za-z0-9.+]+([_-][A-Za-z0-9.+]+)*")
_LONGEST = 40  # letters of a method
UNNAMED = "nnssl"  # stands for a method that a file does not name
# The networks by nnssl's names. Two have no arguments in its plans, and are always the same one.
_FIXED = ("ResEncL", "NoSkipResEncL")
_NAMES = dict.fromkeys(_FIXED, RESENC) | {
    each.class_name.rpartition(".")[2]: each for each in (RESENC, PLAIN_UNET, STUNET, MULTI_ENCODER)
}
RESENC_L = RESENC.laid_out(RESENC.usual(3), [[1, 1, 1], *[[2, 2, 2]] * 5], [[3, 3, 3]] * 6)
_LABELS = ("labels", "regions_class_order")  # what dataset.json says of the head
_OWN = table({}, {"intensities": optional(INTENSITIES), "orientation": optional(orientation)}, others=True)


class Pretext(NamedTuple):
    """What pre-trained a network without labels: the method, and which part of the network it is meant to give."""

    method: str
    transfers: str


def read_pretext(content: Any) -> Pretext:
    """Return the pretext that a checkpoint of ours names in this form: {"method": ..., "transfers": ...}.

    Raises:
        ValueError: It is not in this form.
    """
    method, transfers = content["method"], content["transfers"]
    if not isinstance(method, str) or len(method) > _LONGEST or not _METHOD.fullmatch(method):
        raise ValueError(f"pretext {str(method)[:_LONGEST]!r}")
    if transfers not in TRANSFERS:
        raise ValueError(f"transfers {transfers!r}")
    return Pretext(method, transfers)


def pretext_of_trainer(name: Any) -> Pretext:
    """Return the pretext that one of nnssl's trainers stands for: BaseMAETrainer_BS8 for "mae".

    nnssl and nnU-Net transfer stem and encoder, whatever the method.
    """
    stem = str(name or "").partition("_")[0]
    method = re.sub(r"Base|Trainer|[^A-Za-z0-9]", "", stem).lower()[:_LONGEST]
    return Pretext(method or UNNAMED, ENCODER_ALONE)


def pretrain_plan(content: Mapping[str, Any]) -> tuple[Plan, str] | None:
    """Return the plan of the pre-training in a file of nnssl and its configuration, with the network's arguments.

    Without an adaptation plan, which not all of nnssl's trainers write, it is the plan that the trainer was given.
    Of several configurations it is the one that the trainer was given; nnssl's planner writes one for each spacing.
    """
    adaptation, given = content.get(ADAPTATION) or {}, content.get("init_args") or {}
    plan = Plan(adaptation.get("pretrain_plan") or given.get("plan") or {})
    if not plan.configurations:
        return None
    named = given.get("configuration_name")
    name = named if named in plan.configurations else plan.configurations[0]
    network = _network_of(adaptation.get("architecture_plans") or {})
    return _with_own(plan.with_configuration(name, architecture=network), content), name


def _network_of(planned: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's `architecture` for the network that an adaptation plan names.

    Raises:
        DataError: It is not one of those known here.
    """
    name, arguments = planned.get("arch_class_name"), dict(planned.get("arch_kwargs") or {})
    if name is None:
        return {"arch_kwargs": arguments}
    if name not in _NAMES:
        known = ", ".join(_NAMES)
        raise DataError(
            f"its adaptation plan names the network {str(name)[:60]!r}, which is not one of {known}",
            "correct the adaptation plan, if the tensors are those of one of them",
        )
    if name in _FIXED:
        arguments = {**RESENC_L, **arguments}
    if _NAMES[name] is PLAIN_UNET and "n_blocks_per_stage" in arguments:
        arguments["n_conv_per_stage"] = arguments.pop("n_blocks_per_stage")  # nnssl has one field for both
    # Without arguments, tensors tell what they can.
    return {"network_class_name": _NAMES[name].class_name, "arch_kwargs": arguments} if arguments else {}


def _with_own(plan: Plan, content: Mapping[str, Any]) -> Plan:
    """Return the plan with what write_nnssl() adds: nnssl's plans have neither intensities nor an orientation.

    Raises:
        DataError: It is damaged.
    """
    own = content.get("stunet") or {}
    check(own, _OWN, "stunet", "copy the file again from its source")
    if own.get("intensities"):
        plan = plan.with_values(foreground_intensity_properties_per_channel=own["intensities"])
    return plan.with_ours(orientation=own["orientation"]) if own.get("orientation") else plan


def encoder_of(content: Mapping[str, Any]) -> str | None:
    """Return what names of the encoder begin with, as the adaptation plan says; None if there is none."""
    adaptation = content.get(ADAPTATION)
    key = adaptation.get("key_to_encoder") if isinstance(adaptation, Mapping) else None
    return str(key) if key else None


def write_nnssl(
    path: Path,
    state_dict: Mapping[str, Tensor],
    plan: Plan,
    configuration: str,
    channels: Sequence[str],
    method: str | None,
    citations: Sequence[Mapping[str, Any]] = (),
    transfers: str = ENCODER_ALONE,
    dataset: Mapping[str, Any] | None = None,
    mirror_axes: Sequence[int] | None = None,
) -> None:
    """Write a pre-trained network as nnssl does; the file appears whole or not at all.

    Args:
        path: The file.
        state_dict: The network's tensors, under its own names.
        plan: The plan of the pre-training.
        configuration: The configuration that was trained.
        channels: Names of the image channels.
        method: Name of the pretext; None: labels trained it.
        citations: As nnssl has them: {"type": ..., "name": ..., "apa_citations": [...]}, shown by whoever fine-tunes.
        transfers: What the method is meant to give, one of TRANSFERS; nnU-Net takes stem and encoder in any case.
        dataset: The dataset.json of labels that trained it.
        mirror_axes: Axes that this training mirrored; None: unknown.

    Raises:
        DataError: The plan lacks what nnssl's has, or the file could not be written completely.
    """
    planned = plan.configuration(configuration)
    architecture = architectures.of_class(planned.network_class, configuration)
    arguments = {
        key: value
        for key, value in planned.network_arguments.items()
        if key not in ("deep_supervision", "checkpointing")  # of a training
    }
    stored: dict[str, Tensor] = {}
    for name, value in state_dict.items():  # all names of a tensor share it, in the file as well
        if (official := architecture.canonical(name)) not in stored:
            stored[official] = _alone(value)
    content = {
        "network_weights": {name: stored[architecture.canonical(name)] for name in state_dict},
        ADAPTATION: {
            "architecture_plans": {
                "arch_class_name": architecture.class_name.rpartition(".")[2],
                "arch_kwargs": arguments,
                "arch_kwargs_requiring_import": [key for key in architecture.imports if arguments.get(key)] or None,
            },
            "pretrain_plan": _pretrain_plan(plan, planned),
            "pretrain_num_input_channels": len(channels),
            "recommended_downstream_patchsize": planned.patch_size,
            **_keys(architecture, state_dict),
        },
        "citations": [dict(each) for each in citations],
        "trainer_name": "STUNetPretrainer",
        "stunet": {
            "pretext": {"method": method, "transfers": transfers} if method else None,
            "channels": list(channels),
            "labels": {key: dataset[key] for key in _LABELS if key in dataset} if dataset else None,
            "intensities": plan.get("foreground_intensity_properties_per_channel"),
            "orientation": plan.orientation,
            "mirror_axes": None if mirror_axes is None else list(mirror_axes),
        },
    }
    save_checkpoint(content, path)


def _pretrain_plan(plan: Plan, planned: Configuration) -> dict[str, Any]:
    """Return a plan with the fields of nnssl's, and the one configuration that was trained."""
    style = _spacing_style(planned)
    configuration = {
        "data_identifier": planned.data_identifier,
        "preprocessor_name": planned.preprocessor,
        "spacing_style": style,
        "normalization_schemes": planned.normalization,
        "use_mask_for_norm": planned.get("use_mask_for_norm"),
        "resampling_fn_data": planned.resampling("data"),
        "resampling_fn_data_kwargs": planned.get("resampling_fn_data_kwargs"),
        "resampling_fn_mask": planned.resampling("seg"),
        "resampling_fn_mask_kwargs": planned.get("resampling_fn_seg_kwargs"),
        "spacing": None if style == "noresample" else planned.spacing,
        "patch_size": planned.patch_size,
    }
    common = ("original_median_spacing_after_transp", "transpose_forward", "transpose_backward")
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": plan.name,
        **{key: plan.get(key) for key in common},
        "image_reader_writer": plan.reader,
        "experiment_planner_used": plan.get("experiment_planner_used"),
        "configurations": {style: configuration},
    }


def _spacing_style(planned: Configuration) -> str:
    """Return nnssl's name for how the images were resampled, which also names the configuration."""
    if planned.resampling("data") == NOT_RESAMPLED:
        return "noresample"
    return "onemmiso" if set(planned.spacing) == {1} else "median"


def _keys(architecture: Architecture, names: Iterable[str]) -> dict[str, Any]:
    """Return under which names nnssl's readers find the parts of the network; they copy one input into its aliases."""
    inputs = [name for name in names if architecture.canonical(name) in architecture.inputs]
    prefixes = {part: prefix for prefix, part in architecture.parts.items()}
    return {
        "key_to_encoder": prefixes[ENCODER],
        "key_to_stem": prefixes.get(STEM, f"{prefixes[ENCODER]}.0"),
        "keys_to_in_proj": [name.removesuffix(".weight") for name in inputs if not name.startswith("decoder.")],
        "key_to_lpe": None,  # of transformers
    }


def _alone(value: Tensor) -> Tensor:
    """Return a tensor of the CPU with nothing else in its storage, because torch writes the whole storage."""
    return value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def check_written(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Load a file of write_nnssl() into a new network with other heads, as fine-tuning will, and compare the tensors.

    Called before the first epoch: a file that nobody can use should not cost a week of training first.

    Args:
        path: The file.
        state_dict: What was written.

    Raises:
        WeightsError: It cannot be read, does not fit, or a tensor is not what was written.
    """
    # reading.py imports this file.
    from stunet.weights.reading import read_weights
    from stunet.weights.transfer import transfer, verify

    weights = read_weights(path)
    recognised = weights.network
    arguments = {**recognised.arguments, "strides": weights.strides}
    network = recognised.architecture.build(recognised.channels, recognised.classes + 1, arguments)
    report = transfer(network, weights)
    state = network.state_dict()
    for fate in report.tensors:
        if fate.target and fate.source:
            verify(fate.target, state[fate.target].cpu(), state_dict[fate.source].detach().cpu())
