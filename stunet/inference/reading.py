"""How does an image come in: from files or from an array, whole, finite, with the channels that the model takes?"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from stunet.datasets import tiff
from stunet.datasets.listing import unusable
from stunet.datasets.units import unlike_plan
from stunet.errors import DataError, OutOfMemoryError, is_out_of_memory, last_line
from stunet.inference.cases import Case, Model, volumes
from stunet.machine import memory_limit
from stunet.nifti import check_nifti

# What nnU-Net, ITK, numpy and nibabel raise for files and images that they cannot take.
UNREADABLE = (
    RuntimeError, ValueError, TypeError, OSError, EOFError, AssertionError, LookupError, ArithmeticError, SyntaxError,
    ImageFileError, HeaderDataError,
)  # fmt: skip
log = logging.getLogger("stunet")
VOXEL = 4  # bytes, in float32


class Raw(NamedTuple):
    """A case as read: image (C, D, H, W), where from, what the reader says about it, the previous stage's labels."""

    image_CDHW: np.ndarray
    files: str
    properties: dict[str, Any]
    previous: np.ndarray | None = None


def read(case: Case, model: Model, reader: Any) -> Raw:
    """Reads a case whose files are images.

    Args:
        case: Its files.
        model: Whose channels are expected.
        reader: nnU-Net's, for the model's files.

    Raises:
        DataError: A file cannot be read, or is not a finite image with the model's channels.
    """
    if case.error:
        raise case.error
    files, channels = ", ".join(str(file) for file in case.files), model.channels
    with readable(files):
        for file in case.files:
            if error := unusable(file):
                raise error
            check_nifti(file)
        if model.has_spacing_files:
            tiff.read_spacing(case.files[0], is_image=True)
        if (found := sum(map(volumes, case.files))) > len(case.files):
            _check_channels(found, files, channels)  # before a long series is read
        image, properties = reader.read_images([str(file) for file in case.files])
        if len(properties["spacing"]) != 3:  # a fourth axis that is none of space
            raise DataError(f"{files} holds vectors or colours, not one number per voxel", "convert it to gray values")
        _check_channels(len(image), files, channels)
        _check_voxels(image, files)
        previous = None if case.previous is None else reader.read_seg(str(case.previous))[0]
    return Raw(image, files, properties, previous)


def from_array(image: np.ndarray, spacing: Sequence[float] | None, channels: int) -> Raw:
    """An array as a case; it is copied.

    Args:
        image: (D, H, W) or (C, D, H, W).
        spacing: In mm, (D, H, W).
        channels: C.

    Raises:
        DataError: Another shape, spacing that is none, or voxels that are not finite.
    """
    own = np.array(image[None] if image.ndim == 3 else image, np.float32)
    if own.ndim != 4 or len(own) != channels:
        raise DataError(
            f"an array of shape {image.shape}, but the model takes {channels} channel(s) of three axes",
            "(D, H, W), or (C, D, H, W) with C channels",
        )
    if spacing is None or len(spacing) != 3 or not all(0 < edge < math.inf for edge in spacing):
        raise DataError(f"spacing {spacing!r} of an array is not three positive numbers", "in mm, (D, H, W)")
    _check_voxels(own, "the array")
    return Raw(own, "the array", {"spacing": [float(edge) for edge in spacing]})


def check_grid(raw: Raw, network_shape: Sequence[int]) -> None:
    """Refuses a spacing with which nothing is left of an image for the network, or more than the memory can hold.

    Args:
        raw: The image.
        network_shape: Its shape on the network's grid, in its own order of axes.

    Raises:
        DataError: The spacing is probably wrong.
    """
    channels, *shape = raw.image_CDHW.shape
    needed = VOXEL * channels * math.prod(network_shape)
    if 0 < needed <= (there := memory_limit()):
        return
    spacing = " x ".join(f"{edge:g}" for edge in raw.properties["spacing"])
    what = (
        f"{raw.files}: {_times(shape)} voxels of {spacing} mm would be {_times(network_shape)} voxels for the network"
    )
    more = f", {needed / 1e9:.2f} GB, and there are {there / 1e9:.2f} GB" if needed else ""
    raise DataError(f"{what}{more}", "correct the spacing, which is in mm")


def warn_of_units(raw: Raw, schemes: Sequence[str], plans: Mapping[str, Any]) -> None:
    """Warns of a CT whose values are hardly in the units of the training images.

    Args:
        raw: The image.
        schemes: How each channel is normalised.
        plans: With the intensities of the training images.
    """
    known = plans.get("foreground_intensity_properties_per_channel") or {}
    for channel, scheme in enumerate(schemes):
        if scheme != "CTNormalization" or channel >= len(raw.image_CDHW):
            continue
        if what := unlike_plan(raw.image_CDHW[channel], known.get(str(channel)) or {}):
            log.warning("%s: %s", raw.files, what)


@contextmanager
def readable(files: str) -> Iterator[None]:
    """Names the files in the error that the block raises.

    Raises:
        DataError: Instead of everything that libraries raise for files that they cannot take.
        OutOfMemoryError: Instead of what they raise where memory is not enough.
    """
    try:
        yield
    except (MemoryError, *UNREADABLE) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{files} does not fit into memory: {last_line(error)}", "a machine with more memory"
            ) from error
        what = last_line(error) or "the channels differ in shape or spacing"
        raise DataError(f"cannot read or preprocess {files}: {what}", "look at it in a viewer") from error


def _check_channels(found: int, files: str, channels: Sequence[str]) -> None:
    if found != len(channels):
        raise DataError(
            f"{files} holds {found} channel(s), but the model takes {len(channels)} ({', '.join(channels)})",
            "one file per channel, CASE_0000, CASE_0001 ..., or all in CASE_0000",
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _check_voxels(image: np.ndarray, files: str) -> None:
    if image.size == 0:
        raise DataError(f"no voxels in {files}", "look at it in a viewer")
    if not all(np.isfinite(plane).all() for channel in image for plane in channel):
        raise DataError(f"NaN or infinite voxels in {files}", "set them to the value of the background")
