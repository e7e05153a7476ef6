"""Read images from files or arrays, and check that they are whole and finite and have the model's channels."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
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
from stunet.images import REORIENTS, Reader, file_geometry, file_orientation
from stunet.inference.cases import InputCase, volumes
from stunet.inference.model import ModelFolder
from stunet.machine import GB, memory_limit
from stunet.nifti import check_nifti
from stunet.nifti_header import forms, has_forms, has_place, header_forms, oddities
from stunet.orientation import FLAT_THICKNESS, affine_of, largest_shift, turn_image, way_back

# What nnU-Net, ITK, numpy and nibabel raise for files and images that they cannot handle.
UNREADABLE = (
    RuntimeError, ValueError, TypeError, OSError, EOFError, AssertionError, LookupError, ArithmeticError, SyntaxError,
    ImageFileError, HeaderDataError,
)  # fmt: skip
VOXEL = 4  # bytes, in float32
log = logging.getLogger("stunet")


class InputImage(NamedTuple):
    """A case as the network takes it.

    Attributes:
        image_CDHW: In the model's orientation.
        files: Where it came from.
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


def read(case: InputCase, model: ModelFolder, orientation: str | None) -> InputImage:
    """Read a case whose files are images, or a DICOM folder.

    Args:
        case: The case with its files.
        model: The model whose channels are expected, and whose reader is used.
        orientation: The model's; None: images are not turned.

    Raises:
        DataError: A file cannot be read, or is not a finite image with the model's channels.
    """
    if case.error:
        raise case.error
    files, channels = ", ".join(str(file) for file in case.files), model.channels
    kind = model.plans["image_reader_writer"]
    reader = Reader(kind, orientation)
    if case.is_dicom:
        from stunet.datasets.dicom import read_series

        with readable(files):
            series = read_series(case.files[0], case.series)
        return _with_previous(from_sitk(series, channels, orientation, files), case.previous, reader)
    with readable(files):
        for file in case.files:
            if error := unusable(file):
                raise error
            check_nifti(file)
            if odd := oddities(file, by_itk=kind.startswith("SimpleITK")):
                log.warning("%s", odd)
        if model.has_spacing_files:
            tiff.read_spacing(case.files[0], is_image=True)
        _check_same_place(case.files, kind)
        if (found := sum(map(volumes, case.files))) > len(case.files):
            _check_channels(found, files, channels)  # before a long series is read
        image, properties = reader.read_images([str(file) for file in case.files])
        if len(properties["spacing"]) != 3:  # the fourth axis is not spatial
            raise DataError(f"{files} holds vectors or colours, not one number per voxel", "convert it to gray values")
        _check_channels(len(image), files, channels)
        _check_voxels(image, files)
    if written := forms(case.files[0]):
        properties["nifti"] = written
    return _with_previous(InputImage(image, files, properties), case.previous, reader)


def from_array(
    image: np.ndarray, spacing: Any, affine: Any, channels: Sequence[str], orientation: str | None
) -> InputImage:
    """Make a case from an array, which is copied.

    Args:
        image: (D, H, W) or (C, D, H, W).
        spacing: In mm, (D, H, W); None if the affine determines it.
        affine: As in nibabel, (4, 4), from voxel (x, y, z) to mm in RAS; None: the array is not turned.
        channels: The model's.
        orientation: The model's.

    Raises:
        DataError: The shape is wrong, the spacing or affine is invalid, or voxels are not finite.
    """
    own = np.array(image[None] if image.ndim == 3 else image, np.float32)
    if own.ndim != 4 or len(own) != len(channels):
        raise DataError(
            f"an array of shape {image.shape}, but the model takes {len(channels)} channel(s) of three axes",
            "(D, H, W), or (C, D, H, W) with C channels",
        )
    properties: dict[str, Any] = {}
    if affine is not None:
        matrix = np.asarray(affine, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) == 0:
            raise DataError(f"affine {affine!r} of an array is not a matrix of 4 x 4 finite numbers", "image.affine")
        properties["nibabel_stuff"] = {"original_affine": matrix}
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)[::-1].tolist()
        if spacing is not None and not np.allclose(spacing, lengths, rtol=0.01):
            raise DataError(f"spacing {spacing!r} is not that of the affine, {lengths}", "leave out spacing")
        spacing = lengths
    if spacing is None or len(spacing) != 3 or not all(0 < edge < math.inf for edge in spacing):
        raise DataError(f"spacing {spacing!r} of an array is not three positive numbers", "in mm, (D, H, W)")
    _check_voxels(own, "the array")
    properties["spacing"] = [float(edge) for edge in spacing]
    own, properties = turn_image(own, properties, orientation)
    return InputImage(own, "the array", properties)


