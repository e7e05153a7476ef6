"""What lies in a result folder, of ours or of stock nnU-Net: a model, its folds, their validation.

Nothing here has to be there: a report says what it found. training.py makes pages of it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, StunetError
from stunet.files import read_json, write_json
from stunet.images import file_reader, read_header
from stunet.kinds import CLASSES, SUMMARY_OF_CASES, normalize_labels, read, read_dataset_json
from stunet.labels.names import head_classes
from stunet.plans.plan import Plan
from stunet.report.calibration import Case
from stunet.report.compared import Compared, of_summary
from stunet.report.history import LOGS, History, read_history
from stunet.results.run_report import versions
from stunet.workspace import FINAL, LATEST, PRETRAINER, PRETRAINING

SUMMARY = "validation/summary.json"
ENVIRONMENT = "environment.json"  # ours, in the folder of a fold: versions and device of its training
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class Model:
    """A model folder, DATASET/TRAINER__PLANS__CONFIGURATION."""

    folder: Path

    @property
    def dataset_name(self) -> str:
        """Full name of the dataset, as its folder has it."""
        return self.folder.parent.name

    @property
    def names(self) -> tuple[str, str, str]:
        """Trainer, plans and configuration, from the name of the folder; unknown ones are empty."""
        parts = self.folder.name.split("__")
        trainer, plans, configuration = parts if len(parts) == 3 else ("", self.folder.name, "")
        return trainer, plans, configuration

    @cached_property
    def dataset(self) -> Mapping[str, Any]:
        """Content of its dataset.json; empty without a readable one."""
        try:
            content: Mapping[str, Any] = read(self.folder / "dataset.json", CLASSES)
        except StunetError:
            return {}
        return content

    @cached_property
    def plans(self) -> Mapping[str, Any]:
        """Content of its plans.json; empty without a readable one."""
        try:
            content = read_json(self.folder / "plans.json")
        except StunetError:
            return {}
        return content if isinstance(content, Mapping) else {}

    @property
    def rows(self) -> tuple[dict[str, tuple[int, ...]], int | None]:
        """Values of each row of its probabilities by class name, and the ignored value; empty if they are not known."""
        try:
            labels = normalize_labels(self.dataset["labels"])
            ignore = labels.get("ignore")
            rows = {name: tuple(np.atleast_1d(labels[name]).astype(int).tolist()) for name in head_classes(labels)}
        except (KeyError, TypeError, ValueError):
            return {}, None
        return rows, ignore if isinstance(ignore, int) else None

    @property
    def reader(self) -> str:
        """Name of nnU-Net's class that reads its images; SimpleITKIO where the plans do not say."""
        return Plan(dict(self.plans)).reader or "SimpleITKIO"

    @property
    def ending(self) -> str:
        """The ending of its images and segmentations."""
        return str(self.dataset.get("file_ending", ".nii.gz"))

    @cached_property
    def classes(self) -> dict[str, str]:
        """Class names by nnU-Net's keys, in the order of the network's outputs; empty if they are not known."""
        from stunet.evaluation.folders import labels_of

        try:
            return dict(labels_of(self.dataset, self.folder / "dataset.json").names)
        except StunetError:
            return {}

    @cached_property
    def raw_images(self) -> Mapping[str, Sequence[Path]]:
        """The raw images of each training case; empty if the raw dataset is not there."""
        from stunet.datasets import list_cases

        folder = Path(os.environ.get("nnUNet_raw") or ".") / self.dataset_name
        try:
            return {case.name: case.images for case in list_cases(folder, read_dataset_json(folder / "dataset.json"))}
        except (StunetError, OSError):
            return {}

    def folds(self) -> "list[Fold]":
        """Return its folds, in the order of their numbers."""
        found = [(m[1], path) for path in self.folder.glob("fold_*") if (m := _FOLD.fullmatch(path.name))]
        return [Fold(path) for _, path in sorted(found, key=lambda each: (each[0] == "all", len(each[0]), each[0]))]


