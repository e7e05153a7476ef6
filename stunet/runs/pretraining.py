"""Pre-train: what is asked for, what has to be right before it starts, and what comes of it.

The counterpart of training.py for images without labels, or whose labels are ignored. plan_choice.py derives the plans,
execution.py starts it. torch is imported only once the request is known to be sound.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import nnunet, workspace
from stunet.datasets.scan_names import HELD_OUT
from stunet.errors import DataError, UsageError, closest, first_few
from stunet.folds import ALL
from stunet.kinds import LEFT_OUT, PRETRAINING, read
from stunet.plans.blueprints import blueprints
from stunet.plans.plan import INFLATIONS, TRANSFERS, Plan
from stunet.plans.settings import AUGMENT, OF_TRAINING
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
from stunet.runs.listener import Listener, Progress
from stunet.runs.plan_choice import Choice, choose_pretraining_plans
from stunet.runs.trackers import check_trackers, named
from stunet.sizes import SIZES
from stunet.trainers.pretexts import methods

if TYPE_CHECKING:
    from stunet.preprocessing.scans import Scan
    from stunet.runs.launch import Run
    from stunet.trainers.data.sources import Source

WORKERS = 4  # processes that read scans, each of which holds one
SMALL = "smaller than the patch"


@dataclass(frozen=True, kw_only=True)
class PretrainingRequest:
    """A self-supervised pre-training: the options of stunet_pretrain, with their defaults.

    Args:
        dataset: Number or name, or several: the first one's plans are used, and the others are preprocessed like it.
        method: Name of the method (trainers/pretexts/methods.py); None: that of the plans, or "mae".
        configuration: Key of the plans' configurations.
        plans: Name of the plans; None: those of the dataset.
        name: Of the run: the plans are called PLANS-NAME; None: after what differs from the dataset's plans.
        like: The dataset, or `3:PLANS`, whose input and patch the plans must have; None: whatever they have.
        size: T, S, B, L or H; None: that of the plans. Other plans are derived as needed.
        network: "stunet-b", "plain", "resenc-l", ... (plans/blueprints.py); None: that of the plans, or of the weights.
            Other plans are derived as needed.
        stages: Number of stages, 2 to 9, or "auto"; None: as planned.
        gpu_memory_target: GPU memory in GiB that plans are derived for; None: as planned.
        preset: Name or .toml file of a preset, for size, memory and values.
        set: Values of the run, such as {"num_epochs": 250}; plans/settings.py lists them.
        pretrained: Weights to start from: the name of a model, a file, or a folder; None: a random network.
        transfer: What of the weights is taken: "encoder" (and stem) or "all"; None: all, or what their pretext says.
        inflate: How 2D weights become 3D ones: "centre" or "average"; None: they do not.
        augment: How strongly images are changed: "standard", "safe" or "none"; None: "standard".
        skip_bad: Leave out scans that cannot be used: broken, constant, or smaller than the patch.
        num_gpus: GPUs of this machine, or processes on the CPU.
        fsdp: Shard the network over the processes (FSDP2) instead of copying it (DDP).
        device: "cuda", "cpu" or "mps"; None: cuda where there is one, else cpu.
        resume: Continue from the latest checkpoint (`--c`).
        disable_checkpointing: Write no checkpoints.
        overwrite: Start from the beginning although it was trained before.
        accept_licence: Accept the licence of weights that have to be downloaded and may not be used commercially.
        log: Where it is followed besides the fold's folder: "tensorboard", "mlflow", "wandb".
        dry_run: Check everything, tell the listener what would be trained, and write nothing.
    """

    dataset: int | str | Sequence[int | str]
    method: str | None = None
    configuration: str = "3d_fullres"
    plans: str | None = None
    name: str | None = None
    like: int | str | None = None
    size: str | None = None
    network: str | None = None
    stages: int | str | None = None
    gpu_memory_target: float | None = None
    preset: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | Path | None = None
    transfer: str | None = None
    inflate: str | None = None
    augment: str | None = None
    skip_bad: bool = False
    num_gpus: int = 1
    fsdp: bool = False
    device: str | None = None
    resume: bool = False
    disable_checkpointing: bool = False
    overwrite: bool = False
    accept_licence: bool = False
    log: str | Sequence[str] | None = None
    dry_run: bool = False

    @property
    def datasets(self) -> list[int | str]:
        """The datasets, as they are given."""
        return [self.dataset] if isinstance(self.dataset, int | str) else list(self.dataset)

    @property
    def sources(self) -> list[str]:
        """All that is given as weights to start from: one, or none."""
        return [str(self.pretrained)] if self.pretrained else []

    @property
    def needs_weights(self) -> bool:
        """Whether it starts from the weights: the checkpoints of what is continued have all it needs."""
        return not self.resume


@dataclass(frozen=True, kw_only=True)
class PretrainingResult:
    """A finished pre-training, or what a dry run would train.

    Attributes:
        dataset: Full name of the first dataset.
        configuration: Key of the plans' configurations.
        method: Name of the method.
        folder: The folder with checkpoints, log and summary.
        plan: The plan that was used.
        checkpoint: The pre-trained network; None if none was written.
        metrics: Content of pretraining.json: chance level, and loss and measure per epoch on held-out subjects; None
            after a dry run, and in processes of torchrun other than the first one.
    """

    dataset: str
    configuration: str
    method: str
    folder: Path
    plan: Plan
    checkpoint: Path | None
    metrics: Mapping[str, Any] | None

    @property
    def model(self) -> Path:
        """The model folder, which train() takes as `pretrained`."""
        return self.folder.parent

    @property
    def measure(self) -> float:
        """The method's measure on held-out subjects after the last epoch; NaN without metrics."""
        values = self.metrics["val_measures"] if self.metrics else []
        return float(values[-1]) if values else math.nan


