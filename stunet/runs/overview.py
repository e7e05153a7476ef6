"""Which trainings nnUNet_results holds, and how far they are: from logs and summaries, without loading torch."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stunet import workspace
from stunet.errors import DataError
from stunet.files import is_held, read_json
from stunet.folds import ALL
from stunet.kinds import PRETRAINING, SUMMARY, mean_dice, read
from stunet.report import history

FOLD = re.compile(r"fold_(\d+|all)$")
EPOCHS = 1000  # nnU-Net's number, where debug.json does not say it


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """A training, or a pre-training.

    Attributes:
        folder: The fold's folder.
        changed: When anything in it was last written.
        epoch, epochs: Epochs that are complete, and those that are planned.
        state: "finished" once it is validated; "running"; "stopped", with a checkpoint; "without checkpoint".
        measure: What `value` is: "Dice" (of the final validation), "Dice of patches" (of the last epoch), the measure
            of a pre-training, or "".
        value: NaN without a measure.
    """

    folder: Path
    changed: datetime
    epoch: int
    epochs: int
    state: str
    measure: str
    value: float

    @property
    def name(self) -> str:
        """Dataset, model and fold, as a path in nnUNet_results."""
        return str(Path(*self.folder.parts[-3:]))

    @property
    def dataset(self) -> str:
        """Its full name."""
        return self.folder.parts[-3]

    @property
    def trainer(self) -> str:
        """The class that trained it."""
        return self._names[0]

    @property
    def plans(self) -> str:
        """Their name."""
        return self._names[1]

    @property
    def configuration(self) -> str:
        """Key of the plans' configurations."""
        return self._names[2]

    @property
    def fold(self) -> int | str:
        """Number, or "all"."""
        number = self.folder.name.removeprefix("fold_")
        return number if number == ALL else int(number)

    @property
    def _names(self) -> tuple[str, str, str]:
        trainer, plans, configuration = self.folder.parent.name.split("__")
        return trainer, plans, configuration

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "name": self.name,
            "changed": self.changed.isoformat(timespec="seconds"),
            **{key: getattr(self, key) for key in ("epoch", "epochs", "state", "measure")},
            "value": None if math.isnan(self.value) else self.value,
        }


def trained_folds() -> list[TrainedFold]:
    """Return the trainings in nnUNet_results, of nnU-Net's commands too, the latest first; none if it is not set."""
    results = os.environ.get("nnUNet_results")
    if not results:
        return []
    places = Path(results).glob(f"{workspace.DATASETS}/*__*__*/fold_*")
    folders = [path for path in places if FOLD.match(path.name) and path.parent.name.count("__") == 2]
    found = [fold for folder in folders if folder.is_dir() and (fold := _look_at(folder))]
    return sorted(found, key=lambda fold: (fold.changed, fold.name), reverse=True)


def last_trained() -> TrainedFold:
    """Return the fold whose training was finished last.

    Raises:
        DataError: There is none.
    """
    return _last(
        lambda fold: fold.state == "finished" and (fold.folder / workspace.FINAL).is_file(),
        "no training is finished",
        "stunet_info lists them",
    )


def last_stopped() -> TrainedFold:
    """Return the fold whose training was stopped last.

    Raises:
        DataError: There is none.
    """
    ours = workspace.TRAINER, workspace.PARTIAL_TRAINER
    return _last(
        lambda fold: fold.state == "stopped" and fold.trainer in ours,
        "no training was stopped",
        "stunet_info lists them",
    )


def _last(wanted: Callable[[TrainedFold], bool], otherwise: str, hint: str) -> TrainedFold:
    workspace.folder("nnUNet_results")
    found = (fold for fold in trained_folds() if fold.trainer != workspace.PRETRAINER and wanted(fold))
    if (last := next(found, None)) is None:
        raise DataError(f"--last: {otherwise}", hint)
    return last


def _look_at(folder: Path) -> TrainedFold | None:
    """Return what a fold's folder says; None if nothing has been trained in it."""
    logs = history.logs_of(folder)
    kinds = workspace.FINAL, workspace.LATEST, workspace.BEST
    checkpoints = [path for name in kinds if (path := folder / name).is_file()]
    files = [*logs, *checkpoints, *folder.glob("*.json")]
    if not logs and not checkpoints:
        return None
    done = history.read_csv(folder / history.FILE).epochs or history.read_logs(logs)
    epochs, dice = _planned(folder / "debug.json"), done[-1].dice_mean if done else math.nan
    measure, value = ("Dice of patches", dice) if not math.isnan(dice) else ("", math.nan)
    ended = _ending(folder)
    if ended is not None:
        measure, value = ended
    final = (folder / workspace.FINAL).is_file()
    state = "finished" if ended else "stopped" if checkpoints else "without checkpoint"
    return TrainedFold(
        folder=folder,
        changed=datetime.fromtimestamp(max(map(_modified, files))),
        epoch=epochs if final else done[-1].number if done else 0,
        epochs=epochs,
        state="running" if is_held(folder / ".lock") else state,
        measure=measure,
        value=value,
    )


def _ending(folder: Path) -> tuple[str, float] | None:
    """Return the measure that a finished fold was left with, and its value."""
    validation, pretraining = folder / "validation" / "summary.json", folder / workspace.PRETRAINING
    try:
        if validation.is_file():
            return "Dice", mean_dice(read(validation, SUMMARY))
        if pretraining.is_file():
            log: Mapping[str, Any] = read(pretraining, PRETRAINING)
            return log["measure"], float(log["val_measures"][-1]) if log["val_measures"] else math.nan
    except DataError:  # damaged; what the log says remains
        return None
    return None


def _planned(debug: Path) -> int:
    """Return the number of epochs that nnU-Net's debug.json has, as text."""
    try:
        return int(read_json(debug)["num_epochs"])
    except (DataError, OSError, KeyError, TypeError, ValueError):
        return EPOCHS


def _modified(path: Path) -> float:
    """Return when a file was written; 0 for one that has just been removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