@dataclass(frozen=True)
class Fold:
    """The folder of a fold."""

    folder: Path

    @property
    def name(self) -> str:
        """Its number, or "all"."""
        return self.folder.name.removeprefix("fold_")

    @cached_property
    def model(self) -> Model:
        """The model that it belongs to."""
        return Model(self.folder.parent)

    @cached_property
    def history(self) -> History:
        """The course of its training, with names of the classes wherever their number fits."""
        history = read_history(self.folder)
        count = max((len(epoch.dice_of_classes) for epoch in history.epochs), default=0)
        names = list(history.classes) or list(self.model.classes.values())
        return History(history.epochs, names if len(names) == count else [f"class {k + 1}" for k in range(count)])

    @property
    def is_pretraining(self) -> bool:
        """Whether it learned without labels."""
        return self.model.names[0] == PRETRAINER or (self.folder / PRETRAINING).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to the end."""
        return (self.folder / FINAL).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to report."""
        known = (FINAL, LATEST, SUMMARY, "metrics.csv", "progress.png")
        return any((self.folder / name).is_file() for name in known) or any(self.folder.glob(LOGS))

    @cached_property
    def compared(self) -> Compared | None:
        """The numbers of its final validation; None without one."""
        try:
            summary = read(self.folder / SUMMARY, SUMMARY_OF_CASES)
        except StunetError:
            return None
        return of_summary(summary, self.model.classes, self.model.ending, self._voxel_ml)

    def json(self, name: str) -> Mapping[str, Any]:
        """Return the content of a JSON file in the folder; empty without a readable one."""
        try:
            content = read_json(self.folder / name)
        except StunetError:
            return {}
        return content if isinstance(content, Mapping) else {}

    def pair(self, prediction: Path, reference: Path) -> tuple[Path, Path]:
        """Return prediction and reference of a case where they are now: the folders may have been moved since."""
        here = self.folder / "validation" / prediction.name
        if not reference.is_file() and (base := os.environ.get("nnUNet_preprocessed")):
            reference = Path(base) / self.model.dataset_name / "gt_segmentations" / reference.name
        return (here if here.is_file() else prediction), reference

    def probabilities(self) -> list[Case]:
        """Return the cases of the validation whose probabilities were saved."""
        found = []
        for path in sorted((self.folder / "validation").glob("*.npz")):
            name = f"{path.stem}{self.model.ending}"
            position = next((i for i, pair in enumerate(self._files) if pair[0].name == name), None)
            if position is not None:
                _, reference = self.pair(*self._files[position])
                found.append(Case(path, partial(_labels, self.model.reader, reference)))
        return found

    @property
    def _files(self) -> Sequence[tuple[Path, Path]]:
        return self.compared.files if self.compared else ()

    def view(self, case: str) -> Path:
        """Return the file of a case's page of the viewer, which `stunet_report --views` writes."""
        return self.folder / "views" / f"{case}.html"

    def images(self, case: str) -> list[Path]:
        """Return the raw images of a case; none if they are not found."""
        return list(self.model.raw_images.get(case, ()))

    def _voxel_ml(self, prediction: Path, reference: Path) -> float | None:
        """Return the volume of a voxel of a case, from the header of a file; None for 2D, or without one."""
        for path in self.pair(prediction, reference):
            try:
                spacing = read_header(path).spacing
            except (RuntimeError, OSError, DataError):
                continue
            return float(spacing[0] * spacing[1] * spacing[2] / 1000) if len(spacing) == 3 else None
        return None


def _labels(reader: str, path: Path) -> np.ndarray:
    labels: np.ndarray = file_reader(reader).read_seg(str(path))[0][0]
    return labels


def write_environment(folder: Path, device: str) -> None:
    """Write which versions a fold is trained with, and on what, for its report."""
    write_json(folder / ENVIRONMENT, {**versions(), "device": device})


def find(folder: Path) -> "Model | Fold":
    """Return the model or the fold that a folder holds.

    Raises:
        DataError: It holds neither.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}", "a folder in nnUNet_results: .../TRAINER__PLANS__CONFIGURATION")
    model = Model(folder)
    if any(fold.is_begun for fold in model.folds()):
        return model
    if (fold := Fold(folder)).is_begun:
        return fold
    inside = sorted(path.parent for path in folder.glob("*/fold_*") if path.is_dir())
    hint = f"stunet_report {inside[0]}" if inside else "a folder of a model (with fold_0 in it), or of a fold"
    raise DataError(f"no training in {str(folder)!r}", hint)
