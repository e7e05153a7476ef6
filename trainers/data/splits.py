"""nnU-Net's folds, read safely and with names that are found in constant time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
from nnunetv2.utilities.crossval_split import generate_crossval_split

from stunet.kinds import SPLITS, read
from stunet.nnunet import patched


def patched_splits() -> AbstractContextManager[None]:
    """Let nnU-Net's do_split() work on checked folds with fast names, while the block runs.

    Raises:
        DataError: In the block: splits_final.json is not what nnU-Net writes.
    """
    return patched(host, load_json=_fast(_read), generate_crossval_split=_fast(generate_crossval_split))


class _Names(list):
    """Case names with fast lookup: nnU-Net looks up each of a fold's, which takes a minute for 100,000 with lists."""

    def __contains__(self, name: object) -> bool:
        # Made on first use: most folds of a file are never asked.
        if not hasattr(self, "known"):
            self.known = frozenset(self)
        return name in self.known


def _fast(splits: Callable[..., list[dict]]) -> Callable[..., list[dict]]:
    def fast(*args: Any, **kwargs: Any) -> list[dict]:
        return [{part: _Names(names) for part, names in split.items()} for split in splits(*args, **kwargs)]

    return fast


def _read(path: str) -> list[dict]:
    found: list[dict] = read(Path(path), SPLITS)
    return found
