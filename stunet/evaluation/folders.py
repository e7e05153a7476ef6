"""Evaluate the predictions in a folder: pair them with their references, read, compare, and summarise like nnU-Net.

The summary has the structure of nnU-Net's summary.json, with additional metrics (metrics.py defines them).
segmentations.py reads the files, runs/evaluation.py is the use case.
"""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from stunet import files
from stunet.datasets.listing import Image, ending_of, list_images, named, same_case
from stunet.errors import DataError, StunetError, raise_first
from stunet.evaluation import metrics
from stunet.evaluation.segmentations import check_same_grid, read_segmentation
from stunet.labels.systems import LabelSystem, apply_lookup
from stunet.names import csv_cells
from stunet.workers import Outcome, Workers, map_cases, raise_failed

log = logging.getLogger("stunet")
Measured = dict[str, dict[str, float]]  # of a case: METRICS by nnU-Net's key of the class


@dataclass(frozen=True)
class Labels:
    """The labels of references and predictions.

    Attributes:
        classes: Labels of each foreground class or region by nnU-Net's key for it: `1`, or `(1, 2)` for a region.
        names: Name of each class by the same key.
        ignore: The ignore label.
        known: All values that a file may contain.
        origin: Where these are listed.
        lookup: The reference value for each predicted value, if predictions use a model's own labels.
    """

    classes: dict[str, tuple[int, ...]]
    names: dict[str, str]
    ignore: int | None
    known: frozenset[int]
    origin: str = "dataset.json"
    lookup: np.ndarray | None = None


@dataclass(frozen=True)
class CasePair:
    """A prediction and its reference."""

    name: str
    reference: Path
    prediction: Path


def labels_of(dataset: Mapping[str, Any], path: Path) -> Labels:
    """Return the labels of a dataset.json; as in nnU-Net, one list of several labels makes all classes regions.

    Raises:
        DataError: There are no labels, or they are not as nnU-Net requires; `path` is the file to name.
    """
    entries = dataset.get("labels")
    if not isinstance(entries, dict) or entries.get("background") != 0:
        raise DataError(f"{str(path)!r} has no labels with 'background': 0", '"labels": {"background": 0, "liver": 1}')
    values = {}
    for name, entry in entries.items():
        values[name] = tuple(entry) if isinstance(entry, list) and name != "ignore" else (entry,)
        if not values[name] or not all(type(number) is int and number >= 0 for number in values[name]):
            kind = "an integer" if name == "ignore" else "an integer or a list of integers"
            raise DataError(f"{str(path)!r}: label {name!r} is {entry!r}, not {kind}", "correct it there")
    ignore = values.pop("ignore", (None,))[0]
    known = frozenset(n for numbers in values.values() for n in numbers)
    foreground = {name: numbers for name, numbers in values.items() if set(numbers) != {0}}
    if any(len(numbers) > 1 for numbers in foreground.values()):
        keys = {name: str(tuple(e) if isinstance(e := entries[name], list) else e) for name in foreground}
    else:
        # By value if there are no regions; regions keep the order of dataset.json.
        foreground = dict(sorted(foreground.items(), key=lambda item: item[1]))
        keys = {name: str(numbers[0]) for name, numbers in foreground.items()}
    return Labels(
        {keys[name]: numbers for name, numbers in foreground.items()},
        {keys[name]: name for name in foreground},
        ignore,
        known if ignore is None else known | {ignore},
    )


def labels_of_system(system: LabelSystem, predicted: Mapping[str, Any] | None = None) -> Labels:
    """Return the labels of references that use the ids of a dataset.

    Args:
        system: The dataset's label system.
        predicted: `labels` of the predictions' dataset.json; None: predictions use the ids of the system.

    Raises:
        DataError: The predictions do not have all classes of the system.
    """
    keys = {c.name: str(c.labels[0] if len(c.labels) == 1 else c.labels) for c in system.classes}
    return Labels(
        {keys[c.name]: c.labels for c in system.classes},
        {key: name for name, key in keys.items()},
        None,
        system.known,
        f"the label system {system.name!r}",
        None if predicted is None else system.from_model(predicted),
    )


