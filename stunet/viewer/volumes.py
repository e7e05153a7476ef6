"""Read images and labels of any format for the viewer, bring them onto one grid, and write them as NIfTI.

upright() turns arrays to RAS without resampling, so that files whose axes run differently can be compared voxel by
voxel; oblique axes stay oblique. Only what lies on another grid than the segmentation is resampled.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from stunet.datasets import tiff
from stunet.datasets.volumes import read_volume
from stunet.errors import DataError
from stunet.kinds import LARGEST_LABEL
from stunet.nifti_header import LABEL, SCANNER, file_has_orientation
from stunet.orientation import LPS_OF_RAS, REORIENTED, affine_of, largest_shift, orientation_code, turn, turned_affine

SAME_PLACE = 0.1  # voxel edges by which the corners of two grids may differ and still count as one
ROUNDING = 1e-3  # labels stored as floats may be this far from an integer


@dataclass(frozen=True)
class Volume:
    """Voxels and where they lie.

    Attributes:
        array: (D, H, W), or (C, D, H, W) for an image.
        affine: From voxel (x, y, z) to mm in RAS, (4, 4).
        placed: Whether the file says how its axes run.
    """

    array: np.ndarray
    affine: np.ndarray
    placed: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        return self.array.shape[-3:]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def read_image(path: Path) -> Volume:
    """Read an image, (C, D, H, W): channels are ITK's components, or the fourth axis; a folder is a DICOM series.

    Raises:
        DataError: It cannot be read, or has more than four axes.
    """
    if path.is_dir():
        from stunet.datasets.dicom import read_series

        image = read_series(path)
    else:
        image = _read(path)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < 4:
        array = array[None]
    if array.dtype.kind == "f":  # check_nifti() has refused NaN in NIfTI files; other formats may hold it
        array = np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return _volume(array, image, path, is_image=True)


def read_labels(path: Path) -> Volume:
    """Read a label file, (D, H, W) uint16.

    Raises:
        DataError: It cannot be read, has several channels, or values that are no label values.
    """
    image = _read(path)
    if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        components = image.GetNumberOfComponentsPerPixel()
        raise DataError(
            f"{str(path)!r} is not a segmentation: size {image.GetSize()}, {components} channels",
            "name the image first and the segmentation last: stunet_view IMAGE SEGMENTATION",
        )
    array = sitk.GetArrayViewFromImage(image)
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    bottom, top = float(rounded.min()), float(rounded.max())
    whole = rounded is array or bool(np.abs(array - rounded).max() <= ROUNDING)
    if not whole or bottom < 0 or top > LARGEST_LABEL:
        raise DataError(
            f"{str(path)!r} is not a segmentation: its values go from {float(array.min()):g} to {float(array.max()):g}"
            f"{'' if whole else ', not all of them integers'}",
            "name the image first and the segmentation last: stunet_view IMAGE SEGMENTATION",
        )
    return _volume(rounded.astype(np.uint16)[None], image, path, is_image=False)


def same_grid(one: Volume, other: Volume) -> bool:
    """Return whether two volumes have the same voxels."""
    edge = float(np.linalg.norm(other.affine[:3, :3], axis=0).min())
    return one.shape == other.shape and largest_shift(one.affine, other.affine, one.shape) <= SAME_PLACE * edge


def on_grid(volume: Volume, grid: Volume, nearest: bool) -> Volume:
    """Return a volume (C, D, H, W) or (D, H, W) resampled to the grid of another; outside it is its smallest value.

    Args:
        volume: What to resample.
        grid: Whose voxels to use.
        nearest: Take the nearest voxel, for labels; otherwise between voxels linearly.
    """
    target = _to_sitk(np.zeros(grid.shape, np.uint8), grid.affine)
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    made = []
    for channel in volume.array.reshape(-1, *volume.shape):
        source = _to_sitk(channel if nearest else channel.astype(np.float32), volume.affine)
        lowest = 0.0 if nearest else float(channel.min())
        made.append(sitk.GetArrayFromImage(sitk.Resample(source, target, sitk.Transform(), how, lowest)))
    return Volume(np.reshape(made, (*volume.array.shape[:-3], *grid.shape)), grid.affine, grid.placed)


def smaller(volume: Volume, voxels: int, longest: int) -> Volume:
    """Return a coarser grid over a volume: along the axes with the finest spacing first.

    Args:
        volume: What it covers.
        voxels: The most voxels that it may have.
        longest: The most voxels that it may have along an axis.

    Returns:
        A volume whose array means nothing: only its shape and affine count.
    """
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    size = np.array(volume.shape[::-1])
    low, high = float(edges.min()), float((edges * size).max())
    for _ in range(60):  # bisection to the rounding of a float
        middle = math.sqrt(low * high)
        new = _size(size, edges, middle)
        fits = np.prod(new) <= voxels and new.max() <= longest
        low, high = (low, middle) if fits else (middle, high)
    new = _size(size, edges, high)
    factors = size / new
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * factors
    # The outer faces of the volume stay where they are.
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, :3] @ ((factors - 1) / 2)
    return Volume(np.zeros(tuple(int(n) for n in new[::-1]), np.uint8), affine, volume.placed)


def to_nifti(array_DHW: np.ndarray, affine: np.ndarray, is_label: bool) -> bytes:
    """Return a NIfTI-1 file in memory; labels have the intent that tells viewers so."""
    image = nibabel.Nifti1Image(array_DHW.T, None, dtype=array_DHW.dtype)
    image.header.set_qform(affine, SCANNER)
    image.header.set_sform(affine, SCANNER)
    image.header.set_xyzt_units("mm")
    if is_label:
        image.header["intent_code"] = LABEL
    return bytes(image.to_bytes())


def compact(array: np.ndarray) -> np.ndarray:
    """Return an image in a type that NIfTI and WebGL have: uint8 or int16 if that changes nothing, else float32."""
    if array.dtype.kind in "iub":
        bottom, top = int(array.min()), int(array.max())
        for kind in (np.uint8, np.int16):
            if np.iinfo(kind).min <= bottom and top <= np.iinfo(kind).max:
                return array.astype(kind, copy=False)
    return array.astype(np.float32, copy=False)


def placed_like(volume: Volume, other: Volume) -> Volume:
    """Return a volume where another one lies, if its own file does not say where and both arrays have the same shape.

    Both are as in their files, not yet upright.
    """
    fits = not volume.placed and volume.shape == other.shape
    return replace(volume, affine=other.affine, placed=other.placed) if fits else volume


def upright(volume: Volume) -> Volume:
    """Return the volume with axes that run to the right, to the front and upwards, as nearly as turning can do."""
    way = turn(orientation_code(LPS_OF_RAS @ volume.affine[:3, :3]), REORIENTED)
    affine = turned_affine(volume.affine, way, volume.shape)
    return Volume(way.contiguous(volume.array), affine, volume.placed)


def _size(size: np.ndarray, edges: np.ndarray, edge: float) -> np.ndarray:
    """Return the number of voxels per axis if none is finer than `edge`, and coarser ones stay."""
    return np.maximum(1, np.floor(size * np.minimum(1, edges / edge) + 1e-9)).astype(int)


def _read(path: Path) -> sitk.Image:
    image = read_volume(path)
    if 0 in image.GetSize():
        raise DataError(f"{str(path)!r} has no voxels", "make the file again, or leave it out")
    return image


def _volume(array_CDHW: np.ndarray, image: sitk.Image, path: Path, is_image: bool) -> Volume:
    """Return the array and where it lies; labels come as one channel, and go without."""
    size = image.GetDimension()
    if size > 4:
        raise DataError(f"{str(path)!r} has {size} axes", "give images with three axes, and one of channels at most")
    flat = size == 2
    spacing, origin, direction = image.GetSpacing(), image.GetOrigin(), np.reshape(image.GetDirection(), (size, size))
    placed = path.is_dir() or (file_has_orientation(path) and not flat)
    if flat:
        array_CDHW = array_CDHW[:, None]
        axes = np.eye(3)
        axes[:2, :2] = direction
        spacing, origin, direction = (*spacing, max(spacing)), (*origin, 0.0), axes
    if path.suffix.lower() in tiff.ENDINGS and not flat:
        spacing = tiff.read_spacing(path, is_image)[::-1]
    place = {"spacing": spacing[:3], "origin": origin[:3], "direction": direction[:3, :3].ravel()}
    affine = affine_of({"sitk_stuff": place})
    assert affine is not None  # there are three axes
    return Volume(array_CDHW if is_image else array_CDHW[0], affine, placed)


def _to_sitk(array_DHW: np.ndarray, affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array_DHW)
    axes = LPS_OF_RAS @ affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetOrigin((LPS_OF_RAS @ affine[:3, 3]).tolist())
    image.SetDirection((axes / lengths).ravel().tolist())
    return image
