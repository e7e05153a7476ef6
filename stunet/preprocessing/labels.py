"""Copy labels and dataset.json next to the data folders, as nnU-Net does for validation."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from stunet.datasets import RawCase, tiff
from stunet.files import atomic_write, read_json, write_json
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import FILE as ANNOTATIONS
from stunet.workspace import preprocessed_dataset, raw_dataset


def copy_labels(dataset: str, ending: str, cases: Sequence[RawCase], own: Sequence[RawCase]) -> None:
    """Bring dataset.json and the labels of a part in gt_segmentations up to date; labels of removed cases go."""
    folder = preprocessed_dataset(dataset)
    labels = {f"{case.name}{ending}": case.label for case in cases if case.label}
    if labels:
        (folder / "gt_segmentations").mkdir(exist_ok=True)
    for path in (folder / "gt_segmentations").glob(f"*{ending}"):
        if path.name not in labels:  # also what a killed run was copying
            path.unlink(missing_ok=True)
    for name, label in ((f"{case.name}{ending}", case.label) for case in own if case.label):
        _copy(label, folder / "gt_segmentations" / name)
        if ending in tiff.ENDINGS and (spacing := tiff.spacing_file(label, is_image=False)).is_file():
            _copy(spacing, tiff.spacing_file(folder / "gt_segmentations" / name, is_image=False))
    raw = raw_dataset(dataset)
    description = read_dataset_json(raw / "dataset.json")
    if json.dumps(description) == json.dumps(read_json(raw / "dataset.json")):
        _copy(raw / "dataset.json", folder / "dataset.json")
    else:  # nnU-Net's training accepts fewer forms of labels
        write_json(folder / "dataset.json", description)
    if (raw / ANNOTATIONS).is_file():
        _copy(raw / ANNOTATIONS, folder / ANNOTATIONS)
    else:
        (folder / ANNOTATIONS).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    def state(path: Path) -> tuple[int, int]:
        return path.stat().st_size, path.stat().st_mtime_ns

    # copy2() keeps the time, so that an unchanged file is not copied again.
    if not target.exists() or state(source) != state(target):
        with atomic_write(target) as part:
            shutil.copy2(source, part)
