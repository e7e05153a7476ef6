"""Check that the folds supplied with a raw dataset fit its cases and the folds used so far.

nnU-Net's planner copies splits_final.json from nnUNet_raw to nnUNet_preprocessed, where training reads it, and fails
with a bare assertion if a different one is already there. The file there may have more folds than the raw one.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from stunet.datasets import list_cases
from stunet.errors import DataError
from stunet.folds import FILE, Fold, check_fold, read_folds
from stunet.kinds import read_dataset_json
from stunet.workspace import dataset_number, preprocessed_dataset, raw_dataset


def check_splits(dataset: str) -> None:
    """Check the raw dataset's splits_final.json, if it has one, before anything is planned.

    Args:
        dataset: Full name.

    Raises:
        DataError: It is not a list of folds, one of them cannot be trained, or they differ from those in
            nnUNet_preprocessed.
    """
    raw = raw_dataset(dataset)
    path, used = raw / FILE, preprocessed_dataset(dataset) / FILE
    if not path.is_file():
        return
    folds = read_folds(path)
    known = frozenset(case.name for case in list_cases(raw, read_dataset_json(raw / "dataset.json")))
    for number in range(len(folds)):
        check_fold(folds, number, known, path)
    _compare(folds, used, path)


def check_used_splits(dataset: str) -> None:
    """Check that a training uses the folds supplied with the raw dataset, if that is on this machine.

    Raises:
        DataError: They differ from those in nnUNet_preprocessed, or there are none there.
    """
    # Not workspace.folder(), which requires the variable: training does not need the raw data.
    root = os.environ.get("nnUNet_raw")
    path, used = Path(root or "") / dataset / FILE, preprocessed_dataset(dataset) / FILE
    if not root or not path.is_file():
        return
    if not used.is_file():
        what = f"{str(path)!r} has folds that came after the dataset was planned"
        raise DataError(what, f"stunet_plan_and_preprocess -d {dataset_number(dataset)}, which takes them over")
    _compare(read_folds(path), used, path)


def _compare(folds: Sequence[Fold], used: Path, path: Path) -> None:
    """Raise an error if the file that training reads starts with other folds than the raw dataset's."""
    if used.is_file():
        # As nnU-Net compares them: the order of cases does not count, and the file in use may have more folds.
        first = read_folds(used)[: len(folds)]
        if [(set(fold.train), set(fold.val)) for fold in first] != [(set(f.train), set(f.val)) for f in folds]:
            hint = "remove the one that should not count: trainings so far used the one in nnUNet_preprocessed"
            raise DataError(f"{str(path)!r} and {str(used)!r} have different folds", hint)
