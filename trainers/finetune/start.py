"""Start a training or pre-training from weights: adapt them to the network, write them, and read them back.

A Start is what a user names. It is read once in each process: `choose_heads` and `plan_entry` serve the plan, `preview`
says what will be loaded before anything is written, and `start_from_weights` loads it into a trainer. Read next:
finetuning.py; joint.py for networks with several encoders.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stunet import architectures
from stunet.errors import WeightsError
from stunet.files import sha256_of, write_json
from stunet.labels.annotations import Annotations, complete_annotations
from stunet.labels.names import head_classes, match_classes
from stunet.plans.blueprints import Blueprint
from stunet.plans.check import check_plan
from stunet.plans.plan import Plan, StartingWeights
from stunet.trainers.trainer import BaseTrainer
from stunet.weights.blueprint import blueprint_of
from stunet.weights.changes import changes
from stunet.weights.checkpoints import load_checkpoint
from stunet.weights.heads import BACKGROUND, Heads, plan_heads
from stunet.weights.reading import Weights, read_weights, unfinished
from stunet.weights.report import JointReport, TransferReport
from stunet.weights.transfer import Transfer, decide
from stunet.workspace import LATEST

if TYPE_CHECKING:
    from stunet.trainers.finetune.joint import JointStart

log = logging.getLogger("stunet")
REPORT = "transfer_report.json"
NAME_LENGTH = 24  # of the part of the plans' name that comes from a file's name


class Start:
    """The weights that a training starts from, in a file or a model folder.

    Reading, hashing and judging them takes minutes of disk for gigabytes, so each is done when it is first needed, once
    per process.

    Args:
        path: The result of store.find_model().
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decided: tuple[Plan, str, Transfer] | None = None

    @cached_property
    def weights(self) -> Weights:
        """The parameters, mapped from their file, and what they mean; warns of an unfinished training.

        Raises:
            WeightsError: The file cannot be read, or holds another network.
        """
        weights = read_weights(self.path)
        if warning := unfinished(self.path):
            log.warning(warning)
        return weights

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.weights.path)

    def decide(
        self, network: torch.nn.Module, plan: Plan, configuration: str, dataset_json: Mapping[str, Any]
    ) -> Transfer:
        """Return what will be loaded into the network of a configuration, which may be on the meta device.

        Raises:
            WeightsError: The file is not the one that the plan names, or does not fit the network.
        """
        if self._decided is None or self._decided[:2] != (plan, configuration):
            if len(plan.weights) != 1:
                raise WeightsError(
                    f"one file of weights is given, and plans {plan.name!r} start from {len(plan.weights)}",
                    "as many --pretrained as the plans were derived with",
                )
            judged = judge(self, plan.weights[0], network, plan, configuration, dataset_json)
            self._decided = plan, configuration, judged
        return self._decided[2]

    def release(self) -> None:
        """Let go of the parameters, which not every kind of file lets us map: training does not need them twice."""
        # Where cached_property keeps its value.
        self.__dict__.pop("weights", None)
        self._decided = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Other processes map the file themselves: sending gigabytes of tensors takes longer. They hash it as well, as
        # on another machine it may be another file.
        return Start, (self.path,)


def choose_heads(
    start: Start,
    head: str | None,
    dataset_json: Mapping[str, Any] | None,
    annotations: Annotations | None = None,
    transfer: str | None = None,
) -> Heads:
    """Return what becomes of the weights' heads.

    Args:
        start: The weights.
        head: "reuse", "slice", "reset", or None for what suits the classes.
        dataset_json: nnU-Net's description of the dataset to train on; None: it is a pre-training, without classes.
        annotations: The dataset's annotations, if its cases annotate different classes.
        transfer: What of the weights is taken, one of TRANSFERS; None: what they say.

    Raises:
        WeightsError: The weights cannot be read.
        UsageError: The weights have no rows of classes to slice or reuse.
        DataError: The classes of the dataset cannot be expressed in those of the weights.
    """
    weights = start.weights
    if dataset_json is None:
        return plan_heads(head, weights, (), transfer)
    if head == "reuse" and weights.classes:
        annotations = annotations or complete_annotations(dataset_json, ())
        if any(row.sources for row in match_classes(annotations.leaves, weights.classes)):
            annotations = annotations.map_to_head([name for name in weights.classes if name != BACKGROUND])
    if annotations is not None:
        dataset_json = annotations.model_description(dataset_json)
    return plan_heads(head, weights, head_classes(dataset_json["labels"]), transfer)


