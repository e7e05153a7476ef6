"""Find the trainer class for a run by reference.

nnU-Net finds a trainer by scanning folders, which imports all of its built-in trainers first. Nothing heavy is imported
here until trainer_class() is called.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

from stunet.errors import UsageError, closest
from stunet.labels.annotations import FILE
from stunet.workspace import PARTIAL_TRAINER, PRETRAINER, TRAINER

# Module of each trainer class, by the name that -tr takes.
TRAINERS = {TRAINER: "stunet.trainers.supervised", PARTIAL_TRAINER: "stunet.trainers.partial.trainer"}
# Of stunet_pretrain, which -tr does not take
OTHERS = {PRETRAINER: "stunet.trainers.pretraining"}


def needed_trainer(folder: Path, reused_classes: Sequence[str] | None) -> str:
    """Return the name of the trainer that a preprocessed dataset needs, and a plan that reuses a head with these."""
    return PARTIAL_TRAINER if (folder / FILE).is_file() or reused_classes is not None else TRAINER


def check_trainer(name: str) -> None:
    """Reject names that trainer_class() does not know, without importing anything.

    Raises:
        UsageError: Not one of TRAINERS.
    """
    if name not in TRAINERS:
        raise UsageError(f"unknown trainer {name!r}{closest(name, list(TRAINERS))}", f"-tr takes {', '.join(TRAINERS)}")


def trainer_class(name: str) -> type:
    """Return a trainer class by its name; see check_trainer()."""
    if name not in OTHERS:
        check_trainer(name)
    return getattr(importlib.import_module((TRAINERS | OTHERS)[name]), name)
