"""Measure volume, mean intensity and standard deviation of each structure, slab by slab.

A structure that touches the border of the image may continue outside: its volume is a lower bound, and the result
records that.
"""

import csv
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError
from stunet.files import atomic_write, exclusive_lock, read_json, write_json
from stunet.names import csv_cells
from stunet.results.segmentation import Segmentation

JSON_FILE, CSV_FILE = "statistics.json", "statistics.csv"
SLAB_VOXELS = 1 << 21  # values and intensities take 8 bytes each per voxel while they are counted


@dataclass(frozen=True)
class Intensity:
    """Intensity of a class in a channel of the image, in its own units (HU for CT); std divides by N, not N - 1."""

    mean: float
    std: float


@dataclass(frozen=True)
class Measurement:
    """What was measured for a class in a case.

    Attributes:
        voxels: Number of voxels.
        volume_mm3: None for 2D images.
        touches_border: Whether some of them are in the outermost voxels of the image.
        intensity: By channel; None without voxels.
    """

    voxels: int
    volume_mm3: float | None
    touches_border: bool
    intensity: Mapping[str, Intensity] | None


def measure(segmentation: Segmentation, image_CDHW: np.ndarray, channels: Sequence[str]) -> dict[str, Measurement]:
    """Measure every class; with regions, a class is all of its region.

    Args:
        segmentation: On the grid of the image.
        image_CDHW: The original image, before preprocessing.
        channels: Names of the channels to measure, which are the first ones of the image.

    Raises:
        DataError: Image and segmentation differ in shape.
    """
    labels = segmentation.labels_DHW
    if image_CDHW.shape[1:] != labels.shape:
        raise DataError(
            f"the image has shape {image_CDHW.shape[1:]} and its segmentation {labels.shape}",
            "give the image that was segmented",
        )
    top = max((value for name in segmentation.names for value in segmentation.values(name)), default=0)
    image = image_CDHW[: len(channels)]
    # Squares are summed relative to a central value; otherwise a large mean would cancel out small deviations.
    shifts = [float(channel.mean(dtype=np.float64)) for channel in image]
    counts, sums, squares = _count(labels, image, shifts, top + 1)
    border = _on_border(labels, top + 1)
    rows = {}
    for name in segmentation.names:
        values = list(segmentation.values(name))
        voxels = int(counts[values].sum())
        # At least 1: a class without voxels has sums of 0, and no intensity in the end.
        means = sums[:, values].sum(axis=1) / max(voxels, 1)
        # Rounding may leave the variance of equal values just below 0.
        variances = squares[:, values].sum(axis=1) / max(voxels, 1) - means**2
        intensity = {
            channel: Intensity(float(shift + mean), float(np.sqrt(max(variance, 0.0))))
            for channel, shift, mean, variance in zip(channels, shifts, means, variances, strict=True)
        }
        rows[name] = Measurement(
            voxels=voxels,
            volume_mm3=None if segmentation.voxel_mm3 is None else voxels * segmentation.voxel_mm3,
            touches_border=bool(border[values].any()),
            intensity=intensity if voxels else None,
        )
    return rows


def volumes(segmentation: Segmentation) -> dict[str, float | None]:
    """Return the volume of every class in mm3, as measure() does without an image; None for 2D images."""
    labels, voxel = segmentation.labels_DHW, segmentation.voxel_mm3
    top = max((value for name in segmentation.names for value in segmentation.values(name)), default=0)
    counts, _, _ = _count(labels, np.empty((0, *labels.shape), np.float32), (), top + 1)
    voxels = {name: int(counts[list(segmentation.values(name))].sum()) for name in segmentation.names}
    return {name: None if voxel is None else number * voxel for name, number in voxels.items()}