def plan_entry(
    start: Start,
    heads: Heads,
    *,
    is_file: bool,
    transfer: str | None = None,
    inflate: str | None = None,
    length: int = NAME_LENGTH,
) -> StartingWeights:
    """Return the weights as a plan names them.

    If the head is used whole, its classes are included: annotations.py derives the trained ones from them.

    Args:
        start: The weights.
        heads: The result of choose_heads().
        is_file: The user named a file, of which others may share the name.
        transfer: What of the weights is taken, one of TRANSFERS; None: what they say.
        inflate: How 2D weights become 3D ones, one of INFLATIONS.
        length: Of the part of the name that comes from a file's name.
    """
    weights, name = start.weights, name_of(start, is_file, length)
    whole = [name for name in weights.classes or () if name != BACKGROUND] if heads.mode == "reuse" else None
    # What the weights say anyway is left out, so that the same training has the same plan, asked for or not.
    unusual = None if transfer == weights.transfers else transfer
    return StartingWeights(name, start.sha256, heads.mode, whole, weights.pretext, unusual, inflate)


def name_of(start: Start, is_file: bool, length: int = NAME_LENGTH) -> str:
    """Return the name of weights as part of a plan's name; the arguments are those of plan_entry()."""
    weights, name = start.weights, start.weights.entry
    if name is None:
        trained_on = re.fullmatch(r"Dataset\d{3}_(.+)", weights.plan.dataset_name if weights.plan else "")
        stem = re.sub(r"[^A-Za-z0-9]+", "", trained_on[1] if trained_on else weights.path.stem)
        name = stem[:length] or "weights"
    return f"{name}.{start.sha256[:6]}" if is_file else name


def other_network(start: Start, plan: Plan, configuration: str) -> Blueprint | None:
    """Return the weights' network, with their strides, if they do not fit a plan's, which then has to take it.

    None also for another size of STU-Net, which plans derive by its name, and for weights of another number of axes.

    Raises:
        WeightsError: The weights cannot be read.
        DataError: The plan lacks the configuration, or it is inconsistent.
    """
    planned = check_plan(plan, configuration)
    given, own = start.weights.network, architectures.of_class(planned.network_class, configuration)
    sized = "size" in given.architecture.required
    if given.ndim != len(planned.spacing) or (sized and (plan.size or not given.size)):
        return None
    if own is given.architecture:
        with torch.device("meta"):
            network = own.build(given.channels, given.classes or 1, planned.network_arguments)
        shapes = {own.canonical(name): tuple(value.shape) for name, value in network.state_dict().items()}
        if own.difference(given, own.recognise(shapes)) is None:
            return None
    return blueprint_of(start.weights)


def preview(
    start: "Start | JointStart", plan: Plan, configuration: str, dataset_json: Mapping[str, Any]
) -> TransferReport | JointReport:
    """Return what start_from_weights() will report; the weights are judged on a network without memory.

    Raises:
        WeightsError: As for start_from_weights().
    """
    planned = plan.configuration(configuration)
    classes, images = _classes(plan, dataset_json), len(_channels(dataset_json))
    one_hot = _foreground_labels(dataset_json["labels"]) if planned.previous_stage else 0
    architecture = architectures.of_class(planned.network_class)
    with torch.device("meta"):
        # A pre-training's network has as many rows as the images have channels.
        network = architecture.build(images + one_hot, len(classes) or images, planned.network_arguments)
    return start.decide(network, plan, configuration, dataset_json).report


