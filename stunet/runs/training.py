"""Train: what is asked for, what has to be right before a training starts, and what comes of it.

plan_choice.py chooses plans and weights, readiness.py and memory_check.py check data and memory, launch.py starts the
processes. torch is imported only once the request is known to be sound.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import nnunet, workspace
from stunet.errors import DataError, UsageError, closest, first_few
from stunet.files import json_differences
from stunet.folds import ALL
from stunet.kinds import SUMMARY, has_classes, mean_dice, read, read_dataset_json
from stunet.plans.blueprints import blueprints
from stunet.plans.files import list_plans, read_plan
from stunet.plans.plan import ENCODER_ALONE, INFLATIONS, TRANSFERS, WHOLE, Plan
from stunet.plans.settings import OF_PRETRAINING
from stunet.runs.devices import choose_device
from stunet.runs.execution import (
    Procedure,
    check_fsdp,
    check_network,
    check_options,
    check_shares,
    check_ways,
    conclude,
    execute,
    headline,
    warn_of_seen,
)
from stunet.runs.listener import Listener
from stunet.runs.plan_choice import Choice, choose_plans, choose_trainer
from stunet.runs.trackers import check_trackers, named
from stunet.sizes import SIZES
from stunet.trainers.lookup import check_trainer

if TYPE_CHECKING:
    from stunet.runs.launch import Run

HEAD_MODES = ("reuse", "slice", "reset")


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A training of one fold: the options of stunet_train, with their defaults.

    Args:
        dataset: Number or name; None: the only dataset that is planned.
        configuration: Key of the plans' configurations.
        fold: Number of the cross-validation fold, or "all".
        trainer: Name of the trainer class; None: the one that the data need.
        plans: Name of the plans; None: those of the dataset.
        name: Of the run: the plans are called PLANS-NAME; None: after what differs from the dataset's plans.
        size: T, S, B, L or H; None: that of the plans, or of the weights. Other plans are derived as needed.
        network: "stunet-b", "plain", "resenc-l", ... (plans/blueprints.py); None: that of the plans, or of the weights.
            Other plans are derived as needed.
        stages: Number of stages, 2 to 9, or "auto"; None: as planned.
        gpu_memory_target: GPU memory in GiB that plans are derived for; None: as planned.
        preset: Name or .toml file of a preset, for size, memory and values.
        set: Values of the run, such as {"num_epochs": 250}; plans/settings.py lists them.
        pretrained: Weights to start from: the name of a model, a file, or a folder; or several of these, one for each
            encoder of the network.
        finetune: Name of a strategy; None: "ramp" with weights.
        head: What becomes of the pre-trained head: "reuse", "slice" or "reset"; None: "slice" if any class is known.
        transfer: What of the weights is taken: "encoder" (and stem) or "all"; None: all, or what their pretext says.
        inflate: How 2D weights become 3D ones: "centre" or "average"; None: they do not.
        pretrained_weights: As in nnU-Net: weights with its schedule and a new head.
        num_gpus: GPUs of this machine, or processes on the CPU.
        fsdp: Shard the network over the processes (FSDP2) instead of copying it (DDP).
        device: "cuda", "cpu" or "mps"; None: cuda where there is one, else cpu.
        npz: Also save the validation's probabilities.
        resume: Continue from the latest checkpoint (`--c`).
        val: Validate only.
        val_best: Validate with the best checkpoint instead of the final one.
        disable_checkpointing: Write no checkpoints.
        overwrite: Start from the beginning although the fold was trained before.
        accept_licence: Accept the licence of weights that have to be downloaded and may not be used commercially.
        log: Where it is followed besides the fold's folder: "tensorboard", "mlflow", "wandb".
        dry_run: Check everything, tell the listener what would be trained, and write nothing.
    """

    dataset: int | str | None = None
    configuration: str = "3d_fullres"
    fold: int | str = 0
    trainer: str | None = None
    plans: str | None = None
    name: str | None = None
    size: str | None = None
    network: str | None = None
    stages: int | str | None = None
    gpu_memory_target: float | None = None
    preset: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | Path | Sequence[str | Path] | None = None
    finetune: str | None = None
    head: str | None = None
    transfer: str | None = None
    inflate: str | None = None
    pretrained_weights: str | Path | None = None
    num_gpus: int = 1
    fsdp: bool = False
    device: str | None = None
    npz: bool = False
    resume: bool = False
    val: bool = False
    val_best: bool = False
    disable_checkpointing: bool = False
    overwrite: bool = False
    accept_licence: bool = False
    log: str | Sequence[str] | None = None
    dry_run: bool = False

    @property
    def sources(self) -> list[str]:
        """All that is given as weights to start from."""
        given = self.pretrained or self.pretrained_weights or []
        return [str(given)] if isinstance(given, str | Path) else list(map(str, given))

    @property
    def needs_weights(self) -> bool:
        """Whether it starts from the weights: the checkpoints of what is continued or validated have all it needs."""
        return not (self.resume or self.val)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A validated training, or what a dry run would train.

    Attributes:
        dataset: Full name.
        configuration: Key of the plans' configurations.
        fold: Number, or "all".
        folder: The fold's folder, with checkpoints, log and validation.
        plan: The plan that was used.
        checkpoint: The finished network; None if none was written.
        metrics: Content of the validation's summary.json; None after a dry run, and in processes of torchrun other
            than the first one.
    """

    dataset: str
    configuration: str
    fold: int | str
    folder: Path
    plan: Plan
    checkpoint: Path | None
    metrics: Mapping[str, Any] | None

    @property
    def model(self) -> Path:
        """The model folder, which predict() takes; it holds the folds."""
        return self.folder.parent

    @property
    def dice(self) -> float:
        """The mean validation Dice over the classes that occur; NaN if none does, or without metrics."""
        return math.nan if self.metrics is None else mean_dice(self.metrics)


def train(request: TrainingRequest, listener: Listener | None = None, resume_if_begun: bool = False) -> TrainingResult:
    """Check, train and validate; in this process and its children, or as one of torchrun's processes.

    Args:
        request: What to train.
        listener: Told what happens.
        resume_if_begun: Continue where the fold has a checkpoint, and start from the beginning where it has none.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: Something is missing, or not what it was when the data were made; or the fold was trained before.
        WeightsError: Weights cannot be read, or do not fit.
        OutOfMemoryError: A step does not fit into the memory.
        FoldInUse: Another process trains the same fold.
        Interrupted: A signal stopped the training, which can be resumed.
    """
    listener = listener or Listener()
    _check(request)
    procedure = Procedure(prepare, remaining, _finished, lambda run: _result(run, metrics=None))
    return execute(procedure, request, listener, resume_if_begun)


def prepare(request: TrainingRequest, listener: Listener, resume_if_begun: bool = False) -> "Run":
    """Return the run that a request means, after checking that it can start; write its plans if they are new.

    Args:
        request: What to train.
        listener: Told what will be trained.
        resume_if_begun: Continue where there is a checkpoint, whatever is asked for.
    """
    for variable in ("nnUNet_results", "nnUNet_preprocessed"):
        workspace.folder(variable)
    dataset, configuration, fold = _dataset(request.dataset), request.configuration, request.fold
    _check_labelled(dataset)
    choice = choose_plans(dataset, request, listener)
    plan = choice.plan
    if plan.pretext:
        raise UsageError(f"plans {plan.name!r} are those of a pre-training", f"-p {plan.root}, or stunet_pretrain")
    _check_augmentation(plan)

    from stunet.plans.check import check_plan
    from stunet.preprocessing.folds import find_fold
    from stunet.runs.launch import continued, starting_point
    from stunet.runs.readiness import check_data

    resolved = check_plan(plan, configuration)
    nnunet.check_nnunet()
    nnunet.limit_processes()
    trainer = choose_trainer(dataset, plan, request.trainer, listener)
    for warning in check_data(dataset, plan, configuration, fold, trainer):
        listener.warn(warning)
    check_shares(resolved.batch_size, request.num_gpus, plan.train.accumulation)
    from stunet.runs.memory_check import check_memory

    run = _run(dataset, choice, trainer, request)
    if run.fsdp:
        check_fsdp(run)
    if resume_if_begun:
        run = continued(run)
    else:  # raises if a training would be overwritten unasked
        # A dry run overwrites nothing, so it may show what a trained fold would do.
        begun = starting_point(replace(run, overwrite=request.overwrite or request.dry_run))
        if begun and begun.parent != run.folder:
            listener.note(f"goes on with the training of nnUNetv2_train in {str(begun)!r}, which stays as it is")
    check_memory(run, resolved)
    _describe(run, listener)
    if fold != ALL and (cases := find_fold(dataset, plan, configuration, fold)):
        way = "give weights that were trained without the validation cases of this fold"
        warn_of_seen(run, {dataset: cases.val}, way, listener)
    conclude(run, choice, request.dry_run, listener)
    return run


def _check(request: TrainingRequest) -> None:
    """Reject values that are out of range and options that contradict each other, before anything is read.

    Raises:
        UsageError: The first problem.
    """
    for option, value, known in (
        ("--size", request.size, SIZES),
        ("--network", request.network, blueprints()),
        ("--head", request.head, HEAD_MODES),
        ("--transfer", request.transfer, TRANSFERS),
        ("--inflate", request.inflate, INFLATIONS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{option} {value!r}{closest(str(value), list(known))}", f"one of {', '.join(known)}")
    if request.fold != "all" and (type(request.fold) is not int or request.fold < 0):
        raise UsageError(f"fold {request.fold!r} is neither a number nor 'all'", "stunet_train 3 3d_fullres 0")
    if request.resume + request.val + request.overwrite > 1:
        raise UsageError("--c, --val and --overwrite exclude each other", "one of them")
    if request.val_best and request.disable_checkpointing:
        raise UsageError("--val_best needs the checkpoints that --disable_checkpointing leaves out", "one of them")
    if request.pretrained_weights and (request.pretrained or request.finetune or request.head):
        raise UsageError(
            "-pretrained_weights is nnU-Net's way to start; --pretrained, --finetune and --head are ours", "one of them"
        )
    if request.head and not request.pretrained:
        raise UsageError("--head says what becomes of pre-trained rows, and there are none", "add --pretrained")
    check_network(request)
    check_ways(request)
    if request.transfer == ENCODER_ALONE and request.head not in (None, "reset"):
        raise UsageError(f"--head {request.head} takes pre-trained rows, and --transfer encoder none", "one of them")
    if len(request.sources) > 1 and (request.head in ("reuse", "slice") or request.transfer == WHOLE):
        option = f"--transfer {WHOLE}" if request.transfer == WHOLE else f"--head {request.head}"
        raise UsageError(f"{option}, but of several --pretrained only the encoders are taken", "leave it out")
    if request.trainer:
        check_trainer(request.trainer)
    if other := sorted(OF_PRETRAINING & request.set.keys()):
        raise UsageError(f"--set {other[0]} is a value of pre-training", "leave it out, or stunet_pretrain")
    check_options(request)
    check_trackers(request.log)


def _check_augmentation(plan: Plan) -> None:
    """Raise UsageError if the plan's way to change images is that of a pre-training, or contradicts itself."""
    augment, mirror = plan.train.augment, plan.train.mirror
    if augment == "safe":
        raise UsageError("augment=safe is for pre-training", "--set augment=standard, or none")
    if augment == "none" and mirror in ("swap", "all"):
        raise UsageError(f"augment=none mirrors nothing, and mirror={mirror} does", "--set mirror=none, or no augment")


