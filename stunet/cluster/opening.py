"""Read what --cluster says, start a scheduler or connect to one, and end what was started.

Whatever is started has nannies: without them, the case of a killed worker hangs for minutes (measured). crew.py uses
what is opened.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from shutil import which
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from stunet.cluster import FORM, Shared, check_cluster
from stunet.errors import DataError, UsageError, last_line
from stunet.machine import GB

if TYPE_CHECKING:
    from stunet.cluster.crew import Crew

JOBS_FILE = "~/.config/dask/jobqueue.yaml"  # dask-jobqueue's
CONNECT_S = 10  # to wait for a scheduler
CLOSE_S = 5  # to wait for a scheduler or workers when they are left
# Of the workers that are started here. Images and networks are no data of Dask's, which it could write to disk; and a
# worker that is paused for its memory would keep its case waiting forever.
SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    "logging": {"distributed": "critical"},
}


@contextmanager
def opened(
    cluster: str,
    shared: Shared,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    memory_gb: float | None,
    again: str,
) -> Iterator["Crew"]:
    """Yield the workers of a cluster; those that are started here end with the block.

    The arguments are those of workers_on().

    Raises:
        UsageError: As for check_cluster(), or jobs of Slurm are not configured.
        DataError: There is no scheduler, or nothing that starts one.
    """
    check_cluster(cluster)
    from stunet.cluster.crew import Crew

    form = FORM.fullmatch(cluster)
    assert form is not None
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if form["address"]:
            source: Any = form["address"]
        elif form["local"]:
            source = stack.enter_context(_on_this_machine(int(form["local"]), memory_gb))
        else:
            source = stack.enter_context(_as_jobs(int(form["jobs"] or 1), memory_gb))
        client = stack.enter_context(_client(source, cluster))
        # Slurm starts jobs when it has room for them, in hours perhaps.
        yield Crew(client, cluster, shared, note, warn, again, waits=cluster.startswith("slurm"))


@contextmanager
def _client(source: Any, cluster: str) -> Iterator[Any]:
    from distributed import Client

    try:
        # Of other versions of many packages: admission.py looks at those that count.
        with catch_warnings(action="ignore"):
            client = Client(source, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"no Dask scheduler answers at {cluster}: {last_line(error) or type(error).__name__}"
        raise DataError(what, "start one there: dask scheduler, and workers: dask worker ADDRESS") from None
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(CLOSE_S)


@contextmanager
def _on_this_machine(workers: int, memory_gb: float | None) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    threads = max(1, (os.cpu_count() or 1) // workers)
    memory = {} if memory_gb is None else {"memory_limit": int(memory_gb * GB)}
    with dask.config.set(SETTINGS):
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                **memory,
            )
        except RuntimeError as error:  # mostly a script that each worker runs again
            what = f"the workers of --cluster local:{workers} do not start: {last_line(error)}"
            raise UsageError(what, 'put what a script does under if __name__ == "__main__":') from error
        try:
            yield cluster
        finally:
            with suppress(OSError, TimeoutError):
                cluster.close(CLOSE_S)


def slurm_cluster() -> Any:
    """Return dask-jobqueue's class. Importing it changes what Ctrl-C does, which is undone."""
    before = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    finally:
        signal.signal(signal.SIGINT, before)
    return SLURMCluster


@contextmanager
def _as_jobs(jobs: int, memory_gb: float | None) -> Iterator[Any]:
    """Yield a scheduler in this process whose workers are Slurm jobs, as described in ~/.config/dask/jobqueue.yaml."""
    import dask

    SLURMCluster = slurm_cluster()
    if which("sbatch") is None:
        what = "--cluster slurm: there is no sbatch here"
        raise DataError(what, "the same command where jobs are submitted, or --cluster tcp://host:8786")
    needed = ["cores", "memory"] if memory_gb is None else ["cores"]
    if missing := [key for key in needed if not dask.config.get(f"jobqueue.slurm.{key}")]:
        what = f"--cluster slurm: nothing says what a job gets ({', '.join(missing)})"
        raise UsageError(what, f"write it into {JOBS_FILE}, as docs/cluster.md shows")
    memory: Any = {} if memory_gb is None else {"memory": f"{int(memory_gb * GB)} B"}
    with dask.config.set({"logging": SETTINGS["logging"]}):
        with catch_warnings(action="ignore"):  # of the port of a dashboard
            cluster = SLURMCluster(processes=1, silence_logs=logging.CRITICAL, **memory)
        try:
            _check_job(cluster.job_script())
            # Not scale(), which submits each job once: those that end at their walltime are replaced.
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
            yield cluster
        finally:
            with suppress(OSError, TimeoutError, RuntimeError):
                cluster.close(CLOSE_S)


def _check_job(script: str) -> None:
    """Raise if Slurm would refuse a job: dask-jobqueue tries again forever and tells nobody."""
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"--cluster slurm: Slurm refuses the job: {reason}", f"correct it in {JOBS_FILE}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask, which reports a lost worker with tracebacks of several threads: crew.py says it in a line."""
    import distributed  # sets the levels of its loggers

    names = [
        name for name in logging.root.manager.loggerDict if name.split(".")[0] in (distributed.__name__, "tornado")
    ]
    logs = [logging.getLogger(name) for name in (*names, "asyncio")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
