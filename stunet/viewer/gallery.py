"""The cases that a viewer shows: loaded when they are asked for, and again when their files have changed."""

import hashlib
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from stunet.errors import StunetError, explain
from stunet.viewer.cases import ViewCase
from stunet.viewer.classes import Names
from stunet.viewer.loading import LoadedCase, load

KEPT = 2  # cases in memory: the one that is shown, and the one before it
log = logging.getLogger("stunet")


class Outdated(Exception):
    """The files of a case have changed since the page was told what they hold."""


class Gallery:
    """Cases by ids that tell nothing about files.

    Args:
        cases: What to show.
        names: What label values mean.
        first: Name of the case to begin with; None: the first of the list.
    """

    def __init__(self, cases: Sequence[ViewCase], names: Names, first: str | None = None) -> None:
        self._cases = {secrets.token_hex(8): case for case in cases}
        self._names, self._first = names, first
        self._loaded: OrderedDict[tuple[str, str], LoadedCase] = OrderedDict()
        self._dice: dict[str, float] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()  # one case is read at a time: each can take gigabytes

    def listing(self) -> list[dict[str, Any]]:
        """Return id, name, mean Dice and state (measured, waiting, failed) of each case; the lowest Dice first."""
        found = []
        for key, case in self._cases.items():
            state = "failed" if key in self._failed else "measured" if key in self._dice else "waiting"
            dice = self._dice.get(key, nan)
            found.append({
                "id": key, "name": case.name, "dice": None if isnan(dice) else dice, "state": state,
                "first": case.name == self._first,
            })  # fmt: skip
        return sorted(found, key=lambda one: (one["dice"] is None, one["dice"] or 0.0, one["name"]))

    def describe(self, key: str) -> dict[str, Any]:
        """Return what the page needs to know about a case, with a version for volume().

        Raises:
            KeyError: There is no such case.
            StunetError: Its files cannot be shown.
        """
        case = self._cases[key]
        version = _version(case)
        return {**self._load(key, version).described(), "version": version}

    def volume(self, key: str, version: str, what: str) -> bytes:
        """Return a volume of a case as NIfTI.

        Raises:
            KeyError: There is no such case, or it has no such volume.
            Outdated: Its files are no longer those of this version.
            StunetError: They cannot be shown.
        """
        if _version(self._cases[key]) != version:
            raise Outdated
        return self._load(key, version).nifti(what)

    def measure(self) -> None:
        """Compute the Dice of every case, one after the other."""
        for key, case in self._cases.items():
            if key in self._dice or key in self._failed:
                continue
            try:
                self._load(key, _version(case), keep=False)
            except StunetError as error:  # a damaged case does not end the others
                log.debug("%s: %s", case.name, error.message)

    def close(self) -> None:
        """Load nothing from now on, and wait for what is being loaded.

        A thread that is inside ITK when Python ends would abort the process.
        """
        self._lock.acquire()

    def _load(self, key: str, version: str, keep: bool = True) -> LoadedCase:
        with self._lock:
            if (key, version) in self._loaded:
                self._loaded.move_to_end((key, version))
                return self._loaded[key, version]
            try:
                case = load(self._cases[key], self._names)
            except Exception as error:
                self._failed.add(key)
                self._dice.pop(key, None)
                raise explain(error) from error
            self._failed.discard(key)
            self._dice[key] = case.mean_dice
            if keep:
                self._loaded[key, version] = case
                while len(self._loaded) > KEPT:
                    self._loaded.popitem(last=False)
            return case


def _version(case: ViewCase) -> str:
    """Return a text that changes when a file of the case does."""
    stamps = []
    for path in case.files:
        try:
            status = path.stat()
            stamps.append((status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            stamps.append((0, 0, 0))
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