def _dataset(given: int | str | None) -> str:
    if given is not None:
        return workspace.dataset_name(given)
    planned = [
        p.name for p in sorted(workspace.folder("nnUNet_preprocessed").glob(workspace.DATASETS)) if list_plans(p.name)
    ]
    if len(planned) == 1:
        return planned[0]
    known = f"planned: {', '.join(planned)}" if planned else "none is planned"
    raise UsageError(
        f"which dataset? {known}", "stunet_train 3 3d_fullres 0" if planned else "stunet_plan_and_preprocess -d 3"
    )


def _check_labelled(dataset: str) -> None:
    """Raise DataError if a preprocessed dataset has no classes to learn."""
    path = workspace.preprocessed_dataset(dataset) / "dataset.json"
    if path.is_file() and not has_classes(read_dataset_json(path)):
        number = workspace.dataset_number(dataset)
        raise DataError(f"{dataset} has no labels to train with", f"stunet_pretrain -d {number}, which needs none")


def _run(dataset: str, choice: Choice, trainer: str, request: TrainingRequest) -> "Run":
    from stunet.runs.launch import Run

    return Run(
        dataset=dataset,
        plan=choice.plan,
        configuration=request.configuration,
        fold=request.fold,
        trainer=trainer,
        device=choose_device(request.device),
        processes=request.num_gpus,
        resume=request.resume,
        only_validate=request.val,
        validate_best=request.val_best,
        probabilities=request.npz,
        disable_checkpointing=request.disable_checkpointing,
        start=choice.start,
        overwrite=request.overwrite,
        fsdp=request.fsdp,
        log=named(request.log),
    )


