"""The order of the training data: sample j of batch i depends on (seed, i, j) only, not on who computes it or when.

A resumed run therefore sees exactly what an uninterrupted one would have seen, with any number of worker processes, and
a batch is the same on one GPU as when shared by many. The work is done by nnU-Net's loader and augmentation
(loader.py); the processes are those of torch's DataLoader, which reports a worker that died.
"""

import hashlib
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stunet.errors import DataError, OutOfMemoryError, StunetError

UNLABELLED = ("seed", "place")  # what samples of unlabelled images have besides


class SampleSource(Protocol):
    """Draws one sample: a random case and a random patch of it, augmented; as a batch of one, like nnU-Net's loader."""

    def sample(self, position: int, number: int) -> dict[str, Any]:
        """Return the sample at this position of a batch, drawn with numpy's, torch's and Python's global generators."""

    def case(self, position: int, number: int) -> str:
        """Return the name of the case of that sample."""


class SeededBatches:
    """An endless iterator over batches 0, 1, 2, ... of a stream; worker processes start at the first `next`.

    Args:
        source: Draws the samples.
        seed: Identifies the stream, for example by run and purpose.
        positions: Which samples of each batch are wanted: all, or the share of this process.
        start: The number of the first batch.
        skip: How many times `next` returns None first, for batches whose results are already known.
        workers: Worker processes; 0 computes in this one.
        pin_memory: Whether to put batches into page-locked memory, for faster copies to a GPU.
    """

    def __init__(
        self,
        source: SampleSource,
        seed: tuple[int, ...],
        positions: Sequence[int],
        start: int,
        skip: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.source = source
        self._numbered = _Numbered(source, seed, positions, workers)
        self._loader: DataLoader = DataLoader(
            self._numbered,
            batch_size=None,
            sampler=_From(start + skip),  # with batch_size=None any iterable will do
            num_workers=workers,
            generator=torch.Generator(),  # otherwise it draws from the global one
            pin_memory=pin_memory,
            prefetch_factor=3 if workers else None,
            worker_init_fn=_leave_the_group,
            # Fork, as under torchrun: a process that was itself spawned would spawn its workers, each importing torch.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        self._skip, self._workers = skip, workers
        self._iterator: Iterator[dict[str, Any]] | None = None
        self.failed = False  # whether the last batch asked for could not be delivered
        self._waited_s = 0.0

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> dict[str, Any] | None:
        if self._skip:
            self._skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
            if self._workers:
                _Deaths.heed()
        self.failed = True  # whatever ends the next lines, an interruption included
        began = time.perf_counter()
        try:
            with _Deaths.awaited():
                batch = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # torch's message about a killed worker
                raise
            raise self._killed(str(error).splitlines()[0]) from error
        if isinstance(batch, StunetError):  # from a worker, see _Numbered
            raise batch
        self.failed = False
        self._waited_s += time.perf_counter() - began
        return batch

    def take_waited(self) -> float:
        """Return for how many seconds batches have been waited for since the last call."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def batch(self, number: int) -> dict[str, Any]:
        """Return a batch by its number, drawn in this process and aside from the order."""
        batch = self._numbered[number]
        assert not isinstance(batch, StunetError)  # which is raised, and not returned, in this process
        return batch

    def _killed(self, text: str) -> StunetError:
        """Return the error for the death of a worker, from torch's message about it."""
        pid = int(found[1]) if (found := re.search(r"pid\D*(\d+)", text)) else -1
        case = self._numbered.loading(pid)
        while_ = "" if case is None else f" while it loaded case {case!r}"
        if "Segmentation fault" in text or "Aborted" in text:
            return DataError(
                f"a data loading process crashed{while_} ({text})", "preprocess this case again, and the same with --c"
            )
        half, fewer = max(1, len(self._numbered.positions) // 2), max(1, self._workers // 2)
        return OutOfMemoryError(
            f"a data loading process was killed{while_}, probably because the memory is not enough ({text})",
            f"nnUNet_n_proc_DA={fewer} and the same with --c, or a new run with --set batch_size={half}",
        )

    def close(self) -> None:
        """End the worker processes."""
        self._iterator = None


def positions_of(batch_size: int, rank: int, processes: int) -> range:
    """Return the positions of a batch that one process computes: the first ones get one more, as in nnU-Net."""
    each, more = divmod(batch_size, processes)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def join_batches(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate batches: `data` (B, C, D, H, W); `target`, or a list of them per level; `keys`, the case names.

    Samples of unlabelled images also have a `seed`, (B,), and a `place`, (B, 2).
    """
    target = [batch["target"] for batch in batches]
    more = {name: torch.cat([batch[name] for batch in batches]) for name in UNLABELLED if name in batches[0]}
    return {
        **more,
        "data": torch.cat([batch["data"] for batch in batches]),
        "target": [torch.cat(level) for level in zip(*target, strict=True)]
        if isinstance(target[0], list)
        else torch.cat(target),
        "keys": [key for batch in batches for key in batch["keys"]],
    }


def split_batch(batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Split a batch into `count` parts that share its memory, and whose sizes differ by at most one.

    Each knows the index of its `first` sample.
    """
    target = batch["target"]
    parts = [positions_of(len(batch["data"]), number, count) for number in range(count)]
    cuts = [slice(part.start, part.stop) for part in parts]
    return [
        {
            "data": batch["data"][cut],
            "target": [level[cut] for level in target] if isinstance(target, list) else target[cut],
            "keys": batch["keys"][cut],
            **{name: batch[name][cut] for name in UNLABELLED if name in batch},
            "first": cut.start,
        }
        for cut in cuts
    ]


def numbers_of(cases: Sequence[str]) -> torch.Tensor:
    """Return a number for each name of a case, (N,), int64: the same in all processes and runs."""
    digests = [hashlib.blake2b(case.encode(), digest_size=8).digest() for case in cases]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device."""
    target = batch["target"]
    moved = [level.to(device, non_blocking=True) for level in (target if isinstance(target, list) else [target])]
    data = batch["data"].to(device, non_blocking=True)
    return {**batch, "data": data, "target": moved if isinstance(target, list) else moved[0]}


class _Numbered(Dataset):
    """Batches by number; our errors are returned as values, because torch would rebuild them from their text."""

    def __init__(self, source: SampleSource, seed: tuple[int, ...], positions: Sequence[int], workers: int) -> None:
        self.source, self.seed, self.positions = source, seed, positions
        # Per worker: its process id, and the number and position of the sample it is drawing; in shared memory.
        self.drawing = torch.full((workers, 3), -1).share_memory_() if workers else None

    def __getitem__(self, number: int) -> dict[str, Any] | StunetError:
        samples = []
        try:
            for position in self.positions:
                self._note(number, position)
                with self._generators(number, position):
                    samples.append(self.source.sample(position, number))
        except StunetError as error:
            # In this process there is nothing to translate.
            if not get_worker_info():
                raise
            return error
        finally:
            self._note(-1, -1)
        return join_batches(samples)

    def loading(self, pid: int) -> str | None:
        """Return the case that a worker was loading when it ended."""
        for process, number, position in () if self.drawing is None else self.drawing.tolist():
            if process == pid and number >= 0:
                with self._generators(number, position):
                    return self.source.case(position, number)
        return None

    def _note(self, number: int, position: int) -> None:
        if self.drawing is not None and (worker := get_worker_info()):
            self.drawing[worker.id] = torch.tensor([os.getpid(), number, position])

    def _generators(self, number: int, position: int) -> Any:
        # SeedSequence mixes its words: neighbouring batches and positions get unrelated streams.
        return _generators(np.random.SeedSequence([*self.seed, number, position]))


class _Deaths:
    """Makes the death of a worker an error only while a batch is awaited, never in the middle of a step.

    torch raises it from a signal handler, wherever the process is: a step would be left half done and its state lost.
    """

    heeded = waited_for = False

    @classmethod
    def heed(cls) -> None:
        """Wrap torch's signal handler; call this once torch has set it, when making an iterator in the main thread."""
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if cls.heeded or not callable(handler):
            return
        cls.heeded = True
        signal.signal(signal.SIGCHLD, lambda number, frame: handler(number, frame) if cls.waited_for else None)

    @classmethod
    @contextmanager
    def awaited(cls) -> Iterator[None]:
        """Let deaths count while this block runs; a worker that died earlier counts when it starts."""
        cls.waited_for = True
        try:
            torch._C._error_if_any_worker_fails()  # the handler was called, and did nothing, when it died
            yield
        finally:
            cls.waited_for = False


class _From:
    """The numbers from `start` on: itertools.count as an iterable that can be iterated more than once."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)


def _leave_the_group(worker: int) -> None:
    """Leave the process group, which terminals and torchrun signal: the trainer needs batches until it has ended."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


@contextmanager
def _generators(seed: np.random.SeedSequence) -> Iterator[None]:
    """Seed the global generators of numpy, torch (CPU) and Python, and restore them afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    first, second, third = (int(word) for word in seed.generate_state(3))
    # Without `devices`, torch would also save the generators of all GPUs, which a forked worker cannot use.
    with torch.random.fork_rng(devices=[]):
        np.random.seed(first)
        # torch.manual_seed would also seed the GPUs.
        torch.default_generator.manual_seed(second)
        random.seed(third)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
