"""The augmentation of training samples: nnU-Net's list of transforms, with ours in place of some and behind others.

To add an augmentation, write it in a file of its own next to this one, and add it to one of the two tables below:

    REPLACED    what takes the place of a transform of nnU-Net's; it is constructed with the same arguments, and
                stunet/nnunet.py lists the name of nnU-Net's as patched
    ADDED       what nnU-Net does not have

A transform is a BasicTransform of batchgeneratorsv2: `get_parameters` draws, `_apply_to_image` and
`_apply_to_segmentation` apply, on tensors (C, D, H, W) or (C, H, W). It may draw from numpy's, torch's and Python's
global generators, which batches.py seeds for each sample, and from nothing else; then a resumed training sees the same
samples. blur.py is the shortest example. What depends on a value of the plan is in the trainers' replaced_transforms().
"""

from collections.abc import Callable, Mapping
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import BasicTransform, ComposeTransforms, RandomTransform

from stunet.nnunet import patched
from stunet.trainers.data.blur import Blur
from stunet.trainers.data.label_rotation import CornerVote

# By the name of nnU-Net's class.
REPLACED: dict[str, Callable[..., BasicTransform]] = {
    "SpatialTransform": CornerVote,  # in a time that does not depend on the number of labels
    "GaussianBlurTransform": Blur,  # with the same rounding on every machine
}

# Constructed without arguments, with the probability that a sample gets it. They follow nnU-Net's last change of
# intensities; mirroring, and the steps that prepare labels for the loss, come after them.
ADDED: list[tuple[Callable[[], BasicTransform], float]] = []
LAST_OF_INTENSITIES = "GammaTransform"


def build(
    stock: Callable[..., ComposeTransforms], replaced: Mapping[str, Callable[..., Any]], *args: Any, **kwargs: Any
) -> ComposeTransforms:
    """Return nnU-Net's augmentation with our transforms in it.

    Args:
        stock: nnU-Net's get_training_transforms().
        replaced: REPLACED, or what a trainer makes of it.
        args: What nnU-Net passes to `stock`.
        kwargs: The same.
    """
    with patched(host, **replaced):
        composed = stock(*args, **kwargs)
    names = [type(getattr(step, "transform", step)).__name__ for step in composed.transforms]
    # The last of two: nnU-Net first changes the gamma of inverted images.
    place = len(names) - names[::-1].index(LAST_OF_INTENSITIES)
    added = [RandomTransform(make(), apply_probability=probability) for make, probability in ADDED]
    return ComposeTransforms([*composed.transforms[:place], *added, *composed.transforms[place:]])
