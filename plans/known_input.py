"""What pre-trained weights know of their images, and how those of a dataset are normalised like them.

models/known_input.py finds it out, pretrained.py plans by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stunet.plans.blueprints import Blueprint
from stunet.plans.topology import Strides

CT = "CTNormalization"  # nnU-Net's scheme by the intensities of a dataset
CT_VALUES = ("mean", "std", "percentile_00_5", "percentile_99_5")  # those that it reads
# nnU-Net's schemes that only use the image itself, so that a dataset's intensities do not matter.
BY_THE_IMAGE = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
UNNAMED = "image"  # the name of a channel of which nothing says what it is (datasets/unlabelled.py)


@dataclass(frozen=True, kw_only=True)
class KnownInput:
    """What is known of the images that weights were trained with, and of their network; None: nothing says it.

    Attributes:
        name: Of the weights, as part of a plan's name.
        network: Their network, with strides if its weights depend on them.
        spacing: In mm, in their plan's order of axes, of as many axes as the network has.
        resamples: Whether images were resampled to the spacing.
        normalization: nnU-Net's scheme per channel.
        masks: Per channel, whether only voxels that are not zero were normalised.
        intensities: Statistics of the foreground by the number of the channel.
        channels: Names of the channels.
        transposition: Their plan's order of axes.
        orientation: What images have to be turned to for that; None: they are as they should be, or it is unknown.
        patch: In voxels.
        strides: One entry per stage.
    """

    name: str
    network: Blueprint
    spacing: Sequence[float] | None = None
    resamples: bool = True
    normalization: Sequence[str] | None = None
    masks: Sequence[bool] | None = None
    intensities: Mapping[str, Mapping[str, float]] | None = None
    channels: Sequence[str] | None = None
    transposition: Sequence[int] = (0, 1, 2)
    orientation: str | None = None
    patch: Sequence[int] | None = None
    strides: Strides | None = None

    @property
    def ndim(self) -> int:
        """Axes of space."""
        assert self.network.found is not None  # it is the network of weights
        return self.network.found.ndim


@dataclass(frozen=True)
class Normalization:
    """How a plan normalises each channel: scheme, mask, and statistics where they are not the dataset's own."""

    schemes: list[str]
    masks: list[bool]
    intensities: dict[str, dict[str, float]]
    warnings: list[str]


def normalize_as(
    known: KnownInput, channels: Sequence[str], schemes: Sequence[str], masks: Sequence[bool]
) -> Normalization:
    """Return how the channels of a dataset are normalised for weights.

    As the weights' channel of the same name, or in the same place where names are missing; otherwise as all of theirs,
    if each image was normalised by itself; otherwise as the dataset's own plan does, with a warning.

    Args:
        known: What the weights know.
        channels: Names of the dataset's channels.
        schemes: nnU-Net's choice for them.
        masks: The same.
    """
    found = Normalization([], [], {}, [])
    given = list(known.normalization or ())
    for position, (name, own, mask) in enumerate(zip(channels, schemes, masks, strict=True)):
        theirs = _counterpart(known, channels, position)
        common = given[0] if len(set(given)) == 1 and given[0] in BY_THE_IMAGE else None
        scheme = common if theirs is None else given[theirs]
        if scheme is None:
            theirs_are = f"it is none of theirs ({', '.join(known.channels or ())})" if given else "theirs is not known"
            found.warnings.append(f"channel {name!r} is normalised by {own}, as without {known.name}: {theirs_are}")
            scheme = own
        elif known.masks and len(known.masks) == len(given):
            mask = known.masks[theirs or 0]
        found.schemes.append(scheme)
        found.masks.append(bool(mask))
        if scheme != CT or theirs is None:
            continue
        values = dict((known.intensities or {}).get(str(theirs)) or {})
        if all(isinstance(values.get(key), int | float) for key in CT_VALUES) and values["std"] > 0:
            found.intensities[str(position)] = values
        else:
            found.warnings.append(
                f"{known.name} does not say by which intensities {name} was normalised: those of the dataset are taken"
            )
    return found


def _counterpart(known: KnownInput, channels: Sequence[str], position: int) -> int | None:
    """Return which of the weights' channels one of a dataset is; None if that is not known."""
    count, plain = len(known.normalization or ()), [name.casefold() for name in channels]
    theirs = [name.casefold() for name in known.channels or ()]
    theirs = theirs if len(theirs) == count else [UNNAMED] * count
    if theirs.count(plain[position]) == 1 and plain.count(plain[position]) == 1 and plain[position] != UNNAMED:
        return theirs.index(plain[position])
    return position if len(plain) == count and UNNAMED in (theirs[position], plain[position]) else None
