"""Take the kinds of images that Predictor.predict accepts, and make each an InputImage in the model's orientation.

Files are read like those of the command; objects in memory (SimpleITK, nibabel, arrays, tensors) are copied and checked
in the same way.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nibabel.spatialimages import SpatialImage

from stunet.errors import DataError, UsageError
from stunet.inference.cases import InputCase
from stunet.inference.model import ModelFolder
from stunet.inference.reading import InputImage, check_channels, check_voxels, from_sitk, naming_files, read
from stunet.nifti_header import header_forms, header_has_orientation
from stunet.orientation import turn_image

KINDS = "a file, DICOM folder, SimpleITK or nibabel image, one of these per channel, or an array and its spacing"


def load(
    image: Any,
    model: ModelFolder,
    orientation: str | None,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
    series: str | None = None,
) -> InputImage:
    """Return any kind of image as the model takes it.

    Args:
        image: A path, object, array or tensor, or a list of paths or objects, one per channel.
        model: The model whose channels are expected.
        orientation: The model's; None: images are not turned.
        spacing: Of an array, in mm, (D, H, W).
        affine: Of an array, instead of the spacing.
        series: Which series of a DICOM folder.

    Raises:
        DataError: The image cannot be read, or does not have the model's channels.
        UsageError: It is of another kind, or has a spacing, affine or series of its own.
    """
    if isinstance(image, torch.Tensor):
        # numpy has no bfloat16, and does not see a GPU's memory.
        image = image.detach().cpu().float().numpy()
    images = list(image) if isinstance(image, list | tuple) else [image]
    are_paths = all(isinstance(each, str | os.PathLike) for each in images)
    if series is not None and not are_paths:
        raise UsageError("series chooses from a DICOM folder", "leave it out")
    if isinstance(image, np.ndarray):
        return from_array(image, spacing, affine, model.channels, orientation)
    if spacing is not None or affine is not None:
        raise UsageError("spacing and affine belong to an array; files and images have their own", "leave them out")
    if images and are_paths:
        return _read_files([Path(path) for path in images], model, orientation, series)
    for kind, make in ((sitk.Image, from_sitk), (SpatialImage, from_nibabel)):
        if images and all(isinstance(each, kind) for each in images):
            # A single image may hold all channels; of several, each holds one.
            channels = model.channels if len(images) == 1 else model.channels[:1]
            # Turned only after stacking: channels are compared with the axes of their files.
            stacked = reorient(stack_channels([make(each, channels, None) for each in images]), orientation)
            if len(stacked.image_CDHW) != len(model.channels):
                what = f"{len(images)} images for {len(model.channels)} channel(s): {', '.join(model.channels)}"
                raise DataError(what, "one image per channel, in their order")
            return stacked
    kinds = sorted({type(each).__name__ for each in images})
    what = f"a list of {', '.join(kinds)}" if isinstance(image, list | tuple) else f"an image of type {kinds[0]}"
    raise UsageError(f"Predictor.predict does not take {what if images else 'an empty list'}", KINDS)


def _read_files(files: Sequence[Path], model: ModelFolder, orientation: str | None, series: str | None) -> InputImage:
    if series is not None and not files[0].is_dir():
        raise UsageError(f"series chooses from a DICOM folder, and {str(files[0])!r} is not one", "leave it out")
    for file in files:
        if not file.exists():
            raise DataError(f"no such file: {str(file)!r}", "check the path")
        if file.is_dir() and len(files) > 1:
            raise DataError(f"{str(file)!r} is a folder", "one file per channel")
    case = _dicom_case(files[0], model, series) if files[0].is_dir() else InputCase("image", tuple(files))
    return read(case, model, orientation)


def _dicom_case(folder: Path, model: ModelFolder, series: str | None) -> InputCase:
    """Return the one series in a folder, or below it if the folder itself has none."""
    from stunet.datasets.dicom import find_series

    found = find_series(folder, model.channels[0], series)
    found = [one for one in found if one.folder == folder] or found
    if not found:
        raise DataError(f"no DICOM slices in the folder {str(folder)!r}", "an image, or a folder of slices")
    if len(found) > 1:
        what = f"{str(folder)!r} holds {len(found)} folders with a series"
        raise DataError(what, f"one of them, such as {str(found[0].folder)!r}")
    return InputCase("image", (found[0].folder,), error=found[0].error, series=found[0].key)


def from_array(
    image: np.ndarray, spacing: Any, affine: Any, channels: Sequence[str], orientation: str | None
) -> InputImage:
    """Return the image of an array, which is copied.

    Args:
        image: (D, H, W) or (C, D, H, W).
        spacing: In mm, (D, H, W); None if the affine determines it.
        affine: As in nibabel, (4, 4), from voxel (x, y, z) to mm in RAS; None: the array is not turned.
        channels: The model's.
        orientation: The model's.

    Raises:
        DataError: The shape is wrong, the spacing or affine is invalid, or voxels are not finite.
    """
    # A copy, even of float32: preprocessing may overwrite it, and the caller keeps the original.
    array = np.array(image[None] if image.ndim == 3 else image, np.float32)
    if array.ndim != 4 or len(array) != len(channels):
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
    check_voxels(array, "the array")
    properties["spacing"] = [float(edge) for edge in spacing]
    array, properties = turn_image(array, properties, orientation)
    return InputImage(array, "the array", properties)


def from_nibabel(image: Any, channels: Sequence[str], orientation: str | None) -> InputImage:
    """Return the image of a nibabel image with axes (x, y, z), or (x, y, z, channel).

    Args:
        image: Copied.
        channels: The model's.
        orientation: The model's.

    Raises:
        DataError: The channels are not the model's, or voxels are not finite numbers.
    """
    files = "the nibabel image"
    with naming_files(files):
        array = np.asarray(image.dataobj)
        if array.dtype.kind not in "iufb" or array.ndim not in (3, 4):
            # naming_files() makes a DataError of it.
            raise ValueError(f"{array.dtype} of shape {array.shape} is not one number per voxel")
        # nibabel's axes run (x, y, z, channel), ours (C, D, H, W).
        array = np.ascontiguousarray(array.T, np.float32)
    array = array if array.ndim == 4 else array[None]
    check_channels(len(array), files, channels)
    # Not turned there: nibabel has an affine even for a header with neither form; reorient() asks the header.
    raw = from_array(array, None, image.affine, channels, None)._replace(files=files)
    written = header_forms(image.header) if "qform_code" in image.header else None
    if written:
        raw.properties["nifti"] = written
    return reorient(raw, orientation)


def reorient(raw: InputImage, orientation: str | None) -> InputImage:
    """Turn an image with the axes of its file to the model's orientation, if its file states how it lies."""
    if not header_has_orientation(raw.properties.get("nifti")):
        return raw
    image, properties = turn_image(raw.image_CDHW, raw.properties, orientation)
    return raw._replace(image_CDHW=image, properties=properties)


def stack_channels(raws: Sequence[InputImage]) -> InputImage:
    """Stack images of one channel each, with the axes of their files, into one image of several channels.

    Raises:
        DataError: They lie on different grids.
    """
    first = raws[0]
    for number, raw in enumerate(raws):
        if raw.image_CDHW.shape != first.image_CDHW.shape or not _same_place(raw.properties, first.properties):
            raise DataError(f"image {number} does not lie on the grid of the first", "resample it onto that grid")
    return first._replace(image_CDHW=np.concatenate([raw.image_CDHW for raw in raws]))


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