def pretrain(
    request: PretrainingRequest, listener: Listener | None = None, resume_if_begun: bool = False
) -> PretrainingResult:
    """Check and pre-train; in this process and its children, or as one of torchrun's processes.

    Args:
        request: What to train.
        listener: Told what happens.
        resume_if_begun: Continue where there is a checkpoint, and start from the beginning where there is none.

    Raises:
        UsageError: Options contradict each other, or the plan does not suit the method.
        DataError: Something is missing, or not what it was when the data were made; scans cannot be used; or it was
            trained before.
        WeightsError: The checkpoint to continue from is of another method or network; weights to start from cannot be
            read, or do not fit.
        OutOfMemoryError: A step does not fit into the memory.
        FoldInUse: Another process trains the same.
        Interrupted: A signal stopped the training, which can be resumed.
    """
    listener = listener or Listener()
    _check(request)
    procedure = Procedure(prepare, remaining, _finished, lambda run: _result(run, metrics=None))
    return execute(procedure, request, listener, resume_if_begun)


def prepare(request: PretrainingRequest, listener: Listener, resume_if_begun: bool = False) -> "Run":
    """Return the run that a request means, after checking that it can start; write its plans if they are new.

    Args:
        request: What to train.
        listener: Told what will be trained.
        resume_if_begun: Continue where there is a checkpoint, whatever is asked for.
    """
    for variable in ("nnUNet_results", "nnUNet_preprocessed"):
        workspace.folder(variable)
    dataset = workspace.dataset_name(request.datasets[0])
    choice = choose_pretraining_plans(dataset, request, listener)
    plan = choice.plan

    from stunet.plans.check import check_plan
    from stunet.preprocessing.checks import check_data
    from stunet.runs.launch import checkpoints, continued, starting_point

    resolved = check_plan(plan, request.configuration)
    if resolved.previous_stage:
        raise UsageError(f"{request.configuration} takes labels, which a pre-training does without", "-c 3d_fullres")
    nnunet.check_nnunet()
    nnunet.limit_processes()
    from stunet.trainers.data.sources import channel_warnings, sources_of, split

    sources = sources_of(plan, request.configuration)
    for warning in channel_warnings(sources):
        listener.warn(warning)
    for source in sources:
        for warning in check_data(source.dataset, source.plan, request.configuration, subjects=True):
            listener.warn(warning)
    check_shares(resolved.batch_size, request.num_gpus, plan.train.accumulation)
    from stunet.runs.memory_check import check_memory
    from stunet.trainers.pretexts.checks import check_method

    check_method(plan, request.configuration, len(resolved.normalization))
    run = _run(dataset, choice, request)
    if run.fsdp:
        check_fsdp(run)
    if resume_if_begun:
        run = continued(run)
    else:  # raises if a training would be overwritten unasked
        # A dry run overwrites nothing, so it may show what a finished run would do.
        starting_point(replace(run, overwrite=request.overwrite or request.dry_run))
    check_memory(run, resolved)
    goes_on = run.resume and bool(checkpoints(run))
    run = replace(run, left_out=_stored(run) if goes_on else _unusable(run, sources, request, listener))
    # Raises if a dataset has no subject to hold out.
    train, held_out = split(sources, run.configuration, plan.train.seed, run.left_out)
    listener.note(headline(run))
    listener.note(f"{len(train)} scans to train on, {len(held_out)} of held-out subjects")
    if len(held_out) > max(len(sources), HELD_OUT * (len(train) + len(held_out))):
        whose = "with few subjects, or one of many scans"
        listener.warn(f"more than {HELD_OUT:.0%} of the scans are held out, {whose}: see `subjects` in dataset.json")
    if run.left_out:
        listener.note(f"without {len(run.left_out)} scans: {_listed(run.left_out)}")
    cases = {
        source.dataset: [case.removeprefix(source.prefix) for case in held_out if case.startswith(source.prefix)]
        for source in sources
    }
    warn_of_seen(run, cases, "give the datasets, --set seed and --skip_bad of that training", listener)
    conclude(run, choice, request.dry_run, listener)
    return run


