"""Is the picture what a radiologist expects: right side on the left, anterior and superior up, true proportions?"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from stunet.errors import DataError
from stunet.results import preview
from stunet.results.colours import unit_colour
from stunet.results.planes import Plane, cut, overlay
from stunet.results.preview import window_of, write_preview
from stunet.results.segmentation import Segmentation
from stunet.results.window import LUNG, SOFT_TISSUE
from tests.loops import for_each

DATASET = {"labels": {"background": 0, "liver": 1, "spleen": 2, "sternum": 3, "brain": 4}}
SHAPE = (9, 14, 12)  # z, y, x
SPACING = (5.0, 1.0, 2.0)


def body(orientation: str = "LPS", tilt: float = 0.0) -> tuple[Segmentation, np.ndarray]:
    """A block with a liver on the right, a spleen on the left, a sternum in front and a brain on top.

    Args:
        orientation: Which way the axes x, y, z of the file run.
        tilt: Degrees that the whole is turned about the long axis.
    """
    labels = np.zeros(SHAPE, np.uint8)  # in LPS: x grows to the left, y to the back, z upwards
    labels[3:6, 5:9, 1:3], labels[3:6, 5:9, 9:11] = 1, 2
    labels[3:6, 1:3, 5:7], labels[7:9, 5:9, 5:7] = 3, 4
    labels[4, 6:8, 3:9] = 3  # in all three planes
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING[::-1])
    cosine, sine = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))
    image = sitk.DICOMOrient(image, orientation)
    properties = {
        "sitk_stuff": {"origin": image.GetOrigin(), "direction": image.GetDirection()},
        "spacing": image.GetSpacing()[::-1],
    }
    array = sitk.GetArrayFromImage(image)
    return Segmentation.from_properties(array, properties, DATASET), array.astype(np.float32) * 100


@for_each("orientation", ["LPS", "RAS", "RAI", "PIR", "SAL", "ILP"])
def test_planes_are_the_same_however_the_file_is_stored(orientation: str) -> None:
    for plane, expected in zip(cut(*body(orientation)), cut(*body()), strict=True):
        np.testing.assert_array_equal(plane.labels, expected.labels)
        np.testing.assert_array_equal(plane.image, expected.image)
        assert plane.size_mm == pytest.approx(expected.size_mm)
        assert (plane.caption, plane.edges) == (expected.caption, expected.edges)


def centre(plane: Plane, value: int) -> tuple[float, float]:
    """Row and column of the middle of a structure, from 0 to 1."""
    places = np.argwhere(plane.labels == value).mean(axis=0)
    return tuple(places / (np.array(plane.labels.shape) - 1))


def test_right_is_left_and_up_is_anterior_or_superior() -> None:
    axial, coronal, sagittal = cut(*body())
    assert axial.edges == ("R", "L", "A", "P")
    assert centre(axial, 1)[1] < 0.3 < 0.7 < centre(axial, 2)[1]
    assert centre(axial, 3)[0] < 0.5
    assert coronal.edges == ("R", "L", "S", "I")
    assert centre(coronal, 1)[1] < 0.3 < 0.7 < centre(coronal, 2)[1]
    assert centre(coronal, 4)[0] < 0.2
    assert sagittal.edges == ("A", "P", "S", "I")
    assert centre(sagittal, 3)[1] < 0.5
    assert centre(sagittal, 4)[0] < 0.2


def test_planes_show_where_most_is_and_the_middle_of_nothing() -> None:
    made, image = body()
    assert [plane.caption for plane in cut(made, image)] == ["axial 5 of 9", "coronal 7 of 14", "sagittal 6 of 12"]
    nothing = Segmentation.from_properties(made.labels_DHW * 0, {"spacing": SPACING}, DATASET)
    assert [plane.caption for plane in cut(nothing, image)] == ["axial 5 of 9", "coronal 8 of 14", "sagittal 7 of 12"]


def test_voxels_keep_their_proportions() -> None:
    made, image = body()
    sizes = [overlay(plane, made, 4.0, 0, 400).shape[:2] for plane in cut(made, image)]
    assert sizes == [(14 * 1 * 4, 12 * 2 * 4), (9 * 5 * 4, 12 * 2 * 4), (9 * 5 * 4, 14 * 1 * 4)]


def test_structures_have_their_colour_and_an_outline() -> None:
    made, image = body()
    axial = cut(made, image * 0)[0]
    picture = overlay(axial, made, 10.0, 0, 1)
    expected = np.array(unit_colour("liver"))
    inside, rim = picture[70, 40], picture[50:90, 20:60].max(axis=(0, 1))
    np.testing.assert_allclose(inside, 0.4 * expected)
    np.testing.assert_allclose(rim, expected)
    assert not picture[5, 5].any()


def test_a_tilted_image_is_shown_along_its_axes_and_this_is_known() -> None:
    assert cut(*body(tilt=20.0))[0].tilt == pytest.approx(20.0)
    assert cut(*body("RAS"))[0].tilt == pytest.approx(0.0)


def test_ct_has_a_window_and_others_percentiles() -> None:
    made, image = body()
    planes = cut(made, image * 0 + 40)
    assert window_of(planes, is_ct=True) == SOFT_TISSUE
    assert window_of(cut(made, image * 0 - 800), is_ct=True) == LUNG
    assert window_of(planes, is_ct=False) == (40, 41)
    noise = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    low, high = window_of(cut(made, noise), is_ct=False)
    assert low == pytest.approx(-2.33, abs=0.3)
    assert high == pytest.approx(2.58, abs=0.4)


@for_each(
    ("shape", "value"), [((1, 40, 30), 0), ((1, 40, 30), 1), ((40, 1, 30), 1), ((300, 4, 4), 1), ((4, 300, 300), 0)]
)
def test_pictures_of_any_shape_are_of_bounded_size(tmp_path: Path, shape: tuple[int, ...], value: int) -> None:
    made = Segmentation.from_properties(np.full(shape, value, np.uint8), {"spacing": (1, 1, 1)}, DATASET)
    write_preview(made, np.zeros(shape, np.float32), tmp_path / "x.png", title="case")
    rows, columns = imread(tmp_path / "x.png").shape[:2]
    assert 150 < rows < 1000
    assert 300 < columns < 2500
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_2d_image_is_shown_as_it_is_stored(tmp_path: Path) -> None:
    labels = np.zeros((1, 10, 20), np.uint8)
    labels[0, 1, 2] = 1
    flat = Segmentation(labels, {"liver": 1}, (999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    (plane,) = cut(flat, labels.astype(np.float32))
    np.testing.assert_array_equal(plane.labels, labels[0])
    assert plane.edges == ("",) * 4
    write_preview(flat, labels.astype(np.float32), tmp_path / "x.png", title="a $x_2$ 中 case")


def test_more_classes_than_fit_are_counted(tmp_path: Path) -> None:
    """Where the legend ends, another class changes the number, and the picture does not grow."""
    sizes = []
    for count in (200, 400):
        labels = (np.arange(24**3).reshape(24, 24, 24) % (count + 1)).astype(np.uint16)
        dataset = {"labels": {"background": 0, **{f"class {i}": i for i in range(1, count + 1)}}}
        made = Segmentation.from_properties(labels, {"spacing": (1, 1, 1)}, dataset)
        write_preview(made, labels.astype(np.float32), tmp_path / "x.png")
        sizes.append(imread(tmp_path / "x.png").shape)
    assert sizes[0] == sizes[1]


def test_another_image_is_refused_and_a_full_disk_leaves_nothing(tmp_path: Path, room_for: Callable) -> None:
    made, image = body()
    with pytest.raises(DataError, match=r"shape \(8, 14, 12\)"):
        write_preview(made, image[1:], tmp_path / "x.png")
    with room_for(1024), pytest.raises(OSError, match="File too large"):
        write_preview(made, image, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_with_its_global_state_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # from now on, to import it is an error
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    again = runpy.run_path(preview.__file__)
    made, image = body()
    again["write_preview"](made, image, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
