"""In which order training data come: sample j of batch i is a function of (seed, i, j), whoever computes it and when.

So a resumed run sees exactly what an uninterrupted one would have seen, with any number of worker processes, and a
batch is the same on one GPU and shared by many. The work is nnU-Net's loader and augmentation (sampling.py); the
processes are torch's DataLoader, which reports a worker that died.
"""

import os
import random
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stunet.errors import DataError, OutOfMemoryError, StunetError


class Source(Protocol):
    """Draws one sample: a case and a patch at random, augmented; a batch of one, as nnU-Net's loader makes it."""

    def sample(self, position: int) -> dict[str, Any]:
        """The sample for this position of a batch, drawn with the global generators of numpy, torch and Python."""

    def case(self, position: int) -> str:
        """The name of the case of that sample."""


class SeededBatches:
    """An endless iterator over batches 0, 1, 2, ... of a stream; worker processes start at the first `next`.

    Args:
        source: What draws the samples.
        seed: Identifies the stream: run and purpose, say.
        positions: Which samples of each batch are wanted: all, or the share of this process.
        start: The number of the first batch.
        skip: How many times `next` gives None first: batches whose results are already known.
        workers: Processes; 0 computes in this one.
        pin_memory: Whether batches are put into page-locked memory, for faster copies to a GPU.
    """

    def __init__(
        self,
        source: Source,
        seed: tuple[int, ...],
        positions: Sequence[int],
        start: int,
        skip: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self._numbered = _Numbered(source, seed, positions, workers)
        self._loader: DataLoader = DataLoader(
            self._numbered,
            batch_size=None,
            sampler=_From(start + skip),  # any iterable does when batch_size is None
            num_workers=workers,
            generator=torch.Generator(),  # else it draws from the global one
            pin_memory=pin_memory,
            prefetch_factor=3 if workers else None,
            worker_init_fn=_leave_the_group,
            # As where torchrun starts the trainer; a child that was spawned would spawn, and import all of torch again.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        self._skip, self._workers = skip, workers
        self._iterator: Iterator[dict[str, Any]] | None = None
        self.failed = False  # to give the batch that was asked for last

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
        self.failed = True
        try:
            with _Deaths.awaited():
                batch = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # the text of a worker that was killed
                raise
            raise self._killed(str(error).splitlines()[0]) from error
        if isinstance(batch, StunetError):
            raise batch
        self.failed = False
        return batch

    def _killed(self, text: str) -> StunetError:
        """What the death of a worker means, from what torch says about it."""
        pid = int(found[1]) if (found := re.search(r"pid\D*(\d+)", text)) else -1
        case = self._numbered.loading(pid)
        while_ = "" if case is None else f" while it loaded case {case!r}"
        if "Segmentation fault" in text or "Aborted" in text:
            return DataError(
                f"a data loading process crashed{while_} ({text})", "preprocess this case again, and the same with --c"
            )
        batch, fewer = self._numbered.positions, max(1, self._workers // 2)
        return OutOfMemoryError(
            f"a data loading process was killed{while_}, probably because the memory is not enough ({text})",
            f"nnUNet_n_proc_DA={fewer} and the same with --c, or a new run with --set batch_size={max(1, len(batch) // 2)}",
        )

    def close(self) -> None:
        """Ends the worker processes."""
        self._iterator = None


def share_of(batch_size: int, rank: int, processes: int) -> range:
    """The positions of a batch that one of several processes computes: the first get one more, as in nnU-Net."""
    each, more = divmod(batch_size, processes)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def joined(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch of several: `data` (B, C, D, H, W); `target`, or a list of them per level; `keys`, names of cases."""
    target = [batch["target"] for batch in batches]
    return {
        "data": torch.cat([batch["data"] for batch in batches]),
        "target": [torch.cat(level) for level in zip(*target, strict=True)]
        if isinstance(target[0], list)
        else torch.cat(target),
        "keys": [key for batch in batches for key in batch["keys"]],
    }


def parts_of(batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The reverse of joined(): so many batches, of sizes that differ by one at most; tensors share the memory."""
    target = batch["target"]
    shares = [share_of(len(batch["data"]), number, count) for number in range(count)]
    cuts = [slice(share.start, share.stop) for share in shares]
    return [
        {
            "data": batch["data"][cut],
            "target": [level[cut] for level in target] if isinstance(target, list) else target[cut],
            "keys": batch["keys"][cut],
        }
        for cut in cuts
    ]


class _Numbered(Dataset):
    """The batches by number; an error of ours comes as a value, because torch would make a new one of its text."""

    def __init__(self, source: Source, seed: tuple[int, ...], positions: Sequence[int], workers: int) -> None:
        self.source, self.seed, self.positions = source, seed, positions
        # Per worker its process, and the number and position of the sample that it is drawing; shared with it.
        self.drawing = torch.full((workers, 3), -1).share_memory_() if workers else None

    def __getitem__(self, number: int) -> dict[str, Any] | StunetError:
        samples = []
        try:
            for position in self.positions:
                self._note(number, position)
                with self._generators(number, position):
                    samples.append(self.source.sample(position))
        except StunetError as error:
            if not get_worker_info():
                raise
            return error
        finally:
            self._note(-1, -1)
        return joined(samples)

    def loading(self, pid: int) -> str | None:
        """The case that a worker was loading when it ended."""
        for process, number, position in () if self.drawing is None else self.drawing.tolist():
            if process == pid and number >= 0:
                with self._generators(number, position):
                    return self.source.case(position)
        return None

    def _note(self, number: int, position: int) -> None:
        if self.drawing is not None and (worker := get_worker_info()):
            self.drawing[worker.id] = torch.tensor([os.getpid(), number, position])

    def _generators(self, number: int, position: int) -> Any:
        return _generators(np.random.SeedSequence([*self.seed, number, position]))


class _Deaths:
    """When the death of a worker is an error: while a batch is waited for, never in the middle of a step.

    torch raises it from a signal handler, wherever the process is: a step would be half done, its state lost.
    """

    heeded = waited_for = False

    @classmethod
    def heed(cls) -> None:
        """To be called when torch has set its handler, for which it makes an iterator in the main thread."""
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if cls.heeded or not callable(handler):
            return
        cls.heeded = True
        signal.signal(signal.SIGCHLD, lambda number, frame: handler(number, frame) if cls.waited_for else None)

    @classmethod
    @contextmanager
    def awaited(cls) -> Iterator[None]:
        """While this block runs; a worker that died before it counts at its start."""
        cls.waited_for = True
        try:
            torch._C._error_if_any_worker_fails()
            yield
        finally:
            cls.waited_for = False


class _From:
    """The numbers from `start` on; itertools.count as something that can be iterated anew."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)


def _leave_the_group(worker: int) -> None:
    """A terminal and torchrun signal a group of processes; the trainer needs batches until it has ended in order."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


@contextmanager
def _generators(seed: np.random.SeedSequence) -> Iterator[None]:
    """Seeds the global generators of numpy, torch (CPU) and Python, and puts them back as they were."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    first, second, third = (int(word) for word in seed.generate_state(3))
    with torch.random.fork_rng(devices=[]):
        np.random.seed(first)
        torch.default_generator.manual_seed(second)
        random.seed(third)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
