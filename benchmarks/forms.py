"""What benchmarks that compare two forms of one computation share: turns, fresh processes, and the machine's state."""

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def in_turns(forms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each form in each round, in which they take turns (A B, B A), after one that warms up.

    CPU seconds of the whole process: with one thread they depend least on who else uses the machine.
    """
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name in list(forms) if number % 2 else reversed(forms):
            start = time.process_time()
            forms[name]()
            if number:
                taken[name].append(time.process_time() - start)
    return taken


def ratio(ours: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio of the two."""
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


def growth(work: Callable[[], Any]) -> int:
    """By how many bytes work raises the peak memory of this process, which must be fresh; Linux counts it in KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = work()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    return (after - before) * 1024


def machine(*packages: str) -> dict[str, Any]:
    """What the figures depend on: processor, threads, versions, commit."""
    cpu = torch.cpu.get_capabilities()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu.get("cpu_name"),
        "cores": os.cpu_count(),
        "instructions": [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if cpu.get(name)],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "nnunetv2", *packages)},
        "commit": commit,
    }
