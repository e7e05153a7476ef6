"""Run a command's cases on Dask workers: on this machine, on hosts that the user starts workers on, or as Slurm jobs.

`workers_on()` yields what `workers.map_cases()` takes as workers, so a command changes by a line. Files stay the truth:
workers write the results into folders that all of them share, and only names, numbers and errors pass through Dask.

    opening.py    what --cluster says; start or find the scheduler, and end what was started
    crew.py       give the cases to the workers one by one, again if a worker is lost, and no more than twice
    admission.py  which workers may take part: the same versions, the same folders, a nanny
    serving.py    what runs in a worker: the function of the run, once per worker, and nothing that nobody waits for

Dask is imported only where a cluster is named (extra stunet[cluster]). docs/cluster.md is for users.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from stunet.errors import DataError, UsageError
from stunet.workers import AGAIN, Workers

FORMS = "local:2, tcp://host:8786 or slurm:8"
FORM = re.compile(r"local:(?P<local>\d+)|(?P<address>(tcp|tls)://[^/\s]+:\d+)|slurm(:(?P<jobs>\d+))?")


@dataclass(frozen=True)
class Shared:
    """What all workers have to see as this process does, for which probes are made before they get a case.

    Attributes:
        read: Files and folders that are read.
        written: Folders that results are written to; they exist.
    """

    read: Sequence[Path] = ()
    written: Sequence[Path] = ()


def check_cluster(cluster: str | None) -> None:
    """Raise if --cluster cannot be understood, or its packages are missing, before anything is read.

    Raises:
        UsageError: It is none of the forms, or says 0.
        DataError: Dask is not installed.
    """
    if cluster is None:
        return
    form = FORM.fullmatch(cluster)
    if not form or 0 in (int(form["local"] or 1), int(form["jobs"] or 1)):
        raise UsageError(f"--cluster {cluster!r} is not a cluster", f"--cluster {FORMS}")
    for package in ("distributed", *(["dask_jobqueue"] if cluster.startswith("slurm") else [])):
        if find_spec(package) is None:
            raise DataError(f"--cluster needs {package}, which is not installed", "pip install 'stunet[cluster]'")


@contextmanager
def workers_on(
    cluster: str | None,
    processes: int,
    shared: Shared,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    memory_gb: float | None = None,
    again: str = AGAIN,
) -> Iterator[Workers]:
    """Yield the workers of a cluster, or the number of processes here if none is named.

    Args:
        cluster: As check_cluster() allows it; None: processes of this machine.
        processes: Their number.
        shared: What workers of a cluster have to see.
        note: Called with what is waited for.
        warn: Called with each worker that is refused, and each case that failed, when that happens.
        memory_gb: What each worker may take that is started here, in 10^9 bytes; None: its share of the machine.
        again: How the command goes on after it has ended early, for hints.

    Raises:
        DataError: There is no scheduler, or nothing that starts one.
    """
    if cluster is None:
        yield processes
        return
    from stunet.cluster.opening import opened

    with opened(cluster, shared, note, warn, memory_gb, again) as crew:
        yield crew
