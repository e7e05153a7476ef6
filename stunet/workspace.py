"""Locations: nnU-Net's three folders, and the datasets, plans and results in them.

Imports neither torch nor nnunetv2, so that commands can check their arguments before these are loaded.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from stunet.errors import DataError, closest
from stunet.files import exclusive_lock, remove_staging
from stunet.names import check_name

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINER, PARTIAL_TRAINER, PRETRAINER = "STUNetTrainer", "STUNetPartialTrainer", "STUNetPretrainer"
# nnU-Net's names in a result folder: the checkpoints of a fold, and what a cascade's next stage takes from a model.
FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"
PRETRAINING = "pretraining.json"  # ours: loss and measure per epoch of a pre-training
PRETRAINED, PRETRAINED_TEACHER = "pretrained.pth", "pretrained_teacher.pth"  # its networks, in nnssl's format
# In the folder of a fold: the course of its training (trainers/, report/).
DRAWN = "progress.png", "pictures/epoch_*.png", "metrics.csv", "report.html", "views/*.html"
HANDED_OVER = "predicted_next_stage"
DATASETS = "Dataset[0-9][0-9][0-9]_*"  # the folders that nnU-Net recognizes as datasets


def folder(variable: str, for_writing: bool = False) -> Path:
    """Return the folder that one of nnU-Net's three variables names, and create it if necessary.

    The folder of raw data is only created for writing into it: with a typo in the variable, it would look like one
    without datasets.

    Raises:
        DataError: A variable is not set, nnUNet_raw is not a folder, or the folder cannot be created.
    """
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if variable in missing:
        lines = " ".join(f"{name}=/path/to/{name}" for name in missing)
        raise DataError(f"the variable {variable} is not set", f"export {lines}")
    path = Path(os.environ[variable])
    if variable == "nnUNet_raw" and not for_writing and not path.is_dir():
        raise DataError(
            f"{variable} is not a folder: {str(path)!r}", f"mkdir -p {path}, and put DatasetXXX_Name folders there"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder of {variable} cannot be created: {error}", f"export {variable}=...") from None
    return path


def dataset_name(id_or_name: int | str) -> str:
    """Return the full name (`Dataset003_Liver`) of a dataset given by number or name, looked up in all three folders.

    Raises:
        DataError: No dataset, or several, have this number.
    """
    known = sorted(
        {p.name for v in VARIABLES if os.environ.get(v) for p in Path(os.environ[v]).glob(DATASETS) if p.is_dir()}
    )
    text = str(id_or_name)
    if text in known:
        return text
    # isdecimal() alone also accepts digits of other scripts.
    if text.isascii() and text.isdecimal():
        matches = [name for name in known if dataset_number(name) == int(text)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise DataError(
                f"number {text} belongs to {len(matches)} datasets: {', '.join(matches)}", "give the full name with -d"
            )
    for variable in VARIABLES:  # a variable that is not set explains more than an unknown dataset
        folder(variable)
    listing = f"known: {', '.join(known[:8])}" if known else f"no datasets in {os.environ['nnUNet_raw']}"
    raise DataError(
        f"no dataset {text!r}{closest(text, known)} ({listing})",
        "put DatasetXXX_Name into nnUNet_raw, or see stunet_convert --help",
    )


def dataset_number(name: str) -> int:
    """Return the number in a dataset's full name: 3 for `Dataset003_Liver`; nnU-Net's names have three digits."""
    return int(name[7:10])


@contextmanager
def planning(dataset: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Lock the files next to the data folders of a preprocessed dataset: plans, fingerprint, dataset.json, labels.

    Args:
        dataset: Full name.
        wait: As for files.exclusive_lock().

    Raises:
        DataError: Another process has the lock.
    """
    place = folder("nnUNet_preprocessed") / dataset
    with exclusive_lock(place / ".lock", f"another process is planning {dataset}", "wait until it is done", wait=wait):
        remove_staging(place)  # left by a planning that was killed: nobody else writes here while the lock is held
        yield


def raw_dataset(name: str) -> Path:
    """Return the raw folder of a dataset, which must hold a dataset.json.

    Raises:
        DataError: The folder or its dataset.json is missing.
    """
    path = folder("nnUNet_raw") / name
    if not (path / "dataset.json").is_file():
        raise DataError(
            f"no dataset.json in {str(path)!r}",
            "see stunet_convert --help, or nnU-Net's documentation/dataset_format.md",
        )
    return path


def preprocessed_dataset(name: str) -> Path:
    """Return the folder with the plans and the preprocessed cases of a dataset; it may not exist yet."""
    return folder("nnUNet_preprocessed") / name


def result_folder(dataset: str, plans_name: str, configuration: str, trainer: str = TRAINER) -> Path:
    """Return the folder of a trained model: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION (nnU-Net's naming)."""
    return folder("nnUNet_results") / dataset / f"{trainer}__{plans_name}__{configuration}"


def find_result(
    dataset: str,
    configuration: str,
    plans_name: str | None = None,
    trainer: str | None = None,
    checkpoint: str = FINAL,
) -> Path:
    """Return the trained model of a dataset and configuration; plans and trainer are optional if only one was trained.

    Trainings without this `checkpoint` are considered only if there are no others.

    Raises:
        DataError: Nothing was trained, or several plans were.
    """
    for what, text in (("trainer", trainer), ("plans", plans_name), ("configuration", configuration)):
        if text is not None:
            check_name(text, what)
    parent = folder("nnUNet_results") / dataset
    found = [
        p
        for name in ((TRAINER, PARTIAL_TRAINER) if trainer is None else (trainer,))
        # Escaped, because a name may hold characters that a pattern interprets, such as [ and *.
        for p in sorted(parent.glob(f"{escape(name)}__{escape(plans_name or '') or '*'}__{escape(configuration)}"))
        if (p / "plans.json").is_file()
    ]
    found = [path for path in found if trained_folds(path, checkpoint)] or found
    number = dataset_number(dataset)
    if not found:
        other = ", ".join(p.name for p in sorted(parent.glob("*__*__*"))) or "nothing"
        raise DataError(
            f"no trained model {trainer or TRAINER}__{plans_name or '*'}__{configuration} in {str(parent)!r} "
            f"(there: {other})",
            f"stunet_train {number} {configuration} 0",
        )
    if len(found) > 1:
        trainers, names = ([p.name.split("__")[part] for p in found] for part in (0, 1))
        option = f"-p {names[0]}" if len(set(names)) > 1 else f"-tr {trainers[0]}"
        listed = ", ".join(dict.fromkeys(names if len(set(names)) > 1 else trainers))
        raise DataError(f"{dataset} has {len(found)} models for {configuration}: {listed}", f"add {option}")
    return found[0]


def trained_folds(model: Path, checkpoint: str = FINAL) -> list[int | str]:
    """Return the folds of a model folder that hold `checkpoint`, as nnU-Net names them (0, 1, ..., 'all')."""
    names = [
        m.group(1)
        for p in model.glob("fold_*")
        if (p / checkpoint).is_file() and (m := re.fullmatch(r"fold_(\d+|all)", p.name))
    ]
    # As text, because numbers and 'all' cannot be compared.
    return sorted((int(n) if n != "all" else n for n in names), key=str)
