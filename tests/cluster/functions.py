"""What workers are given to do in these tests; they import it, as they import a function of stunet."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from stunet.errors import DataError


class Case(NamedTuple):
    """A case: what becomes of it, and the file in which each attempt leaves a line with its process."""

    kind: str
    name: str
    file: Path


def work(case: Case) -> str:
    """Do what the case says, and return its name."""
    with case.file.open("a") as attempts:
        attempts.write(f"{os.getpid()}\n")
    if case.kind == "kills" or (case.kind == "kills once" and len(tries(case.file)) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if case.kind == "fails":
        raise DataError(f"{case.name} is damaged", "copy it again")
    if case.kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(case.file))
    if case.kind == "wrong":
        raise ValueError("a bug")
    if case.kind == "waits" or (case.kind == "waits once" and len(tries(case.file)) == 1):
        time.sleep(100)
    return case.name


def tries(file: Path) -> list[int]:
    """Return the processes that have tried a case, in order."""
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
