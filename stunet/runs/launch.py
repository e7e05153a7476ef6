"""Start a training in one process or several, and handle signals.

The counterpart of nnunetv2/run/run_training.py, with trainers by reference and errors that tell the user what to do.
Read next: trainers/distributed/group.py.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from stunet import workspace
from stunet.errors import DataError, Interrupted, OutOfMemoryError, StunetError, is_out_of_memory, last_line
from stunet.files import exclusive_lock, remove, remove_staging, write_json
from stunet.kinds import RUN_RECORD, read, read_dataset_json
from stunet.plans.plan import Plan
from stunet.preprocessing.folds import find_fold
from stunet.provenance import RECORD
from stunet.runs import trackers
from stunet.runs.execution import FoldInUse
from stunet.runs.isolation import is_quiet, quiet
from stunet.runs.trackers import tracked
from stunet.trainers.distributed.group import Member, handle_signals, spawn
from stunet.trainers.finetune.joint import JointStart
from stunet.trainers.finetune.start import REPORT, Start, start_from_weights
from stunet.trainers.lookup import trainer_class
from stunet.trainers.progress import NullListener, TrainingListener
from stunet.trainers.trainer import BaseTrainer
from stunet.workspace import BEST, FINAL, HANDED_OVER, LATEST, preprocessed_dataset, result_folder

NNUNETS_TRAINER = "nnUNetTrainer"
LEFT_OUT_FILE = "left_out.json"  # in the folder of a pre-training: its Run.left_out, which holds for a resumed run, too


@dataclass(frozen=True)
class Run:
    """One training: the arguments of nnU-Net's command line.

    Args:
        dataset: Full name.
        plan: How.
        configuration: Key of the plans' configurations.
        fold: Number of the cross-validation fold, or "all".
        trainer: Name of the trainer class.
        device: "cuda", "cpu" or "mps".
        processes: Number of GPUs on all machines, or of processes on the CPU.
        resume: Continue from the latest checkpoint.
        only_validate: Skip training.
        validate_best: Validate with the best instead of the final checkpoint.
        probabilities: Also save the validation's probabilities.
        disable_checkpointing: Write no checkpoints.
        start: The weights that the plan starts from; only a new training needs them.
        overwrite: Remove what an earlier training of the fold has left.
        fsdp: Shard the network over several processes instead of replicating it.
        left_out: Scans that a pre-training leaves out, with the reason.
        log: Names of trackers (trackers.py) that hear of it.
    """

    dataset: str
    plan: Plan
    configuration: str
    fold: int | str
    trainer: str = "STUNetTrainer"
    device: str = "cuda"
    processes: int = 1
    resume: bool = False
    only_validate: bool = False
    validate_best: bool = False
    probabilities: bool = False
    disable_checkpointing: bool = False
    start: Start | JointStart | None = None
    overwrite: bool = False
    fsdp: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder for this fold's checkpoints and log."""
        return result_folder(self.dataset, self.plan.name, self.configuration, self.trainer) / f"fold_{self.fold}"


def launch(run: Run, new_listener: Callable[[], TrainingListener] = NullListener) -> None:
    """Train and validate.

    Args:
        run: What to do.
        new_listener: Makes the object that shows the progress; called in the leading process.

    Raises:
        DataError: Another process trains the same fold.
        Interrupted: A signal ended the training; it can be resumed.
        StunetError: Any error of the trainer, also from other processes.
    """
    with reserved(run) as checkpoint:
        if run.processes == 1:
            _train(run, checkpoint, new_listener())
        else:
            if run.start is not None:
                # The children read the file themselves (Start.__reduce__), so it would only fill this process.
                run.start.release()
            spawn(_child, (run, checkpoint, new_listener, is_quiet()), run.processes, run.device)


def join(run: Run, checkpoint: Path | None, member: Member, new_listener: Callable[[], TrainingListener]) -> None:
    """Train and validate together with other processes that are already running; see group.join_group().

    Args:
        run: What to do, the same in all processes.
        checkpoint: What the leading process got from reserved().
        member: Which process this is.
        new_listener: As for launch().
    """
    # The first process has found it; on another machine the folder may be a local one.
    if checkpoint is not None and not checkpoint.is_file():
        raise DataError(
            f"process {member.rank} does not find {str(checkpoint)!r}",
            "nnUNet_results must be a folder that all machines share",
        )
    _train(run, checkpoint, new_listener() if member.leads else NullListener())


