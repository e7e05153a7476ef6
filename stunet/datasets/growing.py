"""Grow a dataset folder case by case over several runs, each of which may be killed at any moment.

Besides the files of its cases, such a folder holds

    .stunet/options.json     what the dataset was requested with; other requests are refused
    .stunet/cases/CASE.json  what a case was made from, SHA-256 of its files, facts for reports; written last

A case is done if its sources have not changed since and its files are those that were written. Conversions grow in
place (conversion.py); unions and completed datasets grow under a hidden name until they are complete.
"""

import hashlib
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.errors import DataError, first_few
from stunet.files import (
    exclusive_lock,
    json_differences,
    remove_staging,
    sha256_of,
    shared_lock,
    staging_folder,
    write_json,
    write_lock,
)
from stunet.kinds import CASE_RECORD, read
from stunet.schema import anything, dict_of

OWN_FOLDER = ".stunet"
DATA_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "masksTr")
_OWN_FILE = re.compile(rf"({'|'.join(DATA_FOLDERS)})/[^/\\]+")


@dataclass(frozen=True)
class GrowingFolder:
    """A folder that grows; its lock is held by whoever begins, saves or prunes."""

    path: Path

    @property
    def is_own(self) -> bool:
        """Whether a run has begun this folder, rather than somebody else."""
        # begin() makes the folder of records before it writes the options, and may be killed in between.
        return (self._options.is_file()) or (self._cases.is_dir() and not self.recorded())

    def changes(self, options: Any, since_begun: bool = False) -> list[str]:
        """List how options differ from those of the finished cases; empty if no case is finished.

        Args:
            options: Those requested now.
            since_begun: Also count the options that the folder was begun with and no case is finished with yet.

        Raises:
            DataError: There are finished cases, but their options are missing or unreadable.
        """
        if not self.recorded() and not (since_begun and self._options.is_file()):
            return []
        return json_differences(read(self._options, dict_of(anything)), options)

    def begin(self, options: Any, alone: bool = True) -> None:
        """Record the options unless finished cases have theirs.

        Args:
            options: Those requested now.
            alone: Whether nobody else writes cases: then files that a killed run left unfinished are removed.
        """
        self._cases.mkdir(parents=True, exist_ok=True)
        folders = (self._options.parent, self._cases, self.path, *(self.path / name for name in DATA_FOLDERS))
        for folder in folders if alone else ():
            remove_staging(folder)
        if not self.recorded():
            write_json(self._options, options)

    def recorded(self) -> list[str]:
        """Return the names of the cases that have a record."""
        return sorted(path.name.removesuffix(".json") for path in self._cases.glob("*.json"))

    def is_done(self, case: str, source: str) -> bool:
        """Return whether a case is finished, was made from this source, and its files are those that were written."""
        try:
            record = self.record(case)
            same = all(sha256_of(self.path / file) == digest for file, digest in record["files"].items())
        except (DataError, OSError):  # no record yet, it is unreadable, or a file is gone
            return False
        return same and record["source"] == source

    def record(self, case: str) -> dict[str, Any]:
        """Return the record of a case: its `source`, the SHA-256 of its `files`, and `facts`.

        Raises:
            DataError: There is none, or it is unreadable.
        """
        record: dict[str, Any] = read(self._record(case), CASE_RECORD, "run the same command again")
        return record

    def files(self, case: str) -> set[str]:
        """Return the files that a record names, as imagesTr/CASE_0000.nii.gz; empty if it cannot be read."""
        try:
            files = self.record(case)["files"]
        except DataError:
            return set()
        return {file for file in files if _OWN_FILE.fullmatch(file)}  # a record is no permission to remove other files

    def save(self, case: str, source: str, files: Iterable[Path], facts: Mapping[str, Any]) -> None:
        """Record a case whose files are written, and remove those that an earlier run wrote for it elsewhere.

        Args:
            case: Its name.
            source: Signature of what it was made from.
            files: What is_done() verifies.
            facts: For reports, as JSON.
        """
        hashes = {path.relative_to(self.path).as_posix(): sha256_of(path) for path in files}
        for file in self.files(case) - hashes.keys():
            (self.path / file).unlink(missing_ok=True)
        write_json(self._record(case), {"source": source, "files": hashes, "facts": facts})

    def prune(self, cases: Collection[str], files: Collection[str]) -> None:
        """Remove the files that records name, except `files`, and all records but those of `cases`."""
        for case in self.recorded():
            for file in self.files(case) - set(files):
                (self.path / file).unlink(missing_ok=True)
            if case not in cases:
                self._record(case).unlink()

    @property
    def _options(self) -> Path:
        return self.path / OWN_FOLDER / "options.json"

    @property
    def _cases(self) -> Path:
        return self.path / OWN_FOLDER / "cases"

    def _record(self, case: str) -> Path:
        return self._cases / f"{case}.json"


