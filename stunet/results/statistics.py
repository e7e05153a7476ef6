"""How large is each structure, and how bright? Volume, mean and standard deviation, counted slab by slab.

What touches the border of the image may go on outside: its volume is a lower bound, and the result says so.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError
from stunet.files import read_json, whole, write_json
from stunet.names import cells
from stunet.results.segmentation import Segmentation

SLAB_VOXELS = 1 << 21  # 8 bytes each for values and intensities while they are counted


@dataclass(frozen=True)
class Intensity:
    """Of the voxels of a class in a channel of the image, in its own units (HU for CT); divided by N, not N - 1."""

    mean: float
    std: float


@dataclass(frozen=True)
class Measurement:
    """What is known of a class in a case.

    Attributes:
        voxels: How many it has.
        volume_mm3: None for 2D images.
        touches_border: Whether some lie in the outermost voxels of the image.
        intensity: By channel; None without voxels.
    """

    voxels: int
    volume_mm3: float | None
    touches_border: bool
    intensity: Mapping[str, Intensity] | None


def measure(segmentation: Segmentation, image_CDHW: np.ndarray, channels: Sequence[str]) -> dict[str, Measurement]:
    """Measures every class; with regions a class is all of its region.

    Args:
        segmentation: On the grid of the image.
        image_CDHW: The original image, before preprocessing.
        channels: Names of the channels to measure, the first ones of the image.

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
    # Sums of squares are of distances from a value in the middle, or they would drown small deviations.
    shifts = [float(channel.mean(dtype=np.float64)) for channel in image]
    counts, sums, squares = _count(labels, image, shifts, top + 1)
    border = _on_border(labels, top + 1)
    rows = {}
    for name in segmentation.names:
        values = list(segmentation.values(name))
        voxels = int(counts[values].sum())
        means = sums[:, values].sum(axis=1) / max(voxels, 1)
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


def write_statistics(folder: Path, cases: Mapping[str, Mapping[str, Measurement]], stem: str = "statistics") -> None:
    """Writes STEM.json (case, class, measurement) and STEM.csv (a row per case and class) into a folder.

    Raises:
        OSError: The folder cannot be written, or the disk is full; no file is left half written.
    """
    write_json(folder / f"{stem}.json", {case: {k: asdict(v) for k, v in rows.items()} for case, rows in cases.items()})
    channels = list(dict.fromkeys(c for rows in cases.values() for row in rows.values() for c in row.intensity or {}))
    with whole(folder / f"{stem}.csv") as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        measured = [f"{channel}_{key}" for channel in channels for key in ("mean", "std")]
        writer.writerow(cells(["case", "class", "voxels", "volume_mm3", "touches_border", *measured]))
        for case, rows in cases.items():
            for name, row in rows.items():
                found = [(row.intensity or {}).get(channel) for channel in channels]
                values = [x for entry in found for x in ((entry.mean, entry.std) if entry else ("", ""))]
                volume = "" if row.volume_mm3 is None else row.volume_mm3
                writer.writerow(cells([case, name, row.voxels, volume, int(row.touches_border), *values]))


def read_statistics(path: Path) -> dict[str, dict[str, Measurement]]:
    """What write_statistics wrote as JSON; a run that goes on keeps the cases that are done.

    Raises:
        DataError: It is no such file.
    """
    try:
        content = read_json(path)
        return {case: {name: _measurement(row) for name, row in rows.items()} for case, rows in content.items()}
    except (DataError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"no statistics in {str(path)!r}: {error}", "remove the file; all cases are measured again"
        ) from None


def _measurement(row: dict[str, Any]) -> Measurement:
    found = row["intensity"]
    return Measurement(**{**row, "intensity": found and {channel: Intensity(**found[channel]) for channel in found}})


def _count(
    labels: np.ndarray, image_CDHW: np.ndarray, shifts: Sequence[float], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels (L,), and sums and sums of squares of the shifted intensities (C, L), by value up to `length`."""
    counts = np.zeros(length, np.int64)
    sums, squares = np.zeros((2, len(image_CDHW), length))
    planes = max(1, SLAB_VOXELS // max(1, labels[:1].size))
    for start in range(0, len(labels), planes):
        slab = labels[start : start + planes].ravel().astype(np.intp)
        counts += np.bincount(slab, minlength=length)[:length]
        for channel, shift in enumerate(shifts):
            values = image_CDHW[channel, start : start + planes].ravel().astype(np.float64)
            values -= shift
            sums[channel] += np.bincount(slab, values, minlength=length)[:length]
            values *= values
            squares[channel] += np.bincount(slab, values, minlength=length)[:length]
    return counts, sums, squares


def _on_border(labels: np.ndarray, length: int) -> np.ndarray:
    """Whether each value lies in an outermost plane, of the axes that have more than one."""
    found = np.zeros(max(length, np.iinfo(labels.dtype).max + 1), bool)
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            for end in (0, -1):
                found[labels[(slice(None),) * axis + (end,)]] = True
    return found
