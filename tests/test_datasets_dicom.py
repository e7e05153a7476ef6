"""DICOM series: the right grid, the right order, and a refusal where slices are missing."""

import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.datasets.dicom import is_dicom_folder, read_series, to_nifti
from stunet.errors import DataError

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (6, 8, 9)).astype(np.int16)
STEP_MM = 2.5


def test_a_real_series_stands_on_the_grid_of_its_segmentation(data: Path) -> None:
    folder = data / "ct" / "abdomen_dicom"
    assert is_dicom_folder(folder)
    image = read_series(folder)
    reference = sitk.ReadImage(data / "ct" / "abdomen_dicom_reference_seg.nii.gz")
    reference = sitk.DICOMOrient(reference, "LPS")  # its rows run the other way
    assert image.GetSize() == reference.GetSize() == (512, 512, 20)
    assert image.GetSpacing() == pytest.approx(reference.GetSpacing(), rel=1e-5)
    assert image.GetOrigin() == pytest.approx(reference.GetOrigin(), abs=1e-3)
    assert image.GetDirection() == pytest.approx(reference.GetDirection(), abs=1e-5)
    hu = sitk.GetArrayViewFromImage(image)
    assert np.median(hu[0, :20, :20]) < -900  # air, so the values are rescaled to HU
    liver = hu[sitk.GetArrayViewFromImage(reference) == 5]
    assert 0 < np.median(liver) < 200


def test_slices_are_sorted_by_position_and_not_by_name(tmp_path: Path) -> None:
    _series(tmp_path, names="fbdace")
    image = read_series(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOLUME)
    assert image.GetSpacing() == pytest.approx((0.5, 0.75, STEP_MM))
    assert image.GetOrigin() == pytest.approx((10, 20, 30))


def test_a_series_becomes_one_nifti_file_with_the_same_grid(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    _series(tmp_path / "series")
    to_nifti(tmp_path / "series", tmp_path / "x.nii.gz")
    image = sitk.ReadImage(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOLUME)
    assert image.GetOrigin() == pytest.approx((10, 20, 30))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series", "x.nii.gz"]


def test_the_largest_of_several_series_is_taken_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _series(tmp_path, slices=range(2), names="xy", uid="1.2.3.9")
    _series(tmp_path)
    with caplog.at_level(logging.WARNING, "stunet"):
        assert read_series(tmp_path).GetSize() == (9, 8, 6)
    assert "2 series" in caplog.text


def test_a_missing_slice_is_refused_with_the_place_of_the_gap(tmp_path: Path) -> None:
    _series(tmp_path, slices=[0, 1, 2, 4, 5])
    with pytest.raises(DataError, match=r"5\.00 mm between slices 'c\.dcm' and 'd\.dcm'.* mostly 2\.50 mm") as caught:
        read_series(tmp_path)
    assert caught.value.hint


def test_distances_may_vary_by_less_than_one_percent(tmp_path: Path) -> None:
    _series(tmp_path, jitter=0.004 * STEP_MM)
    assert read_series(tmp_path).GetSize() == (9, 8, 6)
    for path in tmp_path.iterdir():
        path.unlink()
    _series(tmp_path, jitter=0.02 * STEP_MM)
    with pytest.raises(DataError, match="slice is missing"):
        read_series(tmp_path)


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    _series(tmp_path, tilt=0.5)
    with pytest.raises(DataError, match="tilted"):
        read_series(tmp_path)


def test_a_single_slice_is_a_volume(tmp_path: Path) -> None:
    _series(tmp_path, slices=[0])
    assert read_series(tmp_path).GetSize() == (9, 8, 1)


def test_folders_without_dicom_files_are_told_apart(tmp_path: Path) -> None:
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "nothing")
    (tmp_path / "short.dcm").write_bytes(b"DICM")
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), tmp_path / "x.nii.gz")
    (tmp_path / "inner").mkdir()
    _series(tmp_path / "inner")
    assert not is_dicom_folder(tmp_path)
    with pytest.raises(DataError, match="no DICOM series"):
        read_series(tmp_path)
    assert is_dicom_folder(tmp_path / "inner")


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    _series(tmp_path, slices=range(5))
    _series(tmp_path, slices=[5], names="z", crop=4)
    with pytest.raises(DataError, match="cannot read the series"):
        read_series(tmp_path)


def _series(
    folder: Path,
    slices: range | list[int] = range(6),
    names: str = "abcdef",
    uid: str = "1.2.3.4",
    jitter: float = 0.0,
    tilt: float = 0.0,
    crop: int = 9,
) -> None:
    """Writes slices of VOLUME: `jitter` mm added to every other position, `tilt` mm along y from slice to slice."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for name, index in zip(names, slices, strict=False):
        image = sitk.GetImageFromArray(VOLUME[index : index + 1, :, :crop])
        image.SetSpacing((0.5, 0.75, STEP_MM))
        position = (10, 20 + tilt * index, 30 + STEP_MM * index + jitter * (index % 2))
        tags = {
            "0008|0008": "DERIVED\\SECONDARY",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(index),
            "0020|0032": "\\".join(f"{x:g}" for x in position),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}.dcm"))
        writer.Execute(image)
