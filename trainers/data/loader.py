"""Draw training samples one at a time with nnU-Net's loader, which draws whole batches.

Drawing a case takes a time that does not depend on the number of cases, with or without probabilities. Whether a sample
must show foreground is decided by its position in the batch of all processes, which gives each process the same share
as in nnU-Net. Read next: batches.py, which seeds the generators for each sample.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from stunet.errors import StunetError, is_out_of_memory
from stunet.nnunet import patched
from stunet.preprocessing.stored import StoredCases
from stunet.trainers.data.sources import UnionOfCases

REDRAWS = 100  # of a case; of two that are drawn evenly, one is drawn as often in a row once in 1e30


def patched_loaders(ours: Callable[..., "SampleLoader"]) -> AbstractContextManager[None]:
    """Let nnU-Net's get_dataloaders() return our loaders, each in an IdleAugmenter, while the block runs."""
    return patched(host, nnUNetDataLoader=ours, SingleThreadedAugmenter=IdleAugmenter, get_allowed_n_proc_DA=lambda: 0)


class IdleAugmenter:
    """Holds a loader in place of nnU-Net's single-process augmenter, which would needlessly draw a first batch."""

    def __init__(self, loader: "SampleLoader", transform: None) -> None:
        self.loader = loader

    # nnU-Net's get_dataloaders() asks each augmenter for a batch, to start its processes.
    def __next__(self) -> None:
        return None


class SampleLoader(nnUNetDataLoader):
    """nnU-Net's loader for batches of one. Takes the same arguments, but `batch_size` is that of all processes.

    Args:
        annotated: The values of annotated voxels in the preprocessed segmentations, without the -1 outside of the
            image; None: those of the network's classes, as in nnU-Net.
    """

    def __init__(
        self, data: Any, batch_size: int, *args: Any, annotated: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(data if isinstance(data, UnionOfCases) else StoredCases(data), 1, *args, **kwargs)
        if annotated is not None:
            # The key under which preprocessing stored where any annotated voxels are.
            self.annotated_classes_key = (-1, *annotated)
        self.position, self.positions, self.number = 0, batch_size, 0
        self.aliases: Aliases | None = None

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Set how often each case of `indices` is drawn relative to the others; None: all equally often."""
        self.aliases = None if weights is None else Aliases(weights)

    def sample(self, position: int, number: int = 0) -> dict[str, Any]:
        """Return the sample at this position of batch `number`, as a batch of one: `data`, `target` and `keys`.

        Raises:
            DataError: The files of the case are damaged.
            OutOfMemoryError: The case does not fit into memory.
        """
        self.position, self.number = position, number
        try:
            return self.generate_train_batch()
        except StunetError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                with self._data.reading(self.drawn):
                    raise
            self._data.check(self.drawn)  # only part of the case is read for a patch: read it all to find damage
            raise

    def case(self, position: int, number: int = 0) -> str:
        """Return the case that sample() would draw with the same generators."""
        self.position, self.number = position, number
        return self.get_indices()[0]

    def get_indices(self) -> list[str]:
        """Return the case, as a list of one; nnU-Net would make an array of all names for each draw."""
        number = np.random.randint(len(self.indices)) if self.aliases is None else self.aliases.draw()
        self.drawn = self.indices[number]
        return [self.drawn]

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        # nnU-Net's formula and rounding; its own index is always 0 in a batch of one.
        return self.position >= round(self.positions * (1 - self.oversample_foreground_percent))


class UnlabelledLoader(SampleLoader):
    """Draws patches anywhere in the image.

    Each sample also has a `seed` (1,) for whatever is random about it later on, and its `place` (1, 2): where along the
    first axis of the image the patch begins and ends, as shares of the image's side.

    Args:
        patches: In one sample, each of another image: `data` has the channels of one behind those of the other,
            and `target` likewise.
    """

    def __init__(self, *args: Any, patches: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patches = patches
        self.before: list[str] = []  # the cases of the sample's patches so far
        self.order: np.ndarray | None = None  # of the cases, if they take turns
        # nnU-Net draws around annotated voxels where a dataset has an ignore label.
        self.has_ignore = False

    def take_turns(self, seed: int) -> None:
        """Let the cases take turns, in an order of the seed's: a batch then has as many of them as it can."""
        self.order = np.random.default_rng(seed).permutation(len(self.indices))

    def sample(self, position: int, number: int = 0) -> dict[str, Any]:
        self.before, drawn = [], []
        for _ in range(self.patches):
            drawn.append(super().sample(position, number))
            self.before.append(self.drawn)
        self.before = []
        return {
            "data": torch.cat([each["data"] for each in drawn], 1),
            "target": torch.cat([each["target"] for each in drawn], 1),
            "keys": drawn[0]["keys"],
            "seed": torch.from_numpy(np.random.randint(2**62, size=1)),
            "place": self.place,
        }

    def get_indices(self) -> list[str]:
        """Return a case, as a list of one, that none of the sample's other patches is of, if there is one."""
        if self.order is not None:
            turn = self.number * self.positions + self.position + len(self.before)
            self.drawn = self.indices[self.order[turn % len(self.order)]]
            return [self.drawn]
        for _ in range(REDRAWS if len(self.indices) > len(self.before) else 1):
            drawn = super().get_indices()
            if self.drawn not in self.before:
                break
        return drawn

    def get_bbox(self, data_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's bounding box, and note where it lies."""
        lows, highs = super().get_bbox(data_shape, *args, **kwargs)
        # Slices are volumes of one.
        axis = 1 if self.patch_size_was_2d else 0
        self.place = torch.tensor([[lows[axis], highs[axis]]]) / data_shape[axis]
        return lows, highs


class Aliases:
    """Draws numbers with given probabilities in constant time (Walker 1977; Vose 1991, doi:10.1109/32.92917).

    Args:
        probabilities: One per number, not negative; they are divided by their sum.

    Raises:
        ValueError: They are negative, not finite, or all zero.
    """

    def __init__(self, probabilities: Sequence[float]) -> None:
        weights = np.asarray(probabilities, dtype=np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"{weights!r} are not probabilities")
        self.own = weights * (len(weights) / weights.sum())  # of each column, the share that stays with its own number
        self.other = np.arange(len(weights))  # the number that gets the rest of each column
        poor = [number for number, share in enumerate(self.own) if share < 1]
        rich = [number for number, share in enumerate(self.own) if share >= 1]
        while poor and rich:
            taker, giver = poor.pop(), rich[-1]
            self.other[taker] = giver
            self.own[giver] -= 1 - self.own[taker]
            if self.own[giver] < 1:
                poor.append(rich.pop())
        self.own[[*poor, *rich]] = 1  # the remaining ones differ from 1 only by rounding

    def draw(self) -> int:
        """Draw a number with numpy's global generator."""
        column = np.random.randint(len(self.own))
        return int(column if np.random.random() < self.own[column] else self.other[column])
