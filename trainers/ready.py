"""Is everything there that a training needs? Preprocessed cases, enough of them for the folds, a cascade's first stage.

Imports neither torch nor nnunetv2, so that a mistake is named at once.
"""

import os
from pathlib import Path
from typing import Any

from stunet.annotations import FILE
from stunet.errors import DataError
from stunet.files import read_json
from stunet.plans.check import difference
from stunet.plans.resolve import resolve
from stunet.preprocessing import preprocessed_cases, unprocessed_cases
from stunet.workspace import TRAINER, preprocessed_dataset, result_folder


def check_data(
    dataset: str, plans: dict[str, Any], configuration: str, fold: int | str, trainer: str = TRAINER
) -> None:
    """Sees that the data are preprocessed, the fold can be made, and a cascade has its first stage.

    Raises:
        DataError: They are not, or not all of them; the message says what is missing.
    """
    number = int(dataset[7:10])
    cases = preprocessed_cases(dataset, plans, configuration)
    missing = unprocessed_cases(dataset, plans, configuration)
    if not cases or missing:
        state = f"{len(missing)} cases are missing (e.g. {missing[0]!r})" if cases else "no case is there"
        raise DataError(
            f"{dataset} is not preprocessed for {configuration} with {plans['plans_name']}: {state}",
            f"stunet_plan_and_preprocess -d {number} -c {configuration}",
        )
    _check_annotations(dataset)
    splits = preprocessed_dataset(dataset) / "splits_final.json"
    if fold != "all" and not splits.is_file() and len(cases) < 5:
        raise DataError(
            f"{dataset} has {len(cases)} cases, too few for five folds", f"stunet_train {number} {configuration} all"
        )
    previous = resolve(plans, configuration).get("previous_stage")
    if previous:
        folder = result_folder(dataset, plans["plans_name"], previous, trainer) / "predicted_next_stage" / configuration
        waiting = sorted(set(cases) - {path.stem for path in folder.glob("*")})
        if waiting:
            raise DataError(
                f"{configuration} needs predictions of {previous}; {len(waiting)} are missing (e.g. {waiting[0]!r})",
                f"stunet_train {number} {previous} FOLD -p {plans['plans_name']}, for all five folds, first",
            )


def _check_annotations(dataset: str) -> None:
    """Sees that the preprocessed dataset has the annotations of the raw one, if that is on this machine."""
    raw = Path(os.environ.get("nnUNet_raw", "")) / dataset
    if not (raw / "dataset.json").is_file():
        return
    files = [folder / FILE for folder in (raw, preprocessed_dataset(dataset))]
    before, now = (read_json(file) if file.is_file() else None for file in files)
    if changed := difference(before, now, FILE):
        raise DataError(
            f"{dataset} was preprocessed with other annotations than it has now ({changed})",
            f"stunet_plan_and_preprocess -d {int(dataset[7:10])}",
        )