def _check(request: PretrainingRequest) -> None:
    """Reject values that are out of range and options that contradict each other, before anything is read.

    Raises:
        UsageError: The first problem.
    """
    if not request.datasets:
        raise UsageError("no dataset", "stunet_pretrain -d 50")
    known: tuple[tuple[str, str | None, Any], ...] = (
        ("--size", request.size, SIZES),
        ("--network", request.network, blueprints()),
        ("--augment", request.augment, AUGMENT),
        ("--transfer", request.transfer, TRANSFERS),
        ("--inflate", request.inflate, INFLATIONS),
    )
    for option, value, values in known:
        if value is not None and value not in values:
            raise UsageError(f"{option} {value!r}{closest(str(value), list(values))}", f"one of {', '.join(values)}")
    if request.resume and request.overwrite:
        raise UsageError("--c and --overwrite exclude each other", "one of them")
    if request.augment and "augment" in request.set:
        raise UsageError("--augment is given twice, once with --set", "one of them")
    if other := sorted(OF_TRAINING & request.set.keys()):
        raise UsageError(f"--set {other[0]} has no meaning in a pre-training", "leave it out")
    if request.method:
        methods.find(request.method)
    check_network(request)
    check_ways(request)
    check_options(request)
    check_trackers(request.log)


def _run(dataset: str, choice: Choice, request: PretrainingRequest) -> "Run":
    from stunet.runs.launch import Run

    return Run(
        dataset=dataset,
        plan=choice.plan,
        configuration=request.configuration,
        fold=ALL,
        trainer=workspace.PRETRAINER,
        device=choose_device(request.device),
        processes=request.num_gpus,
        resume=request.resume,
        disable_checkpointing=request.disable_checkpointing,
        start=choice.start,
        overwrite=request.overwrite,
        fsdp=request.fsdp,
        log=named(request.log),
    )