def from_sitk(
    image: sitk.Image, channels: Sequence[str], orientation: str | None, files: str = "the SimpleITK image"
) -> InputImage:
    """Make a case from a SimpleITK image with two or three axes, or four of which the last is the channel.

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
    own = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    spacing = list(image.GetSpacing()[::-1][-3:])
    if own.ndim == 2:
        own, spacing = own[None], [FLAT_THICKNESS * max(spacing), *spacing]
    own = own if own.ndim == 4 else own[None]
    _check_channels(len(own), files, channels)
    _check_voxels(own, files)
    place = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    own, properties = turn_image(own, {"sitk_stuff": place, "spacing": spacing}, orientation)
    return InputImage(own, files, properties)


def from_nibabel(image: Any, channels: Sequence[str], orientation: str | None) -> InputImage:
    """Make a case from a nibabel image: (x, y, z), or (x, y, z, channel).

    Args:
        image: Copied.
        channels: The model's.
        orientation: The model's.

    Raises:
        DataError: The channels are not the model's, or voxels are not finite numbers.
    """
    files = "the nibabel image"
    with readable(files):
        own = np.asarray(image.dataobj)
        if own.dtype.kind not in "iufb" or own.ndim not in (3, 4):
            raise ValueError(f"{own.dtype} of shape {own.shape} is not one number per voxel")
        own = np.ascontiguousarray(own.T, np.float32)
    own = own if own.ndim == 4 else own[None]
    _check_channels(len(own), files, channels)
    raw = from_array(own, None, image.affine, channels, None)._replace(files=files)
    written = header_forms(image.header) if "qform_code" in image.header else None
    if written:
        raw.properties["nifti"] = written
    return oriented(raw, orientation)


def oriented(raw: InputImage, orientation: str | None) -> InputImage:
    """Turn an image with the axes of its file to the model's orientation, if its file states how it lies."""
    if not has_place(raw.properties.get("nifti")):
        return raw
    image, properties = turn_image(raw.image_CDHW, raw.properties, orientation)
    return raw._replace(image_CDHW=image, properties=properties)


def stacked(raws: Sequence[InputImage]) -> InputImage:
    """Stack images of one channel each, with the axes of their files, into one image of several channels.

    Raises:
        DataError: They lie on different grids.
    """
    first = raws[0]
    for number, raw in enumerate(raws):
        if raw.image_CDHW.shape != first.image_CDHW.shape or not _same_place(raw.properties, first.properties):
            raise DataError(f"image {number} does not lie on the grid of the first", "resample it onto that grid")
    return first._replace(image_CDHW=np.concatenate([raw.image_CDHW for raw in raws]))


def check_grid(raw: InputImage, network_shape: Sequence[int]) -> None:
    """Refuse a spacing that leaves nothing of an image for the network, or more than memory can hold.

    Args:
        raw: The image.
        network_shape: Its shape on the network's grid, in the image's order of axes.

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
    more = f", {needed / GB:.2f} GB, and there are {there / GB:.2f} GB" if needed else ""
    raise DataError(f"{what}{more}", "correct the spacing, which is in mm")


def warn_of_units(raw: InputImage, schemes: Sequence[str], plans: Mapping[str, Any]) -> None:
    """Warn of a CT whose values are unlikely to be in the units of the training images.

    Args:
        raw: The image.
        schemes: How each channel is normalised.
        plans: Plans with the intensities of the training images.
    """
    known = plans.get("foreground_intensity_properties_per_channel") or {}
    for channel, scheme in enumerate(schemes):
        if scheme != "CTNormalization" or channel >= len(raw.image_CDHW):
            continue
        if what := unlike_plan(raw.image_CDHW[channel], known.get(str(channel)) or {}):
            log.warning("%s: %s", raw.files, what)


@contextmanager
def readable(files: str) -> Iterator[None]:
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
        what = last_line(error) or "the channels differ in shape or spacing"
        raise DataError(f"cannot read or preprocess {files}: {what}", "look at it in a viewer") from error


def _same_place(one: Any, other: Any) -> bool:
    """Return whether two sets of properties describe the same place."""
    keys = ("spacing", "sitk_stuff", "nibabel_stuff")
    values = [[each.get(key) for key in keys] for each in (one, other)]
    (left, right) = map(_numbers, values)
    return [a.shape for a in left] == [b.shape for b in right] and all(
        np.allclose(a, b, atol=1e-3) for a, b in zip(left, right, strict=True)
    )


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list) and not all(isinstance(each, float) for each in value):
        return [number for each in value for number in _numbers(each)]
    return [] if value is None or isinstance(value, str) else [np.asarray(value, float)]


def _with_previous(raw: InputImage, path: Path | None, reader: Reader) -> InputImage:
    """Add the previous stage's labels in the model's orientation, whatever the orientation of their file."""
    if path is None:
        return raw
    with readable(str(path)):
        check_nifti(path)
        labels, properties = reader.read_seg(str(path), raw.properties)
        said = has_forms(path) and has_place(raw.properties.get("nifti"))
    shape = raw.image_CDHW.shape[1:]
    here, there = (affine_of(each) if said else None for each in (raw.properties, properties))
    if labels.shape[1:] != shape or (here is not None and there is not None and _differ(here, there, shape)):
        what = f"the previous stage's labels {str(path)!r} do not lie where the image {raw.files} does"
        raise DataError(what, "-prev_stage_predictions with a folder of predictions of these images")
    return raw._replace(previous=labels)


def _differ(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether two affines place an image differently: by more than half of a voxel's shortest edge."""
    return largest_shift(one, other, shape) > np.linalg.norm(one[:3, :3], axis=0).min() / 2


def _check_same_place(files: Sequence[Path], kind: str) -> None:
    """Check that channels lie in the same place: nnU-Net takes them as stored, whatever their place and axes."""
    if len(files) > 1 and not kind.endswith(REORIENTS):  # those readers turn each file separately
        found = [(file, code) for file in files if (code := file_orientation(file, kind))]
        for file, code in found:
            if code != found[0][1]:
                raise DataError(
                    f"the axes of {str(found[0][0])!r} run {found[0][1]}, those of {str(file)!r} {code}",
                    "bring the channels of a case onto one grid, with SimpleITK's Resample",
                )
        places = [(file, *file_geometry(file, kind)) for file, _ in found]
        for file, affine, shape in places[1:]:
            _, first, other = places[0]
            if affine is not None and first is not None and shape == other and _differ(first, affine, shape):
                raise DataError(
                    f"{str(file)!r} lies up to {largest_shift(first, affine, shape):.3g} mm from {str(files[0])!r}",
                    "bring the channels of a case onto one grid, with SimpleITK's Resample",
                )


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
