"""Expensive folders that all tests share: made once, whatever the number of pytest's workers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a copy, for this worker to change, of a folder that one of the workers makes.

    Args:
        factory: Gives the run's temporary folder.
        name: Of the folder; one for each `make`.
        make: Fills an empty folder. What it writes must not depend on where the folder is.
    """
    base = factory.getbasetemp()
    original = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{original}.lock"):
        if not original.is_dir():
            unfinished = original.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a worker that failed: each says so itself
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(original)
    copy = factory.mktemp(name)
    shutil.copytree(original, copy, symlinks=True, dirs_exist_ok=True)
    return copy
