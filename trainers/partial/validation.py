"""Evaluate a network whose cases annotate different classes: each label is evaluated in the cases that annotate it.

A label with several leaves is compared with the union of these in the prediction. The output is nnU-Net's summary.json;
each case has only the labels that it annotates, and means are over those cases. validation.py predicts the cases.
"""

from collections.abc import Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import save_summary_json

from stunet.datasets.listing import visible
from stunet.evaluation.metrics import confusion
from stunet.files import atomic_write, remove_staging
from stunet.images import CaseReader, Reader
from stunet.labels.annotations import Annotations
from stunet.trainers.validation import FOLDER, SUMMARY

if TYPE_CHECKING:
    from stunet.trainers.partial.trainer import STUNetPartialTrainer

Label = int | tuple[int, ...]  # a class or the classes of a region of the model, as in nnU-Net


def measure(trainer: "STUNetPartialTrainer") -> None:
    """Compare the predicted validation cases with their labels, write summary.json and log the agreement."""
    folder, ending = Path(trainer.output_folder) / FOLDER, trainer.dataset_json["file_ending"]
    # Files of processes that were killed would be taken for cases.
    remove_staging(folder)
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    reader = CaseReader(Reader(trainer.plan.reader, trainer.plan.orientation), folder)
    found = predicted_values(trainer.annotations)

    def compared(path: Path) -> dict[str, Any]:
        files = (references / path.name, path)
        # nnU-Net's readers return float32.
        table = confusion(*(reader.read_seg(str(file))[0][0].astype(np.uint16) for file in files))
        # Rows are values of the label file: what it ignores counts neither for nor against the prediction.
        if trainer.ignore_value is not None:
            table[trainer.ignore_value :] = 0
        return {
            "metrics": compare(table, trainer.annotations, path.name.removesuffix(ending), found),
            "reference_file": str(references / path.name),
            "prediction_file": str(path),
        }

    # Threads: starting processes takes longer than reading the labels of most folds, which releases the GIL.
    with ThreadPool(default_num_processes) as pool:
        cases = pool.map(compared, visible(folder.glob(f"*{ending}")))
    means, overall = summarise([case["metrics"] for case in cases], found)
    with atomic_write(folder / SUMMARY) as part:
        save_summary_json({"metric_per_case": cases, "mean": means, "foreground_mean": overall}, str(part))
    for name, label in found.items():
        dice = means[label]["Dice"] if label in means else "in no validation case"
        trainer.logger.log_summary(f"final_val/class_{label}_dice", dice)
        trainer.print_to_log_file(f"Validation Dice of {name}: {dice}", also_print_to_console=True)
    trainer.logger.log_summary("final_val/foreground_dice", overall["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", overall["Dice"], also_print_to_console=True)


def predicted_values(annotations: Annotations) -> dict[str, Label]:
    """Return the values in a prediction of the model that belong to each leaf and each set."""
    labels = annotations.model_description({"labels": {}})["labels"]
    leaves = {leaf: value for value, leaf in enumerate(annotations.leaves, start=1)}
    sets = {name: labels.get(name, [leaves[leaf] for leaf in parts]) for name, parts in annotations.sets.items()}
    return {**leaves, **{name: tuple(values) for name, values in sets.items()}}


def compare(
    table: np.ndarray, annotations: Annotations, case: str, found: Mapping[str, Label]
) -> dict[Label, dict[str, float]]:
    """Compute nnU-Net's metrics for every label that a case annotates, or that is a union of labels it annotates.

    Args:
        table: Voxel counts (value in the label file, value in the prediction).
        annotations: The dataset's annotations.
        case: Name of the case.
        found: The result of predicted_values().
    """
    metrics = {}
    for name, annotated, inside in zip(annotations.outputs, *annotations.regions(case), strict=True):
        if not annotated:
            continue
        true, guessed = np.zeros((2, len(table)), bool)
        true[: len(inside)] = inside[: len(table)]
        # The table ends with the largest value that occurs in either file.
        values = np.atleast_1d(found[name])
        guessed[values[values < len(table)]] = True
        metrics[found[name]] = _metrics(
            *(int(table[a][:, b].sum()) for a in (true, ~true) for b in (guessed, ~guessed))
        )
    return metrics


def summarise(
    cases: list[dict[Label, dict[str, float]]], found: Mapping[str, Label]
) -> tuple[dict[Label, dict[str, float]], dict[str, float]]:
    """Return each label's means over the cases that have it, and their mean over leaves, or over all without leaves."""
    means = {}
    for label in found.values():
        given = [case[label] for case in cases if label in case]
        # Dice is NaN if neither labels nor prediction have a voxel; over such cases alone there is no mean.
        if any(not np.isnan(metrics["Dice"]) for metrics in given):
            means[label] = {key: float(np.nanmean([metrics[key] for metrics in given])) for key in given[0]}
    leaves = [means[label] for label in means if isinstance(label, int)]  # sets would count their leaves twice
    averaged = leaves or list(means.values())
    if not averaged:
        return means, {"Dice": np.nan}
    return means, {key: float(np.mean([metrics[key] for metrics in averaged])) for key in averaged[0]}


def _metrics(tp: int, fn: int, fp: int, tn: int) -> dict[str, float]:
    empty = tp + fp + fn == 0
    return {
        "Dice": float("nan") if empty else 2 * tp / (2 * tp + fp + fn),
        "IoU": float("nan") if empty else tp / (tp + fp + fn),
        "FP": fp,
        "TP": tp,
        "FN": fn,
        "TN": tn,
        "n_pred": fp + tp,
        "n_ref": fn + tp,
    }
