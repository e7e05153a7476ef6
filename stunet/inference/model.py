"""Open a model folder: nnU-Net's plans.json, dataset.json and fold_X/CHECKPOINT, read before torch is imported.

cases.py finds the images that the model can read; network.py builds its network.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stunet.datasets import tiff
from stunet.errors import DataError, WeightsError
from stunet.kinds import DATASET, read_dataset_json
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan
from stunet.workspace import FINAL, PARTIAL_TRAINER, TRAINER, trained_folds

_ITK = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
_NIFTI = (".nii.gz", ".nii")
# Endings that nnU-Net's readers take besides the one a model was trained on; the geometry comes with the file.
READS = {
    "SimpleITKIO": _ITK,
    "SimpleITKIOWithReorient": _ITK,
    "NibabelIO": _NIFTI,
    "NibabelIOWithReorient": _NIFTI,
    "NaturalImage2DIO": (".png", ".bmp", ".tif", ".tiff"),
    "Tiff3DIO": (".tif", ".tiff"),
}


@dataclass(frozen=True)
class ModelFolder:
    """A trained model on disk.

    Attributes:
        folder: DATASET/TRAINER__PLANS__CONFIGURATION, or any other with the same files.
        plan: The content of plans.json.
        dataset: dataset.json.
        folds: Folds over which predictions are averaged.
        checkpoint: Name of the checkpoint in each fold.
    """

    folder: Path
    plan: Plan
    dataset: dict
    folds: tuple[int | str, ...]
    checkpoint: str

    @property
    def ending(self) -> str:
        """The file ending of the model's images and segmentations."""
        return self.dataset["file_ending"]

    @property
    def readable_endings(self) -> set[str]:
        """The image endings that the model's reader takes."""
        return {self.ending, *READS.get(self.plan.reader, ())}

    @property
    def channels(self) -> list[str]:
        """The names of the model's input channels, in order."""
        # nnU-Net v1 called them modality; v2 still accepts that.
        return list((self.dataset.get("channel_names") or self.dataset["modality"]).values())

    @property
    def has_spacing_files(self) -> bool:
        """Whether CASE.json holds the spacing of CASE_0000.tif, and a result gets such a file next to it."""
        return self.plan.reader == tiff.READER

    @property
    def checkpoint_files(self) -> list[Path]:
        """One checkpoint per fold."""
        return [self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]


def open_model(folder: Path, folds: Sequence[int | str] | None = None, checkpoint: str = FINAL) -> ModelFolder:
    """Open a model folder with the given folds; by default the numbered ones, or `all` if there are none.

    Raises:
        DataError: The folder, its plans.json or dataset.json, or a fold's checkpoint is missing or bad.
        WeightsError: The model was trained without labels.
    """
    if not (folder / "plans.json").is_file():
        raise DataError(
            f"{str(folder)!r} is not a model folder: it has no plans.json",
            "give DATASET/TRAINER__PLANS__CONFIGURATION with --model, or -d and -c",
        )
    plan = read_plan(folder / "plans.json")
    if plan.pretext:
        raise WeightsError(
            f"{str(folder)!r} was pre-trained by {plan.pretext!r} without labels: it has no head for classes",
            f"fine-tune it first: stunet_train DATASET --pretrained {folder}",
        )
    dataset = read_dataset_json(folder / "dataset.json", DATASET)
    trained = trained_folds(folder, checkpoint)
    if not trained:
        raise _no_fold(folder, checkpoint)
    for fold in folds or ():
        if fold not in trained:
            raise _missing_fold(folder, fold, trained, checkpoint)
    # nnU-Net does not average fold_all with the numbered folds either.
    numbered = tuple(fold for fold in trained if fold != "all")
    return ModelFolder(folder, plan, dataset, tuple(folds or numbered or trained), checkpoint)


def unfinished_folds(model: ModelFolder) -> list[str]:
    """Return the folds of a model folder that would be averaged too if their training had finished."""
    if model.folds == ("all",):
        return []
    return [fold for fold in _begun_folds(model.folder, model.checkpoint) if fold != "all"]


def _no_fold(folder: Path, checkpoint: str) -> DataError:
    """Return the error for a folder of which no fold has the checkpoint."""
    others = sorted({path.name for path in folder.glob("fold_*/*.pth")})
    if checkpoint == FINAL and others:
        begun = _begun_folds(folder, checkpoint)
        what = f"no fold has a {checkpoint} (begun: {', '.join(begun)})"
        return DataError(
            f"the training in {str(folder)!r} is not finished: {what}", _how_to_go_on(folder, begun, others)
        )
    hint = f"-chk {others[0]}" if others else "train it first: stunet_train --help"
    has = f" (it has a {', '.join(others)})" if others else ""
    return DataError(f"no fold of {str(folder)!r} has a {checkpoint}{has}", hint)


def _missing_fold(folder: Path, fold: int | str, trained: Sequence[int | str], checkpoint: str) -> DataError:
    """Return the error for a fold that lacks the checkpoint, although others have it."""
    known, hint = " ".join(map(str, trained)), ""
    if checkpoint == FINAL and str(fold) in _begun_folds(folder, checkpoint):
        others = [path.name for path in folder.glob(f"fold_{fold}/*.pth")]
        hint = f"; or {_how_to_go_on(folder, [str(fold)], others)}"
    return DataError(f"fold {fold} has no {checkpoint} in {str(folder)!r} (trained: {known})", f"-f {known}{hint}")


def _begun_folds(folder: Path, checkpoint: str) -> list[str]:
    """Return the folds of a folder that have checkpoints, but not this one."""
    folds = sorted(path for path in folder.glob("fold_*") if any(path.glob("*.pth")))
    return [path.name.removeprefix("fold_") for path in folds if not (path / checkpoint).is_file()]


def _how_to_go_on(folder: Path, folds: Sequence[str], checkpoints: Sequence[str]) -> str:
    """Return the hint on how to finish a training that was begun, or to predict with what it has."""
    trainer, _, rest = folder.resolve().name.partition("__")
    plans, _, configuration = rest.partition("__")
    # Only a folder with the names that nnU-Net and stunet give tells which command trained it.
    number = re.fullmatch(r"Dataset(\d{3})_.+", folder.resolve().parent.name)
    command = "training goes on with --c"
    if number and configuration and trainer in (TRAINER, PARTIAL_TRAINER):
        option = "" if trainer == TRAINER else f" -tr {trainer}"
        command = f"stunet_train {int(number[1])} {configuration} {folds[0]} -p {plans}{option} --c"
    best = "checkpoint_best.pth" if "checkpoint_best.pth" in checkpoints else min(checkpoints)
    return f"{command} finishes it; -chk {best} predicts with what there is"