def _child(
    member: Member, run: Run, checkpoint: Path | None, new_listener: Callable[[], TrainingListener], in_quiet: bool
) -> None:
    with quiet() if in_quiet else nullcontext():
        _train(run, checkpoint, new_listener() if member.leads else NullListener())


@contextmanager
def reserved(run: Run) -> Iterator[Path | None]:
    """Hold the fold while it is trained, starting before anything in it is removed; yield its starting_point().

    Raises:
        FoldInUse: Another process trains the same fold.
        DataError: As for starting_point().
    """
    what = f"another process trains in {str(run.folder)!r}"
    lock = run.folder / ".lock"
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(lock, what, "wait for it, or end it first"))
        except DataError as error:
            raise FoldInUse(error.message, error.hint, lock) from None
        if run.overwrite:
            forget(run)
        checkpoint = starting_point(run)
        remove_staging(run.folder)
        if checkpoint is None:  # what a run that was killed before its first checkpoint wrote does not count
            for path in (run.folder / LEFT_OUT_FILE, run.folder / REPORT, *_drawn(run)):
                path.unlink(missing_ok=True)
            if run.left_out:
                write_json(run.folder / LEFT_OUT_FILE, dict(run.left_out))
        yield checkpoint


def forget(run: Run) -> None:
    """Remove what an earlier training of the fold left, for one that starts from the beginning.

    That is its checkpoints, its validation, its pictures, what trackers go on with, and its predictions for the next
    stages of a cascade.
    """
    validated = [path for path in (run.folder / "validation").glob("*") if path.is_file()]
    folder = run.folder.parent / HANDED_OVER
    cases = _validated(run) if folder.is_dir() else []
    # The pattern case_1.* also finds case_1.2.b2nd, of the case case_1.2.
    handed_over = [path for case in cases for path in folder.glob(f"*/{escape(case)}.*") if path.stem == case]
    pretrained = workspace.PRETRAINING, workspace.PRETRAINED, workspace.PRETRAINED_TEACHER
    records = [run.folder / name for name in (REPORT, RECORD, LEFT_OUT_FILE, *pretrained)]
    for path in (*checkpoints(run), *records, *validated, *_drawn(run), *handed_over):
        path.unlink(missing_ok=True)
    for name in trackers.FILES:
        remove(run.folder / name)


def _drawn(run: Run) -> list[Path]:
    return [path for pattern in workspace.DRAWN for path in run.folder.glob(pattern)]


def _validated(run: Run) -> list[str]:
    """Return the cases that the earlier training of the fold predicted; without a record, those of the fold now."""
    try:
        return list(read(run.folder / RECORD, RUN_RECORD)["val"])
    except DataError:
        fold = find_fold(run.dataset, run.plan, run.configuration, run.fold)
        return list(fold.val) if fold else []


def checkpoints(run: Run) -> list[Path]:
    """Return the checkpoints that the fold has, the most advanced first."""
    return [run.folder / name for name in (FINAL, LATEST, BEST) if (run.folder / name).is_file()]


def starting_point(run: Run) -> Path | None:
    """Return the checkpoint that the run continues from or validates; None for a new training.

    Raises:
        DataError: There is nothing to continue or validate, or a new training would overwrite an earlier one.
    """
    found = checkpoints(run)
    if found and not (run.resume or run.only_validate or run.overwrite):
        state = "was trained to the end" if found[0].name == FINAL else "was begun"
        raise DataError(
            f"this fold {state}: {str(found[0])!r}", "--c to continue (or validate), --overwrite to start from scratch"
        )
    if run.resume and not found and (begun := of_nnunet(run)):
        return begun
    if run.resume and not found:
        raise DataError(f"nothing to continue: no checkpoint in {str(run.folder)!r}", "the same command without --c")
    if run.only_validate and run.folder / FINAL not in found:
        raise DataError(
            f"no finished training to validate: no {FINAL} in {str(run.folder)!r}",
            "the same command with --c instead of --val",
        )
    return found[0] if run.resume or run.only_validate else None