def pair(reference: Path, prediction: Path, ending: str, chill: bool = False) -> tuple[list[CasePair], list[str]]:
    """Return the cases of two folders (or files), and the names of files that lack a partner or cannot be read.

    Files are matched by name, whatever their endings: CASE.nii.gz and CASE.nrrd.

    Args:
        reference: Folder of reference segmentations, or one file.
        prediction: Folder of predictions, or one file.
        ending: nnU-Net's `file_ending`, appended in messages to names without one.
        chill: Leave out files without a partner instead of raising.

    Raises:
        DataError: Something is missing, empty, present twice, cannot be read, or has no partner.
    """
    if prediction.is_file():
        if reference.is_dir():
            same = _images(reference, ending).get(_name(prediction, ending))
            reference = same.path if same else reference / prediction.name
        if not reference.is_file():
            raise DataError(f"no reference {str(reference)!r} for {str(prediction)!r}", "give two folders or files")
        return [CasePair(_name(prediction, ending), reference, prediction)], []
    references, predictions = _images(reference, ending), _images(prediction, ending)
    unusable = {n: i for side in (references, predictions) for n, i in side.items() if i.error}
    common = sorted(
        (references.keys() & predictions.keys()) - unusable.keys(), key=lambda name: references[name].path.name
    )
    alone = sorted((references.keys() ^ predictions.keys()) - unusable.keys())
    if not common and not unusable:
        raise DataError(
            f"no file in {str(prediction)!r} has the name of one in {str(reference)!r}",
            f"rename one side ({min(predictions)!r} and {min(references)!r}, for instance)",
        )
    if unusable and not (chill and common):
        raise_first([error for _, image in sorted(unusable.items()) if (error := image.error)])
    if alone and not chill:
        kind, place = ("reference", reference) if alone[0] in predictions else ("prediction", prediction)
        raise DataError(
            f"{len(alone)} without a partner: no {kind} {str(place / f'{alone[0]}{ending}')!r}",
            "--chill leaves them out",
        )
    left = sorted({**references, **predictions}[name].path.name for name in (*alone, *unusable))
    return [CasePair(name, references[name].path, predictions[name].path) for name in common], left


def evaluate(
    cases: Sequence[CasePair],
    labels: Labels,
    tolerance_mm: float = 1.0,
    workers: Workers = 1,
    advance: Callable[[str], None] = lambda name: None,
    leave_out: Callable[[CasePair, StunetError], None] | None = None,
) -> dict[str, Any]:
    """Summarise all cases: nnU-Net's summary.json with METRICS, class names and the tolerance.

    Means exclude NaN, also in `foreground_mean` (nnU-Net's is NaN as soon as one of the classes occurs in no case). In
    `mean`, `n_cases` counts the cases with the class in either file, `n_infinite` those with it in only one: their Dice
    and NSD are 0, their HD95 is infinite and excluded from the mean.

    Args:
        cases: The files, as found by `pair`.
        labels: The classes.
        tolerance_mm: For NSD.
        workers: Number of processes, of which 1 is this one, or workers of a cluster.
        advance: Called with the name of each finished case.
        leave_out: Called with each case that cannot be compared, and the reason; the summary then covers the others.

    Raises:
        DataError: Files cannot be read, have other labels, or lie on another grid than their partners, and there is no
            `leave_out`; all cases have been tried. Or no case is left.
        WorkerCrashed: The process of a case crashed twice, with `leave_out` as well.
        OutOfMemoryError: A case does not fit into memory.
    """
    measured, failed = measure(cases, labels, tolerance_mm, workers, advance)
    if leave_out is None or not measured:
        raise_failed(failed)
    else:
        # Only bad files may be left out: crashes and a lack of memory say nothing about a case.
        raise_failed(outcome for outcome in failed if not outcome.bad_files)
        for outcome in failed:
            if outcome.error:
                leave_out(outcome.case, outcome.error)
    return summarise([case for case in cases if case.name in measured], measured, labels, tolerance_mm)


def measure(
    cases: Sequence[CasePair],
    labels: Labels,
    tolerance_mm: float = 1.0,
    workers: Workers = 1,
    advance: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Measured], list[Outcome[CasePair, Measured]]]:
    """Compare cases, as evaluate() does; return the METRICS of every class by case, and the cases that failed."""
    compare = partial(evaluate_case, labels=labels, tolerance_mm=tolerance_mm)
    outcomes: list[Outcome[CasePair, Measured]] = []
    for outcome in map_cases(compare, cases, workers, lambda case: case.name):
        outcomes.append(outcome)
        advance(outcome.case.name)
    # Cases come in the order in which processes finish them.
    outcomes.sort(key=lambda outcome: outcome.position)
    measured = {outcome.case.name: outcome.result for outcome in outcomes if not outcome.error}
    return measured, [outcome for outcome in outcomes if outcome.error]


