"""Find the cases of a fold in a preprocessed dataset. stunet/folds.py reads and checks splits_final.json."""

from stunet.errors import DataError
from stunet.folds import ALL, FILE, MADE, Fold, check_fold, choose_cases, read_folds
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.workspace import dataset_number, preprocessed_dataset


def find_fold(dataset: str, plan: Plan, configuration: str, fold: int | str) -> Fold | None:
    """Return the cases of a fold of a preprocessed dataset; None if nnU-Net has not made the folds yet.

    Raises:
        DataError: The fold cannot be trained, or there are too few cases to make folds.
    """
    cases = preprocessed_cases(dataset, plan, configuration)
    path = preprocessed_dataset(dataset) / FILE
    if fold == ALL:
        # As in nnU-Net, fold `all` is validated on the cases that it is trained on.
        return Fold(tuple(cases), tuple(cases))
    everything = f"stunet_train {dataset_number(dataset)} {configuration} {ALL} -p {plan.name}"
    if not path.is_file():
        if len(cases) < MADE:
            what = f"{dataset} has {len(cases)} cases, too few for the {MADE} folds that nnU-Net makes"
            raise DataError(what, f"{everything}, or write folds of your own into {path}")
        if int(fold) >= MADE:
            raise DataError(f"there is no fold {fold}: nnU-Net makes {MADE}, 0 to {MADE - 1}", "one of these, or 'all'")
        return None
    found = check_fold(read_folds(path), int(fold), frozenset(cases), path)
    return Fold(tuple(choose_cases(found.train, plan.train.num_cases, plan.train.seed, fold)), found.val)


def unused_cases(dataset: str, plan: Plan, configuration: str) -> list[str]:
    """Return the preprocessed cases in no fold of splits_final.json, which was apparently made without them."""
    path = preprocessed_dataset(dataset) / FILE
    if not path.is_file():
        return []
    named = {name for fold in read_folds(path) for name in (*fold.train, *fold.val)}
    return sorted(set(preprocessed_cases(dataset, plan, configuration)) - named)
