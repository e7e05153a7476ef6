"""What does a command cost, with all processes that it starts? Wall time, CPU time, and peak memory. Needs Linux.

Memory is the highest sum over all processes, seen every 50 ms; where looking takes long, as it does with gigabytes,
less often, so that it stays below a tenth of the time. A page that several of them share counts once (proportional set
size, PSS). Of files, which are libraries for the most part, the process counts that has most of them in memory: the PSS
of a library would depend on who else on the machine uses it.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.05
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds of wall and CPU time (user and system), and bytes at the peak."""

    wall_s: float
    cpu_s: float
    peak: float


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[Usage, str]:
    """Runs a command to its end, and to that of all processes that it leaves behind; what it printed comes along.

    Raises:
        SystemExit: The command failed, with the end of what it printed.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent has ended count as well
    with tempfile.TemporaryFile("w+") as printed:
        before, started, peak = cpu_seconds(), time.monotonic(), 0
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                looked = time.monotonic()
                peak = max(peak, memory(descendants(os.getpid())))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(INTERVAL_S, 9 * (time.monotonic() - looked)))
            wall = time.monotonic() - started
        finally:
            process.kill()  # if this was interrupted
        printed.seek(0)
        text = printed.read()
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}\n{text[-3000:]}")
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return Usage(wall, cpu_seconds() - before, peak), text


def cpu_seconds() -> float:
    """User and system time of all ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # it has just ended
        return []
    return children + [below for child in children for below in descendants(child)]


def memory(pids: Sequence[int]) -> int:
    """The memory of processes in bytes."""
    own, files = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            own += sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss_Anon", "Pss_Shmem"))
            files = max(files, *_kilobytes(f"/proc/{pid}/status", "RssFile"))
    return 1024 * (own + files)


def _kilobytes(file: str, *names: str) -> list[int]:
    """Values of a file of /proc; 0 for what an ending process does not have any more."""
    lines = (line.split() for line in Path(file).read_text().splitlines())
    values = {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
    return [values.get(name, 0) for name in names]
