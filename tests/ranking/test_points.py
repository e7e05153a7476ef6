"""Points lie on their class however a file stores its axes, and where a plan's preprocessing puts them."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from stunet.datasets import RawCase
from stunet.errors import DataError
from stunet.images import Reader
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.preprocessing.case import Plans, Preprocessor
from stunet.ranking.grid import to_grid
from stunet.ranking.points import IGNORED, UNKNOWN, Classes, classes_of, draw, draw_points, proportional
from stunet.ranking.sample import BOUNDARY, FAR, INTERIOR, NEAR

DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
    "file_ending": ".nii.gz",
}
KINDS = ("SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient")


def anatomy(random: np.random.Generator) -> np.ndarray:
    """Labels (X, Y, Z) of three boxes, one of them a single voxel, in a volume that is not a cube."""
    labels = np.zeros((22, 17, 13), np.uint8)
    labels[3:12, 4:10, 2:9] = 1
    labels[12:15, 5:13, 3:6] = 2
    labels[tuple(random.integers(1, n - 1) for n in labels.shape)] = 3
    return labels


def affine(random: np.random.Generator, spacing: tuple[float, ...] = (0.8, 1.3, 2.9)) -> np.ndarray:
    """Axes that run a few degrees off those of the world."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(random.normal(0, 0.15, 3)).as_matrix() * spacing
    matrix[:3, 3] = random.normal(0, 100, 3)
    return matrix


