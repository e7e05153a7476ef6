"""What a case costs beside its own work: on Dask workers of this machine, and in processes of the command.

    python benchmarks/cluster.py [--cases 500] [--workers 2] [--cluster tcp://host:8786]

Each case writes a file of a few bytes. The start of the workers is told apart, and the first cases, for which workers
import what they need, are left out.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from stunet.cluster import Shared, workers_on
from stunet.workers import Workers, map_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cluster")
    args = parser.parse_args()
    print(f"{args.cases} cases, {args.workers} workers, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for cluster in (None, args.cluster or f"local:{args.workers}"):
        with tempfile.TemporaryDirectory() as scratch:
            folder, begun = Path(scratch), time.perf_counter()
            with workers_on(cluster, args.workers, Shared(written=[folder]), print, print) as workers:
                started = time.perf_counter() - begun
                wall, cpu = measure(workers, folder, args.cases)
        name = cluster or "processes here"
        print(f"{name}: {started:.1f} s to start, {1e3 * wall:.1f} ms per case, {1e3 * cpu:.1f} ms CPU of the command")


def measure(workers: Workers, folder: Path, cases: int) -> tuple[float, float]:
    """Return wall and CPU seconds of this process per case, without the first few cases."""
    warm = 10
    paths = [folder / f"case_{number}" for number in range(cases + warm)]
    begun = used = 0.0
    for done, outcome in enumerate(map_cases(write, paths, workers, lambda path: path.name), 1):
        assert outcome.error is None
        if done == warm:
            begun, used = time.perf_counter(), cpu_seconds()
    return (time.perf_counter() - begun) / cases, (cpu_seconds() - used) / cases


def write(path: Path) -> int:
    return path.write_text("done")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