def start_from_weights(trainer: BaseTrainer, start: "Start | JointStart") -> TransferReport | JointReport:
    """Start a trainer from the weights that its plan names; write the report and a first checkpoint to its folder.

    Raises:
        WeightsError: The file is not the one that the plan names, does not fit the network, or was not read back from
            the first checkpoint unchanged.
    """
    trainer.initialize()
    # Tensors are matched and copied whole: a sharded network is filled from a full one.
    network = trainer.new_network() if trainer.fsdp else trainer.bare_network()
    decision = start.decide(network, trainer.plan, trainer.configuration_name, trainer.dataset_json)
    decision.load(network)
    report = decision.report
    if trainer.fsdp:
        trainer.load_weights(network.state_dict())
    # After loading: adapters go on pre-trained weights, and the optimizer is made for the parameters there are then.
    trainer.start_from(report.fresh)
    if trainer.local_rank == 0:
        write_json(Path(trainer.output_folder) / REPORT, report.to_json())
    if not trainer.disable_checkpointing:
        _write_and_read_back(trainer)
    start.release()
    return report


def judge(
    start: Start,
    named: StartingWeights,
    network: torch.nn.Module,
    plan: Plan,
    configuration: str,
    dataset_json: Mapping[str, Any],
) -> Transfer:
    """Return what will be loaded of weights that a plan names into a network with one encoder.

    Raises:
        WeightsError: The file is not the one that the plan names, or does not fit the network.
    """
    planned = plan.configuration(configuration)
    if start.sha256 != named.sha256:
        raise WeightsError(
            f"{str(start.path)!r} is not the file that the plan starts from: SHA-256 {start.sha256[:12]}..., "
            f"not {named.sha256[:12]}...",
            "give the file that the plan was derived with",
        )
    channels, classes = _channels(dataset_json), _classes(plan, dataset_json)
    usual = choose_heads(start, None, None if plan.pretext else dataset_json, transfer=named.taken).mode
    found = decide(
        network,
        start.weights,
        classes=classes,
        channels=channels,
        # Whatever the network takes besides the image channels comes from the previous stage.
        cascade_channels=architectures.of_network(network).channels(network) - len(channels),
        head=None if named.head == usual else named.head,  # with None the report gives the reason
        sha256=named.sha256,
        normalization=planned.normalization,
        intensities=plan.intensities,
        spacing=planned.spacing,
        transposition=plan.transpose_forward,
        orientation=plan.orientation,
        arguments=planned.network_arguments,
        transfer=named.taken,
        inflate=named.inflate,
    )
    changed = () if plan.pretext else changes(start.weights, plan, configuration, classes)
    return replace(found, report=replace(found.report, changes=changed))


def _classes(plan: Plan, dataset_json: Mapping[str, Any]) -> list[str]:
    """Return the name of each row of the network's heads; a pre-training's are of no classes."""
    return [] if plan.pretext else head_classes(dataset_json["labels"])


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def _foreground_labels(labels: Mapping[str, Any]) -> int:
    """Return the number of a cascade's one-hot channels, which stand for labels also where regions are learned."""
    values = (value for name, value in labels.items() if name != "ignore")
    return len({label for value in values for label in (value if isinstance(value, list | tuple) else [value])} - {0})


def _write_and_read_back(trainer: BaseTrainer) -> None:
    """Write the first checkpoint and check it: from then on a run can be resumed without the file it started from."""
    path = Path(trainer.output_folder) / LATEST
    trainer.write_checkpoint(path, epochs=0)
    state = trainer.network_state()
    # Only the first process writes; gathering the state took all of them.
    written = load_checkpoint(path)["network_weights"] if trainer.local_rank == 0 else state
    for name, value in state.items():
        if name not in written or not torch.equal(written[name].cpu(), value.cpu()):
            raise WeightsError(f"{name!r} in {str(path)!r} is not what was loaded", "see whether the disk is sound")
