"""Execute a training or pre-training: in this process and its children, or as one of torchrun's processes.

training.py and pretraining.py say what is prepared, what is left to do, and what comes of it. torch is imported only
once the request is known to be sound.
"""

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stunet import workspace
from stunet.errors import DataError, Interrupted, UsageError
from stunet.files import write_json
from stunet.labels.annotations import describe_trained_model
from stunet.runs.devices import choose_device
from stunet.runs.listener import Listener

if TYPE_CHECKING:
    from stunet.runs.launch import Run
    from stunet.runs.plan_choice import Choice


Request = TypeVar("Request")
Result = TypeVar("Result")


class FoldInUse(DataError):
    """Another process trains the same fold.

    Args:
        message: One line: what happened.
        hint: The next step.
        lock: The file that it holds (files.is_held).
    """

    def __init__(self, message: str, hint: str, lock: Path) -> None:
        super().__init__(message, hint)
        self.lock = lock


@dataclass(frozen=True)
class Procedure(Generic[Request, Result]):
    """What differs between training and pre-training.

    Args:
        prepare: Returns the run that a request means, after checking that it can start; with True, it continues where
            there is a checkpoint.
        remaining: Returns what is left to do of a run, or None.
        finished: Returns the result of a run that is done, and tells the listener of it.
        result: Returns the result as a process sees it that does not report.
    """

    prepare: "Callable[[Request, Listener, bool], Run]"
    remaining: "Callable[[Run, Listener], Run | None]"
    finished: "Callable[[Run, Request, Listener], Result]"
    result: "Callable[[Run], Result]"