def of_nnunet(run: Run) -> Path | None:
    """Return the checkpoint of a training that nnUNetv2_train has begun with the same plans; None: there is none.

    Raises:
        DataError: It is finished.
    """
    if run.plan.is_ours:  # nnU-Net's trainer does otherwise than our plans say
        return None
    folder = result_folder(run.dataset, run.plan.name, run.configuration, NNUNETS_TRAINER) / run.folder.name
    if (folder / FINAL).is_file():
        raise DataError(
            f"nnUNetv2_train has trained this fold to the end: {str(folder / FINAL)!r}",
            f"--pretrained {folder.parent} in place of --c, for a new training that starts from its weights",
        )
    # As nnU-Net does: the latest is written every 50 epochs.
    return next((folder / name for name in (LATEST, BEST) if (folder / name).is_file()), None)


def continued(run: Run) -> Run:
    """Return the run as it continues from the latest checkpoint, or starts from the beginning if there is none."""
    return replace(run, resume=bool(checkpoints(run)) and not run.only_validate, overwrite=False)


def _train(run: Run, checkpoint: Path | None, listener: TrainingListener) -> None:
    """Execute the run in this process."""
    device = torch.device(run.device)
    limit_threads(run)
    # As in nnU-Net's run_training.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    dataset_json = read_dataset_json(preprocessed_dataset(run.dataset) / "dataset.json")
    # nnU-Net's trainer pops this key, and fails without it.
    plans = {**run.plan.to_json(), "continue_training": run.resume}
    trainer: BaseTrainer = trainer_class(run.trainer)(plans, run.configuration, run.fold, dataset_json, device)
    trainer.configure(
        listener=listener,
        fsdp=run.fsdp,
        only_validates=run.only_validate,
        disable_checkpointing=run.disable_checkpointing,
        **({"left_out": run.left_out} if run.left_out else {}),  # STUNetPretrainer's
    )
    with _stops(trainer), _memory_named(trainer):
        if checkpoint is not None:
            trainer.load_checkpoint(str(checkpoint))
        elif run.start is not None:
            listener.loaded(start_from_weights(trainer, run.start))
        with tracked(run, trainer):
            if not run.only_validate:
                trainer.run_training()
            # Only validation uses it: checkpoint_final is written by then.
            if run.validate_best:
                trainer.load_checkpoint(str(run.folder / BEST))
            trainer.perform_actual_validation(run.probabilities)


@contextmanager
def _memory_named(trainer: BaseTrainer) -> Iterator[None]:
    """Turn errors about insufficient memory into one that names what needs less.

    Raises:
        OutOfMemoryError: In place of what libraries raise when the device or the machine runs out of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StunetError) or not is_out_of_memory(error):
            raise
        size = trainer.configuration_manager.batch_size
        raise OutOfMemoryError(
            f"a batch of {size} does not fit into the memory of device {trainer.device.type}: {last_line(error)}",
            f"a new run with --set batch_size={max(1, size // 2)}, accumulation=2 or checkpointing=true, or a smaller "
            "network",
        ) from error


def limit_threads(run: Run) -> None:
    """Give each process its share of the cores; CUDA needs one thread, and torch obeys OMP_NUM_THREADS by itself."""
    if run.device == "cuda":
        torch.set_num_threads(1)
    elif not os.environ.get("OMP_NUM_THREADS"):
        # The cores that this process may use, which batch systems limit; macOS and Windows do not say.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Under torchrun run.processes counts those of all machines, and this those of one.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", run.processes))
        torch.set_num_threads(max(1, cores // here))


@contextmanager
def _stops(trainer: BaseTrainer) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM stop training after its step and validation at once; a second stops both at once.

    Under torchrun the second does nothing: a batch system signals every process, and torchrun forwards its own signal.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            if dist.is_torchelastic_launched():
                return
            raise KeyboardInterrupt
        trainer.request_stop()
        if not trainer.running:
            raise Interrupted(
                "stopped before or after training; checkpoints are as they were", "the same command with --c"
            )

    with handle_signals(handle):
        yield
