"""How a training is started, in one process or one per GPU, and what a signal does to it.

The counterpart of nnunetv2/run/run_training.py, with trainers by reference and errors that say what to do.
"""

import logging
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from filelock import FileLock, Timeout

from stunet.errors import DataError, Interrupted, OutOfMemoryError, StunetError, UsageError
from stunet.files import read_json
from stunet.nnunet import trainer_class
from stunet.trainers.base import BEST, FINAL, LATEST, PlannedTrainer
from stunet.trainers.listener import Listener, Silent
from stunet.trainers.start import REPORT, begin
from stunet.workspace import preprocessed_dataset, result_folder


@dataclass(frozen=True)
class Run:
    """One training: what nnU-Net's command line says.

    Args:
        dataset: Full name.
        plans: Content of the plans file.
        configuration: Key of the plans' configurations.
        fold: Number of the cross-validation fold, or "all".
        trainer: Name of the trainer class.
        device: "cuda", "cpu" or "mps".
        processes: Number of GPUs, or of processes on the CPU.
        resume: Continue from the latest checkpoint.
        only_validate: Skip training.
        validate_best: Validate with the best instead of the final checkpoint.
        probabilities: Also save the validation's probabilities.
        disable_checkpointing: Write no checkpoints.
        weights: File or model folder with the weights that the plan starts from.
    """

    dataset: str
    plans: dict
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
    weights: Path | None = None

    @property
    def folder(self) -> Path:
        """Where checkpoints and the log of this fold go."""
        return (
            result_folder(self.dataset, self.plans["plans_name"], self.configuration, self.trainer)
            / f"fold_{self.fold}"
        )


def launch(run: Run, new_listener: Callable[[], Listener] = Silent) -> None:
    """Trains and validates.

    Args:
        run: What to do.
        new_listener: Makes what shows the progress; called in the process that leads.

    Raises:
        DataError: Another process trains the same fold.
        Interrupted: A signal ended the training; it can be resumed.
        StunetError: As the trainer raises them, also from other processes.
    """
    with _alone(run.folder):
        _launch(run, new_listener)


def _launch(run: Run, new_listener: Callable[[], Listener]) -> None:
    checkpoint = starting_point(run)
    if run.processes == 1:
        _train(run, checkpoint, new_listener())
        return
    if run.device == "cuda" and torch.cuda.device_count() < run.processes:
        raise UsageError(
            f"-num_gpus {run.processes}, but there are {torch.cuda.device_count()} GPUs", "a smaller -num_gpus"
        )
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    context = mp.spawn(_worker, (run, checkpoint, new_listener), nprocs=run.processes, join=False)
    with _forwarded_signals([process.pid for process in context.processes]):
        try:
            while not context.join(grace_period=30):
                pass
        except mp.ProcessExitedException as error:
            raise _of_exit_code(error.exit_code) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Sees that nobody else trains into a folder; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"another process trains in {str(folder)!r}", "wait for it, or end it first") from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def forget(run: Run) -> None:
    """Removes the checkpoints and the validation of an earlier training of the fold, for one that starts anew."""
    for path in (*checkpoints(run), run.folder / REPORT, run.folder / "validation" / "summary.json"):
        path.unlink(missing_ok=True)


def checkpoints(run: Run) -> list[Path]:
    """The checkpoints that the fold has, the furthest first."""
    return [run.folder / name for name in (FINAL, LATEST, BEST) if (run.folder / name).is_file()]


def starting_point(run: Run) -> Path | None:
    """The checkpoint that the run continues from or validates; None for a new training.

    Raises:
        DataError: What is to be continued or validated does not exist.
    """
    found = checkpoints(run)
    if run.resume and not found:
        raise DataError(f"nothing to continue: no checkpoint in {str(run.folder)!r}", "the same command without --c")
    if run.only_validate and run.folder / FINAL not in found:
        raise DataError(
            f"no finished training to validate: no {FINAL} in {str(run.folder)!r}",
            "the same command with --c instead of --val",
        )
    return found[0] if run.resume or run.only_validate else None


def _train(run: Run, checkpoint: Path | None, listener: Listener) -> None:
    """The run, in this process."""
    device = torch.device(run.device)
    limit_threads(run)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    dataset_json = read_json(preprocessed_dataset(run.dataset) / "dataset.json")
    plans = {**run.plans, "continue_training": run.resume}
    trainer: PlannedTrainer = trainer_class(run.trainer)(plans, run.configuration, run.fold, dataset_json, device)
    trainer.disable_checkpointing = run.disable_checkpointing
    trainer.listener = listener
    with _stops(trainer):
        if checkpoint is not None:
            trainer.load_checkpoint(str(checkpoint))
        elif run.weights is not None:
            listener.loaded(begin(trainer, run.weights))
        if not run.only_validate:
            trainer.run_training()
        if run.validate_best:
            trainer.load_checkpoint(str(run.folder / BEST))
        trainer.perform_actual_validation(run.probabilities)


def limit_threads(run: Run) -> None:
    """Gives each process its share of the cores; CUDA needs one thread, and torch obeys OMP_NUM_THREADS by itself."""
    if run.device == "cuda":
        torch.set_num_threads(1)
    elif not os.environ.get("OMP_NUM_THREADS"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // run.processes))


@contextmanager
def _stops(trainer: PlannedTrainer) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops training after its step and validation at once, the second both at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        if not trainer.running:
            raise Interrupted(
                "stopped before or after training; checkpoints are as they were", "the same command with --c"
            )

    with _handled(handle):
        yield


@contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[None]:
    """Passes SIGINT and SIGTERM of the parent on to the training processes, which then stop together."""

    def forward(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    with _handled(forward):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Lets a function handle SIGINT and SIGTERM; a process of several gets SIGTERM from its parent only."""
    numbers = [signal.SIGTERM] if mp.parent_process() is not None else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _worker(rank: int, run: Run, checkpoint: Path | None, new_listener: Callable[[], Listener]) -> None:
    """One of several processes; ends with the exit code of an error, after saying what it was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent passes SIGTERM on
    backend = "nccl" if run.device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=run.processes)
    if run.device == "cuda":
        torch.cuda.set_device(rank)
    else:  # nnU-Net makes a GradScaler in every process of several, which base.py puts aside
        warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled")
    try:
        _train(run, checkpoint, new_listener() if rank == 0 else Silent())
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (StunetError, torch.OutOfMemoryError) as error:
        known = error if isinstance(error, StunetError) else OutOfMemoryError(str(error))
        logging.getLogger("stunet").error("process %d: %s", rank, known.message)
        raise SystemExit(known.exit_code) from None
    finally:
        dist.destroy_process_group()


def _of_exit_code(code: int) -> StunetError:
    """What a process of a distributed training ended with, as our error."""
    if code in (Interrupted.exit_code, -signal.SIGTERM):
        return Interrupted(f"stopped; a training that had begun is in {LATEST}", "the same command with --c")
    if code < 0:
        return OutOfMemoryError(
            f"a training process was killed by signal {-code}, perhaps for lack of memory", "the same command with --c"
        )
    error = StunetError(f"a training process ended with exit code {code}", "see the messages above, or -num_gpus 1")
    error.exit_code = code
    return error


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
