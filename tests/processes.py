"""Real processes, as two commands or torchrun's would be, without importing PyTorch once more in each."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import pytest
from torch import distributed

from stunet.files import lock_across_machines
from stunet.preprocessing.worker import PRELOADED
from stunet.workers import map_cases

Result = TypeVar("Result")


def in_two_processes(function: Callable[[int], Result]) -> list[Result]:
    """Call a function of a test module with 0 and with 1 in two processes at the same time, and return both results.

    They are forked from the server of preprocessing, which has imported PyTorch and nnU-Net and never computes. Their
    environment is the server's: what a test sets is not in it.
    """
    outcomes = map_cases(function, [0, 1], 2, str, _server())
    return [outcome.result for outcome in sorted(outcomes, key=lambda outcome: outcome.position)]


@contextmanager
def forked_from_the_server() -> Iterator[None]:
    """Whoever asks for processes by spawn gets them from that server; what is sent to them is pickled all the same."""
    server = _server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: server)
        yield


def start_task(main: Callable[[list[str]], int], arguments: Sequence[object], task: int, tasks: int = 4) -> BaseProcess:
    """Start a command as Slurm starts a task of an array: with its variables, knowing nothing of the others.

    Args:
        main: Of the command.
        arguments: Its command line.
        task: Number of the task; the array's numbers begin with 3.
        tasks: How many it has.
    """
    array = {"COUNT": tasks, "ID": 3 + task, "MIN": 3, "MAX": 2 + tasks, "STEP": 1}
    variables = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    wanted = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
    process = _server().Process(  # type: ignore[attr-defined]
        target=_task, args=(main, [str(argument) for argument in arguments], {**wanted, **variables})
    )
    process.start()
    return process


def _task(main: Callable[[list[str]], int], arguments: list[str], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    sys.exit(main(arguments))


def run_tasks(main: Callable[[list[str]], int], arguments: Sequence[object], tasks: Sequence[int]) -> None:
    """Run tasks of an array of four, all at a time; each has to succeed."""
    for process in [start_task(main, arguments, task) for task in tasks]:
        process.join()
        assert process.exitcode == 0


def kill_while_it_waits(folder: Path, start: Callable[[], BaseProcess]) -> None:
    """Kill a part of a run when it waits for the lock of the records in `folder`: most have done their cases then."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_across_machines(folder / "lock"):
        process = start()
        while str(folder / "lock") not in [
            os.path.realpath(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()
        ]:
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()


def _server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def on_two_ranks(function: Callable[[int], None], store: Path) -> None:
    """Call a function with the ranks 0 and 1 in processes that form a group.

    Args:
        function: Raises if what it computes is wrong.
        store: A file through which the processes meet; must not exist.
    """
    in_two_processes(partial(_in_group, function=function, store=store))


def _in_group(rank: int, function: Callable[[int], None], store: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = timedelta(minutes=2)
    distributed.init_process_group("gloo", f"file://{store}", timeout, world_size=2, rank=rank)
    function(rank)
    distributed.destroy_process_group()
