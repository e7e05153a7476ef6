"""Numbers of a comparison with references, as arrays (C, K) of C cases and K classes, from a summary.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from stunet.evaluation.bootstrap import class_means_of_draws, draw_counts
from stunet.labels.names import name_by_key

DRAWS, SEED = 2000, 0  # of the bootstrap
INTERVAL = 2.5, 97.5  # percentiles
VOLUMES = "reference", "prediction"


@dataclass(frozen=True)
class Compared:
    """Predictions and references; NaN where a number is undefined or was not computed.

    Attributes:
        cases: Names.
        classes: Names.
        files: Prediction and reference of each case.
        dice: (C, K).
        nsd: (C, K).
        hd95: (C, K), mm.
        reference: Volumes (C, K) in `unit`.
        prediction: Volumes (C, K) in `unit`.
        unit: "ml", or "voxels" where their size is not known.
        tolerance_mm: Of the NSD; None: not computed.
    """

    cases: Sequence[str]
    classes: Sequence[str]
    files: Sequence[tuple[Path, Path]]
    dice: np.ndarray
    nsd: np.ndarray
    hd95: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    unit: str
    tolerance_mm: float | None = None

    @property
    def occurs(self) -> np.ndarray:
        """Where a class is in the reference or the prediction, (C, K): nnU-Net's Dice is undefined elsewhere."""
        return np.isfinite(self.dice)

    def class_means(self) -> np.ndarray:
        """The mean Dice of each class over cases, (K,)."""
        return nanmean(self.dice, axis=0)

    def case_means(self) -> np.ndarray:
        """The mean Dice of each case over classes, (C,)."""
        return nanmean(self.dice, axis=1)

    def mean(self) -> float:
        """Return nnU-Net's mean: over classes, of the means over cases; NaN if no class occurs."""
        means = self.class_means()
        return float(nanmean(means, axis=0))

    def intervals(self) -> np.ndarray:
        """Return the 95 % interval of each class's mean Dice over resampled cases, (2, K); NaN below three cases."""
        counts = draw_counts(len(self.cases), DRAWS, np.random.default_rng(SEED))
        means = class_means_of_draws(self.dice, counts)
        found = np.full((2, len(self.classes)), nan)
        for k in range(len(self.classes)):
            known = means[:, k][np.isfinite(means[:, k])]
            if np.isfinite(self.dice[:, k]).sum() >= 3 and len(known):
                found[:, k] = np.percentile(known, INTERVAL)
        return found

    def difference(self) -> np.ndarray:
        """Prediction minus reference, (C, K); NaN where neither has the class."""
        return np.where(self.occurs, self.prediction - self.reference, nan)


def of_summary(
    summary: Mapping[str, Any],
    names: Mapping[str, str],
    ending: str,
    voxel_ml: Callable[[Path, Path], float | None] = lambda prediction, reference: None,
) -> Compared | None:
    """Return the numbers of a summary of nnU-Net's or ours; None if it has no case or no class.

    Args:
        summary: Content of summary.json.
        names: Class names by nnU-Net's key: `1`, or `(1, 2)` for a region.
        ending: That of the files of predictions.
        voxel_ml: Returns the volume of a voxel of a case, given its files, where the summary only counts voxels.
    """
    entries = [e for e in summary.get("metric_per_case", ()) if isinstance(e.get("metrics"), Mapping)]
    keys = list(dict.fromkeys([*names, *(key for entry in entries for key in entry["metrics"])]))
    keys = [key for key in keys if any(key in entry["metrics"] for entry in entries)]
    if not entries or not keys:
        return None
    files = [(Path(str(e.get("prediction_file", ""))), Path(str(e.get("reference_file", "")))) for e in entries]

    def column(name: str) -> np.ndarray:
        return np.array([[_number(entry["metrics"].get(key), name) for key in keys] for entry in entries], np.float64)

    volumes = {side: column(f"{side}_ml") for side in ("ref", "pred")}
    unit = "ml"
    if not np.isfinite(volumes["ref"]).any():
        sizes = [voxel_ml(*pair) for pair in files]
        known = all(size is not None for size in sizes)
        unit = "ml" if known else "voxels"
        scale = np.array([size if known else 1.0 for size in sizes], np.float64)[:, None]
        volumes = {side: column(f"n_{side}") * scale for side in ("ref", "pred")}
    return Compared(
        cases=[path.name.removesuffix(ending) for path, _ in files],
        classes=[name_by_key(key, names) if names else f"label {key}" for key in keys],
        files=files,
        dice=column("Dice"),
        nsd=column("NSD"),
        hd95=column("HD95_mm"),
        reference=volumes["ref"],
        prediction=volumes["pred"],
        unit=unit,
        tolerance_mm=summary.get("tolerance_mm"),
    )


def joined(parts: Sequence[Compared]) -> Compared | None:
    """Return the cases of several comparisons, such as folds, with the classes of all of them; None if there are none.

    A class that one of them does not have, as with partial labels, is undefined in its cases; so are volumes in another
    unit than the first one's.
    """
    if not parts:
        return None
    classes = list(dict.fromkeys(name for part in parts for name in part.classes))

    def widened(part: Compared, name: str) -> np.ndarray:
        found = np.full((len(part.cases), len(classes)), nan)
        if name not in VOLUMES or part.unit == parts[0].unit:
            found[:, [classes.index(own) for own in part.classes]] = getattr(part, name)
        return found

    arrays = {
        name: np.concatenate([widened(part, name) for part in parts]) for name in ("dice", "nsd", "hd95", *VOLUMES)
    }
    return Compared(
        cases=[case for part in parts for case in part.cases],
        classes=classes,
        files=[pair for part in parts for pair in part.files],
        unit=parts[0].unit,
        tolerance_mm=parts[0].tolerance_mm,
        **arrays,
    )


def nanmean(values: np.ndarray, axis: int) -> Any:
    """Return the mean of the finite values along an axis; NaN where there are none, without a warning."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), nan)


def _number(metrics: Any, name: str) -> float:
    value = metrics.get(name) if isinstance(metrics, Mapping) else None
    return float(value) if isinstance(value, int | float) and isfinite(value) else nan
