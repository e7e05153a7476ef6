"""How far stated probabilities are right: reliability and expected calibration error, where probabilities were saved.

The expected calibration error of a class is the mean distance between stated probability and share of voxels that are
the class, over bins of probability weighted by their voxels (Naeini et al. 2015). Voxels below LEAST are left out:
nearly all of an image is certainly not a given class, which would make any network look calibrated.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from stunet.report.blocks import Block, Table, number, text
from stunet.report.plots import reliability

BINS = 10
LEAST = 0.01
MOST_CASES = 20  # evenly spread: files of probabilities are large
ARRAY = "probabilities.npy"  # nnU-Net's name


@dataclass(frozen=True)
class Case:
    """Probabilities of a case, and what reads its reference.

    Attributes:
        probabilities: nnU-Net's .npz, (K, D, H, W).
        reference: Returns the labels, (D, H, W).
    """

    probabilities: Path
    reference: Callable[[], np.ndarray]


@dataclass
class Bins:
    """Voxels of a class by stated probability: their number, sum of probabilities, and how many are the class."""

    count: np.ndarray
    stated: np.ndarray
    true: np.ndarray

    @classmethod
    def empty(cls) -> "Bins":
        """Return bins without voxels."""
        return cls(*np.zeros((3, BINS)))

    def add(self, probability: np.ndarray, is_class: np.ndarray) -> None:
        """Add voxels; arrays of the same shape."""
        chosen = probability >= LEAST
        values, inside = probability[chosen].astype(np.float64), is_class[chosen]
        position = np.minimum((values * BINS).astype(np.intp), BINS - 1)
        self.count += np.bincount(position, minlength=BINS)
        self.stated += np.bincount(position, values, minlength=BINS)
        self.true += np.bincount(position, inside, minlength=BINS)

    def error(self) -> float:
        """Return the expected calibration error; NaN without voxels."""
        total = self.count.sum()
        return float(np.abs(self.stated - self.true).sum() / total) if total else float("nan")

    def curve(self) -> tuple[list[float], list[float]]:
        """Return mean stated probability and share of true voxels of the bins that have voxels."""
        known = self.count > 0
        return (self.stated[known] / self.count[known]).tolist(), (self.true[known] / self.count[known]).tolist()


def measure(cases: Sequence[Case], rows: Mapping[str, Sequence[int]], ignore: int | None = None) -> dict[str, Bins]:
    """Return the bins of each class; empty if no case has readable probabilities.

    Args:
        cases: At most MOST_CASES of them are read.
        rows: Values of each row of the probabilities, by the name of the class.
        ignore: Voxels of this value are left out.
    """
    found = {name: Bins.empty() for name in rows}
    read = 0
    for case in cases[:: max(1, -(-len(cases) // MOST_CASES))]:
        try:
            read += _add(case, rows, ignore, found)
        except (OSError, ValueError, EOFError, KeyError, RuntimeError, AssertionError, zipfile.BadZipFile):
            continue  # a damaged file: the others still tell
    return found if read else {}


def _add(case: Case, rows: Mapping[str, Sequence[int]], ignore: int | None, found: Mapping[str, Bins]) -> int:
    """Add a case to the bins, class by class; return whether its files fit each other."""
    labels = case.reference()
    annotated = labels != ignore if ignore is not None else np.ones(labels.shape, bool)
    with zipfile.ZipFile(case.probabilities) as archive, archive.open(ARRAY) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, kind = header(stream)
        if shape != (len(rows), *labels.shape) or columns_first or kind.kind != "f":
            return 0
        for name, values in rows.items():
            raw = stream.read(prod(labels.shape) * kind.itemsize)
            probability = np.frombuffer(raw, kind).reshape(labels.shape)
            found[name].add(probability[annotated], np.isin(labels, values)[annotated])
    return 1


def blocks(found: Mapping[str, Bins]) -> list[Block]:
    """Return a reliability diagram of the worst classes, and a table of all."""
    errors = {name: bins.error() for name, bins in found.items()}
    order = sorted(errors, key=lambda name: (np.isnan(errors[name]), -errors[name] if errors[name] else 0.0))
    if not order:
        return []
    caption = (
        "Reliability: of the voxels to which the network gives a probability, which share is the class. Below the "
        f"diagonal it is too sure. Voxels below {LEAST:.0%} are left out. Classes that are worst come first."
    )
    figure = reliability({name: found[name].curve() for name in order}, caption)
    rows = [[text(name), number(errors[name], ".4f"), number(float(found[name].count.sum()), ",.0f")] for name in order]
    columns = ["class", "expected calibration error", "voxels"]
    return [figure, Table("Calibration, worst first", columns, rows, "", frozenset({1, 2}))]
