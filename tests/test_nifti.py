"""Damage in NIfTI files that ITK does not report."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.nifti import check_nifti
from tests.loops import for_each

VALUES = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)


def write(path: Path, values: np.ndarray = VALUES, kind: type = nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(values, np.eye(4)), path)
    return path


@for_each("ending", [".nii", ".nii.gz"])
@for_each("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@for_each("order", ["<", ">"])
def test_a_cut_is_found_at_every_length(tmp_path: Path, ending: str, kind: type, order: str) -> None:
    path = tmp_path / f"image{ending}"
    nibabel.save(kind(VALUES, np.eye(4), kind.header_class(endianness=order)), path)
    check_nifti(path)
    data = path.read_bytes()
    for length in (0, 3, 200, 352, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="image"):
            check_nifti(path)


def test_itk_reads_what_is_refused_here(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # raises nothing
    assert not np.array_equal(read.T, VALUES)
    with pytest.raises(DataError, match="damaged or truncated") as caught:
        check_nifti(path)
    assert "copy" in caught.value.hint


@for_each("ending", [".nii", ".nii.gz"])
@for_each("offset", [np.nan, np.inf, -np.inf, -1.0, 3e38, 9e9])
def test_voxels_that_begin_nowhere_are_damage(tmp_path: Path, ending: str, offset: float) -> None:
    content = gzip.decompress(write(tmp_path / "image.nii.gz").read_bytes())
    content = content[:108] + struct.pack("<f", offset) + content[112:]
    path = tmp_path / f"image{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(DataError, match="damaged or truncated"):
        check_nifti(path)


def test_flipped_bits_are_found_by_the_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the checksum itself; the content before it is as it was
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        check_nifti(path)


@for_each("value", [np.nan, np.inf, -np.inf])
@for_each("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_found_that_itk_turns_to_zero(tmp_path: Path, value: float, dtype: type) -> None:
    values = VALUES.astype(dtype)
    values[4, 4, 4] = value
    path = write(tmp_path / "image.nii.gz", values)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).all()
    with pytest.raises(DataError, match="holds NaN or infinity"):
        check_nifti(path)


def test_integers_that_look_like_nan_are_fine(tmp_path: Path) -> None:
    check_nifti(write(tmp_path / "image.nii.gz", np.full((4, 4, 4), -1, np.int16)))


def test_a_gzip_stream_of_several_members_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:]))
    check_nifti(path)
    path.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:-8]))
    with pytest.raises(DataError, match="2008 of 2016 bytes"):
        check_nifti(path)


def test_what_is_no_nifti_is_said_so_and_other_formats_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(bytes(1000)))
    with pytest.raises(DataError, match="no NIfTI header"):
        check_nifti(tmp_path / "image.nii.gz")
    check_nifti(tmp_path / "missing.png")


@for_each(
    ("dtype", "what"),
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]), "colours"),
        (np.dtype(np.complex64), "complex numbers"),
    ],
)
def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path, dtype: np.dtype, what: str) -> None:
    path = write(tmp_path / "image.nii.gz", np.zeros((4, 5, 6), dtype))
    with pytest.raises(DataError, match=rf"image\.nii\.gz' holds {what}, not one number per voxel"):
        check_nifti(path)


def test_a_file_without_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image\.nii' has no voxels"):
        check_nifti(write(tmp_path / "image.nii", np.zeros((0, 5, 6), np.float32)))


@for_each("value", [0.0, np.nan, np.inf])
@for_each("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_spacing_of_which_itk_makes_1_mm_is_refused(tmp_path: Path, kind: type, value: float) -> None:
    path = write(tmp_path / "image.nii", kind=kind)
    data = bytearray(path.read_bytes())
    if kind is nibabel.Nifti1Image:
        data[84:88] = struct.pack("<f", value)
    else:
        data[120:128] = struct.pack("<d", value)
    path.write_bytes(bytes(data))
    if kind is nibabel.Nifti1Image:
        assert sitk.ReadImage(str(path)).GetSpacing() == (1.0, 1.0, 1.0)
    with pytest.raises(DataError, match=rf"the voxels of '.*image\.nii' are 1 x {value:g} x 1 mm large"):
        check_nifti(path)


def test_the_spacing_of_an_axis_with_one_voxel_may_be_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii", VALUES[:, :, :1])
    data = bytearray(path.read_bytes())
    data[88:92] = struct.pack("<f", 0)
    path.write_bytes(bytes(data))
    check_nifti(path)


def test_what_is_packed_goes_by_the_content_and_not_by_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(gzip.decompress(content))
    check_nifti(path)
    assert sitk.ReadImage(path).GetSize() == VALUES.shape
    path.write_bytes(content + b"trailing")
    with pytest.raises(DataError, match="has more data after the end of its gzip stream"):
        check_nifti(path)
