"""Check that a target spacing suits the images of a dataset. Spacings are in mm, whatever unit a header's author meant.

A target coarser than an image leaves nothing of it, and a single case whose spacing is in micrometres would be
resampled to more voxels than any machine can hold. Both are reported before anything is planned.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np

from stunet.errors import DataError

FEWEST_VOXELS = 4  # along the longest axis of the median image: the least that a network can work with
MOST_VOXELS = 2**36  # per image, 256 GiB in float32
USUAL_MM = (1.0, 3000.0)  # edge length of an image: smaller ones are perhaps in metres, larger ones in micrometres
REVERSED_FACTOR = 2.0  # by which the axis that fits worst fits better if the order of axes is reversed
SHOWN = 3  # cases that a message names
log = logging.getLogger("stunet")


def check_spacing(
    target: Sequence[float],
    spacings: Sequence[Sequence[float]],
    shapes: Sequence[Sequence[int]],
    names: Sequence[str],
    chosen: bool = False,
) -> None:
    """Reject a target spacing that does not suit the images; warn if the unit or the order of axes seems another one.

    Args:
        target: Target spacing of 3d_fullres, in mm, in the order of the images' arrays.
        spacings: Spacing of each image, in mm.
        shapes: Shape of each image, in voxels.
        names: Names of the cases.
        chosen: Whether the user requested the target, as opposed to one derived from the images.

    Raises:
        DataError: Images would vanish, or almost, or become far too large.
    """
    goal, given, sizes = np.array(target, float), np.array(spacings, float), np.array(shapes, float)
    names = names if len(names) == len(given) else [f"number {i}" for i in range(len(given))]
    edges = given * sizes
    # Rounded as in nnU-Net's compute_new_shape.
    new = np.rint(edges / goal)
    median = np.median(edges, axis=0)
    unit = _unit(median)
    asked = f"a target spacing of {_times(goal)} mm"
    coarser = "a finer -overwrite_target_spacing or preset"
    deep = np.median(sizes, axis=0) > 1  # the third axis of 2D images is made up, or is that of a slice
    if (gone := (new[:, deep] == 0).any(axis=1)).any():
        first = int(np.flatnonzero(gone)[0])
        what = f"{asked} leaves nothing of {_cases(names, gone)}: {names[first]!r} is {_times(edges[first])} mm large"
        hint = f"{coarser}, or correct the spacing of the images, which is in mm"
        raise DataError(what + unit, hint if chosen else "correct the spacing of these cases, which is in mm")
    if (vast := new.prod(axis=1) > MOST_VOXELS).any():
        first = int(np.flatnonzero(vast)[0])
        what = (
            f"{asked} makes {_times(new[first])} voxels of {names[first]!r}, whose voxels are {_times(given[first])} mm"
        )
        hint = "correct the spacing of these cases, which is in mm"
        hint = "a coarser -overwrite_target_spacing or preset" if chosen and vast.all() else hint
        raise DataError(f"{what} large ({_cases(names, vast)})", hint)
    if chosen and np.median(new, axis=0).max() < FEWEST_VOXELS:
        what = f"{asked} leaves {_times(np.median(new, axis=0))} voxels of the median image"
        raise DataError(f"{what}, which is {_times(median)} mm large{unit}", coarser)
    if chosen and _is_reversed(goal, np.median(given, axis=0)):
        log.warning(
            "warning: %s is meant in the order of the arrays, z y x, in which the images have %s mm",
            asked,
            _times(np.median(given, axis=0)),
        )
    if unit:
        log.warning("warning: the median image is %s mm large%s", _times(median), unit)


def _is_reversed(goal: np.ndarray, median: np.ndarray) -> bool:
    """Return whether a target in the order x y z would be much nearer to the images' spacing."""
    as_given, reversed_ = (np.abs(np.log(each / median)).max() for each in (goal, goal[::-1]))
    return bool(as_given > reversed_ + math.log(REVERSED_FACTOR))


def _unit(median_mm: np.ndarray) -> str:
    """Return a hint about the unit from the median image's size; nothing for 2D images, whose third axis is made up."""
    if not USUAL_MM[0] <= median_mm.max():
        return "; if the spacing in the headers is in metres, multiply it by 1000"
    if median_mm.min() > USUAL_MM[1]:
        return "; if the spacing in the headers is in micrometres, divide it by 1000"
    return ""


def _cases(names: Sequence[str], which: np.ndarray) -> str:
    chosen = [repr(name) for name, is_it in zip(names, which, strict=True) if is_it]
    more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
    return f"{len(chosen)} of {len(names)} cases: " + ", ".join(chosen[:SHOWN]) + more


def _times(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)
