"""Does a segmentation know the names and the place of its voxels, whichever of nnU-Net's readers read the image?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from stunet.errors import DataError
from stunet.results.segmentation import Segmentation, class_names
from tests.loops import for_each

PLAIN = {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
LABELS = np.random.default_rng(0).integers(0, 3, (4, 5, 6), dtype=np.uint8)
# Oblique, with the first axis running to the right and spacing and size different everywhere.
DIRECTION = (-0.8, 0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


def write_image(path: Path) -> sitk.Image:
    image = sitk.GetImageFromArray(LABELS.astype(np.float32))
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path))
    return image


@for_each("reader", [SimpleITKIO, NibabelIO])
def test_the_place_is_that_of_the_file_for_both_of_nnunets_readers(tmp_path: Path, reader: type) -> None:
    image = write_image(tmp_path / "x.nii.gz")
    _, properties = reader().read_images([str(tmp_path / "x.nii.gz")])
    result = Segmentation.from_properties(LABELS, properties, PLAIN).to_sitk()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), LABELS)
    for what in ("Spacing", "Origin", "Direction"):
        assert getattr(result, f"Get{what}")() == pytest.approx(getattr(image, f"Get{what}")(), abs=1e-5), what


@for_each("reader", [SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_a_reader_that_turns_the_image_leaves_every_voxel_where_it_was(tmp_path: Path, reader: type) -> None:
    image = write_image(tmp_path / "x.nii.gz")
    array, properties = reader().read_images([str(tmp_path / "x.nii.gz")])
    turned = Segmentation.from_properties(array[0].astype(np.uint8), properties, PLAIN).to_sitk()
    back = sitk.DICOMOrient(turned, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(DIRECTION))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), LABELS)
    assert back.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-4)


def test_2d_files_stay_2d_and_have_no_volume(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(LABELS[0])
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    array, properties = SimpleITKIO().read_images([str(tmp_path / "x.nrrd")])
    slice_ = Segmentation.from_properties(array[0].astype(np.uint8), properties, PLAIN)
    assert slice_.is_2d
    assert slice_.voxel_mm3 is None
    assert slice_.to_sitk().GetSize() == (6, 5)
    assert slice_.to_sitk().GetSpacing() == (0.5, 2.0)
    sitk.WriteImage(image, str(tmp_path / "x.png"))
    array, properties = NaturalImage2DIO().read_images([str(tmp_path / "x.png")])
    assert Segmentation.from_properties(array[0].astype(np.uint8), properties, PLAIN).to_sitk().GetSize() == (6, 5)


def test_tiff_files_have_a_spacing_and_no_place(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(tmp_path / "x.tif"))
    (tmp_path / "x.json").write_text('{"spacing": [3.0, 2.0, 1.0]}')
    array, properties = Tiff3DIO().read_seg(str(tmp_path / "x.tif"))
    volume = Segmentation.from_properties(array[0].astype(np.uint8), properties, PLAIN)
    assert volume.voxel_mm3 == 6.0
    assert volume.to_sitk().GetSpacing() == (1.0, 2.0, 3.0)


def test_names_are_those_of_the_values_without_background_and_ignore() -> None:
    assert class_names(PLAIN) == ({"liver": 1, "spleen": 2}, {})
    made = segmentation(PLAIN)
    assert made.value_names == {1: "liver", 2: "spleen"}
    assert made.values("spleen") == (2,)


def test_the_values_of_regions_are_those_that_nnunet_writes() -> None:
    manager = LabelManager(REGIONS["labels"], REGIONS["regions_class_order"])
    names, regions = class_names(REGIONS)
    for row, name in enumerate(names):
        logits = np.full((3, 1, 1, 1), -10, np.float32)
        logits[: row + 1] = 10  # in this region and all that it lies in
        assert int(manager.convert_logits_to_segmentation(logits).item()) == names[name]
    assert list(regions.values()) == [(1, 2, 3), (2, 3), (3,)]
    made = segmentation(REGIONS)
    assert made.values("whole") == (1, 2, 3)
    assert made.value_names == {1: "whole without core", 2: "core without enhancing", 3: "enhancing"}


def test_regions_that_do_not_overlap_keep_their_names() -> None:
    apart = {"labels": {"background": 0, "a": [1, 2], "b": [3]}, "regions_class_order": [1, 3]}
    assert segmentation(apart).value_names == {1: "a", 3: "b"}


def test_regions_without_their_order_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 regions .* 0 numbers") as caught:
        class_names({"labels": REGIONS["labels"]})
    assert caught.value.hint


@for_each(("top", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_wide_integers_become_the_smallest_that_hold_them(top: int, dtype: type) -> None:
    labels = np.array([[[0, top]]])
    made = Segmentation.from_properties(labels, {"spacing": (1, 1, 1)}, PLAIN)
    assert made.labels_DHW.dtype == dtype
    assert made.labels_DHW.max() == top
    with pytest.raises(DataError, match="70000"):
        Segmentation.from_properties(labels * 0 + 70000, {"spacing": (1, 1, 1)}, PLAIN)


def segmentation(dataset: dict[str, Any]) -> Segmentation:
    return Segmentation.from_properties(LABELS, {"spacing": (1, 1, 1)}, dataset)


def test_a_negative_label_is_named() -> None:
    with pytest.raises(DataError, match="the negative value -3"):
        Segmentation.from_properties(
            np.full((2, 2, 2), -3, np.int16), {"spacing": [1.0, 1.0, 1.0]}, {"labels": {"a": 1}}
        )