def _unusable(
    run: "Run", sources: "Sequence[Source]", request: PretrainingRequest, listener: Listener
) -> dict[str, str]:
    """Return the scans that cannot be used, with the reason.

    Raises:
        DataError: There are some, and they shall not be skipped; or a dataset has no others.
    """
    from stunet.preprocessing.scans import look_at_scans

    planned = run.plan.configuration(run.configuration)
    patch, channels = planned.patch_size, len(planned.normalization)
    unusable: dict[str, str] = {}
    for source in sources:
        with listener.progress(f"check the scans of {source.dataset}", 0) as progress:

            def step(name: str, scans: int, progress: Progress = progress) -> None:
                progress.total = scans
                progress.step(name)

            workers = min(WORKERS, os.cpu_count() or 1)
            keeps = not request.dry_run
            scans = look_at_scans(source.dataset, source.plan, run.configuration, workers, step, keeps)
        bad = {case: why for case, scan in scans.items() if (why := scan.unusable(patch, channels))}
        if len(bad) == len(scans):
            what = f"no scan of {source.dataset} can be used: {_listed(bad)}"
            raise DataError(what, _remedy(bad, list(scans.values()), run, skips=False))
        if bad and not request.skip_bad:
            what = f"{len(bad)} of {len(scans)} scans of {source.dataset} cannot be used: {_listed(bad)}"
            raise DataError(what, _remedy(bad, list(scans.values()), run, skips=True))
        unusable |= {f"{source.prefix}{case}": why for case, why in bad.items()}
    return unusable


def _remedy(bad: Mapping[str, str], scans: "Sequence[Scan]", run: "Run", skips: bool) -> str:
    """Return the next step where scans cannot be used: a patch that most of them contain, or to skip them."""
    from stunet.plans.contained import largest_contained
    from stunet.plans.topology import round_down, rule_for

    planned = run.plan.configuration(run.configuration)
    small = [case for case, why in bad.items() if SMALL in why]
    steps = ["--skip_bad goes on without them"] if skips else []
    if small:
        shapes = [scan.shape[-len(planned.patch_size) :] for scan in scans if not scan.problem]
        contained = [min(sizes) for sizes in zip(planned.patch_size, largest_contained(shapes), strict=True)]
        # Networks without sizes keep their strides, whatever the patch.
        rule = rule_for(False, None if "size" in planned.network_arguments else planned.strides)
        size, _ = round_down(contained, planned.spacing, len(planned.strides), rule)
        patch = ",".join(map(str, size))
        steps.insert(0, f"--set patch_size=[{patch}], which most of them contain")
    return "; or ".join(steps) or "look at these files, and preprocess them again"


def _stored(run: "Run") -> dict[str, str]:
    """Return the scans that the run left out when it began."""
    from stunet.runs.launch import LEFT_OUT_FILE

    path = run.folder / LEFT_OUT_FILE
    return dict(read(path, LEFT_OUT)) if path.is_file() else {}


def _listed(bad: Mapping[str, str]) -> str:
    return first_few([f"{case!r} {why}" for case, why in sorted(bad.items())])


def remaining(run: "Run", listener: Listener) -> "Run | None":
    """Return what is left to do of a run; None if it is finished."""
    if run.resume and (run.folder / workspace.FINAL).is_file() and (run.folder / workspace.PRETRAINING).is_file():
        listener.note("this pre-training is finished; nothing to do")
        return None
    return run


def _finished(run: "Run", request: PretrainingRequest, listener: Listener) -> PretrainingResult:
    """Return the result of a run, and tell the listener of it."""
    if request.dry_run:
        return _result(run, metrics=None)
    result = _result(run, read(run.folder / workspace.PRETRAINING, PRETRAINING))
    listener.pretrained(result)
    return result


def _result(run: "Run", metrics: Mapping[str, Any] | None) -> PretrainingResult:
    checkpoint = run.folder / workspace.FINAL
    return PretrainingResult(
        dataset=run.dataset,
        configuration=run.configuration,
        method=run.plan.pretext or "",
        folder=run.folder,
        plan=run.plan,
        checkpoint=checkpoint if checkpoint.is_file() else None,
        metrics=metrics,
    )
