"""The sizes of STU-Net, one line each. To add a size, add a line to SIZES: choices, checks and targets follow from it.

networks.py builds them; architectures/stunet.py says what a training step of one takes. Does not import torch.
"""

from dataclasses import dataclass, field
from itertools import pairwise

GROWTH = 4  # the width doubles per stage up to this one, so up to 16 times the first
CLASSES, STAGES = 105, 6  # of the published networks, TotalSegmentator's classes with background


@dataclass(frozen=True)
class Size:
    """How wide and deep a network is.

    Attributes:
        width: Channels of the first stage; they double per stage up to 16 times as many.
        depth: Residual blocks per stage.
        target_gb: GPU memory in GiB that planning fills unless it is told otherwise.
    """

    width: int
    depth: int
    target_gb: float = field(default=10.0, compare=False)  # not a property of the network: equal without it

    def channels(self, stage: int) -> int:
        """Return the feature channels of encoder stage `stage`, 0 being the stem."""
        return self.width * 2 ** min(stage, GROWTH)

    def parameters(self, channels: int = 1, classes: int = CLASSES, stages: int = STAGES, ndim: int = 3) -> int:
        """Return the number of parameters of a network with so many input channels, classes, stages and axes."""
        widths = [self.channels(stage) for stage in range(stages)]
        # per level: upsampling by a 1x1x1 convolution, blocks after the concatenation, head
        decoder = sum(
            low * high + high + self._blocks(2 * high, high, ndim) + (high + 1) * classes
            for high, low in pairwise(widths)
        )
        return self.encoder_parameters(channels, stages, ndim) + decoder

    def encoder_parameters(self, channels: int = 1, stages: int = STAGES, ndim: int = 3) -> int:
        """Return the number of parameters of its encoder."""
        widths = [self.channels(stage) for stage in range(stages)]
        return sum(
            self._blocks(c_in, c_out, ndim) for c_in, c_out in zip([channels, *widths[:-1]], widths, strict=True)
        )

    def _blocks(self, c_in: int, c_out: int, ndim: int) -> int:
        """Return the number of parameters of a stage."""
        kernel = 3**ndim
        # two convolutions, the 1x1x1 of the shortcut, three biases and two norms of two values per channel
        first = kernel * c_in * c_out + c_in * c_out + kernel * c_out * c_out + 7 * c_out
        further = 2 * kernel * c_out * c_out + 6 * c_out
        return first + (self.depth - 1) * further


# S, B, L and H are published: 14.6, 58.3, 440 and 1457 M parameters. Targets leave room for the published patch of
# 128^3 with a batch of two (plans/memory.py has the figures); T is for tests.
SIZES = {
    "T": Size(4, 1, 4.0),
    "S": Size(16, 1, 6.0),
    "B": Size(32, 1, 10.0),
    "L": Size(64, 2, 32.0),
    "H": Size(96, 3, 80.0),
}
DEFAULT = "B"
FOR_TESTS = "T"  # never suggested to users
