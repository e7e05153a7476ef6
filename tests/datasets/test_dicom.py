"""DICOM series: the right series, grid, order and values, and a refusal that names what is wrong."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from stunet.datasets import dicom
from stunet.datasets.dicom import choose, find_series, geometry, is_dicom_folder, read_series, to_nifti
from stunet.errors import DataError
from tests.dicom_files import ORIGIN, SPACING, VOLUME, positions, without, write_enhanced, write_series
from tests.loops import for_each

STEP_MM = SPACING[0]


def assert_is_volume(image: sitk.Image, values: np.ndarray = VOLUME, step: float = STEP_MM) -> None:
    """The grid and the voxels of tests.dicom_files."""
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values, atol=1e-3)
    assert image.GetSpacing() == pytest.approx((0.5, 0.75, step))
    assert image.GetOrigin() == pytest.approx(ORIGIN)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_a_real_series_stands_on_the_grid_of_its_segmentation(data: Path) -> None:
    folder = data / "ct" / "abdomen_dicom"  # JPEG 2000, all identifiers empty
    assert is_dicom_folder(folder)
    image = read_series(folder)
    reference = sitk.ReadImage(data / "ct" / "abdomen_dicom_reference_seg.nii.gz")
    reference = sitk.DICOMOrient(reference, "LPS")  # its rows run the other way
    assert image.GetSize() == reference.GetSize() == (512, 512, 20)
    assert image.GetSpacing() == pytest.approx(reference.GetSpacing(), rel=1e-5)
    assert image.GetOrigin() == pytest.approx(reference.GetOrigin(), abs=1e-3)
    assert image.GetDirection() == pytest.approx(reference.GetDirection(), abs=1e-5)
    hu = sitk.GetArrayViewFromImage(image)
    assert hu.dtype == np.int16
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(sorted(folder.iterdir())[0])))  # GDCM's own HU of one file
    assert any((plane == first[0]).all() for plane in hu)
    liver = hu[sitk.GetArrayViewFromImage(reference) == 5]
    assert 0 < np.median(liver) < 200


def test_slices_are_sorted_by_position_and_not_by_name(tmp_path: Path) -> None:
    write_series(tmp_path)
    image = read_series(tmp_path)
    assert_is_volume(image)
    assert image.GetPixelID() == sitk.sitkInt16
    assert geometry(tmp_path) == (VOLUME.shape, pytest.approx(SPACING))


def test_a_series_becomes_one_nifti_file_with_the_same_grid(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    to_nifti(tmp_path / "series", tmp_path / "x.nii.gz")
    assert_is_volume(sitk.ReadImage(tmp_path / "x.nii.gz"))


@for_each("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes_are_read(tmp_path: Path, syntax: str) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    write_series(tmp_path, change=change)
    assert_is_volume(read_series(tmp_path))


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    for file in write_series(
        tmp_path, change=lambda _, d: setattr(d.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian)
    ):
        content = file.read_bytes()
        meta = 144 + int.from_bytes(content[140:144], "little")
        file.write_bytes(content[meta:])
    assert is_dicom_folder(tmp_path)
    assert_is_volume(read_series(tmp_path))


def test_bits_that_are_not_stored_do_not_count(tmp_path: Path) -> None:
    def overlay(_: int, dataset: Dataset) -> None:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) | 0x5000).tobytes()

    write_series(tmp_path, change=overlay)
    assert_is_volume(read_series(tmp_path))


def test_every_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    intercepts = [0.0, *[-1024.0] * 5]
    values = VOLUME.copy()
    values[0] = np.abs(values[0])
    write_series(tmp_path / "ct", values, intercept=intercepts, BitsStored=16, HighBit=15)
    assert_is_volume(read_series(tmp_path / "ct"), values)
    slopes = [1.0, 0.001, 0.0011, 0.0012, 0.0013, 0.0014]
    suv = np.abs(VOLUME) / 400
    suv[0] = 0
    write_series(tmp_path / "pet", suv, slope=slopes, intercept=0, Modality="PT")
    read = sitk.GetArrayFromImage(read_series(tmp_path / "pet"))
    np.testing.assert_allclose(read, suv, atol=0.001)
    assert read.dtype == np.float32


@for_each(
    ("change", "message"),
    [
        (without("ImagePositionPatient"), "no ImagePositionPatient, and neither have 5 of the other 5"),
        (without("ImagePositionPatient", at=[5]), r"'e\.dcm' in .* has no ImagePositionPatient"),
        (without("ImageOrientationPatient", at=[0]), r"'f\.dcm' in .* has no ImageOrientationPatient"),
        (without("PixelSpacing", at=[2]), r"'d\.dcm' in .* has no PixelSpacing"),
        (without("RescaleIntercept", at=[2]), r"'d\.dcm' in .* has no RescaleIntercept"),
    ],
)
def test_a_file_that_lacks_its_geometry_is_named(
    tmp_path: Path, change: Callable[[int, Dataset], None], message: str
) -> None:
    write_series(tmp_path, change=change)
    with pytest.raises(DataError, match=message):
        read_series(tmp_path)


@for_each(
    ("name", "value", "message"),
    [
        ("PixelSpacing", ["3", "3"], r"PixelSpacing of 'e\.dcm' in .* is 3\\3, of 5 others 0\.75\\0\.5"),
        ("ImageOrientationPatient", ["0", "1", "0", "1", "0", "0"], r"ImageOrientationPatient of 'e\.dcm'"),
        ("ImagePositionPatient", ["1", "2"], r"ImagePositionPatient of 'e\.dcm' in .* not 3 numbers"),
        ("RescaleSlope", "0", r"RescaleSlope of 'e\.dcm' in .* is 0"),
        ("Columns", 4, r"Columns and Rows of 'e\.dcm' in .* is 4\\8, of 5 others 9\\8"),
    ],
)
def test_a_file_that_differs_is_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    write_series(tmp_path, change=lambda index, dataset: setattr(dataset, name, value) if index == 5 else None)
    with pytest.raises(DataError, match=message) as caught:
        read_series(tmp_path)
    assert caught.value.hint


@for_each("index", [0, 2, 5])
@for_each("keep", [0, 300, -2])
def test_a_damaged_file_is_named_wherever_it_lies(tmp_path: Path, index: int, keep: int) -> None:
    file = write_series(tmp_path)[index]
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"damaged.*'{file.name}'|'{file.name}'.* damaged") as caught:
        read_series(tmp_path)
    assert caught.value.hint == "copy the file again, or take it out of the folder"


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    file = write_series(tmp_path)[5]
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"damaged files in .*: 'e\.dcm' \(it is a broken link\)"):
        read_series(tmp_path)


def test_a_missing_slice_is_refused_with_the_place_of_the_gap(tmp_path: Path) -> None:
    write_series(tmp_path, names="abcdef", change=lambda index, _: index != 3)
    with pytest.raises(DataError, match=r"5\.00 mm between slices 'c\.dcm' and 'e\.dcm'.* mostly 2\.50 mm") as caught:
        read_series(tmp_path)
    assert caught.value.hint


def test_positions_that_were_rounded_are_no_gaps(tmp_path: Path) -> None:
    step = 0.625
    write_series(tmp_path, places=[(*ORIGIN[:2], round(ORIGIN[2] + step * i, 2)) for i in range(6)])
    image = read_series(tmp_path)
    assert image.GetSpacing()[2] == pytest.approx(step, abs=0.003)  # over the whole stack


def test_distances_may_vary_by_less_than_one_percent(tmp_path: Path) -> None:
    for jitter in (0.004, 0.02):
        places = np.array(positions())
        places[1::2, 2] += jitter * STEP_MM
        write_series(tmp_path / str(jitter), places=places.tolist())
    assert read_series(tmp_path / "0.004").GetSize() == (9, 8, 6)
    with pytest.raises(DataError, match="slice is missing"):
        read_series(tmp_path / "0.02")


def test_shifted_slices_are_refused(tmp_path: Path) -> None:
    tilted = np.array(positions())
    tilted[:, 1] += 0.5 * np.arange(6)
    write_series(tmp_path / "tilted", places=tilted.tolist())
    with pytest.raises(DataError, match="tilted"):
        read_series(tmp_path / "tilted")


def test_several_stacks_in_one_series_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    write_series(tmp_path, Modality="MR", EchoTime="2.3")
    write_series(tmp_path, names=["x1", "x2", "x3", "x4", "x5", "x6"], Modality="MR", EchoTime="4.6")
    with pytest.raises(
        DataError, match=r"'f\.dcm' and 'x1\.dcm' in .*several stacks|several stacks.*EchoTime"
    ) as caught:
        read_series(tmp_path)
    assert "EchoTime" in caught.value.hint


def test_a_doubled_slice_is_named(tmp_path: Path) -> None:
    file = write_series(tmp_path)[0]
    (tmp_path / "copy.dcm").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"'copy\.dcm' and 'f\.dcm' in .* a slice is doubled"):
        read_series(tmp_path)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(tmp_path / "one", VOLUME[:1], SliceThickness="7")
    assert_is_volume(read_series(tmp_path / "one"), VOLUME[:1], step=7)
    write_series(tmp_path / "none", VOLUME[:1], change=without("SliceThickness"))
    with pytest.raises(DataError, match="no SliceThickness"):
        read_series(tmp_path / "none")


@for_each("order", [None, [3, 0, 5, 1, 4, 2]])
def test_an_enhanced_file_is_read_frame_by_frame(tmp_path: Path, order: list[int] | None) -> None:
    write_enhanced(tmp_path / "a" / "x.dcm", order=order)
    assert_is_volume(read_series(tmp_path / "a"))
    slopes = [1 + 0.05 * i for i in range(6)]
    write_enhanced(tmp_path / "b" / "x.dcm", order=order, slopes=slopes)
    read = sitk.GetArrayFromImage(read_series(tmp_path / "b"))
    for plane, own, slope in zip(VOLUME, read, slopes, strict=True):
        stored = np.rint((plane.astype(float) + 1024) / slope)
        np.testing.assert_allclose(own, stored * slope - 1024, atol=1e-3)


@for_each(
    ("places", "message"),
    [
        (
            [(*ORIGIN[:2], ORIGIN[2] + STEP_MM * i + 10 * (i > 2)) for i in range(6)],
            r"\(frame 3\) and 'x\.dcm' \(frame 4\)",
        ),
        ([(*ORIGIN[:2], ORIGIN[2] + STEP_MM * (i % 3)) for i in range(6)], r"\(frame 1\) and 'x\.dcm' \(frame 4\)"),
        ([(ORIGIN[0], ORIGIN[1] + i, ORIGIN[2] + STEP_MM * i) for i in range(6)], "tilted"),
    ],
)
def test_frames_are_checked_as_slices_are(tmp_path: Path, places: list[tuple[float, ...]], message: str) -> None:
    write_enhanced(tmp_path / "x.dcm", places=places)
    with pytest.raises(DataError, match=message):
        read_series(tmp_path)


def test_stacks_of_an_enhanced_file_are_told_apart(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence[3:]:
            frame.FrameContentSequence[0].StackID = "2"

    places = [(*ORIGIN[:2], ORIGIN[2] + STEP_MM * (i % 3)) for i in range(6)]
    write_enhanced(tmp_path / "x.dcm", places=places, change=change)
    with pytest.raises(DataError, match=r"several stacks.* StackID \(1, 2\)"):
        read_series(tmp_path)


def test_compressed_frames_have_their_own_slopes(tmp_path: Path) -> None:
    from pydicom import dcmread
    from pydicom.uid import JPEGLSLossless, RLELossless

    slopes = [1 + 0.05 * i for i in range(6)]
    file = write_enhanced(tmp_path / "x.dcm", slopes=slopes)
    plain = sitk.GetArrayFromImage(read_series(tmp_path))
    for syntax in (RLELossless, JPEGLSLossless):
        dataset = dcmread(file)
        dataset.compress(syntax, generate_instance_uid=False)
        (tmp_path / syntax.name).mkdir()
        dataset.save_as(tmp_path / syntax.name / "x.dcm")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_series(tmp_path / syntax.name)), plain)


def test_the_series_of_the_modality_is_taken_and_this_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path, SeriesNumber=3, SeriesDescription="soft tissue")
    write_series(tmp_path, names=[f"p{i}" for i in range(6)], Modality="PT", SeriesInstanceUID="1.2.3.1")
    (tmp_path / "notes.txt").write_text("about the patient")
    (tmp_path / "._a.dcm").write_bytes(b"\0\5\x16\7")
    assert choose(tmp_path, "CT").key == "1.2.3.4"
    said = "taking series 3 'soft tissue' (CT, 6 images, 1.2.3.4); left out: "
    assert f"{said}series without a name (PT, 6 images, 1.2.3.1); 'notes.txt'" in caplog.text
    assert choose(tmp_path, "PT").key == "1.2.3.1"
    with pytest.raises(DataError, match="no DICOM series of MR images") as caught:
        choose(tmp_path, "MR")
    assert caught.value.hint == "--series 1.2.3.4 (in Python: series='1.2.3.4') takes it all the same"


@for_each("wanted", ["1.2.3.9", "8", "Venous"])
def test_of_two_phases_one_must_be_chosen(tmp_path: Path, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path, SeriesNumber=7, SeriesDescription="arterial")
    more = {"SeriesInstanceUID": "1.2.3.9", "SeriesNumber": 8, "SeriesDescription": "venous"}
    write_series(tmp_path, VOLUME + 5, names=[f"v{i}" for i in range(6)], **more)
    with pytest.raises(
        DataError, match=r"2 series that may be meant: series 7 'arterial'.*; series 8 'venous'"
    ) as caught:
        read_series(tmp_path)
    assert "--series 1.2.3.4" in caught.value.hint
    assert_is_volume(read_series(tmp_path, wanted), VOLUME + 5)
    with pytest.raises(DataError, match="no images of a series 'portal'"):
        read_series(tmp_path, "portal")


def test_localizers_and_a_few_images_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_enhanced(tmp_path / "ct.dcm", SeriesInstanceUID="1.2.3.9")
    write_series(tmp_path, VOLUME[:3], names=["s0", "s1", "s2"], SeriesInstanceUID="1.2.3.1")
    places = [(0.0, float(i), 0.0) for i in range(20)]
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.3.9"}
    write_series(tmp_path, np.repeat(VOLUME[:1], 20, 0), names=[f"l{i}" for i in range(20)], places=places, **scout)
    with caplog.at_level(logging.WARNING, "stunet"):
        assert_is_volume(read_series(tmp_path))
    assert "CT localizer, 20 images" in caplog.text


def test_derived_images_and_objects_stand_back(tmp_path: Path) -> None:
    write_series(tmp_path)
    derived = {"ImageType": ["DERIVED", "SECONDARY", "MPR"], "SeriesInstanceUID": "1.2.3.1"}
    write_series(tmp_path, np.repeat(VOLUME, 2, 0), names=[f"m{i:02}" for i in range(12)], **derived)
    write_series(tmp_path, VOLUME[:1], names=["seg"], Modality="SEG", SeriesInstanceUID="1.2.3.2")
    assert choose(tmp_path).key == "1.2.3.4"


def test_the_folders_of_a_study_are_a_case_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "p1" / "ct")
    write_series(tmp_path / "p1" / "pet", Modality="PT")
    write_series(tmp_path / "p2", change=without("PixelSpacing"))
    (tmp_path / "p3").mkdir()
    (tmp_path / "p3" / "a.dcm").touch()
    found = find_series(tmp_path, "CT")
    assert [(one.name, one.folder, one.key) for one in found] == [
        ("p1_ct", tmp_path / "p1" / "ct", "1.2.3.4"),
        ("p2", tmp_path / "p2", "1.2.3.4"),
        ("p3", tmp_path / "p3", None),
    ]
    assert "damaged" in str(found[2].error)
    assert "left out" in caplog.text
    assert "PT, 6 images" in caplog.text
    assert [one.name for one in find_series(tmp_path / "p1" / "ct", "T1w", "1.2.3.4")] == ["ct"]
    assert find_series(tmp_path / "p3" / "nothing", "CT") == []


def test_a_ct_that_was_scaled_slice_by_slice_is_taken_only_if_it_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, slope=[1, 1, 1, 2, 1, 1])
    with pytest.raises(DataError, match=r"RescaleSlope differs from slice to slice in series .*: 1 to 2") as caught:
        find_series(tmp_path, "CT")
    assert "--series 1.2.3.4 reads each slice with its own" in caught.value.hint
    assert [one.key for one in find_series(tmp_path, "CT", "1.2.3.4")] == ["1.2.3.4"]
    write_series(tmp_path / "pet", slope=[1, 1, 1, 2, 1, 1], Modality="PT")
    assert len(find_series(tmp_path / "pet", "PET")) == 1


def test_the_index_of_a_disc_hides_no_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ST1" / "SE1")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert not is_dicom_folder(tmp_path)
    assert [one.name for one in find_series(tmp_path, "CT")] == ["ST1_SE1"]
    write_series(tmp_path, VOLUME[:1], names=["dose"], Modality="SR", SeriesInstanceUID="1.2.3.6")
    assert [one.name for one in find_series(tmp_path, "CT")] == ["ST1_SE1"]
    write_series(tmp_path, SeriesInstanceUID="1.2.3.7")
    assert [one.name for one in find_series(tmp_path, "CT")] == sorted(["ST1_SE1", tmp_path.name])


@for_each(
    ("channel", "modality"),
    [("CT", "CT"), ("ct", "CT"), ("T2w", "MR"), ("FLAIR", "MR"), ("MRI", "MR"), ("PET", "PT"), ("noise", None)],
)
def test_a_channel_has_a_modality_by_its_name(channel: str, modality: str | None) -> None:
    assert dicom.modality_of(channel) == modality


def test_folders_without_dicom_files_are_told_apart(tmp_path: Path) -> None:
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "nothing")
    (tmp_path / "short").write_bytes(b"DICM")
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), tmp_path / "x.nii.gz")
    write_series(tmp_path / "inner")
    assert not is_dicom_folder(tmp_path)
    with pytest.raises(DataError, match="no DICOM series"):
        read_series(tmp_path)
    assert is_dicom_folder(tmp_path / "inner")


def test_series_behind_links_are_found_once_and_folders_that_cannot_be_listed_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "far" / "ct")
    source = tmp_path / "study"
    source.mkdir()
    (source / "linked").symlink_to(tmp_path / "far")
    (source / "linked" / "back").symlink_to(source)
    (source / "up").symlink_to(tmp_path)
    (source / "same").symlink_to(tmp_path / "far")
    write_series(source / "own" / "ct")
    (source / "a").symlink_to(source / "own")
    assert [one.name for one in find_series(source)] == ["linked_ct", "own_ct"]
    assert find_series(tmp_path / "gone") == []
    assert "cannot list the folder" in caplog.text
