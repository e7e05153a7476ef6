"""Record what a run did, with what, and how long each part took, in one JSON file.

The command fills a RunReport case by case and writes it at the end, even after an error or an interruption.
"""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stunet import __version__
from stunet.errors import DataError, StunetError
from stunet.files import write_json
from stunet.machine import GB, peak_resident

STAGES = ("read", "preprocess", "network", "export", "write")
PACKAGES = ("nnunetv2", "torch")


@dataclass
class CaseReport:
    """One case of a run.

    Attributes:
        name: Name of the case.
        seconds: Wall time by stage, for STAGES; a stage that was not reached is missing.
        peak_gb: Peak memory of the process by the end of the case; it never decreases from case to case.
        device_peak_gb: That of the GPU, if the caller knows it.
        error: What went wrong, with the hint; None after success.
        files: The files that were written.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    peak_gb: float | None = None
    device_peak_gb: float | None = None
    error: str | None = None
    files: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that its block takes, even if the block fails.

        Raises:
            ValueError: `name` is not one of STAGES.
        """
        if name not in STAGES:
            raise ValueError(f"{name!r} is not one of {', '.join(STAGES)}")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 6)
            self.peak_gb = round(peak_gb(), 3)

    def fail(self, error: StunetError) -> None:
        """Record an error as the command shows it."""
        self.error = f"{error.message}; {error.hint}" if error.hint else error.message


@dataclass
class RunReport:
    """A run.

    Attributes:
        command: The command line, argument by argument.
        device: The device that the network ran on.
        made_by: What determines the results, as in Predictor.made_by, with the hashes of the weights.
        versions: Versions of Python and packages.
        started: Start time in UTC, ISO 8601.
        cases: One per case, in the order of the run.
    """

    command: Sequence[str]
    device: str
    made_by: Mapping[str, Any]
    # Lambdas, because the functions are defined below.
    versions: dict[str, str] = field(default_factory=lambda: versions())
    started: str = field(default_factory=lambda: _now())
    cases: list[CaseReport] = field(default_factory=list)

    def case(self, name: str) -> CaseReport:
        """Add a case and return its report."""
        self.cases.append(CaseReport(name))
        return self.cases[-1]

    def to_json(self) -> dict[str, Any]:
        """Return what has been recorded so far."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write what has been recorded so far, with the current time as the end of the run.

        Raises:
            DataError: The folder is missing or not writable.
            OSError: The disk is full.
        """
        failed = sum(case.error is not None for case in self.cases)
        content = {**self.to_json(), "ended": _now(), "succeeded": len(self.cases) - failed, "failed": failed}
        try:
            write_json(path, content)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise DataError(f"cannot write the report {str(path)!r}: {error.strerror}", "name another file") from None


def versions() -> dict[str, str]:
    """Return versions of Python and of the packages that determine results, from metadata, without importing torch."""
    found = {"stunet": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # on the path, but not installed
            found[package] = "unknown"
    return found


def peak_gb() -> float:
    """Return the peak resident memory of this process so far, in 10^9 bytes."""
    return peak_resident() / GB


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