def stored(
    labels: np.ndarray, matrix: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...], padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same anatomy in a file whose axes run otherwise and that has more around it."""
    image = nibabel.Nifti1Image(np.pad(labels, padding), matrix @ moved(-padding))
    ways = np.array([[order.index(axis), flip] for axis, flip in enumerate(flips)])
    image = image.as_reoriented(ways)
    return np.asarray(image.dataobj), image.affine


def moved(by: int) -> np.ndarray:
    result = np.eye(4)
    result[:3, 3] = by
    return result


def write(folder: Path, labels: np.ndarray, matrix: np.ndarray, image: np.ndarray | None = None) -> RawCase:
    """A case with these labels (X, Y, Z); its image is the labels, or the given one."""
    paths = folder / "case_0000.nii.gz", folder / "case.nii.gz"
    image = labels + 1.0 if image is None else image
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), matrix), paths[0])
    nibabel.save(nibabel.Nifti1Image(labels, matrix), paths[1])
    return RawCase("case", (paths[0],), paths[1])


def in_file(world: np.ndarray, path: Path) -> np.ndarray:
    """The values of a file at points in mm."""
    image: Any = nibabel.load(path)
    voxels = nibabel.affines.apply_affine(np.linalg.inv(image.affine), world)
    assert np.abs(voxels - np.rint(voxels)).max() < 1e-3
    return np.asarray(image.dataobj)[tuple(np.rint(voxels).astype(int).T)]


def preprocess(case: RawCase, spacing: list[float] | None, orientation: str, transpose: list[int], kind: str) -> tuple:
    """Image, labels and properties as of a plan that changes nothing but the grid; None: not the spacing."""
    reader = Reader(kind, orientation)
    labels, _ = reader.read_seg(str(case.needed_label), like=str(case.images[0]))
    image, properties = reader.read_images(list(map(str, case.images)))
    function, options = "resample_data_or_seg_to_shape", {"order_z": 0, "force_separate_z": False}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [16] * 3,
        "spacing": spacing or [properties["spacing"][axis] for axis in transpose],
        "normalization_schemes": ["NoNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 1, **options},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **options},
        "architecture": {},
    }
    plans = {
        "image_reader_writer": kind,
        "label_manager": "LabelManager",
        "transpose_forward": transpose,
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(3)},
        "configurations": {"3d_fullres": configuration},
    }
    manager = Plans(plans)
    return Preprocessor(verbose=False).run_case_npy(
        image, labels, properties, manager, manager.get_configuration("3d_fullres"), DESCRIPTION
    )


def test_every_point_is_on_its_class_in_every_axis_order_orientation_spacing_and_padding(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels, matrix = anatomy(random), affine(random)
    expected: np.ndarray | None = None
    ways = list(product(permutations(range(3)), product((1, -1), repeat=3)))
    for number in random.permutation(len(ways))[:12]:
        order, flips = ways[number]
        padding, kind = int(random.integers(0, 4)), KINDS[number % 4]
        case = write(tmp_path, *stored(labels, matrix, order, flips, padding))
        drawn = draw_points(case, kind, DESCRIPTION, number=60)
        assert np.array_equal(in_file(drawn.world, case.needed_label), drawn.labels)  # 100 % of them
        assert set(drawn.labels) == {0, 1, 2, 3}
        # The anatomy is the same for all: it depends on nothing but the case.
        found = drawn.world[drawn.labels > 0]
        expected = found if expected is None else expected
        np.testing.assert_allclose(found, expected, atol=1e-2)
        image, found, properties = preprocess(case, None, "LPS", [2, 0, 1], kind)
        voxels = np.rint(to_grid(drawn.world, properties, [2, 0, 1], image.shape[1:])).astype(int)
        assert np.array_equal(found[0][tuple(voxels.T)], drawn.labels)
        own = np.linalg.norm(matrix[:3, :3], axis=0)
        matrix = matrix * np.array([*(random.uniform(0.5, 3, 3) / own), 1]) if number % 3 == 0 else matrix
        expected = None if number % 3 == 0 else expected


@pytest.mark.parametrize("kind", ["SimpleITKIO", "NibabelIO"])
def test_points_are_found_where_preprocessing_puts_an_image_of_coordinates(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(1)
    for orientation, transpose, spacing in (
        ("LPS", [0, 1, 2], [2.1, 1.1, 1.4]),
        ("RAS", [2, 0, 1], [1.0, 2.0, 0.7]),
        ("PIR", [1, 2, 0], [0.6, 3.3, 1.9]),
    ):
        labels, matrix = anatomy(random), affine(random)
        coordinates = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij")) + 5.0
        coordinates[:, :2], coordinates[:, :, -3:] = 0, 0  # cropped
        case = write(tmp_path, labels, matrix)
        for axis, values in enumerate(coordinates):
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), matrix), tmp_path / f"case_{axis:04d}.nii.gz")
        case = replace(case, images=tuple(tmp_path / f"case_{axis:04d}.nii.gz" for axis in range(3)))
        image, _, properties = preprocess(case, spacing, orientation, transpose, kind)
        drawn = draw_points(case, kind, DESCRIPTION)
        where = to_grid(drawn.world, properties, transpose, image.shape[1:])
        assert (where > -0.51).all()
        assert (where < np.array(image.shape[1:]) - 0.49).all()
        # Linear interpolation of coordinates is exact, but not beyond the outer centres of either grid.
        file_voxels = nibabel.affines.apply_affine(np.linalg.inv(matrix), drawn.world)
        inner = ((where >= 0) & (where <= np.array(image.shape[1:]) - 1)).all(axis=1)
        inner &= ((file_voxels > [2.9, 0.9, 0.9]) & (file_voxels < [20.1, 12.1, 11.1])).all(axis=1)
        assert inner.mean() > 0.3
        for axis in range(3):
            found = map_coordinates(image[axis], where[inner].T, order=1)
            np.testing.assert_allclose(found, file_voxels[inner, axis] + 5, atol=2e-3)


def test_nothing_outside_of_the_kept_box_is_drawn_and_its_border_is_no_boundary(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    labels, matrix = anatomy(random), affine(random)
    image = np.zeros(labels.shape)
    image[6:16, 3:14, 4:11] = 1
    case = write(tmp_path, labels, matrix, image)
    drawn = draw_points(case, "SimpleITKIO", DESCRIPTION, number=10**6)
    inside = np.zeros(labels.shape, bool)
    inside[6:16, 3:14, 4:11] = True
    assert len(drawn.labels) == inside.sum()
    assert in_file(drawn.world, case.images[0]).all()
    own = drawn.world[(drawn.labels == 1) & (drawn.regions == BOUNDARY)]
    voxels = np.rint(nibabel.affines.apply_affine(np.linalg.inv(matrix), own)).astype(int)
    assert not (voxels == [7, 5, 5]).all(axis=1).any()
    assert (voxels[:, 0] == 6).mean() < 0.3  # the organ goes on there


def test_boundary_interior_near_and_far_are_told_apart() -> None:
    classes = np.zeros((40, 9, 9), np.int16)
    classes[2:7, 2:7, 2:7] = 1
    drawn = draw(classes, np.diag([1.0, 1, 1, 1]), "x", number=10**6)
    assert len(drawn.labels) == classes.size
    assert drawn.weights.tolist() == [1] * classes.size
    inner = drawn.voxels[(drawn.labels == 1) & (drawn.regions == INTERIOR)]
    assert (inner.min(), inner.max(), len(inner)) == (3, 5, 27)
    assert ((drawn.labels == 1) & (drawn.regions == BOUNDARY)).sum() == 98
    background = drawn.labels == 0
    assert set(drawn.regions[background]) == {NEAR, FAR}
    assert drawn.voxels[drawn.regions == NEAR, 0].max() == 16  # 10 mm from 6
    assert drawn.voxels[drawn.regions == FAR, 0].min() == 17


def test_a_class_at_the_ignore_label_or_at_what_is_not_annotated() -> None:
    classes = np.full((6, 6, 6), IGNORED, np.int16)
    classes[:3] = 1
    assert set(draw(classes, np.eye(4), "x").regions) == {INTERIOR}
    classes[3:] = UNKNOWN
    drawn = draw(classes, np.eye(4), "x")
    assert set(drawn.labels) == {1}
    assert set(drawn.voxels[drawn.regions == BOUNDARY, 0]) == {2}


def test_classes_have_as_many_points_and_weights_add_up_to_voxels() -> None:
    random = np.random.default_rng(0)
    classes = np.repeat(np.repeat(random.integers(0, 4, (6, 6, 6)), 4, 0), 4, 1).astype(np.int16)
    classes[0, 0, 0] = 4
    drawn = draw(classes, np.eye(4), "x", number=50)
    for label in range(5):
        own = drawn.labels == label
        assert own.sum() == (50 if label < 4 else 1)
        assert drawn.weights[own].sum() == pytest.approx((classes == label).sum())
    assert len(np.unique(drawn.voxels, axis=0)) == len(drawn.voxels)


def test_a_volume_proportional_choice_keeps_the_shares_of_classes() -> None:
    classes = np.zeros((30, 30, 30), np.int16)
    classes[:16, :20, :20] = 1  # 6400
    classes[20:30, :16, :10] = 2  # 1600
    classes[29, 29, 29] = 3
    points = draw(classes, np.eye(4), "x", number=2000).points
    chosen = proportional(points, 500)
    labels, counts = np.unique(points.labels[chosen], return_counts=True)
    assert labels.tolist() == [1, 2, 3]
    assert counts[0] / counts[1] == pytest.approx(4, rel=0.03)
    assert counts[2] == 1
    assert 490 <= len(chosen) <= 501
    assert len(set(chosen.tolist())) == len(chosen)


def test_points_of_a_class_depend_on_the_case_alone() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, (12, 12, 12)).astype(np.int16)
    one, again, other = (draw(classes, np.eye(4), name, number=40) for name in ("a", "a", "b"))
    assert np.array_equal(one.voxels, again.voxels)
    assert not np.array_equal(one.voxels, other.voxels)
    assert not np.array_equal(one.voxels, draw(classes, np.eye(4), "a", number=40, seed=1).voxels)
    # Another class elsewhere moves no point.
    fewer = np.where(classes == 2, 0, classes)
    regions = np.array([INTERIOR, BOUNDARY])
    found = draw(fewer, np.eye(4), "a", number=40)
    for region in regions:
        same = [d.voxels[(d.labels == 1) & (d.regions == region)] for d in (one, found)]
        assert len(same[0]) == len(same[1])


def test_regions_are_divided_into_the_values_that_belong_to_the_same_ones() -> None:
    labels = {"background": 0, "whole": [1, 2, 3, 4], "core": [2, 3, 4], "enhancing": [3], "ignore": 5}
    found = classes_of({**DESCRIPTION, "labels": labels, "regions_class_order": [1, 2, 3]})
    assert found == Classes(("background", "whole", "core", "enhancing"), ((0,), (1,), (2, 4), (3,)), 5)
    assert found.table("x").tolist() == [0, 1, 2, 3, 2, IGNORED]
    assert classes_of(DESCRIPTION).table("x").tolist() == [0, 1, 2, 3]
    overlapping = {"background": 0, "p": [1, 2], "q": [2, 3]}
    assert classes_of({"labels": overlapping}).names == ("background", "p 1", "p 2", "q")
    with pytest.raises(DataError, match="no classes"):
        classes_of({"labels": {"background": 0}})


PARTIAL = Annotations(
    leaves=("left", "right", "liver"),
    sets={"kidney": ("left", "right")},
    sources={"x": CaseSource(("liver",))},
    cases={
        "all": AnnotatedCase("x", ("left", "right", "liver")),
        "liver": AnnotatedCase("x", ("liver",)),
        "coarse": AnnotatedCase("x", ("kidney", "liver")),
    },
)


def test_only_what_a_case_annotates_counts(tmp_path: Path) -> None:
    description = {
        **DESCRIPTION,
        "labels": {"background": 0, "left": 1, "right": 2, "liver": 3, "kidney": 4, "ignore": 5},
    }
    classes = classes_of(description, PARTIAL)
    assert classes.names == ("background", "left", "right", "liver")
    for name, table in (
        ("all", [0, 1, 2, 3, UNKNOWN, IGNORED]),
        ("liver", [UNKNOWN, UNKNOWN, UNKNOWN, 3, UNKNOWN, IGNORED]),
        ("coarse", [0, UNKNOWN, UNKNOWN, 3, UNKNOWN, IGNORED]),
    ):
        assert classes.table(name, PARTIAL).tolist() == table
    with pytest.raises(DataError, match="does not have case 'other'"):
        classes.table("other", PARTIAL)
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[2:5, 2:5, 2:5], labels[6:, 5:, 4:] = 3, 4
    case = write(tmp_path, labels, np.eye(4))
    for name, expected in (("liver", {3}), ("coarse", {0, 3})):
        drawn = draw_points(replace(case, name=name), "SimpleITKIO", description, PARTIAL)
        assert set(drawn.labels) == expected
        assert np.array_equal(in_file(drawn.world, case.needed_label), drawn.labels)
    # A coarse label is no background, and the background beside it is near to something.
    assert FAR not in drawn.regions


def wrong(tmp_path: Path, change: str) -> tuple[RawCase, Mapping[str, Any]]:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[0, 0, 0] = 9 if change == "value" else 1
    case = write(tmp_path, labels, np.eye(4), np.ones((6, 5, 3)) if change == "shape" else None)
    if change == "shape":
        nibabel.save(nibabel.Nifti1Image(np.ones((6, 5, 3), np.float32), np.eye(4)), case.images[0])
    return (replace(case, label=None) if change == "none" else case), DESCRIPTION


def test_a_case_that_cannot_be_drawn_from_is_an_error_of_one_line(tmp_path: Path) -> None:
    for change, message in (
        ("value", "has values that dataset.json does not list: 9"),
        ("shape", "its image"),
        ("none", "has no label"),
    ):
        case, description = wrong(tmp_path, change)
        with pytest.raises(DataError, match=message):
            draw_points(case, "SimpleITKIO", description)
    with pytest.raises(DataError, match="nothing is annotated in case 'x'"):
        draw(np.full((3, 3, 3), IGNORED, np.int16), np.eye(4), "x")


def test_files_without_an_orientation_are_read_as_they_are(tmp_path: Path) -> None:
    labels = anatomy(np.random.default_rng(3))
    case = write(tmp_path, labels, np.eye(4))
    for path in case.files:
        image: Any = nibabel.load(path)
        array = np.asarray(image.dataobj)
        image = nibabel.Nifti1Image(array, None)
        image.header.set_zooms((1.0, 2.0, 3.0))
        nibabel.save(image, path)
    for kind in ("SimpleITKIO", "NibabelIO"):
        drawn = draw_points(case, kind, DESCRIPTION)
        image, found, properties = preprocess(case, [3.0, 2.0, 1.0], "LPS", [0, 1, 2], kind)
        voxels = np.rint(to_grid(drawn.world, properties, [0, 1, 2], image.shape[1:])).astype(int)
        assert np.array_equal(found[0][tuple(voxels.T)], drawn.labels), kind
