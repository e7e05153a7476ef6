"""The processes that train together: those that torchrun started, on one or several machines, or children of this one.

torchrun tells each process in the environment which one it is (RANK, LOCAL_RANK, WORLD_SIZE), and restarts all of them
when one ends with an error. runs/launch.py defines what they do, sharding.py how they share it.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stunet.errors import Interrupted, OutOfMemoryError, StunetError, UsageError, explain
from stunet.workers import signal_name, start_worker

Decision = TypeVar("Decision")

# Messages of gloo, NCCL and torch's store when a process that they communicate with has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL")


class ProcessError(StunetError):
    """A training process ended with an error, which it reported itself; this one ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(
            f"a training process ended with exit code {exit_code}", "see the messages above, or -num_gpus 1"
        )
        self.exit_code = exit_code


@dataclass(frozen=True)
class Member:
    """One of several processes: its rank among all and on its machine, their number, and how often it was restarted."""

    rank: int
    local_rank: int
    size: int
    restarts: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes files and shows progress."""
        return self.rank == 0


def read_member() -> Member:
    """Return what torchrun states in the environment.

    Raises:
        UsageError: Only some of the variables are set.
    """
    if missing := {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - set(os.environ):
        raise UsageError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(sorted(missing))}",
            "torchrun --nproc_per_node 2 -m stunet.cli.train ..., or unset RANK WORLD_SIZE",
        )
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Member(rank, local_rank, size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextmanager
def join_group(member: Member, device: str) -> Iterator[None]:
    """Join the process group; MASTER_ADDR and MASTER_PORT tell where to meet.

    Raises:
        Interrupted: A process that this one communicates with has ended.
    """
    if device == "cuda":
        # What follows takes the current device: ranks among all processes do not number the GPUs of one machine.
        torch.cuda.set_device(member.local_rank)
    else:  # with several processes nnU-Net makes a GradScaler in each, which trainer.py discards
        warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled")
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # logits are views there, but nothing overwrites them
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=member.rank, world_size=member.size)
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in LOST):
            raise
        raise Interrupted(
            f"process {member.rank} of {member.size} lost another one, which says why it ended; finished epochs are in "
            "the checkpoints",
            "the same command with --c",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def broadcast_decision(decide: Callable[[], Decision], member: Member) -> Decision:
    """Return what the leading process decides; all must call this. If it fails, the others exit with its exit code."""
    message: list[Any] = [None, 1]
    try:
        if member.leads:
            message = [decide(), 0]
    except Exception as error:
        message = [None, explain(error).exit_code]
        raise
    finally:
        # Also after an error, as the others are waiting for this message.
        dist.broadcast_object_list(message)
    if message[1]:
        raise SystemExit(message[1])
    return message[0]


def was_restarted(member: Member, device: str) -> bool:
    """Return whether torchrun has restarted the processes; it only counts on the machine where one has ended."""
    where = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
    count = torch.tensor(member.restarts, device=where)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return bool(count)


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], size: int, device: str) -> None:
    """Run `function(member, *arguments)` in child processes, which meet as torchrun's do, and wait for them.

    Raises:
        StunetError: One process has ended with an error; the others are terminated.
    """
    if device == "cuda" and torch.cuda.device_count() < size:
        raise UsageError(f"-num_gpus {size}, but there are {torch.cuda.device_count()} GPUs", "a smaller -num_gpus")
    # The children inherit them; a user's own are kept.
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    context = mp.spawn(_child, (size, device, function, arguments), nprocs=size, join=False)
    with _forwarded_signals([process.pid for process in context.processes]):
        try:
            # Once one has failed, the others have 30 s to end by themselves, and as long from SIGTERM to SIGKILL.
            while not context.join(grace_period=30):
                pass
        except mp.ProcessExitedException as error:
            raise _of_exit_code(error.exit_code) from None


def _child(rank: int, size: int, device: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run in one of several processes; on an error, report it and exit with its exit code."""
    start_worker()  # a terminal sends Ctrl-C to all, the parent forwards SIGTERM; its lock must not outlive it
    faulthandler.enable()
    member = Member(rank, rank, size)
    try:
        with join_group(member, device):
            function(member, *arguments)
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        # As shells report it: 128 + SIGINT.
        raise SystemExit(130) from None
    except Exception as error:
        known = explain(error)
        if known.exit_code == 1:  # torch passes the traceback on
            raise
        logging.getLogger("stunet").error("process %d: %s\n  try: %s", rank, known.message, known.hint)
        raise SystemExit(known.exit_code) from None
    # Exit without tearing down the interpreter, as forked children do: threads of gloo and torch are still running. In
    # about 1 of 60 runs a process aborted around here ("double free or corruption"), and a finished training with it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _of_exit_code(code: int) -> StunetError:
    """Convert the exit code of a process of a distributed training to our error."""
    if code in (Interrupted.exit_code, -signal.SIGTERM):
        return Interrupted("stopped; a training that had begun is in its checkpoints", "the same command with --c")
    if code == -signal.SIGKILL:
        return OutOfMemoryError(
            "a training process was killed, perhaps for lack of memory", "the same command with --c"
        )
    if code < 0:
        what = f"a training process crashed ({signal_name(-code)}); see its output above"
        return StunetError(what, "the same command with --c")
    return ProcessError(code)


@contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[None]:
    """Forward SIGINT and SIGTERM from the parent to the training processes, which then stop together."""

    def forward(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    with handle_signals(forward):
        yield


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with a function while the block runs; a child only gets SIGTERM, from its parent.

    Only the main thread can; in another one, a program that uses the Python API keeps its own handling.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM] if mp.parent_process() is not None else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _free_port() -> int:
    # Free at this moment; nothing reserves it until the first process listens there.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
