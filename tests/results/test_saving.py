"""Files and images of a segmentation, read back by the libraries that users have."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import UsageError
from stunet.results.segmentation import Segmentation
from tests.loops import for_each

LABELS = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def made() -> Segmentation:
    return Segmentation(LABELS, {"a": 1, "b": 2}, (3.0, 2.0, 1.0), (10.0, -20.0, 30.0), TURNED)


@for_each("name", ["s.nii", "s.nii.gz", "s.seg.nrrd", "s.nrrd", "s.mha", "s.tif"])
def test_files_have_the_voxels_and_where_they_lie(name: str, made: Segmentation, tmp_path: Path) -> None:
    made.save(tmp_path / name)
    found = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), LABELS)
    if not name.endswith("tif"):  # which knows no place
        for one, other in ((found.GetSpacing(), (1, 2, 3)), (found.GetOrigin(), made.origin)):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(found.GetDirection(), TURNED, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nibabels_image_is_that_of_the_file(made: Segmentation, tmp_path: Path) -> None:
    made.save(tmp_path / "s.nii")
    one, other = made.to_nibabel(), nibabel.load(tmp_path / "s.nii")
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    np.testing.assert_allclose(one.affine, other.affine)
    assert one.header["sform_code"] == other.header["sform_code"]
    assert one.get_data_dtype() == np.uint8


def test_a_place_that_is_not_there_is_an_error_of_the_system(made: Segmentation, tmp_path: Path) -> None:
    for name in ("s.nii", "s.mha"):
        with pytest.raises(OSError, match="No such file or directory"):
            made.save(tmp_path / "nowhere" / name)


@for_each(("name", "hint"), [("s.dcm", "stunet_predict"), ("s.png", "one of .nii.gz"), ("s", "one of .nii.gz")])
def test_other_endings_are_refused(name: str, hint: str, made: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        made.save(tmp_path / name)
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())
