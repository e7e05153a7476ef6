"""Do the folds that a raw dataset brings fit its cases, and those that were used so far?

nnU-Net's planner copies splits_final.json from nnUNet_raw to nnUNet_preprocessed, where training reads it, and fails
with a bare assertion where another one is there. A file there may have more folds than the raw one.
"""

from typing import Any

from stunet.datasets import training_files
from stunet.errors import DataError, closest
from stunet.files import read_json
from stunet.workspace import preprocessed_dataset, raw_dataset

FILE = "splits_final.json"


def check_splits(dataset: str) -> None:
    """Looks at the raw dataset's splits_final.json, if it has one, before anything is planned.

    Args:
        dataset: Full name.

    Raises:
        DataError: It is no list of folds, names unknown cases, has a case in training and validation, or other folds
            than the one in nnUNet_preprocessed.
    """
    raw = raw_dataset(dataset)
    path, used = raw / FILE, preprocessed_dataset(dataset) / FILE
    if not path.is_file():
        return
    folds = _folds(read_json(path), repr(str(path)))
    known = list(training_files(raw, read_json(raw / "dataset.json")))
    for number, (train, val) in enumerate(folds):
        where = f"fold {number} of {str(path)!r}"
        if unknown := sorted((train | val) - set(known)):
            raise DataError(f"{where} has the case {unknown[0]!r}{closest(unknown[0], known)}", "cases of the dataset")
        if both := sorted(train & val):
            raise DataError(f"{where} has {both[0]!r} in training and in validation", "in one of the two")
        if not train or not val:
            raise DataError(f"{where} has {len(train)} cases to train and {len(val)} to validate", "at least one each")
    if used.is_file() and _folds(read_json(used), repr(str(used)))[: len(folds)] != folds:
        hint = "remove the one that shall not count: what was trained used that of nnUNet_preprocessed"
        raise DataError(f"{str(path)!r} and {str(used)!r} have different folds", hint)


def _folds(content: Any, where: str) -> list[tuple[set[str], set[str]]]:
    """Training and validation cases of each fold."""
    try:
        folds = [(set(fold["train"]), set(fold["val"])) for fold in content]
        if folds and all(isinstance(name, str) for fold in folds for part in fold for name in part):
            return folds
    except (TypeError, KeyError):
        pass
    raise DataError(f"{where} is no list of folds", '[{"train": ["case_1", ...], "val": ["case_2", ...]}]')
