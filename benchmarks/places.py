"""What do the places of classes cost that a case lists for the drawing of patches: nnU-Net's list beside ours?

    OMP_NUM_THREADS=1 python benchmarks/places.py

A synthetic map of 104 labels (resampling.py) in the median size of TotalSegmentator at 1.5 mm: bytes of the pickled
list, CPU time to load it, which training does for every case that it draws, and CPU time to make it.
"""

import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from resampling import LABELS, blobs

from stunet.preprocessing.case import places_of
from stunet.resampling import resample_labels

SHAPE = (228, 228, 240)
REPEATS = 5


def main() -> None:
    labels = resample_labels(blobs(tuple(n // 2 for n in SHAPE), LABELS), SHAPE)[None].astype(np.int16)
    classes = list(range(1, LABELS + 1))
    print(f"{np.prod(SHAPE) / 1e6:.1f} million voxels, {(labels > 0).mean():.0%} of them in {LABELS} classes")
    print("| | MiB | load ms | make s |\n|---|---:|---:|---:|")
    for name, make in (("nnunetv2", DefaultPreprocessor._sample_foreground_locations), ("stunet", places_of)):
        found, seconds = timed(lambda make=make: make(labels, classes))
        text = pickle.dumps(found)
        load = statistics.median(timed(lambda text=text: pickle.loads(text))[1] for _ in range(REPEATS))
        print(f"| {name} | {len(text) / 2**20:.2f} | {1000 * load:.1f} | {seconds:.1f} |")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


if __name__ == "__main__":
    main()
