"""Say what pre-trained weights have seen, and how that differs from what the network will see: for the report.

transfer.py decides what is loaded; none of these differences keeps it from being loaded.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from stunet.names import SIDES, is_orientation
from stunet.weights.reading import Weights

SPACING_FACTOR = 1.5  # on any axis; beyond it, structures clearly differ in size in voxels from those of the weights
ORDERS = [list(order) for order in permutations(range(3))]  # of the axes of an array
# Of images, which can be planned as the weights know them.
WAY = "stunet_plan_and_preprocess --pretrained preprocesses as theirs"
CONTRAST = 2.0  # ratio of CT scales above which a warning is due


def origin(weights: Weights) -> str | None:
    """Return what is known of a training without labels: its method, and the images that it saw."""
    if weights.pretext is None:
        return None
    channels = ", ".join(weights.channels or ()) or f"{weights.network.channels} channel(s)"
    spacing = f"at {' x '.join(f'{pitch:g}' for pitch in weights.spacing)} mm" if weights.spacing else ""
    schemes = ", ".join(dict.fromkeys(weights.normalization or ()))
    return ", ".join(filter(None, (weights.pretext, f"images of {channels}", spacing, schemes)))


def stride_warnings(strides: Sequence[Sequence[int]], weights: Weights) -> list[str]:
    """Warn if the weights compute something else in this network than in their own."""
    warnings = []
    ours, theirs = len(strides), weights.network.stages
    if ours != theirs:
        which = "the deepest of the weights are unused" if ours < theirs else "the deepest are initialised at random"
        warnings.append(f"the plan has {ours} stages and the weights have {theirs}: {which}")
    if (trained := weights.strides or weights.network.strides) is None:
        warnings.append("the strides that the weights were trained with are unknown")
    else:
        common = min(ours, theirs)
        there, here = ([list(stride) for stride in given[:common]] for given in (trained, strides))
        if there != here:
            warnings.append(
                f"the weights were trained with strides {there}, the plan has {here}: "
                "fine for training further, but until then they compute another function"
            )
    return warnings


def function_warnings(weights: Weights, arguments: Mapping[str, Any] | None) -> list[str]:
    """Warn if the plan's network computes something else than the weights' by what no tensor tells.

    Args:
        weights: Their plan may say it.
        arguments: Those of the network in the plan; None: unknown.
    """
    if arguments is None or weights.arguments is None:
        return []
    there, here = map(weights.network.architecture.untold, (weights.arguments, arguments))
    return [
        f"the weights were trained with {what} {there[what]}, the plan has {here[what]}: "
        "fine for training further, but until then they compute another function"
        for what in there
        if there[what] != here[what]
    ]


def channel_order(given: Sequence[str] | None, wanted: Sequence[str] | None) -> list[int] | None:
    """Return which of the weights' channels each of a dataset is, by their names; None if these are not the same."""
    there, here = ([name.casefold() for name in names or ()] for names in (given, wanted))
    return (
        [there.index(name) for name in here] if sorted({*there}) == sorted(here) and len(there) == len(here) else None
    )


def input_warnings(
    weights: Weights,
    channels: Sequence[str] | None,
    normalization: Sequence[str] | None,
    spacing: Sequence[float] | None,
) -> list[str]:
    """Warn if the network will see other images than the weights were trained with; ignore what is unknown."""
    warnings = []
    order = channel_order(weights.channels, channels)
    taken = "they are taken in this order" if order is None else "each takes the weights of its name"
    if len(weights.channels or ()) == len(channels or ()) and order != [*range(len(channels or ()))]:
        warnings.append(
            f"the weights' input channels are {', '.join(weights.channels or ())}, "
            f"the dataset's {', '.join(channels or ())}: {taken}"
        )
    known = weights.normalization or []
    known = [known[channel] for channel in order or range(len(known)) if channel < len(known)]
    there, here = (list(dict.fromkeys(schemes or ())) for schemes in (known, normalization))
    if there and here and there != here:
        warnings.append(
            f"the weights were trained with images normalised by {', '.join(there)}, the plan normalises by "
            f"{', '.join(here)}: the first layers see other intensities than they know ({WAY})"
        )
    factors = [theirs / ours for theirs, ours in zip(weights.spacing or (), spacing or (), strict=False)]
    if any(max(factor, 1 / factor) > SPACING_FACTOR for factor in factors):
        given = (" x ".join(f"{pitch:g}" for pitch in each or ()) for each in (weights.spacing, spacing))
        warnings.append(
            "the weights were trained at a spacing of {} mm, the plan has {} mm: "
            "they know the same structures in another size ({})".format(*given, WAY)
        )
    return warnings


def axes_warnings(weights: Weights, transposition: Sequence[int] | None, orientation: str | None) -> list[str]:
    """Warn if the axes of the network's input run otherwise than in what the weights know; ignore what is unknown.

    Args:
        weights: Their plan has their axes. Mirroring along an axis has taught them both of its directions.
        transposition: The plan's order of axes.
        orientation: The plan's, that of the images.
    """
    if weights.plan is None or transposition is None:
        return []
    orders = weights.plan.get("transpose_forward"), list(transposition)
    if any(order not in ORDERS for order in orders):
        return []
    codes = [str(code or "") for code in (weights.orientation, orientation)]
    if not all(map(is_orientation, codes)):
        if orders[0] == orders[1]:
            return []
        return [
            f"the weights were trained with axes in the order {orders[0]}, the plan has {orders[1]}: "
            "they know the same structures from another side"
        ]
    # A code is of the file's axes, which an array has in the opposite order.
    there, here = ([code[::-1][axis] for axis in order] for code, order in zip(codes, orders, strict=True))
    turned = [_side(letter) for letter in there] != [_side(letter) for letter in here]
    # Which way a pretext mirrors, its checkpoints do not say.
    first = 3 - weights.network.ndim  # the order of slices is nothing to a 2D network
    known = weights.mirror_axes is not None and not weights.pretext
    mirrored = [*range(first), *(axis + first for axis in weights.mirror_axes or ())] if known else range(3)
    if not turned and all(there[axis] == here[axis] for axis in range(3) if axis not in mirrored):
        return []
    how = "from another side" if turned else "mirrored"
    return [
        f"the weights were trained with axes that run towards {', '.join(there)}, those of the plan run towards "
        f"{', '.join(here)}: they know the same structures {how}"
    ]


def _side(letter: str) -> int:
    """Return which pair of SIDES a letter is of."""
    return next(number for number, pair in enumerate(SIDES) if letter in pair)


def contrast_warnings(
    weights: Weights,
    normalization: Sequence[str] | None,
    intensities: Mapping[str, Any] | None,
    order: Sequence[int] | None = None,
) -> list[str]:
    """Warn if both normalise CT by the foreground of their datasets, and these differ much."""
    known = (weights.plan.intensities if weights.plan else None) or {}
    warnings = []
    given = weights.normalization or []
    for channel, (theirs, scheme) in enumerate(zip(order or range(len(given)), normalization or (), strict=False)):
        pair = (known, theirs), (intensities or {}, channel)
        before, now = (float((each.get(str(number)) or {}).get("std") or 0) for each, number in pair)
        if (
            {*given[theirs : theirs + 1], scheme} == {"CTNormalization"}
            and min(before, now) > 0
            and max(before, now) > CONTRAST * min(before, now)
        ):
            warnings.append(
                f"the weights were trained with CT divided by {before:.0f} HU, the plan divides by {now:.0f}: "
                f"the first layers see another contrast than they know ({WAY})"
            )
    return warnings
