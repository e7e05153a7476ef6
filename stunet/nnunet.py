"""Access to nnU-Net's internals: trainers, version checks, and the parts that we replace while nnU-Net works.

Trainers are found by reference, never by nnU-Net's folder scan, which imports every built-in trainer first.
"""

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from stunet.errors import DataError, UsageError, closest
from stunet.files import atomic_write
from stunet.labels.annotations import FILE
from stunet.workspace import PARTIAL_TRAINER, TRAINER

TESTED = "2.8"  # first supported version, the one that looks for trainers in nnUNet_extTrainer

# Modules of the trainer classes, by the name that -tr takes.
TRAINERS = {TRAINER: "stunet.trainers.supervised", PARTIAL_TRAINER: "stunet.trainers.partial.trainer"}


def check_version() -> None:
    """Reject versions of nnU-Net whose internals we do not know.

    Raises:
        DataError: nnunetv2 is older than 2.8 or newer than 2.x.
    """
    installed = version("nnunetv2")
    major, minor = (int(part) for part in installed.split(".")[:2])
    if (major, minor) < (2, 8) or major > 2:
        raise DataError(
            f"nnunetv2 {installed} is installed; stunet needs {TESTED} or a later 2.x", "pip install 'nnunetv2>=2.8,<3'"
        )


def trainer_for(folder: Path, plans: Mapping[str, Any]) -> str:
    """Return the name of the trainer that a preprocessed dataset and a plan need."""
    partial = (folder / FILE).is_file() or "classes" in plans["stunet"].get("weights", {})
    return PARTIAL_TRAINER if partial else TRAINER


def trainer_class(name: str) -> type:
    """Return the trainer class that `-tr` names; see check_trainer()."""
    check_trainer(name)
    return getattr(importlib.import_module(TRAINERS[name]), name)


def check_trainer(name: str) -> None:
    """Reject names that trainer_class() does not know, without importing anything.

    Raises:
        UsageError: Not one of TRAINERS.
    """
    if name not in TRAINERS:
        raise UsageError(f"unknown trainer {name!r}{closest(name, list(TRAINERS))}", f"-tr takes {', '.join(TRAINERS)}")


def limit_processes() -> None:
    """Make nnU-Net start one worker per core and pool, eight at most, instead of always eight.

    Must run before nnunetv2 is imported; a value that the user set in the environment is kept.
    """
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))


def write_whole(module: ModuleType) -> None:
    """Make one of nnU-Net's modules write JSON and copy files atomically, as long as this process lives."""
    if hasattr(module, "save_json"):
        module.save_json = _save_json  # type: ignore[attr-defined]
    if hasattr(module, "shutil"):
        module.shutil = _Copies  # type: ignore[attr-defined]


def _save_json(content: Any, file: str, indent: int = 4, sort_keys: bool = True) -> None:
    """Write JSON as in batchgenerators, but atomically."""
    with atomic_write(Path(file)) as part, part.open("w") as stream:
        json.dump(content, stream, sort_keys=sort_keys, indent=indent)


class _Copies:
    """Replaces shutil where nnU-Net copies a file."""

    @staticmethod
    def copyfile(source: str, target: str) -> None:
        with atomic_write(Path(target)) as part:
            shutil.copyfile(source, part)

    @staticmethod
    def copy(source: str, target: str) -> None:
        with atomic_write(Path(target)) as part:
            shutil.copy(source, part)


@contextmanager
def exchanged(module: ModuleType, **names: Any) -> Iterator[None]:
    """Replace names in one of nnU-Net's modules with ours while the block runs.

    For the few places where nnU-Net decides inside a long method; the alternative would be to copy that method.
    """
    before = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