def add_statistics(folder: Path, cases: Mapping[str, Mapping[str, Measurement]], stale: Container[str]) -> None:
    """Add cases to the statistics in a folder, to which other processes may add at the same time.

    Args:
        folder: Folder of statistics.json and statistics.csv.
        cases: As for write_statistics().
        stale: Names of cases whose statistics in the files are no longer valid.

    Raises:
        DataError: The existing statistics cannot be read.
        OSError: As for write_statistics().
    """
    path = folder / JSON_FILE
    with exclusive_lock(folder / ".lock-statistics", "", "", wait=lambda what: None):
        # Read under the lock: parts of a prediction share the folder, and each adds its own cases.
        known = read_statistics(path) if path.is_file() else {}
        write_statistics(folder, {**{name: known[name] for name in known if name not in stale}, **cases})


def write_statistics(folder: Path, cases: Mapping[str, Mapping[str, Measurement]]) -> None:
    """Write statistics.json (case, class, measurement) and statistics.csv (one row per case and class) into a folder.

    Raises:
        OSError: The folder is not writable, or the disk is full; no file is left half written.
    """
    channels = list(dict.fromkeys(c for rows in cases.values() for row in rows.values() for c in row.intensity or {}))
    with atomic_write(folder / CSV_FILE) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        measured = [f"{channel}_{key}" for channel in channels for key in ("mean", "std")]
        writer.writerow(csv_cells(["case", "class", "voxels", "volume_mm3", "touches_border", *measured]))
        for case, rows in cases.items():
            for name, row in rows.items():
                intensities = [(row.intensity or {}).get(channel) for channel in channels]
                values = [x for each in intensities for x in ((each.mean, each.std) if each else ("", ""))]
                volume = "" if row.volume_mm3 is None else row.volume_mm3
                writer.writerow(csv_cells([case, name, row.voxels, volume, int(row.touches_border), *values]))
    # Written last: a run that continues measures the cases that are not in it.
    write_json(folder / JSON_FILE, {case: {k: asdict(v) for k, v in rows.items()} for case, rows in cases.items()})


def read_statistics(path: Path) -> dict[str, dict[str, Measurement]]:
    """Read what write_statistics wrote as JSON; a run that continues keeps the cases that are done.

    Raises:
        DataError: The file is not of this kind.
    """
    try:
        content = read_json(path)
        return {case: measurements(rows) for case, rows in content.items()}
    except (DataError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"no statistics in {str(path)!r}: {error}", "remove the file; all cases are measured again"
        ) from None


def measurements(rows: Mapping[str, Any]) -> dict[str, Measurement]:
    """Return the measurements of a case from JSON, by class."""
    return {name: _measurement(row) for name, row in rows.items()}


def _measurement(row: dict[str, Any]) -> Measurement:
    intensity = row["intensity"]
    if intensity is not None:
        intensity = {channel: Intensity(**values) for channel, values in intensity.items()}
    return Measurement(**{**row, "intensity": intensity})


def _count(
    labels: np.ndarray, image_CDHW: np.ndarray, shifts: Sequence[float], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return voxels (L,), and sums and sums of squares of shifted intensities (C, L), by value below `length`."""
    counts = np.zeros(length, np.int64)
    sums, squares = np.zeros((2, len(image_CDHW), length))
    planes = max(1, SLAB_VOXELS // max(1, labels[:1].size))
    for start in range(0, len(labels), planes):
        slab = labels[start : start + planes].ravel().astype(np.intp)
        counts += np.bincount(slab, minlength=length)[:length]  # higher values belong to no class
        for channel, shift in enumerate(shifts):
            values = image_CDHW[channel, start : start + planes].ravel().astype(np.float64)
            values -= shift
            sums[channel] += np.bincount(slab, values, minlength=length)[:length]
            values *= values
            squares[channel] += np.bincount(slab, values, minlength=length)[:length]
    return counts, sums, squares


def _on_border(labels: np.ndarray, length: int) -> np.ndarray:
    """Return whether each value occurs in an outermost plane, for axes that have more than one plane."""
    found = np.zeros(max(length, np.iinfo(labels.dtype).max + 1), bool)
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            for end in (0, -1):
                found[labels[(slice(None),) * axis + (end,)]] = True
    return found