@contextmanager
def hidden_until_complete(target: Path, options: Any) -> Iterator[GrowingFolder]:
    """Yield a folder with a hidden name that grows; it gets its final name if the block ends without an error.

    Args:
        target: nnUNet_raw/DatasetXXX_Name, which does not exist.
        options: What the dataset is made from, as JSON.

    Raises:
        DataError: It was begun from something else or by an earlier version, or another run is working on it.
    """
    with write_lock(target):
        folder = begin_hidden(target, options)
        yield folder
        appear(folder, target)


def begin_hidden(target: Path, options: Any, alone: bool = True) -> GrowingFolder:
    """Begin a folder with a hidden name, or go on with it; whoever does that holds a lock.

    Args:
        target: Its final name.
        options: What it is made from, as JSON.
        alone: As for GrowingFolder.begin().

    Raises:
        DataError: It is complete, or was begun from something else or by an earlier version.
    """
    folder = GrowingFolder(staging_folder(target))
    if target.exists():
        raise DataError(f"{str(target)!r} was made by another run in the meantime", "nothing is left to do")
    begun = folder.path.is_dir() and any(folder.path.iterdir())
    if begun and not folder.is_own:
        text = f"{str(folder.path)!r} was begun by an earlier version"
        raise DataError(text, f"start from scratch: rm -r {folder.path}")
    # From the beginning, not from the first finished case: all that is there at the end is the dataset, also a file
    # that was written with other options by a run that was killed before it recorded the case.
    if changed := folder.changes(options, since_begun=True):
        text = f"{target.name} was begun and interrupted, and since then changed {first_few(changed)}"
        raise DataError(text, f"undo that to go on with it, or start from scratch: rm -r {folder.path}")
    folder.begin(options, alone)
    return folder


def appear(folder: GrowingFolder, target: Path) -> None:
    """Give a complete folder its final name."""
    # The records go last: a run that is killed before the rename needs them to resume.
    folder.path.rename(target)
    shutil.rmtree(target / OWN_FOLDER)


@contextmanager
def sharing(target: Path, name: str) -> Iterator[None]:
    """Share a folder with other parts of a run, of which each has its name, but with nobody who writes all of it."""
    what, hint = f"another process writes {str(target)!r}", "wait until it is done"
    lock = target.with_name(f".lock-{target.name}")
    with shared_lock(lock, what, hint), exclusive_lock(lock.with_name(f"{lock.name}-{name}"), what, hint):
        yield


def signature(files: Iterable[Path], *more: Any) -> str:
    """Return a hash of the files' names, sizes in bytes and modification times in ns; a missing file changes it.

    Times rather than contents: thousands of masks would take minutes to read each time.
    """
    parts: list[Any] = list(more)
    for path in files:
        try:
            stat = path.stat()
            parts.append((path.name, stat.st_size, stat.st_mtime_ns))
        except OSError:
            parts.append(path.name)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
