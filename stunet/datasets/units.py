"""Detect a CT that is not in HU although a model's training images, or the rest of a data set, are.

nnU-Net's CTNormalization takes HU for granted: an image from 0 to 1, from 0 to 255 or shifted by 1024 (DICOM without
its RescaleIntercept) silently becomes a wrong segmentation. A sample of voxels shows it cheaply; this only warns.
The thresholds are far from any CT of a patient: air, fat and noise are below 0, and soft tissue lies within a few
hundred HU. Voxels below -1500 do not count: scanners write -2000 and less where they measured nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.errors import first_few

SAMPLE = 100_000  # voxels
PADDING = -1500
FEW = 1e-3  # fraction of the voxels
# In an image shifted by about 1024, noise in air may be below 0 but nothing reaches -200, and soft tissue is where bone
# should be.
NO_AIR, SHIFTED, MUCH = -200, (800, 1400), 0.2
# Factors. Ranges of 0 to 1, of -1 to 1 and of standard deviations are narrower than HU by more than NARROW; an image
# has a wider range than an organ.
NARROW, WIDE = 20, 100
TO_HU = "bring it to HU: air -1000, water 0"


@dataclass(frozen=True)
class Values:
    """Summary of a sample of an image's voxels.

    Attributes:
        low: 0.5 % of the sample are below it.
        high: 0.5 % of the sample are above it.
        is_hu: Whether there are values below 0, as in HU, and no sign of a shift.
    """

    low: float
    high: float
    is_hu: bool

    @property
    def span(self) -> float:
        return self.high - self.low


def look(image_DHW: np.ndarray) -> Values:
    """Summarise a sample of an image's voxels."""
    return _look(_sample(image_DHW))


def unlike_plan(image_DHW: np.ndarray, known: Mapping[str, Any]) -> str:
    """Return why an image is unlike what a model was trained on; an empty text if nothing indicates that.

    Args:
        image_DHW: One channel that is normalised by CTNormalization.
        known: nnU-Net's foreground_intensity_properties of that channel; if values are missing, nothing is reported.
    """
    if not {"min", "percentile_00_5", "percentile_99_5"} <= known.keys():
        return ""
    sample = _sample(image_DHW)
    values = _look(sample)
    low, high = known["percentile_00_5"], known["percentile_99_5"]
    inside = np.mean((sample >= low) & (sample <= high)) if sample.size else 0.0
    what = f"values from {values.low:.4g} to {values.high:.4g}"
    if known["min"] < 0 and not values.is_hu:
        what += " and none of air" if values.low < 0 else " and none below 0"
    elif values.span * NARROW < high - low:
        what += ", a narrow range,"
    elif values.span > WIDE * (high - low):
        what += ", a wide range,"
    elif inside < FEW:
        what += ", hardly any of them in between,"
    else:
        return ""
    return f"{what} where the model's classes have {low:.4g} to {high:.4g}: probably not in its units; {TO_HU}"


def unlike_others(seen: Mapping[str, Values]) -> list[str]:
    """Report cases of a data set whose values differ grossly from those of the others, in one sentence per kind.

    Args:
        seen: Values by case name, all of the same channel.
    """
    found = []
    strange = [name for name, values in seen.items() if not values.is_hu]
    if 0 < len(strange) < len(seen):
        usual = [name for name in seen if name not in strange]
        what = "have no values below 0 or none of air, as a CT in HU has"
        if len(strange) > len(usual):
            strange, what = usual, "have values of air and below 0, in HU,"
        found.append(_sentence(strange, what, seen))
    middle = float(np.median([values.span for values in seen.values()])) if seen else 0.0
    narrow = [name for name, values in seen.items() if values.span * NARROW < middle]
    wide = [name for name, values in seen.items() if values.span > middle * NARROW]
    for names, what in ((narrow, "have a much narrower range of values"), (wide, "have a much wider range of values")):
        if names and names != strange:
            found.append(_sentence(names, what, seen))
    return found


def _sentence(names: Sequence[str], what: str, seen: Mapping[str, Values]) -> str:
    shown = first_few([f"{name!r} ({seen[name].low:.4g} to {seen[name].high:.4g})" for name in names], separator=", ")
    return f"cases {shown} {what}, unlike the {len(seen) - len(names)} others: bring all to HU (air -1000, water 0)"


def _sample(image_DHW: np.ndarray) -> np.ndarray:
    """Return every n-th voxel along each axis, without padding."""
    step = max(1, int((image_DHW.size / SAMPLE) ** (1 / 3)))
    sample = image_DHW[::step, ::step, ::step].ravel()
    return sample[sample > PADDING]


def _look(sample: np.ndarray) -> Values:
    if not sample.size:
        return Values(0.0, 0.0, False)
    low, high = (float(edge) for edge in np.percentile(sample, (0.5, 99.5)))
    tissue = np.mean((sample >= SHIFTED[0]) & (sample <= SHIFTED[1]))
    is_shifted = np.mean(sample < NO_AIR) < FEW and tissue > MUCH
    return Values(low, high, bool(np.mean(sample < 0) >= FEW and not is_shifted))
