"""Compare two label arrays: overlap, surface agreement and volume per class.

To add a metric, write a function of a ClassComparison and give it a line in METRICS: the summary, the CSV file and the
table of stunet_evaluate follow from there. Overlap and counts are nnU-Net's; surfaces.py defines NSD and HD95.
Read next: folders.py, which applies this to files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan, prod

import numpy as np
from scipy.ndimage import find_objects

from stunet.evaluation.surfaces import SurfaceDistances, surface_distances

Box = tuple[slice, ...]


@dataclass(frozen=True)
class ClassComparison:
    """One class in the reference and the prediction of a case: all that a metric is computed from.

    Attributes:
        labels: Label values of the class; several for a region.
        reference: Labels (D, H, W) or (H, W) of the whole case.
        prediction: Labels of the same shape.
        box: The smallest box with all voxels of the class in either array; None if neither has any.
        confusion: Voxels by reference label and predicted label, as from confusion(), without ignored ones.
        spacing: mm per voxel, in array order.
        voxel_ml: Volume of a voxel; NaN in 2D.
        tolerance_mm: Distance up to which surfaces agree.
    """

    labels: Sequence[int]
    reference: np.ndarray
    prediction: np.ndarray
    box: Box | None
    confusion: np.ndarray
    spacing: Sequence[float]
    voxel_ml: float
    tolerance_mm: float

    @cached_property
    def n_ref(self) -> int:
        """Voxels of the class in the reference."""
        return int(self.confusion[self._known_labels].sum())

    @cached_property
    def n_pred(self) -> int:
        """Voxels of the class in the prediction."""
        return int(self.confusion[:, self._known_labels].sum())

    @cached_property
    def tp(self) -> int:
        """Voxels of the class in both."""
        return int(self.confusion[np.ix_(self._known_labels, self._known_labels)].sum())

    @property
    def fp(self) -> int:
        """Voxels of the class in the prediction only."""
        return self.n_pred - self.tp

    @property
    def fn(self) -> int:
        """Voxels of the class in the reference only."""
        return self.n_ref - self.tp

    @property
    def tn(self) -> int:
        """Voxels of the class in neither."""
        return int(self.confusion.sum()) - self.tp - self.fp - self.fn

    @property
    def union(self) -> int:
        """Voxels of the class in either."""
        return self.tp + self.fp + self.fn

    @cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Where reference and prediction have the class, within the box; empty arrays without one."""
        box = self.box or (slice(0),) * self.reference.ndim
        return _mask(self.reference[box], self.labels), _mask(self.prediction[box], self.labels)

    @cached_property
    def surface_distances(self) -> SurfaceDistances:
        """Distances between the surfaces of both masks, computed once for all metrics that use them."""
        return surface_distances(*self.masks, self.spacing)

    @property
    def _known_labels(self) -> list[int]:
        """The labels that occur in the case at all: others have no row in the confusion matrix."""
        return [label for label in self.labels if label < len(self.confusion)]


@dataclass(frozen=True)
class Metric:
    """A number per class and case.

    Attributes:
        compute: Returns the number; NaN if it is undefined, which leaves the case out of the mean.
        heading: Column in the table of stunet_evaluate, where {tolerance_mm} is replaced; None: in no column.
        format: How the number is shown there.
    """

    compute: Callable[[ClassComparison], float]
    heading: str | None = None
    format: str = ".4f"


def dice(pair: ClassComparison) -> float:
    """Return the overlap as a fraction of the mean volume; 0 if only one side has the class, NaN if neither has."""
    return 2 * pair.tp / (pair.tp + pair.union) if pair.union else nan


def iou(pair: ClassComparison) -> float:
    """Return the overlap as a fraction of the union; 0 if only one side has the class, NaN if neither has."""
    return pair.tp / pair.union if pair.union else nan


def nsd(pair: ClassComparison) -> float:
    """Return the normalised surface Dice; 0 if only one side has the class, NaN if neither has."""
    return pair.surface_distances.nsd(pair.tolerance_mm)


def hd95(pair: ClassComparison) -> float:
    """Return the distance in mm that 95 % of each surface keep, the larger of both directions.

    NaN if neither side has the class, and also if only one has: an infinite distance would swamp every mean. The
    summary counts those cases.
    """
    distance = pair.surface_distances.hausdorff(0.95)
    return distance if distance < inf else nan


