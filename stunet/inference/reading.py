"""Read a case's files, and check that they are whole and finite, lie alike, and have the model's channels.

inputs.py does the same for images that are in memory already.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from stunet.datasets import tiff
from stunet.datasets.listing import unusable
from stunet.datasets.units import unlike_plan
from stunet.errors import DataError, OutOfMemoryError, is_out_of_memory, last_line
from stunet.images import Reader, file_geometry, file_orientation
from stunet.inference.cases import InputCase, count_volumes
from stunet.inference.model import ModelFolder
from stunet.machine import GB, memory_limit
from stunet.nifti import check_nifti
from stunet.nifti_header import file_has_orientation, header_has_orientation, oddities, read_forms
from stunet.orientation import FLAT_THICKNESS, REORIENTS, affine_of, largest_shift, turn_image, way_back
from stunet.plans.plan import Plan

# What nnU-Net, ITK, numpy and nibabel raise for files and images that they cannot handle.
UNREADABLE = (
    RuntimeError, ValueError, TypeError, OSError, EOFError, AssertionError, LookupError, ArithmeticError, SyntaxError,
    ImageFileError, HeaderDataError,
)  # fmt: skip
BYTES_PER_VOXEL = 4  # float32
log = logging.getLogger("stunet")


class InputImage(NamedTuple):
    """The voxels of a case, before preprocessing.

    Attributes:
        image_CDHW: In the model's orientation, float32.
        files: Where it came from, for messages.
        properties: What nnU-Net's reader returns about it, and how it was turned (orientation.py).
        previous: The previous stage's labels, (1, D, H, W), also in the model's orientation.
    """

    image_CDHW: np.ndarray
    files: str
    properties: dict[str, Any]
    previous: np.ndarray | None = None

    @property
    def on_file_grid(self) -> np.ndarray:
        """The image with the axes of its file."""
        return way_back(self.properties)(self.image_CDHW)


def read(case: InputCase, model: ModelFolder, orientation: str | None, kind: str | None = None) -> InputImage:
    """Read a case whose files are images, or a DICOM folder.

    Args:
        case: The case with its files.
        model: The model whose channels are expected.
        orientation: The model's; None: images are not turned.
        kind: nnU-Net's reader; None: the model's.

    Raises:
        DataError: A file cannot be read, or is not a finite image with the model's channels.
    """
    if case.error:
        raise case.error
    files, channels = ", ".join(str(file) for file in case.files), model.channels
    kind = kind or model.plan.reader
    reader = Reader(kind, orientation)
    if case.is_dicom:
        from stunet.datasets.dicom import read_series

        with naming_files(files):
            series = read_series(case.files[0], case.series)
        return _add_previous_stage(from_sitk(series, channels, orientation, files), case.previous, reader)
    with naming_files(files):
        for file in case.files:
            if error := unusable(file):
                raise error
            check_nifti(file)
            if odd := oddities(file, by_itk=kind.startswith("SimpleITK")):
                log.warning("%s", odd)
        if kind == tiff.READER:
            tiff.read_spacing(case.files[0], is_image=True)
        _check_channels_lie_alike(case.files, kind)
        if (found := sum(map(count_volumes, case.files))) > len(case.files):
            check_channels(found, files, channels)  # before a long series is read
        image, properties = reader.read_images([str(file) for file in case.files])
        if len(properties["spacing"]) != 3:  # the fourth axis is not spatial
            raise DataError(f"{files} holds vectors or colours, not one number per voxel", "convert it to gray values")
        check_channels(len(image), files, channels)
        check_voxels(image, files)
    # Of the first channel, whose place nnU-Net takes for all.
    if written := read_forms(case.files[0]):
        properties["nifti"] = written
    return _add_previous_stage(InputImage(image, files, properties), case.previous, reader)


def from_sitk(
    image: sitk.Image, channels: Sequence[str], orientation: str | None, files: str = "the SimpleITK image"
) -> InputImage:
    """Return the image of a SimpleITK image with two or three axes, or four of which the last is the channel.

    Args:
        image: Copied.
        channels: The model's.
        orientation: The model's.
        files: How errors refer to it.

    Raises:
        DataError: The channels are not the model's, voxels are colours, or not finite.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(f"{files} holds vectors or colours, not one number per voxel", "convert it to gray values")
    # GetArrayFromImage() copies; astype() does so only if it has to.
    array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    spacing = list(image.GetSpacing()[::-1][-3:])
    if array.ndim == 2:
        array, spacing = array[None], [FLAT_THICKNESS * max(spacing), *spacing]  # as SimpleITKIO does
    array = array if array.ndim == 4 else array[None]
    check_channels(len(array), files, channels)
    check_voxels(array, files)
    place = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    array, properties = turn_image(array, {"sitk_stuff": place, "spacing": spacing}, orientation)
    return InputImage(array, files, properties)


def check_grid(raw: InputImage, network_shape: Sequence[int]) -> None:
    """Refuse a spacing that leaves nothing of an image for the network, or more than memory can hold.

    Args:
        raw: The image.
        network_shape: Its shape on the network's grid, in the image's order of axes.

    Raises:
        DataError: The spacing is probably wrong.
    """
    channels, *shape = raw.image_CDHW.shape
    needed, available = BYTES_PER_VOXEL * channels * math.prod(network_shape), memory_limit()
    if 0 < needed <= available:
        return
    spacing = " x ".join(f"{edge:g}" for edge in raw.properties["spacing"])
    before, after = (" x ".join(map(str, each)) for each in (shape, network_shape))
    what = f"{raw.files}: {before} voxels of {spacing} mm would be {after} voxels for the network"
    more = f", {needed / GB:.2f} GB, and there are {available / GB:.2f} GB" if needed else ""
    raise DataError(f"{what}{more}", "correct the spacing, which is in mm")


