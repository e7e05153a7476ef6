"""Do the folds that a raw dataset brings fit its cases, and those that were used so far?

nnU-Net's planner copies splits_final.json from nnUNet_raw to nnUNet_preprocessed, where training reads it, and fails
with a bare assertion where another one is there. A file there may have more folds than the raw one.
"""

from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.errors import DataError, closest
from stunet.kinds import SPLITS, read, read_dataset_json
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
    folds = _folds(path)
    known = list(get_filenames_of_train_images_and_targets(str(raw), read_dataset_json(raw / "dataset.json")))
    for number, (train, val) in enumerate(folds):
        where = f"fold {number} of {str(path)!r}"
        if unknown := sorted((train | val) - set(known)):
            raise DataError(f"{where} has the case {unknown[0]!r}{closest(unknown[0], known)}", "cases of the dataset")
        if both := sorted(train & val):
            raise DataError(f"{where} has {both[0]!r} in training and in validation", "in one of the two")
        if not train or not val:
            raise DataError(f"{where} has {len(train)} cases to train and {len(val)} to validate", "at least one each")
    if used.is_file() and _folds(used)[: len(folds)] != folds:
        hint = "remove the one that shall not count: what was trained used that of nnUNet_preprocessed"
        raise DataError(f"{str(path)!r} and {str(used)!r} have different folds", hint)


def _folds(path: Path) -> list[tuple[set[str], set[str]]]:
    """Training and validation cases of each fold."""
    hint = 'a list of folds: [{"train": ["case_1", ...], "val": ["case_2", ...]}]'
    return [(set(fold["train"]), set(fold["val"])) for fold in read(path, SPLITS, hint)]