# In the order of the columns. Names are keys of summary.json; FP to n_ref are nnU-Net's.
METRICS: dict[str, Metric] = {
    "Dice": Metric(dice, "Dice"),
    "IoU": Metric(iou),
    "NSD": Metric(nsd, "NSD {tolerance_mm:g} mm"),
    "HD95_mm": Metric(hd95, "HD95 mm", ".2f"),
    "ref_ml": Metric(lambda pair: pair.n_ref * pair.voxel_ml),
    "pred_ml": Metric(lambda pair: pair.n_pred * pair.voxel_ml),
    "FP": Metric(lambda pair: pair.fp),
    "TP": Metric(lambda pair: pair.tp),
    "FN": Metric(lambda pair: pair.fn),
    "TN": Metric(lambda pair: pair.tn),
    "n_pred": Metric(lambda pair: pair.n_pred),
    "n_ref": Metric(lambda pair: pair.n_ref),
}


def compare(
    reference: np.ndarray,
    prediction: np.ndarray,
    classes: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance_mm: float = 1.0,
    ignore: int | None = None,
) -> dict[str, dict[str, float]]:
    """Return METRICS of every class, in mm and ml; a region is a class of several labels.

    Examples:
        >>> reference = np.array([[[1, 1], [2, 3]]], np.uint8)
        >>> prediction = np.array([[[1, 0], [3, 2]]], np.uint8)
        >>> found = compare(reference, prediction, {"liver": (1,), "kidneys": (2, 3)}, spacing=(5.0, 0.8, 0.8))
        >>> round(found["liver"]["Dice"], 3), found["kidneys"]["Dice"], found["kidneys"]["TP"]
        (0.667, 1.0, 2)

    Args:
        reference: Labels (D, H, W) or (H, W), an unsigned integer type.
        prediction: Labels of the same shape.
        classes: The labels of each class, by the name it gets in the result.
        spacing: mm per voxel, in array order.
        tolerance_mm: Distance up to which surfaces agree, for NSD.
        ignore: Voxels with this label in the reference are not counted, and belong to no class in either array.
    """
    pairs = _compared_classes(reference, prediction, classes, spacing, tolerance_mm, ignore)
    return {name: {key: metric.compute(pair) for key, metric in METRICS.items()} for name, pair in pairs}


def _compared_classes(
    reference: np.ndarray,
    prediction: np.ndarray,
    classes: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance_mm: float,
    ignore: int | None,
) -> Iterator[tuple[str, ClassComparison]]:
    """Yield the classes one after the other, so that the masks of one are freed before those of the next are made."""
    if ignore is not None:
        # With the ignore label in both arrays, these voxels are in no class and on no surface that differs.
        prediction = np.where(reference == ignore, reference, prediction)
    # Before single slices are dropped: a volume of one slice still has a volume.
    voxel_ml = prod(spacing) / 1000 if len(spacing) == 3 else nan
    table = confusion(reference, prediction)
    if ignore is not None and ignore < len(table):
        table[ignore] = 0
    reference, prediction, spacing = _drop_single_slices(reference, prediction, spacing)
    boxes = [find_objects(array, max_label=len(table)) for array in (reference, prediction)]
    for name, labels in classes.items():
        box = _bounds(boxes, labels, reference.ndim)  # many classes are cheap: each is compared in its box only
        yield name, ClassComparison(labels, reference, prediction, box, table, spacing, voxel_ml, tolerance_mm)


def confusion(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Count voxels (reference label, prediction label) of two label arrays of the same shape, in one pass."""
    size = int(max(reference.max(), prediction.max())) + 1
    table = np.zeros(size * size, dtype=np.int64)
    for ref, pred in zip(reference, prediction, strict=True):  # by slice: bincount takes 8 bytes per voxel
        table += np.bincount(ref.ravel().astype(np.intp) * size + pred.ravel(), minlength=size * size)
    return table.reshape(size, size)


def _drop_single_slices(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, Sequence[float]]:
    """Turn a volume of one slice into an image: its surfaces are contours, not the two sides of the slice."""
    single = tuple(axis for axis, length in enumerate(reference.shape) if length == 1)
    if not single or reference.ndim - len(single) < 2:
        return reference, prediction, spacing
    return (
        reference.squeeze(single),
        prediction.squeeze(single),
        [s for axis, s in enumerate(spacing) if axis not in single],
    )


def _bounds(boxes: Sequence[list[Box | None]], labels: Sequence[int], ndim: int) -> Box | None:
    """Return the smallest box with all voxels of some labels; boxes[i][k] is that of label k + 1 in array i."""
    if 0 in labels:  # nnU-Net allows regions that include background, which has no box
        return (slice(None),) * ndim
    found = [box for array in boxes for label in labels if label <= len(array) and (box := array[label - 1])]
    return (
        tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True)) or None
    )


def _mask(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    mask = array == labels[0]
    for label in labels[1:]:
        mask |= array == label
    return mask
