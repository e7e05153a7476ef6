"""Find preprocessed scans that a pre-training cannot use: too small for a patch, constant, or damaged.

Reading every voxel of thousands of scans takes minutes, so what was found is kept in the data folder, beside the
manifest, and holds as long as the files of a scan are the same. Imports neither torch nor nnunetv2 before a scan is
read.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import write_json
from stunet.kinds import SCANS, read
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.preprocessing.worker import OWN_FOLDER, PRELOADED
from stunet.workers import map_cases
from stunet.workspace import preprocessed_dataset

FILE = "scans.json"
FEW = 16  # scans, which are read before other processes have started


@dataclass(frozen=True)
class Scan:
    """What is known about a preprocessed scan.

    Attributes:
        shape: Channels, then voxels per axis; empty if it cannot be read.
        problem: Why it cannot be used, whatever the patch; "" if it can.
    """

    shape: Sequence[int]
    problem: str

    def unusable(self, patch: Sequence[int], channels: int) -> str:
        """Return why it cannot be used with a patch and a number of channels; "" if it can."""
        if self.problem:
            return self.problem
        if self.shape[0] != channels:
            return f"has {self.shape[0]} channels, not {channels}"
        size = self.shape[-len(patch) :]
        if any(n < wanted for n, wanted in zip(size, patch, strict=True)):
            return f"is smaller than the patch: {_times(size)}, not {_times(patch)} voxels"
        return ""


def look_at_scans(
    dataset: str,
    plan: Plan,
    configuration: str,
    workers: int,
    on_case: Callable[[str, int], None] = lambda name, scans: None,
    keeps: bool = True,
) -> dict[str, Scan]:
    """Return what is known about each preprocessed scan, after reading those that are new.

    Args:
        dataset: Full name.
        plan: One of its plans.
        configuration: Of the plan.
        workers: Number of processes, for many scans.
        on_case: Called with the name of each scan that was read, and their number.
        keeps: Whether what was found is kept.
    """
    folder = preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier
    cases = preprocessed_cases(dataset, plan, configuration)
    known, stamps = _known(folder), {case: _stamp(folder, case) for case in cases}
    found = {case: known[case] for case in cases if case in known and known[case]["files"] == stamps[case]}
    new = [case for case in cases if case not in found]
    context = None
    if workers > 1 and len(new) > FEW:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    try:
        outcomes = map_cases(partial(_look_at, folder=str(folder)), new, workers if context else 1, str, context)
        for outcome in outcomes:
            if outcome.error and not outcome.bad_files:
                raise outcome.error
            shape, problem = ([], outcome.error.message) if outcome.error else outcome.result
            found[outcome.case] = {"files": stamps[outcome.case], "shape": shape, "problem": problem}
            on_case(outcome.case, len(new))
    finally:
        if keeps and new and (folder / OWN_FOLDER).is_dir():  # without it, the data are nnU-Net's
            write_json(folder / OWN_FOLDER / FILE, found)
    return {case: Scan(tuple(found[case]["shape"]), found[case]["problem"]) for case in cases}


def _look_at(case: str, folder: str) -> tuple[list[int], str]:
    """Read a scan; return its shape with channels, and why it cannot be used."""
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from stunet.preprocessing.stored import StoredCases

    cases = StoredCases(infer_dataset_class(folder)(folder, [case]))
    cases.check(case)
    image, labels, _, _ = cases.load_case(case)
    shape, inside = list(image.shape), np.asarray(labels[:])[0] >= 0
    if not inside.any():
        return shape, "has no voxel that counts"
    channels = [np.asarray(image[channel])[inside] for channel in range(shape[0])]
    if not all(np.isfinite(values).all() for values in channels):
        return shape, "has values that are not finite"
    return shape, "is constant" if all(values.min() == values.max() for values in channels) else ""


def _known(folder: Path) -> Mapping[str, Any]:
    path = folder / OWN_FOLDER / FILE
    try:
        return read(path, SCANS) if path.is_file() else {}
    except DataError:  # it only saves time
        return {}


def _stamp(folder: Path, case: str) -> list[list[int]]:
    """Return sizes in bytes and times of change in ns of a scan's files."""
    names = [f"{case}.npz", f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"]
    stats = [os.stat(folder / name) for name in names if (folder / name).is_file()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