def summarise(
    cases: Sequence[CasePair], measured: Mapping[str, Measured], labels: Labels, tolerance_mm: float = 1.0
) -> dict[str, Any]:
    """Return the summary of cases that measure() has compared."""
    entries: list[dict[str, Any]] = [
        {
            "metrics": measured[case.name],
            "prediction_file": str(case.prediction),
            "reference_file": str(case.reference),
        }
        for case in cases
    ]
    means = {key: _mean_over_cases([entry["metrics"][key] for entry in entries]) for key in labels.classes}
    return {
        "foreground_mean": {metric: _nanmean([mean[metric] for mean in means.values()]) for metric in metrics.METRICS},
        "mean": means,
        "metric_per_case": entries,
        "labels": labels.names,
        "tolerance_mm": tolerance_mm,
    }


def evaluate_case(case: CasePair, labels: Labels, tolerance_mm: float) -> Measured:
    """Return the METRICS of every class of one case.

    Raises:
        DataError: A file cannot be read, has other labels, or lies on another grid than its partner.
    """
    reference, expected = read_segmentation(case.reference, labels.known, labels.origin)
    if labels.lookup is None:
        prediction, geometry = read_segmentation(case.prediction, labels.known, labels.origin)
    else:
        # The model's own labels: the table has an entry for each.
        prediction, geometry = read_segmentation(case.prediction, frozenset(range(len(labels.lookup))))
        prediction = apply_lookup(labels.lookup, prediction)
    check_same_grid(case.prediction, geometry, case.reference, expected)
    return metrics.compare(reference, prediction, labels.classes, expected.spacing[::-1], tolerance_mm, labels.ignore)


def write_csv(summary: Mapping[str, Any], cases: Sequence[CasePair], path: Path) -> None:
    """Write one row per case and class; cells are empty if a metric is undefined."""
    with files.atomic_write(path) as part, part.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "label", "class", *metrics.METRICS, "reference_file", "prediction_file"])
        for case, entry in zip(cases, summary["metric_per_case"], strict=True):
            for key, values in entry["metrics"].items():
                numbers = ["" if isnan(values[metric]) else values[metric] for metric in metrics.METRICS]
                line = [case.name, key, summary["labels"][key], *numbers, str(case.reference), str(case.prediction)]
                table.writerow(csv_cells(line))


def _images(folder: Path, ending: str) -> dict[str, Image]:
    """Return the segmentations in a folder by name; warn about folders and DICOM files that are not compared."""
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}", "check the path")
    found = list_images(folder, ending)
    others = sorted([*found.slices, *found.series, *found.folders])
    if not found.images:
        there = f" (there: {named(others)})" if others else ""
        raise DataError(
            f"no {ending} files in {str(folder)!r}{there}", "check the path, and file_ending in dataset.json"
        )
    images: dict[str, Image] = {}
    # Images with the expected ending come first: of CASE.nii.gz and CASE.nrrd, the former is taken.
    for image in sorted(found.images, key=lambda image: (image.ending != ending, image.path)):
        if image.name in images and images[image.name].ending == ending != image.ending:
            others.append(image.path)  # the same case in another format
        elif image.name in images:
            raise same_case(images[image.name].path, image.path)
        else:
            images[image.name] = image
    if others:
        log.warning("warning: what these hold in %r is not compared: %s", str(folder), named(others))
    return images


def _name(path: Path, ending: str) -> str:
    return path.name[: len(path.name) - len(ending_of(path.name, ending))]


def _mean_over_cases(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {metric: _nanmean([case[metric] for case in values]) for metric in metrics.METRICS}
    n_cases = sum(case["n_ref"] + case["n_pred"] > 0 for case in values)
    n_infinite = sum((case["n_ref"] > 0) != (case["n_pred"] > 0) for case in values)
    return {**means, "n_cases": n_cases, "n_infinite": n_infinite}


def _nanmean(values: Sequence[float]) -> float:
    numbers = [value for value in values if not isnan(value)]
    return sum(numbers) / len(numbers) if numbers else nan
