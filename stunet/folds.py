"""The cases that a fold trains on and validates: read and check splits_final.json of raw and preprocessed datasets.

nnU-Net checks none of it: for a missing fold it makes a random one, and cases that are missing or in both parts end a
training later, or make its Dice meaningless.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stunet.errors import DataError, closest
from stunet.kinds import SPLITS, read

FILE = "splits_final.json"  # nnU-Net's name
ALL = "all"  # the fold that trains and validates with every case
MADE = 5  # number of folds that nnU-Net makes if none are given
FORMAT = 'a list of folds: [{"train": ["case_1", ...], "val": ["case_2", ...]}, ...]'


@dataclass(frozen=True)
class Fold:
    """The cases of a fold, in the order of the file."""

    train: tuple[str, ...]
    val: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """The cases of both parts, sorted."""
        return sorted({*self.train, *self.val})


def read_folds(path: Path) -> list[Fold]:
    """Read the folds of a file, without further checks.

    Raises:
        DataError: It is not a list of folds.
    """
    return [Fold(tuple(fold["train"]), tuple(fold["val"])) for fold in read(path, SPLITS, FORMAT)]


def check_fold(folds: Sequence[Fold], number: int, known: Collection[str], path: Path) -> Fold:
    """Return one of the folds, after checking that it can be trained.

    Args:
        folds: The folds of the file.
        number: Number of the fold.
        known: The cases of the dataset.
        path: Path of the file, for messages.

    Raises:
        DataError: There is no such fold, a part of it is empty, or it validates a case twice or has an unknown one.
    """
    if not 0 <= number < len(folds):
        there = "1 fold, 0" if len(folds) == 1 else f"{len(folds)} folds, 0 to {len(folds) - 1}"
        raise DataError(f"there is no fold {number} in {str(path)!r}: it has {there}", "one of these, or 'all'")
    fold, where = folds[number], f"fold {number} of {str(path)!r}"
    if unknown := sorted({*fold.train, *fold.val} - set(known)):
        near = closest(unknown[0], sorted(map(str, known))) or ", and the dataset does not"
        more = f" ({len(unknown)} such cases)" if len(unknown) > 1 else ""
        raise DataError(f"{where} has the case {unknown[0]!r}{near}{more}", "name only cases of the dataset there")
    if both := sorted(set(fold.train) & set(fold.val)):
        hint = "keep it in one of the two; the fold 'all' trains with every case"
        raise DataError(f"{where} has {both[0]!r} in training and in validation", hint)
    if twice := [name for name, count in Counter(fold.val).items() if count > 1]:  # in training it is drawn more often
        raise DataError(f"{where} validates the case {twice[0]!r} twice", "name it once")
    if not fold.train or not fold.val:
        text = f"{where} has {len(fold.train)} cases to train and {len(fold.val)} to validate"
        raise DataError(text, "give it at least one of each; the fold 'all' trains with every case")
    return fold


def choose_cases(train: Sequence[str], number: int | None, seed: int, fold: int | str) -> list[str]:
    """Choose `number` of a fold's training cases by the seed (4 are among the 8); None: all, in their order.

    Raises:
        DataError: There are fewer.
    """
    if number is None:
        return list(train)
    if number > len(train):
        raise DataError(
            f"num_cases={number}, but fold {fold} has {len(train)} training cases",
            f"--set num_cases={len(train)}, or less",
        )
    import numpy as np

    # Sorted before the draw: the choice must not depend on the order in splits_final.json.
    return sorted(map(str, np.random.default_rng(seed).permutation(sorted(train))[:number]))
