"""Does a DICOM-SEG have the voxels of the segmentation on the slices of its series, and say what they are?"""

import locale
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.datasets.dicom import read_series
from stunet.errors import DataError
from stunet.labels import systems as label_systems
from stunet.results.colours import colour
from stunet.results.dicom_seg import EXTRA, MAY_BE_EMPTY, check_series, load_highdicom, write_dicom_seg
from stunet.results.segmentation import Segmentation
from tests.dicom_files import VOLUME, without, write_enhanced, write_series
from tests.loops import for_each

highdicom = pytest.importorskip("highdicom", reason=f"the extra is not installed: {EXTRA}")
pydicom = pytest.importorskip("pydicom")

SHAPE = (5, 8, 9)
DATASET: dict[str, Any] = {"labels": {"background": 0, "liver": 1, "left kidney": 2, "spleen": 5, "kidney tumour": 7}}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}
LABELS = np.random.default_rng(0).choice(np.array([0, 0, 1, 2, 7], np.uint8), SHAPE)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Slices in files whose names are in no order, oblique, as a scanner would identify them."""
    folder = tmp_path / "series"
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, name in enumerate("dbeac"):
        image = sitk.GetImageFromArray(np.full((1, *SHAPE[1:]), index, np.int16))
        image.SetSpacing((0.5, 0.75, 2.5))
        position = np.array([10, 20, 30]) + 2.5 * index * np.array([-0.6, 0, 0.8])
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.4.{index + 1}",
            "0008|0060": "CT",
            "0010|0020": "anonymous",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0052": "1.2.3.5",
            "0020|0032": "\\".join(f"{x:g}" for x in position),
            "0020|0037": "0.8\\0\\0.6\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}.dcm"))
        writer.Execute(image)
    return folder


def segmentation(image: sitk.Image, values: np.ndarray = LABELS, dataset: dict[str, Any] = DATASET) -> Segmentation:
    """A segmentation on the grid of an image."""
    properties = {
        "sitk_stuff": {"origin": image.GetOrigin(), "direction": image.GetDirection()},
        "spacing": image.GetSpacing()[::-1],
    }
    return Segmentation.from_properties(values, properties, dataset)


def read(path: Path) -> tuple[Any, dict[str, sitk.Image]]:
    """The file, and a mask for each segment, placed where its frames say."""
    made = highdicom.seg.segread(path)
    masks = {}
    for number in made.segment_numbers:
        volume = made.get_volume(segment_numbers=[number], combine_segments=True)
        mask = sitk.GetImageFromArray((np.asarray(volume.array) > 0).astype(np.uint8))
        affine = volume.affine  # from (slice, row, column) to LPS
        mask.SetSpacing(volume.spacing[::-1])
        mask.SetOrigin(affine[:3, 3].tolist())
        mask.SetDirection((affine[:3, 2::-1] / np.array(volume.spacing[::-1])).ravel().tolist())
        masks[made.get_segment_description(number).SegmentLabel] = mask
    return made, masks


def assert_masks(masks: dict[str, sitk.Image], made: Segmentation) -> None:
    """Every mask has the voxels of its class, by their place in the patient."""
    expected = made.to_sitk()
    for name, mask in masks.items():
        image = sitk.Resample(mask, expected, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(image) > 0, np.isin(made.labels_DHW, made.values(name)), err_msg=name
        )
        assert sitk.GetArrayViewFromImage(mask).sum() == np.isin(made.labels_DHW, made.values(name)).sum()


@for_each("orientation", ["as it is", "RAS", "PIR"])
def test_voxels_are_on_the_slices_of_the_series(tmp_path: Path, series: Path, orientation: str) -> None:
    image = read_series(series)
    made = segmentation(image)
    if orientation != "as it is":
        turned = sitk.DICOMOrient(made.to_sitk(), orientation)
        made = segmentation(turned, sitk.GetArrayFromImage(turned))
    write_dicom_seg(made, series, tmp_path / "x.dcm")
    _, masks = read(tmp_path / "x.dcm")
    assert list(masks) == ["liver", "left kidney", "kidney tumour"]
    assert_masks(masks, made)


def test_frames_refer_to_the_slice_with_their_position(tmp_path: Path, series: Path) -> None:
    write_dicom_seg(segmentation(read_series(series)), series, tmp_path / "x.dcm")
    made, _ = read(tmp_path / "x.dcm")
    positions = {
        str(source.SOPInstanceUID): list(source.ImagePositionPatient)
        for source in (pydicom.dcmread(path, stop_before_pixels=True) for path in series.iterdir())
    }
    assert len(made.PerFrameFunctionalGroupsSequence) > len(positions)
    for frame in made.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == positions[str(source)]
    assert (made.PatientID, made.StudyInstanceUID, made.FrameOfReferenceUID) == ("anonymous", "1.2.3", "1.2.3.5")
    assert made.SeriesInstanceUID not in ("", "1.2.3.4")


def test_segments_say_what_they_are(tmp_path: Path, series: Path) -> None:
    write_dicom_seg(segmentation(read_series(series)), series, tmp_path / "x.dcm", "STU-Net B", "3.1")
    made, _ = read(tmp_path / "x.dcm")
    liver, kidney, tumour = made.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert (liver.SegmentAlgorithmType, liver.SegmentAlgorithmName) == ("AUTOMATIC", "STU-Net B")
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "3.1"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeMeaning == "Kidney"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Kidney"
    shown = highdicom.color.CIELabColor.from_dicom_value(liver.RecommendedDisplayCIELabValue).to_rgb(clip=True)
    assert np.abs(np.array(shown) - colour("liver")).max() <= 2


def test_regions_overlap(tmp_path: Path, series: Path) -> None:
    made = segmentation(read_series(series), np.where(LABELS == 7, 0, LABELS).astype(np.uint8), REGIONS)
    write_dicom_seg(made, series, tmp_path / "x.dcm")
    _, masks = read(tmp_path / "x.dcm")
    assert list(masks) == ["whole", "core"]
    assert_masks(masks, made)


def test_another_grid_is_refused(tmp_path: Path, series: Path) -> None:
    image = read_series(series)
    with pytest.raises(DataError, match="size"):
        write_dicom_seg(segmentation(image[:, :, 1:], LABELS[1:]), series, tmp_path / "x.dcm")
    image.SetOrigin((10, 20, 31))
    with pytest.raises(DataError, match="origin"):
        write_dicom_seg(segmentation(image), series, tmp_path / "x.dcm")
    flat = Segmentation(LABELS[:1], {"liver": 1}, (999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    with pytest.raises(DataError, match="is 2D"):
        write_dicom_seg(flat, series, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()


def test_an_empty_segmentation_is_refused(tmp_path: Path, series: Path) -> None:
    with pytest.raises(DataError, match="nothing is segmented"):
        write_dicom_seg(segmentation(read_series(series), LABELS * 0), series, tmp_path / "x.dcm")


@for_each("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_slices_that_cannot_be_referred_to_are_refused(tmp_path: Path, series: Path, name: str) -> None:
    made = segmentation(read_series(series))
    source = pydicom.dcmread(series / "a.dcm")
    setattr(source, name, "")
    source.save_as(series / "a.dcm")
    with pytest.raises(DataError, match=f"have no {name}") as caught:
        write_dicom_seg(made, series, tmp_path / "x.dcm")
    assert "replaced" in caught.value.hint


@for_each("name", MAY_BE_EMPTY)
def test_what_anonymisers_remove_is_written_empty(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "series", VOLUME[:2], change=without(name))
    write_dicom_seg(_some_of(tmp_path / "series"), tmp_path / "series", tmp_path / "x.dcm")
    assert not pydicom.dcmread(tmp_path / "x.dcm")[name].value


@for_each(
    ("characters", "name"),
    [
        ("", "A^B"),
        ("ISO_IR 100", "Müller^Jürg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
        (["", "ISO 2022 IR 58"], "Zhang^XiaoDong=张^小东"),
    ],
)
def test_names_in_all_character_sets_are_kept(tmp_path: Path, characters: Any, name: str) -> None:
    def change(_: int, dataset: Any) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = characters, name
        if "ISO 2022 IR 58" in characters:  # pydicom reads its escape sequences, and writes none
            dataset.PatientName = b"Zhang^XiaoDong=" + b"^".join(
                b"\x1b$)A" + n.encode("gb2312") for n in ("张", "小东")
            )

    write_series(tmp_path / "series", VOLUME[:2], change=change)
    write_dicom_seg(_some_of(tmp_path / "series", "Leber größer"), tmp_path / "series", tmp_path / "x.dcm")
    made = pydicom.dcmread(tmp_path / "x.dcm")
    assert str(made.PatientName) == name
    assert made.SegmentSequence[0].SegmentLabel == "Leber größer"


def test_values_that_highdicom_refuses_are_emptied_and_cosines_made_one(tmp_path: Path) -> None:
    def change(index: int, dataset: Any) -> None:
        dataset.add_new("PatientSex", "CS", "U")
        dataset.add_new("StudyDate", "DA", "anonymous")
        if index % 2:
            dataset.ImageOrientationPatient = ["0.999999999", "0.0000000001", "0", "0", "1", "0"]

    with pydicom.config.disable_value_validation():
        write_series(tmp_path / "series", VOLUME[:4], change=change)
    write_dicom_seg(_some_of(tmp_path / "series"), tmp_path / "series", tmp_path / "x.dcm")
    assert not pydicom.dcmread(tmp_path / "x.dcm").PatientSex


def test_what_makes_it_impossible_is_found_in_the_headers(tmp_path: Path) -> None:
    write_series(tmp_path / "good", VOLUME[:2])
    check_series(tmp_path / "good")
    write_series(tmp_path / "bad", VOLUME[:2], change=without("FrameOfReferenceUID"))
    with pytest.raises(DataError, match="have no FrameOfReferenceUID"):
        check_series(tmp_path / "bad")
    write_series(tmp_path / "two", VOLUME[:2], change=lambda index, d: setattr(d, "StudyInstanceUID", f"1.{index + 1}"))
    with pytest.raises(DataError, match=r"several StudyInstanceUID: 1\.1, 1\.2"):
        check_series(tmp_path / "two")
    write_enhanced(tmp_path / "enhanced" / "x.dcm")
    with pytest.raises(DataError, match="enhanced"):
        check_series(tmp_path / "enhanced")


def _some_of(folder: Path, name: str = "liver") -> Segmentation:
    """One class on the grid of a series."""
    image = read_series(folder)
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    labels[:, 2:4, 2:4] = 1
    return segmentation(image, labels, {"labels": {"background": 0, name: 1}})


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(DataError, match="not installed") as caught:
        load_highdicom()
    assert caught.value.hint == "pip install 'stunet[dicomseg]'"


def test_a_full_disk_leaves_nothing(tmp_path: Path, series: Path, room_for: Callable) -> None:
    made = segmentation(read_series(series))
    with room_for(1024), pytest.raises(OSError, match="File too large"):
        write_dicom_seg(made, series, tmp_path / "x.dcm")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_a_real_series_gets_its_reference_segmentation(tmp_path: Path, data: Path) -> None:
    """Its identifiers were blanked for publication; a copy has new ones."""
    (tmp_path / "series").mkdir()
    reference = sitk.ReadImage(str(data / "ct" / "abdomen_dicom_reference_seg.nii.gz"))
    dataset = {"labels": label_systems.load("totalsegmentator-v2").dataset_labels}
    names = ("liver", "spleen", "aorta", "rib_left_9")  # not all: each takes 0.1 s
    values, shown = sitk.GetArrayFromImage(reference), [dataset["labels"][name] for name in names]
    made = segmentation(reference, np.where(np.isin(values, shown), values, 0).astype(np.uint8), dataset)
    with pytest.raises(DataError, match="have no StudyInstanceUID"):
        write_dicom_seg(made, data / "ct" / "abdomen_dicom", tmp_path / "x.dcm")
    for path in (data / "ct" / "abdomen_dicom").iterdir():
        source = pydicom.dcmread(path)
        source.StudyInstanceUID, source.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID
        source.save_as(tmp_path / "series" / path.name)
    before = locale.setlocale(locale.LC_ALL)
    write_dicom_seg(made, tmp_path / "series", tmp_path / "x.dcm")
    assert locale.setlocale(locale.LC_ALL) == before  # GDCM changes it when it writes, not when it reads
    _, masks = read(tmp_path / "x.dcm")
    assert set(masks) == set(names)
    assert_masks(masks, made)
