"""What runs in a worker: the function of a run, which each worker gets once, and keeps what it has loaded.

A case whose command is gone, by Ctrl-C, an error or a kill, or whose worker leaves, at the end of its lifetime or
because its scheduler is gone, ends at once with the worker's process: two processes do not write the same case, except
for the moment until a worker that is cut off notices it. admission.py installs this in a worker.
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


class Lost(Exception):
    """A worker has ended with the case that it was doing."""


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
        self._working, self._released = "", set[str]()  # keys of tasks: in the lock, and given up before

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_working": "", "_released": set()}

    def do(self, key: str, case: bytes) -> bytes:
        """Return what the function returned for the case of a task and what it raised, both pickled."""
        # Where the folder does not exist, nobody has relative paths: admission.py has looked at all that are used.
        here = chdir(self._folder) if os.path.isdir(self._folder) else nullcontext()
        try:
            with _ONE_AT_A_TIME, here:
                if key in self._released:
                    return pickled(None, None)  # nobody waits for it
                self._working = key
                try:
                    return pickled(self._function(pickle.loads(case)), None)
                finally:
                    self._working = ""
        except Exception as error:  # noqa: BLE001 - the command raises it
            error.add_note(traceback.format_exc())  # for --debug
            return pickled(None, error)

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """End the process if a case is released while it is worked on; that of another command is left alone."""
        if start == "executing" and finish == "released" and str(key).startswith(self._run):
            self._released.add(str(key))
            if self._working == str(key):
                os.kill(os.getpid(), signal.SIGKILL)

    def teardown(self, worker: Any) -> None:
        """End the process if the worker leaves, or the run takes its function back, while a case is worked on.

        Dask would let it go on for 30 seconds, in which another worker gets the case.
        """
        if self._working:
            os.kill(os.getpid(), signal.SIGKILL)


def do(run: str, case: bytes) -> bytes:
    """Do a case, in a worker; the task that Dask runs. Without the function, the worker is a new one: Lost."""
    worker = get_worker()
    work: Any = worker.plugins.get(run)
    return pickled(None, Lost()) if work is None else bytes(work.do(str(worker.get_current_task()), case))


def own_threads() -> int:
    """Return how many threads the worker has that this is called in (dask worker --nthreads)."""
    return int(get_worker().state.nthreads)


def own_memory_gb() -> float:
    """Return what the worker may take that this is called in, in 10^9 bytes: of its own limit and of the machine."""
    limit = get_worker().memory_manager.memory_limit
    return SHARE * min(memory_limit(), limit or float("inf")) / GB
