"""Estimate the disk space and memory of a union from the sizes of files and images, before compression."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stunet.merging.scan import CaseScan
from stunet.merging.union import Union

FLOAT_BYTES = 4  # nnU-Net preprocesses images in single precision
LARGEST_INT8 = 127  # above this, nnU-Net stores labels in 16 bits


@dataclass(frozen=True)
class Estimate:
    """Space that a union needs.

    Attributes:
        raw_bytes: Label files, and images if they are copied; approximate, as labels are compressed again.
        preprocessed_bytes: Images and labels at the spacing of the union, before compression and cropping.
        case_bytes: Images of the largest case at its own and at the union's spacing: the least that a process holds
            while preprocessing it.
        spacing: In mm, array order: that of the recipe, or the median, as nnU-Net plans it.
    """

    raw_bytes: int
    preprocessed_bytes: int
    case_bytes: int
    spacing: tuple[float, ...]


def estimate(union: Union) -> Estimate:
    """Return the expected sizes."""
    scans = [scan for own in union.scans.values() for scan in own.values()]
    spacing = union.recipe.spacing or tuple(map(float, np.median([scan.spacing for scan in scans], axis=0)))
    label_bytes = 1 if max(union.values.values()) <= LARGEST_INT8 else 2
    resampled = [_voxels_at(scan, spacing) for scan in scans]
    images = sum(scan.image_bytes for scan in scans) if union.recipe.images == "copy" else 0
    pairs = list(zip(scans, resampled, strict=True))
    return Estimate(
        raw_bytes=sum(scan.label_bytes for scan in scans) + images,
        preprocessed_bytes=sum(n * (FLOAT_BYTES * scan.channels + label_bytes) for scan, n in pairs),
        case_bytes=max(FLOAT_BYTES * scan.channels * (math.prod(scan.shape) + n) for scan, n in pairs),
        spacing=spacing,
    )


def label_counts(union: Union) -> dict[str, tuple[int, int]]:
    """Return, by label of the union, the number of cases that annotate it and its number of voxels in them."""
    counts = dict.fromkeys(union.annotations.labels, (0, 0))
    for source, scans in union.scans.items():
        values: Mapping[str, list[int]] = {n: union.space.values(source, n) for n in union.space.labels(source)}
        for case, scan in scans.items():
            for label in union.annotated[source][case]:
                cases, voxels = counts[label]
                counts[label] = cases + 1, voxels + sum(scan.voxels.get(value, 0) for value in values[label])
    return counts


def _voxels_at(scan: CaseScan, spacing: tuple[float, ...]) -> int:
    return math.prod(
        max(1, round(n * own / new)) for n, own, new in zip(scan.shape, scan.spacing, spacing, strict=True)
    )
