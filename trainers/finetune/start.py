"""Start a training from pre-trained weights: adapt them to the network, write them, and read them back.

`choose` reads what a user names, `preview` assesses it, `begin` loads it into a trainer.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stunet.errors import WeightsError
from stunet.files import cached_sha256_of, write_json
from stunet.labels.annotations import Annotations, complete
from stunet.labels.names import head_classes, match_classes
from stunet.networks import STUNet
from stunet.plans.resolve import resolve
from stunet.trainers.finetuned import FineTunedTrainer
from stunet.trainers.saving import LATEST
from stunet.weights.checkpoints import load_checkpoint
from stunet.weights.heads import BACKGROUND, Heads, plan_heads
from stunet.weights.reading import Weights, read_weights, unfinished
from stunet.weights.report import TransferReport
from stunet.weights.transfer import transfer

log = logging.getLogger("stunet")
REPORT = "transfer_report.json"
NAME_LENGTH = 24  # of the part of the plans' name that comes from a file's name


@dataclass(frozen=True)
class Start:
    """Weights to start from: the SHA-256 of their file, and what happens to their heads."""

    weights: Weights
    sha256: str
    heads: Heads

    def block(self, of_file: bool) -> dict[str, Any]:
        """Return the plan's record of them; `of_file`: the user named a file, of which others may share the name.

        If the head is used whole, its classes are included: annotations.py derives the trained ones from them.
        """
        name = self.weights.entry
        if name is None:
            trained_on = re.fullmatch(r"Dataset\d{3}_(.+)", str((self.weights.plans or {}).get("dataset_name")))
            stem = re.sub(r"[^A-Za-z0-9]+", "", trained_on[1] if trained_on else self.weights.path.stem)
            name = stem[:NAME_LENGTH] or "weights"
        if of_file:
            name = f"{name}.{self.sha256[:6]}"
        block = {"name": name, "sha256": self.sha256, "head": self.heads.mode}
        if self.heads.mode != "reuse":
            return block
        return {**block, "classes": [name for name in self.weights.classes or () if name != BACKGROUND]}


def choose(
    path: Path, head: str | None, dataset_json: Mapping[str, Any], annotations: Annotations | None = None
) -> Start:
    """Return the weights in a file or model folder.

    Args:
        path: The result of store.find_model().
        head: "reuse", "slice", "reset", or None for what suits the classes.
        dataset_json: nnU-Net's description of the dataset to train on.
        annotations: The dataset's annotations, if its cases annotate different classes.

    Raises:
        WeightsError: The file cannot be read, or holds another network.
        DataError: The classes of the dataset cannot be expressed in those of the weights.
    """
    weights = read_weights(path)
    _warn(unfinished(path))
    sha256 = cached_sha256_of(weights.path)
    if head == "reuse" and weights.classes:
        annotations = annotations or complete(dataset_json, ())
        if any(row.sources for row in match_classes(annotations.leaves, weights.classes)):
            annotations = annotations.onto([name for name in weights.classes if name != BACKGROUND])
    if annotations is not None:
        dataset_json = annotations.model_description(dataset_json)
    return Start(weights, sha256, plan_heads(head, weights, head_classes(dataset_json["labels"])))


@lru_cache
def _warn(what: str | None) -> None:
    """Log a warning once, however often the weights are examined."""
    if what:
        log.warning(what)


def preview(
    path: Path, plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> TransferReport:
    """Return what begin() will report; reads the weights and assesses them on a network without memory.

    Raises:
        WeightsError: As for begin().
    """
    planned = resolve(plans, configuration)
    classes, images = head_classes(dataset_json["labels"]), len(_channels(dataset_json))
    foreground = len(classes) - ("background" in classes)
    one_hot = foreground if "previous_stage" in planned else 0
    with torch.device("meta"):
        network = STUNet(images + one_hot, len(classes), **planned["architecture"]["arch_kwargs"])
    return _load(network, path, plans, configuration, dataset_json, load=False)


def begin(trainer: FineTunedTrainer, path: Path) -> TransferReport:
    """Start a trainer from the weights that its plan names; write the report and a first checkpoint to its folder.

    Raises:
        WeightsError: The file is not the one that the plan names, does not fit the network, or was not read back from
            the first checkpoint unchanged.
    """
    trainer.initialize()
    plans = trainer.plans_manager.plans
    network = trainer.new_network() if trainer.fsdp else trainer.bare_network()
    report = _load(network, path, plans, trainer.configuration_name, trainer.dataset_json)
    if trainer.fsdp:
        FineTunedTrainer.load_network_state(trainer, network.state_dict(), {})  # weights only, not a checkpoint
    trainer.start_with(report.fresh)
    if trainer.local_rank == 0:
        write_json(Path(trainer.output_folder) / REPORT, report.to_json())
    if not trainer.disable_checkpointing:
        _write_and_read_back(trainer)
    return report


def _load(
    network: STUNet,
    path: Path,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    load: bool = True,
) -> TransferReport:
    start = choose(path, None, dataset_json)
    planned = plans["stunet"]["weights"]
    if start.sha256 != planned["sha256"]:
        raise WeightsError(
            f"{str(path)!r} is not the file that the plan starts from: SHA-256 {start.sha256[:12]}..., "
            f"not {planned['sha256'][:12]}...",
            "give the file that the plan was derived with",
        )
    channels = _channels(dataset_json)
    planned_for = resolve(plans, configuration)
    return transfer(
        network,
        start.weights,
        classes=head_classes(dataset_json["labels"]),
        channels=channels,
        cascade_channels=network.input_channels - len(channels),
        head=None if planned["head"] == start.heads.mode else planned["head"],  # with None the report gives the reason
        sha256=planned["sha256"],
        normalization=planned_for["normalization_schemes"],
        intensities=plans.get("foreground_intensity_properties_per_channel"),
        spacing=planned_for["spacing"],
        load=load,
    )


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def _write_and_read_back(trainer: FineTunedTrainer) -> None:
    """Write the first checkpoint and check it: from then on a run can be resumed without the file it started from."""
    path = Path(trainer.output_folder) / LATEST
    trainer.current_epoch -= 1  # save_checkpoint counts the running epoch as done
    trainer.save_checkpoint(str(path))
    trainer.current_epoch += 1
    state = trainer.network_state()
    written = load_checkpoint(path)["network_weights"] if trainer.local_rank == 0 else state
    for name, value in state.items():
        if name not in written or not torch.equal(written[name].cpu(), value.cpu()):
            raise WeightsError(f"{name!r} in {str(path)!r} is not what was loaded", "see whether the disk is sound")
