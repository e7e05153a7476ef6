"""How is one case preprocessed, in which process, and what is said when it fails?

The files are written into a folder beside the data, and move to the data when all are complete. Neither torch nor
nnunetv2 is imported outside the workers. preprocessing.py decides what is done; preprocessor.py, next, does it.
"""

import json
import logging
import multiprocessing
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stunet.errors import DataError, OutOfMemoryError, StunetError
from stunet.files import NO_SPACE
from stunet.nifti import check_nifti
from stunet.processes import start_worker

OWN_FOLDER = ".stunet"  # inside a data folder; a folder, because nnU-Net looks at the endings of all files there
PRELOADED = [  # by the process that the workers are forked from: a worker starts in milliseconds, not in seconds
    "stunet.preprocessor",
    "nnunetv2.preprocessing.normalization.default_normalization_schemes",
    "nnunetv2.imageio.reader_writer_registry",
]


@dataclass(frozen=True)
class Job:
    """One case of one configuration: raw files to read, and the data folder to write to."""

    configuration: str
    folder: Path
    case: str
    images: tuple[str, ...]
    label: str


def run(
    jobs: Sequence[Job], plans: dict, description: dict, workers: int, verbose: bool
) -> Generator[tuple[Job, dict], None, None]:
    """Does the jobs in worker processes; leaving the loop early, by an error or Ctrl-C, kills the workers.

    The workers are forked from a small server process that holds nnU-Net but never computes: as quick as fork, and safe
    whatever threads and CUDA contexts the calling process has.

    Args:
        jobs: What is to be done.
        plans: The content of a plans file.
        description: The content of dataset.json.
        workers: Number of processes; each holds one case in memory and computes on one thread.
        verbose: Workers say what happens to each case.

    Yields:
        Each job when it is done, with the names and sizes (bytes) of the files that it wrote.

    Raises:
        DataError: A case fails, a worker was killed, or the disk is full.
        OutOfMemoryError: A case does not fit into memory.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    labels_only = {key: value for key, value in description.items() if key not in ("dataset", "training", "test")}
    given = (json.dumps(plans), json.dumps(labels_only), verbose)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker)
    done = 0
    try:
        futures = {pool.submit(_preprocess, job, *given): job for job in jobs}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                raise _explain(error, futures[future], f"{done} of {len(jobs)}") from error
            done += 1
            yield futures[future], future.result()
    finally:
        if done < len(jobs):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)


def names_case(file: str) -> bool:
    """Whether nnU-Net's datasets (nnUNetDatasetBlosc2, nnUNetDatasetNumpy) take this file as the sign of a case.

    Such a file appears last and disappears first, so that nnU-Net never sees half a case.
    """
    return file.endswith((".b2nd", ".npz")) and not file.endswith("_seg.b2nd")


def _start_worker() -> None:
    """One thread is enough."""
    import torch

    torch.set_num_threads(1)
    start_worker()


def _preprocess(job: Job, plans: str, description: str, verbose: bool) -> dict[str, int]:
    """In a worker: writes the case and moves it to the data; returns the names and sizes of its files."""
    files = [*job.images, job.label]
    for path in files:
        check_nifti(Path(path))
    preprocessor, plans_manager, configuration = _loaded(plans, job.configuration, verbose)
    part = job.folder / OWN_FOLDER / "part" / job.case
    part.mkdir(parents=True)
    what = (files[:-1], job.label, plans_manager, configuration, json.loads(description))
    try:
        preprocessor.run_case_save(str(part / job.case), *what)
    except RuntimeError:  # all that blosc2 says about a full disk; the probe meets the real reason
        (part / "probe").write_bytes(bytes(2**20))
        raise
    names = sorted(os.listdir(part), key=names_case)
    sizes = {name: (part / name).stat().st_size for name in names}
    for name in names:
        os.replace(part / name, job.folder / name)
    return sizes


@lru_cache(maxsize=8)
def _loaded(plans: str, configuration: str, verbose: bool) -> tuple[Any, Any, Any]:
    """The preprocessor, nnU-Net's plans and the configuration."""
    from stunet.preprocessor import Plans, preprocessor_of

    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    manager = Plans(json.loads(plans))
    chosen = manager.get_configuration(configuration)
    return preprocessor_of(chosen, verbose), manager, chosen


def _explain(error: BaseException, job: Job, done: str) -> StunetError:
    """What stopped the run, in terms of the user's files and machine."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, BrokenProcessPool):
        return DataError(
            f"a worker process was killed after {done} cases, probably because the memory was not enough",
            "run the same command again with fewer workers: -np 1; finished cases are kept",
        )
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return DataError(
            f"no space for case {job.case!r} in {str(job.folder)!r}: {error.strerror}",
            "free some space and run the same command again; finished cases are kept",
        )
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"case {job.case!r} does not fit into memory: {text}", "fewer workers: -np 1")
    if isinstance(error, StunetError):
        return type(error)(f"case {job.case!r}: {text}", error.hint)
    files = ", ".join(map(repr, (*job.images, job.label)))
    return DataError(
        f"case {job.case!r} cannot be preprocessed: {type(error).__name__}: {text} (files: {files})",
        "check these files, or take the case out of the dataset",
    )
