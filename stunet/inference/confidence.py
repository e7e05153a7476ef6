"""How sure is a network of the labels that it gives? The probability of each voxel's label, or of the group it is in.

Groups are what matters to someone: the lobes of a lung that shall be a lung, all classes that are of no interest. The
probabilities of all classes are never there for the whole scan. segmenter.py fills this in.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Confidence:
    """To be given to Predictor.segment(), which fills it in.

    Args:
        groups: The group of each class, by the number of its output; the background is class 0.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        self.groups = torch.as_tensor(groups, dtype=torch.int64)
        self.values_DHW: np.ndarray = np.zeros((0, 0, 0), np.float32)  # on the grid of the case's file, after segment()

    def of(self, labels: Tensor, likely_KDHW: Tensor) -> Tensor:
        """The probability of the group that each label is in.

        Args:
            labels: Number of the class, (D, H, W).
            likely_KDHW: Probabilities of all classes.
        """
        groups = self.groups.to(likely_KDHW.device)
        sums = likely_KDHW.new_zeros((int(groups.max()) + 1, *likely_KDHW.shape[1:]))
        sums.index_add_(0, groups, likely_KDHW)
        return sums.gather(0, groups[labels.long()][None])[0]
