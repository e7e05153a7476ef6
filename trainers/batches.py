"""In which order training data come: batch number i is a function of (seed, i), whoever computes it and whenever.

So a resumed run sees exactly what an uninterrupted one would have seen, with any number of worker processes. The work
is nnU-Net's loader and augmentation; the processes are torch's DataLoader, which reports a worker that died.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stunet.errors import OutOfMemoryError


class Source(Protocol):
    """nnU-Net's loader: `next` draws cases and patches at random and augments them."""

    def __next__(self) -> dict[str, Any]: ...


class SeededBatches:
    """An endless iterator over batches 0, 1, 2, ... of a stream; worker processes start at the first `next`.

    Args:
        source: What draws a batch with numpy's, torch's and Python's global generators.
        seed: Identifies the stream: run, purpose and rank, say.
        start: The number of the first batch.
        skip: How many times `next` gives None first: batches whose results are already known.
        workers: Processes; 0 computes in this one.
        pin_memory: Whether batches are put into page-locked memory, for faster copies to a GPU.
    """

    def __init__(
        self, source: Source, seed: tuple[int, ...], start: int, skip: int, workers: int, pin_memory: bool
    ) -> None:
        self._loader: DataLoader = DataLoader(
            _Numbered(source, seed),
            batch_size=None,
            sampler=_From(start + skip),  # any iterable does when batch_size is None
            num_workers=workers,
            generator=torch.Generator(),  # else it draws from the global one
            pin_memory=pin_memory,
            prefetch_factor=3 if workers else None,
        )
        self._skip = skip
        self._iterator: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> dict[str, Any] | None:
        if self._skip:
            self._skip -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # the text of a worker that was killed
                raise
            raise OutOfMemoryError(
                f"a data loading process was killed, probably for lack of memory ({str(error).splitlines()[0]})",
                "fewer processes: nnUNet_n_proc_DA=2 stunet_train ... --c",
            ) from error

    def close(self) -> None:
        """Ends the worker processes."""
        self._iterator = None


class _Numbered(Dataset):
    def __init__(self, source: Source, seed: tuple[int, ...]) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        with _generators(np.random.SeedSequence([*self.seed, number])):
            return next(self.source)


class _From:
    """The numbers from `start` on; itertools.count as something that can be iterated anew."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)


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
