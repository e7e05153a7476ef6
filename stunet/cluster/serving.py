"""What runs in a worker: the function of a run, which each worker gets once, and keeps what it has loaded.

A case whose command is gone, by Ctrl-C, an error or a kill, ends at once with the worker's process, which its nanny
starts again: two processes never write the same case. admission.py installs this in a worker.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import chdir, nullcontext
from threading import Lock
from typing import Any

from distributed import WorkerPlugin, get_worker

from stunet.errors import StunetError
from stunet.machine import GB, SHARE, memory_limit
from stunet.workers import pickled

# Of all commands that share a worker: they may run in different folders, and each takes the memory of the worker.
_ONE_AT_A_TIME = Lock()


class Unsuitable(StunetError):
    """Raised by a function: not the case but the worker is the problem, and other workers may do without it."""


class Work(WorkerPlugin):
    """The function of a run in a worker.

    Args:
        run: Name of the run; the keys of its tasks begin with it.
        function: Takes a case.
        folder: The folder in which the command runs: paths may be relative to it.
    """

    def __init__(self, run: str, function: Callable[[Any], Any], folder: str) -> None:
        self._run, self._function, self._folder = run, function, folder

    def do(self, case: bytes) -> bytes:
        """Return what the function returned for a case and what it raised, both pickled."""
        # Where the folder does not exist, nobody has relative paths: admission.py has looked at all that are used.
        here = chdir(self._folder) if os.path.isdir(self._folder) else nullcontext()
        try:
            with _ONE_AT_A_TIME, here:
                return pickled(self._function(pickle.loads(case)), None)
        except Exception as error:  # noqa: BLE001 - the command raises it
            error.add_note(traceback.format_exc())  # for --debug
            return pickled(None, error)

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """End the process if a case is released while it is worked on."""
        if start == "executing" and finish == "released" and str(key).startswith(self._run):
            os.kill(os.getpid(), signal.SIGKILL)


def do(run: str, case: bytes) -> bytes:
    """Do a case, in a worker; the task that Dask runs."""
    work: Any = get_worker().plugins[run]
    return bytes(work.do(case))


def own_threads() -> int:
    """Return how many threads the worker has that this is called in (dask worker --nthreads)."""
    return int(get_worker().state.nthreads)


def own_memory_gb() -> float:
    """Return what the worker may take that this is called in, in 10^9 bytes: of its own limit and of the machine."""
    limit = get_worker().memory_manager.memory_limit
    return SHARE * min(memory_limit(), limit or float("inf")) / GB
