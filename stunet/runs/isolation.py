"""Leave the calling process as it was: what a run sets for itself is restored, and what nnU-Net prints is discarded.

For the Python API. A command owns its process and needs none of this. What is set and restored belongs to the whole
process, so calls from several threads wait for each other.
"""

import logging
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOBase
from typing import TextIO

PRINTERS = {"nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "acvl_utils"}
VARIABLES = ("nnUNet_def_n_proc", "MASTER_ADDR", "MASTER_PORT")  # set by nnunet.limit_processes() and group.spawn()

_CALL = threading.RLock()  # a listener may call the API within a call


@contextmanager
def isolated() -> Iterator[None]:
    """Run the block, then restore torch's threads and cuDNN's choice, random states, and environment variables.

    Prints of nnU-Net are discarded meanwhile; those of everybody else, listeners and other threads, appear. A
    second thread waits for the first.
    """
    with _CALL, _restored(), quiet():
        yield


@contextmanager
def _restored() -> Iterator[None]:
    import numpy as np
    import torch

    environment = {name: os.environ.get(name) for name in VARIABLES}
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    of_python, of_numpy = random.getstate(), np.random.get_state()
    # CUDA's random states only where CUDA is in use: reading them would initialize it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def quiet() -> Iterator[None]:
    """Discard what nnU-Net prints, and warnings on the logger "stunet" for which no handler is set up."""
    log, handler = logging.getLogger("stunet"), logging.NullHandler()
    with _CALL:
        log.addHandler(handler)  # otherwise Python itself would print them
        try:
            with redirect_stdout(_WithoutNnunet(sys.stdout)):
                yield
        finally:
            log.removeHandler(handler)


def is_quiet() -> bool:
    """Return whether this is called within quiet(); processes that are started then have to be, too."""
    return isinstance(sys.stdout, _WithoutNnunet)


class _WithoutNnunet(TextIOBase):
    """Passes on what is written, but not by nnU-Net, which reports through print.

    Redirecting all of stdout would also swallow what other threads and the caller's listener print.
    """

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        # print is written in C and has no frame: the next one is that of whoever called it.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return len(text) if caller.partition(".")[0] in PRINTERS else self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()

    def isatty(self) -> bool:
        return self._stdout.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stdout.encoding
