"""Preprocess single cases in worker processes, and explain what fails.

The files are written into a separate folder and moved to the data once all are complete. Neither torch nor nnunetv2 is
imported outside the workers. dataset.py decides what is done. Read next: case.py, which does it.
"""

import json
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from stunet.errors import DataError, StunetError, is_disk_full, is_out_of_memory
from stunet.files import sha256_of
from stunet.machine import SHARE, memory_limit
from stunet.nifti import check_nifti
from stunet.plans.plan import Plan
from stunet.workers import Outcome, Workers, map_cases, raise_failed

OWN_FOLDER = ".stunet"  # inside a data folder; a folder, because nnU-Net checks the endings of all files there
PRELOADED = [  # by the process that the workers are forked from: a worker starts in milliseconds, not in seconds
    "stunet.preprocessing.case",
    "nnunetv2.preprocessing.normalization.default_normalization_schemes",
    "nnunetv2.imageio.reader_writer_registry",
]


BASE = 0.4e9  # bytes of a worker without a case: Python, torch and nnU-Net
PER_VOXEL = 16  # bytes per channel and voxel of the larger grid: the image, what it is resampled to, labels


@dataclass(frozen=True)
class Job:
    """One case of one configuration: raw files to read, and the data folder to write to."""

    configuration: str
    folder: Path
    case: str
    images: tuple[Path, ...]
    label: Path | None
    mask: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All raw files, in the order of RawCase.files."""
        return [*self.images, *(path for path in (self.label, self.mask) if path)]


class Done(NamedTuple):
    """A finished job: its files' sizes in bytes by name, and the SHA-256 of the raw files in the order of job.files."""

    job: Job
    files: dict[str, int]
    sha256: list[str]


def run(
    jobs: Sequence[Job], plan: Plan, description: dict, workers: Workers, verbose: bool
) -> Generator[Done, None, None]:
    """Do the jobs in worker processes; leaving the loop early, by an error or Ctrl-C, kills the workers.

    The workers are forked from a small server process that has loaded nnU-Net but never computes: as fast as fork, and
    safe whatever threads and CUDA contexts the calling process has.

    Args:
        jobs: The jobs to do.
        plan: The plan of the jobs' configurations.
        description: The content of dataset.json.
        workers: Number of processes, or workers of a cluster; each holds one case and computes on one thread.
        verbose: Workers report what happens to each case.

    Yields:
        Each job when it is done.

    Raises:
        DataError: Some cases failed, while all others are done; or the disk is full, which ends the run at once.
        OutOfMemoryError: A case does not fit into memory; all others are done.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # As text, and without the lists of cases: all of it is pickled with every job.
    labels_only = {key: value for key, value in description.items() if key not in ("dataset", "training", "test")}
    work = partial(_preprocess, plans=json.dumps(plan.content), description=json.dumps(labels_only), verbose=verbose)
    failed: list[Outcome[Job, Done]] = []
    for outcome in map_cases(work, jobs, workers, lambda job: job.case, context):
        if outcome.error:
            failed.append(outcome)
        else:
            yield outcome.result
    raise_failed(failed)


def fitting_workers(wanted: int, fingerprint: Mapping[str, Any], spacing: Sequence[float], channels: int) -> int:
    """Return how many workers fit into memory if each has the largest case: at most `wanted`, at least one.

    Args:
        wanted: Number of processes.
        fingerprint: nnU-Net's, with shapes in voxels and spacings in mm.
        spacing: What cases are resampled to, in mm; two values leave the slices as they are.
        channels: Number of channels of an image.
    """
    largest = 0.0
    for shape, own in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True):
        resampled = sorted(own)[: len(spacing)]  # the slice axis is the one with the largest spacing
        largest = max(largest, math.prod(shape) * max(1.0, math.prod(resampled) / math.prod(spacing)))
    return max(1, min(wanted, int(SHARE * memory_limit() / (BASE + PER_VOXEL * channels * largest))))


def names_case(file: str) -> bool:
    """Return whether nnU-Net's datasets (nnUNetDatasetBlosc2, nnUNetDatasetNumpy) detect a case by this file.

    Such a file appears last and disappears first, so that nnU-Net never sees an incomplete case.
    """
    return file.endswith((".b2nd", ".npz")) and not file.endswith("_seg.b2nd")


def _preprocess(job: Job, plans: str, description: str, verbose: bool) -> Done:
    """Write a case, in a worker; raise what is wrong with it as one of our errors, problems of the machine as is."""
    import torch

    torch.set_num_threads(1)  # the parallelism is over cases
    try:
        return _write_case(job, plans, description, verbose)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if is_disk_full(error):
            error.filename = str(job.folder)  # not the temporary file, if any
            raise
        raise _explain(error, job) from error


def _write_case(job: Job, plans: str, description: str, verbose: bool) -> Done:
    """Write the case to a separate folder and move it to the data."""
    for path in job.files:
        check_nifti(path)
    hashes = [sha256_of(path) for path in job.files]  # now, just before they are read: the disk is only accessed once
    preprocessor, plans_manager, configuration = _loaded(plans, job.configuration, job.label is not None, verbose)
    part = job.folder / OWN_FOLDER / "part" / job.case
    shutil.rmtree(part, ignore_errors=True)  # left by a worker that was killed
    part.mkdir(parents=True)
    images, second = [str(path) for path in job.images], job.label or job.mask
    what = (images, second and str(second), plans_manager, configuration, json.loads(description))
    try:
        preprocessor.run_case_save(str(part / job.case), *what)
    except RuntimeError as error:  # blosc2 reports a full disk as nothing more specific; the probe finds the reason
        if not is_out_of_memory(error):
            (part / "probe").write_bytes(bytes(2**20))
        raise
    names = sorted(os.listdir(part), key=names_case)
    sizes = {name: (part / name).stat().st_size for name in names}
    # nnU-Net finds a case by the file that is moved last.
    for name in names:
        os.replace(part / name, job.folder / name)
    return Done(job, sizes, hashes)


@lru_cache(maxsize=8)
def _loaded(plans: str, configuration: str, labelled: bool, verbose: bool) -> tuple[Any, Any, Any]:
    """Return the preprocessor, nnU-Net's plans and the configuration."""
    from stunet.preprocessing.case import Plans, preprocessor_of

    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    manager = Plans(json.loads(plans))
    chosen = manager.get_configuration(configuration)
    return preprocessor_of(chosen, verbose, labelled=labelled), manager, chosen


def _explain(error: Exception, job: Job) -> StunetError:
    """Describe what is wrong with a case, in terms of the user's files."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, StunetError):
        return type(error)(f"case {job.case!r}: {text}", error.hint)
    files = ", ".join(repr(str(path)) for path in job.files)
    return DataError(
        f"case {job.case!r} cannot be preprocessed: {type(error).__name__}: {text} (files: {files})",
        "check these files, or take the case out of the dataset",
    )
