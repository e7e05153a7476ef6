"""What do NSD and HD95 cost beside google-deepmind/surface-distance, whose values they equal?

    pip install surface-distance && python benchmarks/surfaces.py

CPU seconds in one process, the two in turn, medians; benchmarks/evaluation.md has the result.
"""

import time
import warnings
from collections.abc import Callable

import numpy as np

from stunet.console import table
from stunet.evaluation.surfaces import surface_distances

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports SciPy by old names
    from surface_distance import compute_surface_distances


def main() -> None:
    rng = np.random.default_rng(0)
    cases = {
        "two balls of 230 voxels": ((ball(115, 240, 0), ball(116, 240, 1)), 3),
        "two balls of 24 voxels": ((ball(12, 40, 0), ball(12, 40, 1)), 15),
        "noise, 96^3": ((rng.random((96,) * 3) > 0.5, rng.random((96,) * 3) > 0.5), 3),
    }
    rows = []
    for name, (masks, repeats) in cases.items():
        turns = [[seconds(f, *masks) for f in (surface_distances, compute_surface_distances)] for _ in range(repeats)]
        ours, theirs = np.median(turns, axis=0)
        rows.append([name, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"])
    table(["masks", "CPU s", "surface-distance", "ratio"], rows)


def ball(radius: float, size: int, shift: int) -> np.ndarray:
    centre = size // 2 + shift
    return sum((axis - centre) ** 2 for axis in np.ogrid[:size, :size, :size]) < radius**2


def seconds(function: Callable, *masks: np.ndarray) -> float:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        function(*masks, (1.0, 1.0, 1.0))
    return time.process_time() - start


if __name__ == "__main__":
    main()
