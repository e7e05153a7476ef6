"""What a method of self-supervised pre-training asks of memory and batch. memory.py and fit.py calculate with it.

Imports nothing heavy: each row of trainers/pretexts/methods.py has a Demand. Datasets without labels are planned for
Demand(), which is that of the default method.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What passes through the network per sample, and what a method holds besides. The default is that of `mae`.

    Attributes:
        encoded: Of each view that passes through the encoder, its share of the patch's voxels.
        decoded: The same for the decoder; empty if it is not trained.
        outputs: Channels of the decoder's outputs; None: as many as the image has.
        teacher: The largest share of the patch that a teacher sees at a time; 0: there is no teacher.
        parameters: Those of heads that the network does not have.
        stored: Numbers that are kept from step to step, such as a queue.
        compares: Whether the loss compares the samples of a batch with each other, so that a larger batch is better.
    """

    encoded: Sequence[float] = (1.0,)
    decoded: Sequence[float] = (1.0,)
    outputs: int | None = None
    teacher: float = 0.0
    parameters: int = 0
    stored: int = 0
    compares: bool = False

    @property
    def least_batch(self) -> int:
        """The smallest batch that the method can learn from."""
        return 2 if self.compares else 1
