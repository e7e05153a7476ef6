"""Which processes train together? Those that torchrun started, on one machine or several, or children of this one.

torchrun says in the environment which one a process is (RANK, LOCAL_RANK, WORLD_SIZE), and starts all of them anew when
one ends with an error. launch.py says what they do, parallel.py how they share it.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
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
from stunet.processes import start_worker

Decision = TypeVar("Decision")

# What gloo, NCCL and torch's store say when a process that they talk to has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL")


@dataclass(frozen=True)
class Member:
    """One of several processes: its number among all and on its machine, how many there are, how often started anew."""

    rank: int
    local_rank: int
    size: int
    restarts: int = 0

    @property
    def leads(self) -> bool:
        """Whether it decides, writes files and shows progress."""
        return self.rank == 0


def started_by_torchrun() -> Member:
    """What torchrun says in the environment.

    Raises:
        UsageError: It says a part only.
    """
    if missing := {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - set(os.environ):
        raise UsageError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(sorted(missing))}",
            "torchrun --nproc_per_node 2 -m stunet.cli.train ..., or unset RANK WORLD_SIZE",
        )
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Member(rank, local_rank, size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextmanager
def together(member: Member, device: str) -> Iterator[None]:
    """Joins the others; MASTER_ADDR and MASTER_PORT say where they meet.

    Raises:
        Interrupted: A process that this one talks to has ended.
    """
    if device == "cuda":
        torch.cuda.set_device(member.local_rank)
    else:  # nnU-Net makes a GradScaler in every process of several, which base.py puts aside
        warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled")
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # logits are views there, which nothing overwrites
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


def decided(decide: Callable[[], Decision], member: Member) -> Decision:
    """What the leading process decides; all of them must ask. Where that fails, the others end with its exit code."""
    message: list[Any] = [None, 1]
    try:
        if member.leads:
            message = [decide(), 0]
    except Exception as error:
        message = [None, explain(error).exit_code]
        raise
    finally:
        dist.broadcast_object_list(message)
    if message[1]:
        raise SystemExit(message[1])
    return message[0]


def restarted(member: Member, device: str) -> bool:
    """Whether torchrun has started the processes anew: it counts on the machine where one has ended only."""
    where = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
    count = torch.tensor(member.restarts, device=where)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return bool(count)


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], size: int, device: str) -> None:
    """Runs `function(member, *arguments)` in child processes, which meet as torchrun's do, and waits for them.

    Raises:
        StunetError: One has ended with an error; the others are ended.
    """
    if device == "cuda" and torch.cuda.device_count() < size:
        raise UsageError(f"-num_gpus {size}, but there are {torch.cuda.device_count()} GPUs", "a smaller -num_gpus")
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    context = mp.spawn(_child, (size, device, function, arguments), nprocs=size, join=False)
    with _forwarded_signals([process.pid for process in context.processes]):
        try:
            while not context.join(grace_period=30):
                pass
        except mp.ProcessExitedException as error:
            raise _of_exit_code(error.exit_code) from None


def _child(rank: int, size: int, device: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """One of several processes; ends with the exit code of an error, after saying what it was."""
    start_worker()  # a terminal sends Ctrl-C to all, the parent passes SIGTERM on; its lock would not outlive it
    faulthandler.enable()
    member = Member(rank, rank, size)
    try:
        with together(member, device):
            function(member, *arguments)
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        known = explain(error)
        if known.exit_code == 1:  # torch passes the traceback on
            raise
        logging.getLogger("stunet").error("process %d: %s\n  try: %s", rank, known.message, known.hint)
        raise SystemExit(known.exit_code) from None
    # End without taking the interpreter apart, as forked children do: threads of gloo and torch are still there. Once
    # in about 60 runs a process aborted about here ("double free or corruption"), and with it a training that was done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _of_exit_code(code: int) -> StunetError:
    """What a process of a distributed training ended with, as our error."""
    if code in (Interrupted.exit_code, -signal.SIGTERM):
        return Interrupted("stopped; a training that had begun is in its checkpoints", "the same command with --c")
    if code == -signal.SIGKILL:
        return OutOfMemoryError(
            "a training process was killed, perhaps for lack of memory", "the same command with --c"
        )
    if code < 0:
        what = f"a training process crashed ({signal.Signals(-code).name}); what it said stands above"
        return StunetError(what, "the same command with --c")
    error = StunetError(f"a training process ended with exit code {code}", "see the messages above, or -num_gpus 1")
    error.exit_code = code
    return error


@contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[None]:
    """Passes SIGINT and SIGTERM of the parent on to the training processes, which then stop together."""

    def forward(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    with handled(forward):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Lets a function handle SIGINT and SIGTERM; a child gets SIGTERM from its parent only."""
    numbers = [signal.SIGTERM] if mp.parent_process() is not None else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
