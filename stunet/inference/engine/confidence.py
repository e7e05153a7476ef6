"""Measure how sure a network is of its labels: the probability of each voxel's label, or of the group it belongs to.

Groups express what matters to the user, such as the lobes of a lung that only has to be a lung, or all classes that are
of no interest. The probabilities of all classes are never held for the whole scan. segmenter.py fills in the values.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Confidence:
    """The probabilities of a case's labels; pass it to Predictor.segment(), which fills it in.

    Args:
        groups: The group of each class, indexed by output channel; the background is class 0.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        self.groups = torch.as_tensor(groups, dtype=torch.int64)
        self.values_DHW: np.ndarray = np.zeros((0, 0, 0), np.float32)  # on the grid of the case's file, after segment()

    def of_labels(self, labels: Tensor, likely_KDHW: Tensor) -> Tensor:
        """Return the probability of the group that each label belongs to.

        Args:
            labels: Class indices, (D, H, W).
            likely_KDHW: Probabilities of all classes.
        """
        groups = self.groups.to(likely_KDHW.device)
        sums = likely_KDHW.new_zeros((int(groups.max()) + 1, *likely_KDHW.shape[1:]))
        sums.index_add_(0, groups, likely_KDHW)
        return sums.gather(0, groups[labels.long()][None])[0]
