"""Are files what viewers and nnU-Net read: the same voxels in the same place, with names, and never half written?"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from stunet.errors import DataError
from stunet.nifti import check_nifti
from stunet.results.colours import colour, unit_colour
from stunet.results.formats.masks import write_masks
from stunet.results.formats.seg_nrrd import write_seg_nrrd
from stunet.results.itksnap import write_itksnap_labels
from stunet.results.nifti_labels import write_nifti
from stunet.results.segmentation import Segmentation
from tests.loops import for_each

PLAIN = {"labels": {"background": 0, "liver": 1, "left kidney": 2, 'a "<&\\' + "\n" + "ü": 300}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
LABELS = np.random.default_rng(0).choice(np.array([0, 1, 2, 300], np.uint16), (7, 6, 5))
# Oblique, the second axis towards the front, as from scanners that store upwards.
DIRECTION = (0.8, 0.6, 0.0, 0.6, -0.8, 0.0, 0.0, 0.0, -1.0)
PLACE = {"sitk_stuff": {"origin": (1.5, -200.25, 33.0), "direction": DIRECTION}, "spacing": (2.5, 0.7, 0.6)}


def segmentation(labels: np.ndarray = LABELS, dataset: dict[str, Any] = PLAIN) -> Segmentation:
    return Segmentation.from_properties(labels, PLACE, dataset)


def assert_same(image: sitk.Image, expected: sitk.Image) -> None:
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    assert image.GetPixelIDTypeAsString() == expected.GetPixelIDTypeAsString()
    for what in ("Spacing", "Origin", "Direction"):
        assert getattr(image, f"Get{what}")() == pytest.approx(getattr(expected, f"Get{what}")(), abs=1e-5), what


@for_each("ending", [".nii", ".nii.gz"])
def test_nifti_files_are_read_like_those_that_nnunet_writes(tmp_path: Path, ending: str) -> None:
    stock, ours = tmp_path / f"stock{ending}", tmp_path / f"ours{ending}"
    properties = {"sitk_stuff": {**PLACE["sitk_stuff"], "spacing": PLACE["spacing"][::-1]}}
    SimpleITKIO().write_seg(LABELS, str(stock), properties)
    write_nifti(segmentation(), ours)
    check_nifti(ours)
    assert nibabel.load(ours).header["intent_code"] == 1002  # NIFTI_INTENT_LABEL: viewers need not guess
    assert_same(sitk.ReadImage(str(ours)), sitk.ReadImage(str(stock)))
    ours_nibabel, stock_nibabel = nibabel.load(ours), nibabel.load(stock)
    np.testing.assert_allclose(ours_nibabel.affine, stock_nibabel.affine, atol=1e-5)
    np.testing.assert_allclose(ours_nibabel.get_qform(), stock_nibabel.get_qform(), atol=1e-4)
    assert ours_nibabel.header["qform_code"] == stock_nibabel.header["qform_code"]
    for reader in (SimpleITKIO(), NibabelIO()):
        np.testing.assert_array_equal(reader.read_seg(str(ours))[0], reader.read_seg(str(stock))[0])


def test_the_header_names_every_value_and_its_colour(tmp_path: Path) -> None:
    write_nifti(segmentation(), tmp_path / "x.nii.gz")
    first, second = nibabel.load(tmp_path / "x.nii.gz").header.extensions
    assert (first.get_code(), second.get_code()) == (0, 30)
    assert first.content == second.content
    table = ET.fromstring(first.text).findall("VolumeInformation/LabelTable/Label")
    assert {int(row.attrib["Key"]): row.text for row in table} == {1: "liver", 2: "left kidney", 300: 'a "<&\\ ü'}
    red = [float(row.attrib["Red"]) for row in table]
    assert red == pytest.approx([unit_colour(name)[0] for name in PLAIN["labels"] if name != "background"], abs=1e-6)


def test_totalsegmentators_loader_would_find_the_names(tmp_path: Path) -> None:
    """Its steps: the first extension, parsed as XML as it is, CaretExtension/VolumeInformation/LabelTable/Label."""
    write_nifti(segmentation(), tmp_path / "x.nii.gz")
    root = ET.fromstring(nibabel.load(tmp_path / "x.nii.gz").header.extensions[0].get_content())
    assert root.tag == "CaretExtension"
    assert len(root.findall("VolumeInformation/LabelTable/Label")) == 3


def test_a_sheared_file_of_nibabels_keeps_its_matrix(tmp_path: Path) -> None:
    affine = np.array([[-0.6, 0.1, 0, 5], [0, 0.7, 0.2, -7], [0.05, 0, 2.5, 9], [0, 0, 0, 1]])
    properties = {"nibabel_stuff": {"original_affine": affine}, "spacing": (2.5, 0.7, 0.6)}
    write_nifti(Segmentation.from_properties(LABELS, properties, PLAIN), tmp_path / "x.nii.gz")
    image = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert image.header["qform_code"] == 0
    np.testing.assert_array_equal(np.asarray(image.dataobj), LABELS.T)


@for_each("dtype", [np.uint8, np.uint16, ">u2"])
def test_seg_nrrd_is_read_by_itk_with_slicers_fields(tmp_path: Path, dtype: Any) -> None:
    labels = np.where(LABELS == 300, 3, LABELS).astype(dtype)
    made = Segmentation.from_properties(labels, PLACE, {"labels": {**PLAIN["labels"], 'a "<&\\' + "\n" + "ü": 3}})
    write_seg_nrrd(made, tmp_path / "x.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    assert_same(image, made.to_sitk())
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    assert [fields[f"Segment{i}_Name"] for i in range(3)] == ["liver", "left kidney", 'a "<&\\ ü']
    assert [fields[f"Segment{i}_LabelValue"] for i in range(3)] == ["1", "2", "3"]
    assert [float(part) for part in fields["Segment0_Color"].split()] == pytest.approx(unit_colour("liver"), abs=1e-5)
    assert {fields[f"Segment{i}_Extent"] for i in range(3)} == {"0 4 0 5 0 6"}
    assert len({fields[f"Segment{i}_ID"] for i in range(3)}) == 3


def test_itksnap_label_files_have_its_columns(tmp_path: Path) -> None:
    write_itksnap_labels(segmentation(), tmp_path / "labels.txt")
    rows = [row for row in (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines() if row[0] != "#"]
    numbers = [[float(column) for column in row.split('"')[0].split()] for row in rows]
    assert [row[0] for row in numbers] == [0, 1, 2, 300]
    assert numbers[1][1:] == [*colour("liver"), 1, 1, 1]
    assert [row.split('"')[1] for row in rows] == ["Clear Label", "liver", "left kidney", "a '<&\\ ü"]


def test_masks_are_one_file_per_class_with_empty_ones(tmp_path: Path) -> None:
    made = segmentation(np.where(LABELS == 2, 0, LABELS))
    paths = write_masks(made, tmp_path / "case")
    assert [path.name for path in paths][:2] == ["liver.nii.gz", "left_kidney.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "case").iterdir()) == sorted(path.name for path in paths)
    for path, value in zip(paths, (1, 2, 300), strict=True):
        mask = nibabel.load(path)
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(mask.dataobj).T, made.labels_DHW == value)
        np.testing.assert_allclose(mask.affine, made.affine_ras, atol=1e-5)


def test_masks_of_regions_are_the_whole_regions(tmp_path: Path) -> None:
    labels = np.where(LABELS == 300, 0, LABELS)
    whole, core = write_masks(segmentation(labels, REGIONS), tmp_path / "case")
    np.testing.assert_array_equal(np.asarray(nibabel.load(whole).dataobj).T, labels > 0)
    np.testing.assert_array_equal(np.asarray(nibabel.load(core).dataobj).T, labels == 2)
    write_seg_nrrd(segmentation(labels, REGIONS), tmp_path / "x.seg.nrrd")
    assert sitk.ReadImage(str(tmp_path / "x.seg.nrrd")).GetMetaData("Segment0_Name") == "whole without core"


def test_masks_that_would_overwrite_something_are_refused(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_masks(segmentation(), tmp_path / "case")
    twins = {"labels": {"background": 0, "a b": 1, "a/b": 2}}
    with pytest.raises(DataError, match="share a file"):
        write_masks(segmentation(dataset=twins), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_2d_images_stay_2d_in_nifti_and_are_one_slice_in_nrrd(tmp_path: Path) -> None:
    flat = Segmentation(LABELS[:1], {"liver": 1}, (999.0, 0.5, 0.25), (3.0, 4.0), (0.0, 1.0, -1.0, 0.0))
    write_nifti(flat, tmp_path / "x.nii.gz")
    assert_same(sitk.ReadImage(str(tmp_path / "x.nii.gz")), flat.to_sitk())
    write_seg_nrrd(flat, tmp_path / "x.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    assert image.GetSize() == (5, 6, 1)
    assert image.GetSpacing() == (0.25, 0.5, 1.0)
    assert image.GetOrigin() == (3.0, 4.0, 0.0)


def test_the_same_segmentation_gives_the_same_bytes(tmp_path: Path) -> None:
    for write, ending in ((write_nifti, ".nii.gz"), (write_seg_nrrd, ".seg.nrrd")):
        write(segmentation(), tmp_path / f"a{ending}")
        write(segmentation(), tmp_path / f"b{ending}")
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@for_each("write", [write_nifti, write_seg_nrrd, write_masks, write_itksnap_labels])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, write: Callable[..., Any], room_for: Callable
) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 64), dtype=np.uint8)
    many = {"labels": {"background": 0, **{f"class number {i}": i for i in range(1, 400)}}}
    with room_for(8192), pytest.raises(OSError, match="File too large"):
        write(segmentation(noise, many), tmp_path / "x.nii.gz")
    assert list(tmp_path.iterdir()) == []
