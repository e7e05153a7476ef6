"""Check that everything a training needs is present, and made from what it should be.

provenance.py and preprocessing/checks.py compare.

Imports neither torch nor nnunetv2, so that mistakes are reported immediately.
"""

import os
from pathlib import Path

from stunet.errors import DataError, first_few
from stunet.files import json_differences, read_json
from stunet.folds import ALL, read_folds
from stunet.folds import FILE as SPLITS
from stunet.labels.annotations import FILE
from stunet.plans.plan import Plan
from stunet.plans.splits import check_used_splits
from stunet.preprocessing.checks import check_data as check_preprocessed
from stunet.preprocessing.checks import check_labels
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.preprocessing.folds import find_fold, unused_cases
from stunet.provenance import check_result
from stunet.workspace import HANDED_OVER, TRAINER, dataset_number, preprocessed_dataset, result_folder, trained_folds


def check_data(dataset: str, plan: Plan, configuration: str, fold: int | str, trainer: str = TRAINER) -> list[str]:
    """Check the preprocessed data against the plan, the fold for training and validation, and what a cascade needs.

    Returns:
        Warnings about what cannot be compared, or is not used.

    Raises:
        DataError: Something is missing or was made from something else; the message names it.
    """
    warnings = check_preprocessed(dataset, plan, configuration)
    if fold != ALL:
        check_used_splits(dataset)
    _check_annotations(dataset)
    cases = find_fold(dataset, plan, configuration, fold)
    everything = preprocessed_cases(dataset, plan, configuration)
    check_labels(dataset, plan, configuration, cases.val if cases else everything)
    # The fold 'all' trains with every case, so none is left out.
    if fold != ALL and (names := unused_cases(dataset, plan, configuration)):
        path = preprocessed_dataset(dataset) / SPLITS
        warnings.append(f"{len(names)} preprocessed cases are in no fold of {str(path)!r} (e.g. {names[0]!r})")
    _check_previous_stage(dataset, plan, configuration, trainer, cases.all if cases else everything)
    return warnings


def _check_previous_stage(dataset: str, plan: Plan, configuration: str, trainer: str, cases: list[str]) -> None:
    """Raise an error if a cascade lacks predictions of its previous stage; the hint tells how to make them."""
    previous = plan.configuration(configuration).previous_stage
    if not previous:
        return
    model = result_folder(dataset, plan.name, previous, trainer)
    waiting, trained = missing_predictions(model, configuration, cases), trained_folds(model)
    command = f"stunet_train {dataset_number(dataset)} {previous} FOLD -p {plan.name}"
    for fold in trained:
        # Even if no prediction is missing: one of other cases or data would be trained on without notice.
        if reasons := check_result(model / f"fold_{fold}"):
            hint = f"{command.replace('FOLD', str(fold))} --val, where its training cases are the same, or --overwrite"
            raise DataError(f"{configuration} needs predictions of {previous}, but {reasons[0]}", hint)
    if not waiting:
        return
    path = preprocessed_dataset(dataset) / SPLITS
    folds = dict(enumerate(read_folds(path))) if path.is_file() else {}
    able = [f for f in trained if f == ALL or (f in folds and set(waiting) & set(folds[int(f)].val))]
    if able:
        hint = f"{command.replace('FOLD', str(able[0]))} --val, which predicts them"
        hint += f"; the same for {', '.join(map(str, able[1:]))}" if able[1:] else ""
    else:
        # nnU-Net makes five folds, which need five cases.
        hint = f"{command}, for all folds, first" if len(cases) >= 5 else command.replace("FOLD", ALL)
    raise DataError(
        f"{configuration} needs predictions of {previous}; {len(waiting)} are missing (e.g. {waiting[0]!r})", hint
    )


def missing_predictions(model: Path, configuration: str, cases: list[str]) -> list[str]:
    """Return the cases for which a result folder has no prediction for the next stage, `configuration`."""
    return sorted(set(cases) - {path.stem for path in (model / HANDED_OVER / configuration).glob("*")})


def lacking_next_stage(dataset: str, plan: Plan, configuration: str, fold: int | str, model: Path) -> str | None:
    """Describe what a trained fold still lacks that the next stages of a cascade need from it; None if nothing.

    Args:
        model: The result folder, with a folder for each fold.
    """
    cases = find_fold(dataset, plan, configuration, fold)
    for stage in plan.configuration(configuration).next_stages:
        able = set(preprocessed_cases(dataset, plan, stage)) & set(cases.val if cases else ())
        if waiting := missing_predictions(model, stage, sorted(able)):
            return f"{stage} needs {len(waiting)} predictions of it that are missing (e.g. {waiting[0]!r})"
    return None


def _check_annotations(dataset: str) -> None:
    """Check that the preprocessed dataset has the annotations of the raw one, if that is on this machine."""
    raw = Path(os.environ.get("nnUNet_raw", "")) / dataset
    if not (raw / "dataset.json").is_file():
        return
    files = [folder / FILE for folder in (raw, preprocessed_dataset(dataset))]
    before, now = (read_json(file) if file.is_file() else None for file in files)
    if changed := json_differences(before, now, FILE):
        raise DataError(
            f"{dataset} was preprocessed with other annotations than it has now ({first_few(changed)})",
            f"stunet_plan_and_preprocess -d {dataset_number(dataset)}",
        )
