"""A scheduler and workers as users start them: `dask scheduler` and `dask worker` in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stunet.cluster import Shared, workers_on
from stunet.workers import Outcome, map_cases
from tests.cluster.functions import Case, work
from tests.test_structure import ROOT

DASK = Path(sys.executable).with_name("dask")
SECONDS = 60  # for something to happen


@contextmanager
def started(folder: Path, *arguments: Any, start: Sequence[str] = (), path: Sequence[Path] = ()) -> Iterator[Any]:
    """Run a command of dask in a group of its own, which is killed at the end; its log is in the folder.

    Args:
        folder: For logs.
        arguments: Of dask.
        start: A command that starts it.
        path: Folders in which Python looks first.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    environment["DASK_TEMPORARY_DIRECTORY"] = str(folder)
    with (folder / f"{arguments[0]}.log").open("a") as log:
        process = subprocess.Popen(
            [*start, str(DASK), *map(str, arguments)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def scheduler(folder: Path, port: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the address and the process of a scheduler."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    options = ["--host", "127.0.0.1", "--port", port, "--no-dashboard", "--scheduler-file", file]
    with started(folder, "scheduler", *options) as process:
        wait_until(file.exists)
        wait_until(lambda: file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], process


@contextmanager
def worker(folder: Path, address: str, *options: Any, host: str = "127.0.0.1", **how: Any) -> Iterator[Any]:
    """Yield the process of a nanny and its worker."""
    always = ["--host", host, "--nthreads", 1, "--no-dashboard", "--death-timeout", SECONDS]
    with started(folder, "worker", address, *always, *options, **how) as process:
        yield process


@contextmanager
def two_workers(folder: Path) -> Iterator[str]:
    """Yield the address of a scheduler with a worker on each of two addresses."""
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(folder))
        for host in ("127.0.0.1", "127.0.0.2"):
            stack.enter_context(worker(folder, address, host=host))
        yield address


def wait_until(holds: Callable[[], Any]) -> None:
    """Wait until something holds; fail if it takes too long."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < SECONDS, "it did not happen"
        time.sleep(0.02)


def run(
    cluster: str, folder: Path, kinds: Sequence[str], warnings: list[str] | None = None, shared: Shared | None = None
) -> list[Outcome[Case, str]]:
    """Return the outcomes of cases of these kinds on a cluster, in the order of the cases."""
    folder.mkdir(exist_ok=True)
    cases = [Case(kind, f"case_{number}", folder / f"case_{number}") for number, kind in enumerate(kinds)]
    warn = ([] if warnings is None else warnings).append
    with workers_on(cluster, 1, shared or Shared(written=[folder]), print, warn) as workers:
        outcomes = list(map_cases(work, cases, workers, lambda case: case.name))
    return sorted(outcomes, key=lambda outcome: outcome.position)
