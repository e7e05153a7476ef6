"""Decide which workers may take part: those with the same versions that see the same folders, under a nanny.

`Probes` are made by the command; `admit()` runs in the worker. Another version could compute something else, and a
folder that is not shared would lose results or fail every case.
"""

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stunet import __version__
from stunet.cluster import Shared
from stunet.cluster.serving import Work
from stunet.workspace import VARIABLES

PACKAGES = ("nnunetv2", "torch", "distributed")
SAME_VERSIONS = "install the same versions there"


@dataclass(frozen=True)
class Probes:
    """What a worker has to find.

    Attributes:
        versions: By package.
        sizes: Size in bytes of files that are read, by path; None for a folder.
        notes: What is written in a file of each folder for results, by its path.
    """

    versions: Mapping[str, str]
    sizes: Mapping[str, int | None]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Invitation:
    """What a worker is sent before its first case.

    Attributes:
        run: Name of the run.
        probes: What the worker has to find.
        function: The function, pickled: it is loaded when versions and folders are known to be the same.
        folder: The folder in which the command runs.
        environment: nnU-Net's variables.
    """

    run: str
    probes: Probes
    function: bytes
    folder: str
    environment: Mapping[str, str]


@contextmanager
def invitation(run: str, function: Any, shared: Shared) -> Iterator[Invitation]:
    """Yield what workers are sent; the files that probe the folders exist during the block."""
    sizes: dict[str, int | None] = {}
    for path in shared.read:
        # Of a folder, one file that is in it: an empty folder of this name may be there as well.
        file = (_any_file(path) if path.is_dir() else None) or path
        sizes[str(file.absolute())] = None if file.is_dir() else file.stat().st_size
    # Not a name that remove_staging() of another run in the folder takes for its own.
    files = [folder.absolute() / f".probe-{run}" for folder in dict.fromkeys(shared.written)]
    try:
        for file in files:
            file.write_text(run)
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        probes = Probes(_versions(), sizes, {str(file): run for file in files})
        yield Invitation(run, probes, pickle.dumps(function), os.getcwd(), environment)
    finally:
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _any_file(folder: Path) -> Path | None:
    with os.scandir(folder) as entries:
        return next((Path(entry.path) for entry in entries if entry.is_file()), None)


async def admit(invited: Invitation, dask_worker: Any = None) -> str | None:
    """Make a worker ready for its first case, in the worker; return why it is refused, and None if it is not."""
    if reason := _other_versions(invited.probes.versions) or _not_shared(invited):
        return reason
    os.environ.update(invited.environment)
    work = Work(invited.run, pickle.loads(invited.function), invited.folder)
    await dask_worker.plugin_add(work, invited.run)
    # A worker that is paused for the memory that a large case has left does not start the next one.
    dask_worker.memory_manager.memory_pause_fraction = False
    return None


async def dismiss(run: str, dask_worker: Any = None) -> None:
    """Take the function of a run from a worker, in the worker, with all that it has loaded."""
    if run in dask_worker.plugins:
        await dask_worker.plugin_remove(run)


def _versions() -> dict[str, str]:
    """Return the versions that decide about results; builds of torch for other devices (2.13.0+cpu) are the same."""
    found = {"stunet": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = re.sub(r"\+.*", "", version(package))
    return found


def _other_versions(expected: Mapping[str, str]) -> str | None:
    found = _versions()
    other = [
        f"{name} {found.get(name, 'missing')} instead of {wanted}"
        for name, wanted in expected.items()
        if found.get(name) != wanted
    ]
    return f"it has {', '.join(other)}; {SAME_VERSIONS}" if other else None


def _not_shared(invited: Invitation) -> str | None:
    for path, size in invited.probes.sizes.items():
        try:
            found = os.stat(path)
        except OSError as error:
            return f"it has no {path!r} ({error.strerror}); share the folder with it under the same path"
        if size not in (None, found.st_size):
            return f"its {path!r} is another file; share the folder with it under the same path"
    for path, text in invited.probes.notes.items():
        if reason := _cannot_write(Path(path), text):
            return reason
    return None


def _cannot_write(probe: Path, text: str) -> str | None:
    """Return why results cannot be written beside a probe, if so."""
    folder = str(probe.parent)
    try:
        if probe.read_text() != text:
            return f"its {folder!r} is another folder; share it under the same path"
    except OSError:
        return f"it does not share {folder!r} with this machine: a file just written there is missing"
    answer = probe.with_name(f"{probe.name}-{os.getpid()}")
    try:
        answer.write_text(text)
        answer.unlink()
    except OSError as error:
        return f"it cannot write into {folder!r}: {error.strerror}"
    return None
