"""Read images and labels with nnU-Net's readers, and turn them to one orientation, however their axes run.

A Reader replaces nnU-Net's readers everywhere: in planning, preprocessing, prediction and validation. It returns images
in the orientation of the plan; orientation.py defines how they get back. It also reads NIfTI files whose axes are not
quite perpendicular, which ITK rejects and every viewer shows.
"""

import errno
import gzip
import logging
import math
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.files import staging_name
from stunet.nifti_header import (
    LABEL,
    NIFTI,
    apply_forms,
    file_has_orientation,
    header_has_orientation,
    is_nifti,
    open_nifti,
    read_fields,
    read_forms,
)
from stunet.orientation import (
    LPS_OF_RAS,
    NO_TURN,
    REORIENTS,
    Turn,
    affine_of,
    orientation_code,
    turn,
    turn_image,
    way_back,
)

GZIP_LEVEL = 6
LEAST_SHEAR, LARGEST_SHEAR = 1e-4, 1.0  # degrees from perpendicular: 0.5 µm and 5 mm at the far end of 300 mm

Read = TypeVar("Read")
log = logging.getLogger("stunet")


@dataclass(frozen=True)
class Header:
    """Where the voxels of a file lie, in ITK's order (x, y, z) and in LPS; two numbers each for a 2D image."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


class Reader:
    """One of nnU-Net's readers and writers, which turns what it reads.

    Args:
        kind: nnU-Net's class, such as SimpleITKIO.
        orientation: What images are turned to, if their files have an orientation; None: they are not turned.
    """

    def __init__(self, kind: str, orientation: str | None = None) -> None:
        self._kind = kind
        self._stock: Any = _reader_class(kind)()
        self.orientation = None if kind.endswith(REORIENTS) else orientation  # these turn images themselves

    def read_images(self, files: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read an image (C, D, H, W) and its properties, in the form of orientation.turn_image().

        Raises:
            DataError: Axes are too far from perpendicular.
        """
        array, properties = with_straight_axes(self._stock.read_images, files)
        return self._turned(array, properties, files[0])

    def read_seg(self, file: str, like: str | Mapping[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Read labels (1, D, H, W) and their properties.

        Args:
            file: The file of the labels.
            like: The file of the image that they belong to, or its properties from read_images(). If one of the two
                files does not define its orientation, the labels are turned like the image.
        """
        array, properties = with_straight_axes(lambda files: self._stock.read_seg(files[0]), [file])
        if like is None or self.orientation is None:
            return self._turned(array, properties, file)
        way = self._turn_of(like)
        if way is not None and file_has_orientation(file):
            return self._turned(array, properties, file)
        # One of the two files does not say how its axes run. Their arrays match, so the labels are turned as the image.
        way = way or NO_TURN
        return way.contiguous(array), {**properties, "spacing": [properties["spacing"][axis] for axis in way.order]}

    def _turn_of(self, image: str | Mapping[str, Any]) -> Turn | None:
        """Return what turns an image; None if its file does not define its orientation."""
        if isinstance(image, Mapping):
            return way_back(image).back if header_has_orientation(image.get("nifti")) else None
        own = file_orientation(Path(image), self._kind)
        return None if own is None else turn(own, str(self.orientation))

    def _turned(self, array: np.ndarray, properties: dict[str, Any], file: str) -> tuple[np.ndarray, dict[str, Any]]:
        if self.orientation is None:
            return array, properties
        if not file_has_orientation(file):
            return array, {**properties, "nifti": read_forms(file)}
        return turn_image(array, properties, self.orientation)

    def write_seg(self, labels_DHW: np.ndarray, path: str, properties: Mapping[str, Any]) -> None:
        """Write labels; `properties` are those of their own grid, as returned by orientation.file_properties().

        A NIfTI file leaves its orientation undefined if its image did, according to the properties.
        """
        write_labels(self._stock, labels_DHW, Path(path), properties)


def write_labels(writer: Any, labels_DHW: np.ndarray, path: Path, properties: Mapping[str, Any]) -> None:
    """Write labels with one of nnU-Net's writers; the header of a NIfTI file says that they are labels.

    Args:
        writer: An object of nnU-Net's class.
        labels_DHW: The labels.
        path: The file.
        properties: Those of the labels' own grid.

    Raises:
        OSError: The disk is full.
    """
    if not is_nifti(path):
        writer.write_seg(labels_DHW, str(path), properties)
        return
    packed = path.name.lower().endswith(".gz")
    plain = path.with_name(staging_name(f"{path.name[: -len(NIFTI[1])]}.nii")) if packed else path
    try:
        writer.write_seg(labels_DHW, str(plain), properties)
        _complete_header(plain, properties.get("nifti"))
        if packed:
            # Without a name and a time in it, so that the bytes depend only on the content.
            with (
                plain.open("rb") as source,
                path.open("wb") as file,
                gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as target,
            ):
                shutil.copyfileobj(source, target, 2**20)
    finally:
        if packed:
            plain.unlink(missing_ok=True)


def _complete_header(path: Path, written: Mapping[str, Any] | None) -> None:
    """Write into the header of an unpacked NIfTI file what ITK and nibabel leave out.

    Args:
        path: The file.
        written: What the image's header says about its place (read_forms).

    Raises:
        OSError: Voxels are missing: the disk is full.
    """
    header = read_fields(path)
    size = (
        0
        if header is None
        else int(header["vox_offset"]) + math.prod(header.get_data_shape()) * (header.get_data_dtype().itemsize)
    )
    if header is None or path.stat().st_size < size:  # ITK does not report it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    header["intent_code"] = LABEL
    # ITK and nibabel always write an orientation. Claiming one that the image does not have would make viewers show the
    # labels somewhere else.
    if written is not None and not header_has_orientation(written):
        apply_forms(header, written)
    with path.open("r+b") as file:
        file.write(header.binaryblock)


@cache
def _reader_class(kind: str) -> type:
    """Return nnU-Net's class of this name, cached because nnU-Net searches all of its modules for it."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(kind)


class CaseReader:
    """Reader for comparing predictions with the labels of the same name, which are turned like their predictions."""

    def __init__(self, reader: Reader, predictions: Path) -> None:
        self._reader, self._predictions = reader, predictions

    def read_seg(self, file: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Read either of them."""
        return self._reader.read_seg(file, str(self._predictions / Path(file).name))


def file_reader(kind: str) -> Reader:
    """Return the reader that leaves images as they are in their files."""
    return Reader(kind.removesuffix(REORIENTS))


def read_header(path: Path) -> Header:
    """Return what ITK knows about a file without reading its voxels.

    Raises:
        RuntimeError: ITK cannot read it.
    """

    def read(files: Sequence[str]) -> Header:
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[0])
        reader.ReadImageInformation()
        return Header(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())

    return with_straight_axes(read, [str(path)])


def read_sitk(path: Path) -> sitk.Image:
    """Read a file with ITK.

    Raises:
        RuntimeError: ITK cannot read it.
        DataError: Axes are too far from perpendicular.
    """
    return with_straight_axes(lambda files: sitk.ReadImage(files[0]), [str(path)])


def write_sitk(image: sitk.Image, path: Path) -> None:
    """Write a packed NIfTI file, and unpack it once: ITK does not report a full disk.

    Raises:
        OSError: The disk is full.
    """
    sitk.WriteImage(image, path, useCompression=True)
    try:
        with gzip.open(path) as file:
            # Unpacking compares the checksum at the end, so it also finds bytes that are missing in between.
            whole = bool(file.read(1)) and all(iter(partial(file.read, 2**20), b""))
    except (OSError, EOFError, zlib.error):
        whole = False
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def file_orientation(path: Path, kind: str) -> str | None:
    """Return the orientation of a file as one of nnU-Net's readers sees it, from the header; None if it has none.

    Raises:
        RuntimeError, OSError: It cannot be read.
    """
    if kind.startswith("Nibabel"):
        image: Any = nibabel.load(path)
        return orientation_code(LPS_OF_RAS @ image.affine[:3, :3]) if file_has_orientation(path) else None
    if not kind.startswith("SimpleITK") or not file_has_orientation(path):
        return None
    header = read_header(path)
    size = len(header.size)  # 4 for a 4D image, whose first three axes are those in space
    return None if size < 3 else orientation_code(np.reshape(header.direction, (size, size))[:3, :3])


def file_geometry(path: Path, kind: str) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """Return affine (to mm in RAS) and shape (D, H, W) of a file as nnU-Net's reader sees it, from the header."""
    if kind.startswith("Nibabel"):
        image: Any = nibabel.load(path)
        return image.affine, image.shape[2::-1]  # without a fourth axis, the channels
    header = read_header(path)
    return affine_of({"sitk_stuff": asdict(header)}), header.size[2::-1]


def is_flat(path: Path) -> bool:
    """Return whether a file is a 2D NIfTI image that defines how its axes run."""
    return is_nifti(path) and file_has_orientation(path) and len(read_header(path).size) == 2


def count_orientations(paths: Iterable[Path], kind: str) -> dict[str, int]:
    """Count the files by orientation, the most frequent first.

    Raises:
        RuntimeError, OSError: One cannot be read.
    """
    found = Counter(code for path in paths if (code := file_orientation(path, kind)))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def with_straight_axes(read: Callable[[Sequence[str]], Read], files: Sequence[str]) -> Read:
    """Return read(files); if ITK rejects a NIfTI file's axes, read copies with the nearest perpendicular axes.

    Raises:
        DataError: They are too far from perpendicular.
    """
    try:
        return read(files)
    except RuntimeError as error:
        if "orthonormal" not in str(error):  # ITK raises RuntimeError for everything, and only its text tells what
            raise
    with tempfile.TemporaryDirectory() as folder:
        copies = [_straight_copy(Path(file), Path(folder) / f"{i:04d}.nii") for i, file in enumerate(files)]
        return read([str(copy) for copy in copies])


def _straight_copy(path: Path, target: Path) -> Path:
    """Return the path of the copy; or of the file itself, if its axes are straight or it has another format."""
    if not is_nifti(path):
        return path
    with open_nifti(path) as file:
        content = file.read()
    # The first field is the header's size, 348 for NIfTI-1, in the file's byte order.
    kind = nibabel.Nifti1Header if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") else nibabel.Nifti2Header
    header: Any = kind(content[: kind.sizeof_hdr])
    affine, degrees = nearest_straight_axes(header.get_best_affine())
    if degrees < LEAST_SHEAR:
        return path
    if degrees > LARGEST_SHEAR:
        raise DataError(
            f"the axes of {str(path)!r} are {degrees:.1f} degrees from perpendicular, which ITK cannot read",
            "resample the image, and its labels with order=0: nibabel.processing.resample_to_output(image)",
        )
    _warn_once(
        f"the axes of {str(path)!r} are {degrees:.2g} degrees from perpendicular: the nearest such axes are used"
    )
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    target.write_bytes(header.binaryblock + content[kind.sizeof_hdr :])
    return target


def nearest_straight_axes(affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the affine with the nearest orthogonal axes of the same lengths, and the largest deviation in degrees."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / lengths
    # The orthogonal matrix nearest to U S V (in the Frobenius norm) is U V: Higham 1986, doi:10.1137/0907079.
    left, _, right = np.linalg.svd(axes)
    result = affine.copy()
    result[:3, :3] = left @ right * lengths
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return result, float(np.degrees(np.arcsin(min(cosines, 1.0))))


@cache  # a file is read several times: for its header, its voxels, and as the image of its labels
def _warn_once(text: str) -> None:
    log.warning("%s", text)
