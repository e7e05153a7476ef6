"""How is one training sample drawn? nnU-Net's loader, which draws whole batches, sample by sample.

A case is drawn in a time that does not depend on how many there are, with or without probabilities; whether a sample
must show foreground is decided by its position in the batch of all processes, which gives each process the share that
nnU-Net gives it. Read next: batches.py, which seeds the generators for each sample.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from stunet.errors import is_out_of_memory
from stunet.preprocessed import Checked


class Samples(nnUNetDataLoader):
    """nnU-Net's loader for batches of one. Takes the arguments of nnU-Net's; `batch_size` is that of all processes."""

    def __init__(self, data: Any, batch_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(Checked(data), 1, *args, **kwargs)
        self.position, self.positions = 0, batch_size
        self.aliases: Aliases | None = None

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Says how often each case of `indices` is drawn in relation to the others; None: all equally often."""
        self.aliases = None if weights is None else Aliases(weights)

    def sample(self, position: int) -> dict[str, Any]:
        """The sample for this position of a batch, as a batch of one: `data`, `target` and `keys`.

        Raises:
            DataError: The files of the case are damaged.
            OutOfMemoryError: The case does not fit into memory.
        """
        self.position = position
        try:
            return self.generate_train_batch()
        except Exception as error:
            if is_out_of_memory(error):
                with self._data.reading(self.drawn):
                    raise
            self._data.check(self.drawn)  # only a part of the case is read for a patch: is that the reason?
            raise

    def case(self, position: int) -> str:
        """The case that sample() would draw with the same generators."""
        self.position = position
        return self.get_indices()[0]

    def get_indices(self) -> list[str]:
        """The case; nnU-Net makes an array of all names for each draw."""
        number = np.random.randint(len(self.indices)) if self.aliases is None else self.aliases.draw()
        self.drawn = self.indices[number]
        return [self.drawn]

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        return self.position >= round(self.positions * (1 - self.oversample_foreground_percent))


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
            raise ValueError(f"{weights!r} are no probabilities")
        self.own = weights * (len(weights) / weights.sum())  # of each column, the share that stays with its number
        self.other = np.arange(len(weights))  # whom the rest belongs to
        poor = [number for number, share in enumerate(self.own) if share < 1]
        rich = [number for number, share in enumerate(self.own) if share >= 1]
        while poor and rich:
            taker, giver = poor.pop(), rich[-1]
            self.other[taker] = giver
            self.own[giver] -= 1 - self.own[taker]
            if self.own[giver] < 1:
                poor.append(rich.pop())
        self.own[[*poor, *rich]] = 1  # what is left differs from 1 by rounding only

    def draw(self) -> int:
        """A number, with numpy's global generator."""
        column = np.random.randint(len(self.own))
        return int(column if np.random.random() < self.own[column] else self.other[column])