def execute(
    procedure: Procedure[Request, Result], request: Any, listener: Listener, resume_if_begun: bool = False
) -> Result:
    """Check and train; the request has been found to be consistent.

    Args:
        procedure: What differs between procedures.
        request: What to train.
        listener: Told what happens.
        resume_if_begun: Continue where the fold has a checkpoint, and start from the beginning where it has none.
    """
    # Set by torchrun.
    if {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return _execute_as_member(procedure, request, listener)
    run = procedure.prepare(request, listener, resume_if_begun)
    if not request.dry_run:
        from stunet.runs.launch import launch

        if left := procedure.remaining(run, listener):
            launch(left, listener.training)
    return procedure.finished(run, request, listener)


def _execute_as_member(procedure: Procedure[Request, Result], request: Any, listener: Listener) -> Result:
    """Train as one of torchrun's processes: the first one decides and reports, all of them train."""
    from stunet.runs.launch import join, reserved
    from stunet.trainers.distributed.group import broadcast_decision, join_group, read_member, was_restarted

    member, device = read_member(), choose_device(request.device)
    if request.num_gpus not in (1, member.size):
        what = f"-num_gpus {request.num_gpus}, but torchrun has started {member.size} processes"
        raise UsageError(what, "leave it out")
    request = replace(request, num_gpus=member.size)

    def decide() -> tuple["Run", "Run | None", Path | None]:
        # After a restart the last checkpoint is continued, whatever the options say: --overwrite would lose it.
        run = procedure.prepare(request, listener, again)
        if again:
            how = "the latest checkpoint is continued" if run.resume else "from the beginning"
            listener.note(f"started again; {how}")
        left = None if request.dry_run else procedure.remaining(run, listener)
        # Only the first process locks the fold, until all have trained it.
        return run, left, held.enter_context(reserved(left)) if left else None

    try:
        with ExitStack() as held, join_group(member, device):
            again = was_restarted(member, device)
            run, left, checkpoint = broadcast_decision(decide, member)
            if left is not None:
                join(left, checkpoint, member, listener.training)
            # Not in broadcast_decision(): measuring may take longer than a process waits for another one.
            return procedure.finished(run, request, listener) if member.leads else procedure.result(run)
    except Interrupted as error:
        if member.leads or error.__cause__ is not None:
            raise
        raise SystemExit(error.exit_code) from None  # the first process has reported it


def check_shares(batch_size: int, processes: int, accumulation: int) -> None:
    """Check that each process and micro-batch gets a sample.

    Raises:
        UsageError: The batch is too small.
    """
    if batch_size >= processes * accumulation:
        return
    parts = f" and {accumulation} parts of each one's share" if accumulation > 1 else ""
    raise UsageError(
        f"a batch of {batch_size} cannot be shared by {processes} processes{parts}",
        f"--set batch_size={processes * accumulation}, or less of them",
    )


def check_options(request: Any) -> None:
    """Reject a number of processes that is none.

    Raises:
        UsageError: It is less than one.
    """
    if request.num_gpus < 1:
        raise UsageError(f"-num_gpus {request.num_gpus} must be 1 or more", "-num_gpus 1")


def check_network(request: Any) -> None:
    """Reject options that name a network besides the one that is asked for.

    Raises:
        UsageError: The first such option.
    """
    for option, given in (("--size", request.size), ("--preset", request.preset), ("--pretrained", request.sources)):
        if request.network and given:
            shown = given if isinstance(given, str) else given[0]
            what = f"--network {request.network} and {option} {shown} both bring a network"
            raise UsageError(what, "one of them, or -p with plans of the network")


def check_ways(request: Any) -> None:
    """Reject ways to take pre-trained weights where none are given.

    Raises:
        UsageError: The first such option.
    """
    for option, asked in (("--transfer", request.transfer), ("--inflate", request.inflate)):
        if asked and not request.sources:
            raise UsageError(
                f"{option} says what becomes of pre-trained weights, and there are none", "add --pretrained"
            )


def check_fsdp(run: "Run") -> None:
    """Reject what FSDP2 cannot do.

    Raises:
        UsageError: There is one process, the loss would be scaled, or parts of the network are frozen.
    """
    from stunet.trainers.finetune import strategies

    if run.processes == 1:
        raise UsageError("--fsdp shards the network over several processes, and there is one", "-num_gpus 2, torchrun")
    if run.device == "cuda" and run.plan.train.precision is None:
        raise UsageError("--fsdp cannot scale the loss, as half precision needs it", "--set precision=bf16")
    if run.plan.finetune and not strategies.trains_all(strategies.find(run.plan.finetune)):
        raise UsageError(f"--fsdp cannot freeze parts as {run.plan.finetune!r} does", "leave it out")


def headline(run: "Run") -> str:
    """Return two lines on what is trained: the run, and its network, patch, batch and memory."""
    from stunet.plans.memory import estimate, parameters
    from stunet.runs.memory_check import network_of

    plan, planned = run.plan, run.plan.configuration(run.configuration)
    network, strides = network_of(run), planned.strides
    patch = "x".join(map(str, planned.patch_size))
    millions = parameters(network, strides) / 1e6
    # What a GPU holds at a time is one micro-batch, so the estimate is for the largest of them.
    parts = run.processes * plan.train.accumulation
    batch, part = planned.batch_size, -(-planned.batch_size // parts)
    shared = f" in {parts} parts of {part} ({run.processes} processes)" if parts > 1 else ""
    return (
        f"{run.dataset}  {run.configuration}  fold {run.fold}  {plan.name}\n"
        f"{network.label}, {millions:.1f} M parameters, {len(strides)} stages, "
        f"patch {patch}, batch {batch}{shared}, "
        f"about {estimate(network, planned.patch_size, part, strides):.1f} GB of GPU memory; "
        f"device {run.device}\nresults: {run.folder}"
    )


def warn_of_seen(run: "Run", cases: Mapping[str, Collection[str]], way: str, listener: Listener) -> None:
    """Warn if the weights to start from were trained on cases that measure the new training.

    Args:
        run: That starts from weights, or not.
        cases: That measure it, by full name of their dataset.
        way: How that is avoided.
        listener: Told of it.
    """
    if run.start is None:
        return
    from stunet.provenance import seen_in_training
    from stunet.trainers.finetune.joint import JointStart

    for start in run.start.starts if isinstance(run.start, JointStart) else (run.start,):
        if seen := seen_in_training(start.weights.path, cases):
            number = f"{len(seen)} of the {sum(map(len, cases.values()))} scans"
            what = f"{str(start.weights.path)!r} was trained on {number} that measure this training (e.g. {seen[0]!r})"
            listener.warn(f"{what}: its results will look too good; to avoid that, {way}")


def conclude(run: "Run", choice: "Choice", dry_run: bool, listener: Listener) -> None:
    """Judge the weights to start from; then write plans that are new, or show in a dry run what would be loaded.

    It comes last, so that a training that is refused leaves no plans behind.

    Raises:
        WeightsError: The weights are not those that the plan names, or do not fit the network.
    """
    if run.start is not None:
        from stunet.trainers.finetune.start import preview

        dataset_json = describe_trained_model(run.dataset, run.plan.reused_classes, run.trainer)
        report = preview(run.start, run.plan, run.configuration, dataset_json)
        if dry_run:
            listener.training().loaded(report)
    if not dry_run:
        _write_new_plan(run.dataset, choice, listener)


def _write_new_plan(dataset: str, choice: "Choice", listener: Listener) -> None:
    if not choice.new:
        return
    # Trainings that start together, as arms of an experiment do, write their plans one after the other.
    with workspace.planning(dataset, wait=listener.note):
        write_json(workspace.preprocessed_dataset(dataset) / f"{choice.plan.name}.json", choice.plan.to_json())