def _describe(run: "Run", listener: Listener) -> None:
    from stunet.trainers.finetune import strategies

    plan = run.plan
    listener.note(headline(run))
    if plan.finetune is None:
        return
    strategy, epochs, pretrained = strategies.find(plan.finetune), plan.train.num_epochs, bool(plan.weights)
    peak = plan.train.initial_lr
    if peak is None:
        peak = strategy.lr if pretrained else strategy.scratch_lr
    scratch = "" if pretrained else " (its schedule, without weights)"
    listener.note(f"{plan.finetune}: {strategy.title}{scratch}")
    for line in strategies.describe(strategy, epochs, peak, pretrained):
        listener.note(f"  {line}")
    if not strategies.has_ramps(strategy, epochs):
        listener.warn(f"{epochs} epochs are too few for the ramp of {plan.finetune!r}: it lasts one epoch or none")


def remaining(run: "Run", listener: Listener) -> "Run | None":
    """Return what is left to do of a run; None if its fold is trained and validated.

    Raises:
        DataError: It is trained and validated, but with other plans, cases or data than there are now.
    """
    from stunet.plans.check import training_part
    from stunet.provenance import check_result
    from stunet.runs.readiness import lacking_next_stage

    # Only --c may find that nothing is left; anything else was asked for.
    if run.only_validate or not run.resume or run.validate_best:
        return run
    if not ((run.folder / workspace.FINAL).is_file() and _summary(run).is_file()):
        return run
    before = training_part(read_plan(run.folder.parent / "plans.json"), run.configuration)
    changed = json_differences(before, training_part(run.plan, run.configuration), run.plan.name)
    reasons = [f"with other plans than today's ({first_few(changed)})"] if changed else check_result(run.folder)
    if reasons:
        hint = "--val to validate it again, where its training cases are the same; --overwrite to train from scratch"
        raise DataError(f"this fold is trained and validated, but {reasons[0]}", hint)
    if lacking := lacking_next_stage(run.dataset, run.plan, run.configuration, run.fold, run.folder.parent):
        listener.note(f"this fold is trained; it is validated again, because {lacking}")
        return replace(run, resume=False, only_validate=True)
    listener.note("this fold is trained and validated; nothing to do")
    return None


def _finished(run: "Run", request: TrainingRequest, listener: Listener) -> TrainingResult:
    """Return the result of a run, and tell the listener of it."""
    if request.dry_run:
        return _result(run, metrics=None)
    result = _result(run, read(_summary(run), SUMMARY))
    listener.trained(result)
    return result


def _result(run: "Run", metrics: Mapping[str, Any] | None) -> TrainingResult:
    checkpoint = run.folder / workspace.FINAL
    return TrainingResult(
        dataset=run.dataset,
        configuration=run.configuration,
        fold=run.fold,
        folder=run.folder,
        plan=run.plan,
        checkpoint=checkpoint if checkpoint.is_file() else None,
        metrics=metrics,
    )


def _summary(run: "Run") -> Path:
    return run.folder / "validation" / "summary.json"