def warn_of_units(raw: InputImage, schemes: Sequence[str], plan: Plan) -> None:
    """Warn of a CT whose values are unlikely to be in the units of the training images.

    Args:
        raw: The image.
        schemes: How each channel is normalised.
        plan: The plan, with the intensities of the training images.
    """
    known = plan.intensities or {}
    for channel, scheme in enumerate(schemes):
        if scheme != "CTNormalization" or channel >= len(raw.image_CDHW):
            continue
        if what := unlike_plan(raw.image_CDHW[channel], known.get(str(channel)) or {}):
            log.warning("%s: %s", raw.files, what)


def check_channels(found: int, files: str, channels: Sequence[str]) -> None:
    """Raise a DataError unless as many channels were found as the model takes."""
    if found != len(channels):
        raise DataError(
            f"{files} holds {found} channel(s), but the model takes {len(channels)} ({', '.join(channels)})",
            "one file per channel, CASE_0000, CASE_0001 ..., or all in CASE_0000",
        )


def check_voxels(image: np.ndarray, files: str) -> None:
    """Raise a DataError if an image (C, D, H, W) is empty, or has voxels that are NaN or infinite."""
    if image.size == 0:
        raise DataError(f"no voxels in {files}", "look at it in a viewer")
    # Plane by plane: isfinite() of the whole would take another byte per voxel.
    if not all(np.isfinite(plane).all() for channel in image for plane in channel):
        raise DataError(f"NaN or infinite voxels in {files}", "set them to the value of the background")


@contextmanager
def naming_files(files: str) -> Iterator[None]:
    """Name the files in any error that the block raises.

    Raises:
        DataError: Instead of whatever libraries raise for files that they cannot handle.
        OutOfMemoryError: Instead of whatever they raise if memory is short.
    """
    try:
        yield
    except (MemoryError, *UNREADABLE) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{files} does not fit into memory: {last_line(error)}", "a machine with more memory"
            ) from error
        # nnU-Net prints how channels differ, and raises a RuntimeError without a text.
        what = last_line(error) or "the channels differ in shape or spacing"
        raise DataError(f"cannot read or preprocess {files}: {what}", "look at it in a viewer") from error


def _add_previous_stage(raw: InputImage, path: Path | None, reader: Reader) -> InputImage:
    if path is None:
        return raw
    hint = "-prev_stage_predictions with a folder of predictions of these images"
    return raw._replace(previous=read_labels(raw, path, reader, "the previous stage's labels", hint))


def read_labels(raw: InputImage, path: Path, reader: Reader, what: str, hint: str) -> np.ndarray:
    """Return labels (1, D, H, W) of an image in the model's orientation, whatever the orientation of their file.

    Args:
        raw: The image.
        path: The file of the labels.
        reader: Of the image.
        what: What they are called in messages.
        hint: What helps if they do not lie where the image does.

    Raises:
        DataError: They cannot be read, have several channels, or do not lie where the image does.
    """
    with naming_files(str(path)):
        check_nifti(path)
        labels, properties = reader.read_seg(str(path), raw.properties)
        # Without forms in either header, ITK's and nibabel's ideas of the place would differ: only shapes are compared.
        both_placed = file_has_orientation(path) and header_has_orientation(raw.properties.get("nifti"))
    if len(labels) != 1:
        one = "of one-hot channels the number of the largest, of colours one channel"
        raise DataError(f"{what} {str(path)!r} have {len(labels)} channels instead of one value per voxel", one)
    shape = raw.image_CDHW.shape[1:]
    image_affine, labels_affine = (affine_of(each) if both_placed else None for each in (raw.properties, properties))
    fits = labels.shape[1:] == shape
    if fits and image_affine is not None and labels_affine is not None:
        fits = not _are_apart(image_affine, labels_affine, shape)
    if not fits:
        raise DataError(f"{what} {str(path)!r} do not lie where the image {raw.files} does", hint)
    return labels


def _are_apart(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether two affines place an image differently: by more than half of a voxel's shortest edge."""
    return largest_shift(one, other, shape) > np.linalg.norm(one[:3, :3], axis=0).min() / 2


def _check_channels_lie_alike(files: Sequence[Path], kind: str) -> None:
    """Check that channels lie in the same place: nnU-Net takes them as stored, whatever their place and axes."""
    if len(files) < 2 or kind.endswith(REORIENTS):  # those readers turn each file separately
        return
    hint = "bring the channels of a case onto one grid, with SimpleITK's Resample"
    # nnU-Net prints a warning if origins or directions differ, and goes on.
    codes = {file: code for file in files if (code := file_orientation(file, kind))}
    if not codes:
        return
    first = next(iter(codes))
    for file, code in codes.items():
        if code != codes[first]:
            raise DataError(f"the axes of {str(first)!r} run {codes[first]}, those of {str(file)!r} {code}", hint)
    first_affine, first_shape = file_geometry(first, kind)
    for file in [*codes][1:]:
        affine, shape = file_geometry(file, kind)
        if affine is None or first_affine is None or shape != first_shape:
            continue  # other shapes are refused when the files are read
        if _are_apart(first_affine, affine, shape):
            distance = largest_shift(first_affine, affine, shape)
            raise DataError(f"{str(file)!r} lies up to {distance:.3g} mm from {str(files[0])!r}", hint)
