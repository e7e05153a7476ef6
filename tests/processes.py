"""Real processes, as two commands or torchrun's would be, without importing PyTorch once more in each."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TypeVar

import pytest
from torch import distributed

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
