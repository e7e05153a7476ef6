"""Find contents of images and label maps that no reader rejects but that would harm training.

These are labels that nnU-Net crops away with the zeros around an image, classes that occur in no case, and images
without content. check.py reads the cases and passes on what it found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.errors import DataError, first_few

EVERY = 7  # stride of a sparse sample, which is enough to show that most images are not constant
LABELS = 32  # an image of fewer whole numbers is a label map: noise alone takes more
CHUNK = 2**18  # voxels counted at a time; they fit into the cache, several times faster than numpy.unique


@dataclass(frozen=True)
class Content:
    """What a case holds.

    Attributes:
        voxels: Voxel counts of the label map by value; empty if there is none.
        cut: How many of these lie outside the box that nnU-Net crops the case to, by nonzero value.
        constant: Indices of channels that hold a single value.
    """

    voxels: dict[float, int]
    cut: dict[float, int]
    constant: tuple[int, ...]


def look(image_CDHW: np.ndarray, label_DHW: np.ndarray | None, voxels: dict[float, int]) -> Content:
    """Return what a case holds; `voxels` is the result of count_values(), empty without a label."""
    cut = {}
    if label_DHW is not None:
        inside = label_DHW[nonzero_box(image_CDHW)]
        if inside.shape != label_DHW.shape:
            left = count_values(inside)
            cut = {value: n - left.get(value, 0) for value, n in voxels.items() if value and n > left.get(value, 0)}
    constant = tuple(number for number, channel in enumerate(image_CDHW) if _is_constant(channel))
    return Content(voxels, cut, constant)


def nonzero_box(image_CDHW: np.ndarray) -> tuple[slice, ...]:
    """Return the box that nnU-Net's crop_to_nonzero keeps: from the first to the last plane with a nonzero voxel."""
    # nnU-Net also fills holes in its mask, which does not change the box.
    box = []
    for axis in range(1, image_CDHW.ndim):
        planes = np.moveaxis(image_CDHW, axis, 0)  # from both ends: in most images the first plane decides
        first = next((i for i in range(len(planes)) if planes[i].any()), None)
        if first is None:  # all zeros: nnU-Net does not crop
            return tuple(slice(0, n) for n in image_CDHW.shape[1:])
        last = next(i for i in reversed(range(len(planes))) if planes[i].any())
        box.append(slice(first, last + 1))
    return tuple(box)


def count_values(label: np.ndarray) -> dict[float, int]:
    """Return the voxel counts of a label map by value, whatever numbers it holds."""
    found: dict[float, int] = {}
    for part in np.array_split(label.ravel(), label.size // CHUNK + 1):
        if part.size == 0:
            continue
        # bincount() takes only whole numbers from 0, and allocates one count for each up to the largest.
        if part.min() < 0 or part.max() > np.iinfo(np.uint16).max or (part != np.trunc(part)).any():
            values, numbers = np.unique(part, return_counts=True)
        else:
            numbers = np.bincount(part.astype(np.intp))
            values = np.flatnonzero(numbers)
            numbers = numbers[values]
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            found[value] = found.get(value, 0) + number
    return found


def is_like_label_map(channel_DHW: np.ndarray) -> bool:
    """Return whether an image holds only a few whole numbers, as label maps and masks do."""
    # A sparse sample shows it of most images that they are none.
    sample = channel_DHW[tuple(slice(None, None, EVERY) for _ in channel_DHW.shape)]
    if len(np.unique(sample)) >= LABELS:
        return False
    values = count_values(channel_DHW)
    return len(values) < LABELS and all(value == int(value) for value in values)


def judge(names: Sequence[str], contents: Sequence[Content], description: Mapping[str, Any]) -> list[str]:
    """Return warnings about the contents of all cases of a dataset.

    Args:
        names: Names of the cases.
        contents: Contents of each case.
        description: Parsed dataset.json.

    Raises:
        DataError: No case has any foreground that training could see; or of a dataset without labels, all images are
            constant.
    """
    labelled = any(content.voxels for content in contents)
    if not labelled and all(content.constant for content in contents):
        raise DataError(f"all {len(contents)} images hold one value only, nothing to learn from", "other images")
    warnings = _judge_labels(names, contents, description) if labelled else []
    channels = list(description.get("channel_names", description.get("modality", {})).values())
    constant = [
        f"{name!r} ({channels[number] if number < len(channels) else number})"
        for name, content in zip(names, contents, strict=True)
        for number in content.constant
    ]
    if constant:
        warnings.append(
            f"{len(constant)} images hold one value only, nothing to learn from: {first_few(constant, separator=', ')}"
        )
    return warnings


def _judge_labels(names: Sequence[str], contents: Sequence[Content], description: Mapping[str, Any]) -> list[str]:
    labels = {name: _values(entry) for name, entry in description["labels"].items()}
    # Neither is a class: nnU-Net does not train on them.
    ignored = {0.0, *labels.pop("ignore", set())}
    classes = {name: values - ignored for name, values in labels.items() if values - ignored}
    present = {value for content in contents for value in content.voxels}
    kept = {value for content in contents for value, n in content.voxels.items() if n > content.cut.get(value, 0)}
    if not present - ignored:
        hint = "look at the files in labelsTr: do they hold the labels, with the values that dataset.json gives them?"
        raise DataError(f"no foreground in any of {len(names)} cases: their labels are {_list(present)}", hint)
    if not kept - ignored:
        what = "all labels of all cases lie where the image is 0 up to its border, which nnU-Net crops away"
        raise DataError(what, "give the zeros the value of air, or correct the labels")
    warnings = []
    if cut := [_cut(name, values, names, contents) for name, values in classes.items()]:
        warnings += [text for text in cut if text]
    if absent := [name for name, values in classes.items() if not values & present]:
        named = ", ".join(map(repr, absent))
        warnings.append(
            f"no case has {named}: it cannot be learned, and validation has no Dice of it; see dataset.json"
        )
    return warnings


def _cut(label: str, values: set[float], names: Sequence[str], contents: Sequence[Content]) -> str:
    """Describe how much of a class or region is cropped away; return an empty text if nothing is."""
    lost = {name: sum(c.cut.get(v, 0) for v in values) for name, c in zip(names, contents, strict=True)}
    cases = [repr(name) for name, number in lost.items() if number]
    if not cases:
        return ""
    total = sum(n for content in contents for value, n in content.voxels.items() if value in values)
    cases_of = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
    what = f"{sum(lost.values())} of {total} voxels of {label!r} in {cases_of} ({first_few(cases, separator=', ')})"
    return (
        f"{what} lie where the image is 0 up to its border: nnU-Net crops them away, so training never sees them; "
        "give the zeros the value of air, or correct the labels"
    )


def _values(entry: Any) -> set[float]:
    return {float(value) for value in (entry if isinstance(entry, list | tuple) else [entry])}


def _list(values: set[float]) -> str:
    return " and ".join(f"{value:g}" for value in sorted(values)) + " only"


def _is_constant(channel: np.ndarray) -> bool:
    if channel.size == 0:
        return False
    value = channel.flat[0]
    sample = channel[tuple(slice(None, None, EVERY) for _ in channel.shape)]
    return bool((sample == value).all() and (channel == value).all())
