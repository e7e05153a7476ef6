"""Are the numbers of evaluation/metrics.py right: published values, closed forms, slow references and identities."""

from itertools import product
from math import isnan, nan, pi, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter

from stunet.evaluation.metrics import compare, confusion
from stunet.evaluation.surface_elements import sizes
from stunet.evaluation.surfaces import surface_distances
from tests.loops import for_each

ONE = {"a": (1,)}


def box(shape: tuple[int, ...], *slices: slice) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[slices] = 1
    return labels


def noise(seed: int, shape: tuple[int, ...], top: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=np.uint8)


def ball(radius_mm: float, spacing: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(shape, spacing, strict=True)]
    return sum(a**2 for a in np.ix_(*axes)) < radius_mm**2


def slow_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[np.ndarray, float]]:
    """Every corner of the surface in mm and its area, one corner at a time."""
    area_of = sizes(spacing)
    found = []
    ndim = mask.ndim
    for corner in product(*(range(n + 1) for n in mask.shape)):
        around = np.zeros((2,) * ndim)
        for side in product((0, 1), repeat=ndim):
            voxel = tuple(c - 1 + s for c, s in zip(corner, side, strict=True))
            if all(0 <= v < n for v, n in zip(voxel, mask.shape, strict=True)):
                around[side] = mask[voxel]
        if 0 < around.sum() < 2**ndim:
            code = int("".join(str(int(inside)) for inside in around.ravel()), 2)
            found.append((np.array(corner) * spacing, area_of[code]))
    return found


def slow_nsd(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> float:
    near = total = 0.0
    surfaces = slow_surface(a, spacing), slow_surface(b, spacing)
    for mine, theirs in (surfaces, surfaces[::-1]):
        for point, area in mine:
            total += area
            near += area * (min(np.linalg.norm(point - other) for other, _ in theirs) <= tolerance)
    return near / total


# Expected values: surface_distance_test.py of github.com/google-deepmind/surface-distance, by the metric's authors.
def test_published_example_of_two_pixels_is_reproduced() -> None:
    reference, prediction = box((128, 128), 50, 70), box((128, 128), 50, 72)
    distances = surface_distances(reference == 1, prediction == 1, (2, 1))
    assert sorted(distances.reference_mm) == sorted(distances.prediction_mm) == [1, 1, 2, 2]
    np.testing.assert_allclose(distances.reference_area, 0.5 * sqrt(2**2 + 1**2))
    assert (distances.nsd(1), distances.hausdorff(0.95)) == (0.5, 2.0)


def test_published_contour_lengths_of_a_square_are_reproduced() -> None:
    square = box((6, 6), slice(1, 3), slice(1, 3)) == 1
    lengths = surface_distances(square, square, (2, 1)).reference_area
    corner = 0.5 * sqrt(2**2 + 1**2)
    np.testing.assert_allclose(sorted(lengths), sorted([corner, 1, corner, 2, corner, 1, corner, 2]))


def test_published_example_of_two_voxels_is_reproduced() -> None:
    shape = (128, 128, 128)
    values = compare(box(shape, 50, 60, 70), box(shape, 50, 60, 72), ONE, (3, 2, 1), 1.0)["a"]
    assert (values["NSD"], values["HD95_mm"], values["Dice"]) == (pytest.approx(0.5), 2.0, 0.0)


def test_published_example_of_two_blocks_is_reproduced() -> None:
    shape = (100, 100, 100)
    reference, prediction = box(shape, slice(50)), box(shape, slice(51))
    values = compare(reference, prediction, ONE, (2, 1, 1), 1.0)["a"]
    assert values["NSD"] == pytest.approx(0.836, abs=5e-4)
    assert values["HD95_mm"] == 2.0
    assert values["Dice"] == pytest.approx(0.990, abs=5e-4)
    distances = surface_distances(reference == 1, prediction == 1, (2, 1, 1))
    means = [
        np.average(distances.reference_mm, weights=distances.reference_area),
        np.average(distances.prediction_mm, weights=distances.prediction_area),
    ]
    np.testing.assert_allclose(means, (0.322, 0.339), atol=5e-4)


@for_each("axis", [0, 1, 2])
def test_a_shifted_cube_is_off_by_shift_times_spacing_of_its_axis(axis: int) -> None:
    spacing = (2.5, 0.7, 1.1)
    inside = [slice(4, 14)] * 3
    moved = [slice(7, 17) if a == axis else s for a, s in enumerate(inside)]
    reference, prediction = box((20, 20, 20), *inside), box((20, 20, 20), *moved)
    shift = 3 * spacing[axis]
    assert compare(reference, prediction, ONE, spacing)["a"]["HD95_mm"] == pytest.approx(shift)
    assert compare(reference, prediction, ONE, spacing, shift)["a"]["NSD"] == 1
    assert compare(reference, prediction, ONE, spacing, shift - 0.01)["a"]["NSD"] < 0.95


def test_concentric_balls_are_as_far_apart_as_their_radii_differ() -> None:
    spacing, shape = (2.0, 0.8, 1.0), (30, 70, 56)
    small, large = (ball(r, spacing, shape) for r in (18.0, 24.0))
    distances = surface_distances(small, large, spacing)
    assert distances.hausdorff(0.5) == pytest.approx(6, abs=1)
    assert distances.hausdorff(0.95) == pytest.approx(6, abs=max(spacing))
    assert (distances.nsd(3.0), distances.nsd(8.5)) == (0, 1)


def test_the_area_of_a_ball_is_that_of_a_sphere_within_an_eighth() -> None:
    spacing = (1.0, 0.5, 0.8)
    mask = ball(15.0, spacing, (36, 70, 44))
    assert surface_distances(mask, mask, spacing).reference_area.sum() == pytest.approx(4 * pi * 15**2, rel=0.125)


@for_each(("shape", "spacing"), [((4, 5, 3), (3.0, 0.9, 1.4)), ((7, 6), (0.5, 2.0))])
def test_nsd_equals_a_loop_over_all_pairs_of_corners(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    for seed in range(3):
        a, b = noise(seed, shape), noise(seed + 10, shape) & noise(seed + 20, shape)
        expected = slow_nsd(a, b, spacing, 1.0)
        assert 0 < expected < 1
        assert compare(a, b, ONE, spacing, 1.0)["a"]["NSD"] == pytest.approx(expected)


def test_distances_equal_a_distance_transform_of_the_corner_grid() -> None:
    spacing = (3.0, 1.0, 0.6)
    a, b = box((9, 12, 14), slice(2, 7), slice(3, 9), slice(1, 8)) == 1, ball(5, spacing, (9, 12, 14))
    corners = np.ones((10, 13, 15), bool)
    for point, _ in slow_surface(b, spacing):
        corners[tuple(np.rint(point / spacing).astype(int))] = False
    transform = distance_transform_edt(corners, sampling=spacing)
    expected = [transform[tuple(np.rint(point / spacing).astype(int))] for point, _ in slow_surface(a, spacing)]
    np.testing.assert_allclose(surface_distances(a, b, spacing).reference_mm, expected)


def test_hausdorff_percentile_weighs_area_and_takes_the_worse_direction() -> None:
    far = box((40, 6, 6), slice(0, 5)) | box((40, 6, 6), slice(38, 40), slice(2, 4), slice(2, 4))
    near = box((40, 6, 6), slice(0, 5))
    distances = surface_distances(far == 1, near == 1, (1, 1, 1))
    island = distances.reference_mm > 30
    share = 1 - distances.reference_area[island].sum() / distances.reference_area.sum()
    assert distances.hausdorff(share - 0.01) == 0
    assert distances.hausdorff(share + 0.01) >= 33


def test_counts_equal_comparisons_of_masks() -> None:
    a, b = noise(1, (5, 6, 7), 3), noise(2, (5, 6, 7), 3)
    table = confusion(a, b)
    assert table.shape == (4, 4)
    for i, j in product(range(4), repeat=2):
        assert table[i, j] == np.sum((a == i) & (b == j))


def test_volumes_are_in_ml() -> None:
    values = compare(box((10, 10, 10), slice(4)), box((10, 10, 10), slice(7)), ONE, (2.0, 5.0, 0.5))["a"]
    assert (values["ref_ml"], values["pred_ml"]) == (pytest.approx(400 * 5 / 1000), pytest.approx(700 * 5 / 1000))


def test_a_class_that_neither_has_is_undefined() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    values = compare(empty, empty, ONE, (1, 1, 1))["a"]
    assert all(isnan(values[metric]) for metric in ("Dice", "IoU", "NSD", "HD95_mm"))
    assert (values["TN"], values["ref_ml"]) == (64, 0)


def test_a_class_that_only_one_has_is_zero_and_infinitely_far() -> None:
    empty, full = np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8)
    for pair in ((empty, full), (full, empty)):
        values = compare(*pair, ONE, (1, 1, 1))["a"]
        assert (values["Dice"], values["IoU"], values["NSD"]) == (0, 0, 0)
        assert isnan(values["HD95_mm"])
        assert surface_distances(pair[0] == 1, pair[1] == 1, (1, 1, 1)).hausdorff(0.95) == np.inf


def test_a_region_equals_the_class_that_its_labels_make_together() -> None:
    a, b = noise(3, (8, 8, 8), 3), noise(4, (8, 8, 8), 3)
    merged = [np.isin(x, (1, 3)).astype(np.uint8) for x in (a, b)]
    assert compare(a, b, {"a": (1, 3)}, (1, 2, 3)) == compare(*merged, ONE, (1, 2, 3))
    holes = [np.isin(x, (0, 2)).astype(np.uint8) for x in (a, b)]
    assert compare(a, b, {"a": (0, 2)}, (1, 2, 3)) == compare(*holes, ONE, (1, 2, 3))


def test_what_lies_under_the_ignore_label_changes_nothing() -> None:
    reference, prediction = noise(5, (8, 8, 8), 2), noise(6, (8, 8, 8), 1)
    other = np.where(reference == 2, 1 - prediction, prediction)
    assert (other != prediction).any()
    result = compare(reference, prediction, ONE, (1, 1, 1), ignore=2)
    assert result == compare(reference, other, ONE, (1, 1, 1), ignore=2)
    assert sum(result["a"][count] for count in ("TP", "FP", "FN", "TN")) == np.sum(reference != 2)


def test_a_volume_of_one_slice_has_the_surfaces_of_an_image() -> None:
    a, b = noise(7, (9, 9)), noise(8, (9, 9))
    flat = compare(a, b, ONE, (0.5, 2.0))["a"]
    thick = compare(a[:, None], b[:, None], ONE, (0.5, 7.0, 2.0))["a"]
    assert {**thick, "ref_ml": nan, "pred_ml": nan} == pytest.approx(flat, nan_ok=True)
    assert isnan(flat["ref_ml"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
def test_padding_changes_nothing_and_other_axes_only_the_areas(seed: int, before: int, after: int) -> None:
    a, b = noise(seed, (4, 5, 6), 2), noise(seed + 1, (4, 5, 6), 2)
    classes = {"a": (1,), "b": (2,)}
    expected = compare(a, b, classes, (3, 1, 2))
    padded = [np.pad(x, (before, after)) for x in (a, b)]
    for name, values in compare(*padded, classes, (3, 1, 2)).items():
        assert values.pop("TN") - expected[name]["TN"] == padded[0].size - a.size
        assert values == pytest.approx({metric: expected[name][metric] for metric in values}, nan_ok=True)
    # The triangles of a code are not those of the turned code, here and in the reference implementation.
    turned = compare(*(x.transpose(2, 0, 1) for x in (a, b)), classes, (2, 3, 1))
    for name, values in turned.items():
        assert values.pop("NSD") == pytest.approx(expected[name]["NSD"], abs=0.1)
        values.pop("HD95_mm")
        assert values == pytest.approx({metric: expected[name][metric] for metric in values}, nan_ok=True)
    swapped = compare(b, a, classes, (3, 1, 2))
    for name, values in swapped.items():
        assert [values[m] for m in ("Dice", "NSD")] == pytest.approx([expected[name][m] for m in ("Dice", "NSD")])
        assert (values["FP"], values["HD95_mm"]) == (expected[name]["FN"], expected[name]["HD95_mm"])


def shapes(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two overlapping smooth or ragged masks and an anisotropic spacing; every fourth pair is an image."""
    rng = np.random.default_rng(seed)
    ndim = 2 if seed % 4 == 3 else 3
    shape, spacing = rng.integers(4, 13, ndim), rng.uniform(0.4, 4.0, ndim).round(3)
    masks = []
    for _ in range(2):
        field = rng.random(shape)
        field = gaussian_filter(field, 1.0) if seed % 2 else field
        mask = field > np.quantile(field, rng.uniform(0.3, 0.9))
        mask.flat[rng.integers(mask.size)] = True
        masks.append(mask)
    return masks[0], masks[1], tuple(spacing.tolist())


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.* namespace is deprecated")
def test_surfaces_equal_the_reference_implementation() -> None:
    reference: Any = pytest.importorskip("surface_distance", reason="pip install surface-distance")
    for seed in range(60):
        a, b, spacing = shapes(seed)
        theirs, ours = reference.compute_surface_distances(a, b, spacing), surface_distances(a, b, spacing)
        for tolerance in (0.5, spacing[0], 3 * spacing[-1]):
            expected = reference.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert ours.nsd(tolerance) == pytest.approx(expected, abs=1e-12)
        for percent in (50, 95, 100):
            expected = reference.compute_robust_hausdorff(theirs, percent)
            assert ours.hausdorff(percent / 100) == pytest.approx(expected, abs=1e-12)


# NSD at 1 mm, HD95 in mm and area of the first surface in mm2 by surface-distance 0.1 for shapes(seed).
GOLDEN = {
    0: (0.9924953823987522, 0.548, 1020.4595093141287),
    1: (0.819796314201366, 3.046, 1651.7345444656203),
    3: (0.5204479440121913, 3.5158546613874697, 61.85069195248722),
    5: (0.8462058393854907, 1.782, 630.6806541954644),
}


@for_each("seed", GOLDEN)
def test_surfaces_have_the_values_that_the_reference_implementation_gave(seed: int) -> None:
    distances = surface_distances(*shapes(seed))
    found = (distances.nsd(1.0), distances.hausdorff(0.95), distances.reference_area.sum())
    assert found == pytest.approx(GOLDEN[seed], rel=1e-12)


def test_ignored_voxels_are_in_no_region_not_even_in_one_with_the_background() -> None:
    reference = np.ones((6, 6, 6), np.uint8)
    reference[:3], reference[5] = 0, 3
    found = compare(reference, reference % 3, {"outside": (0,), "region": (0, 1)}, (1.0, 1.0, 1.0), ignore=3)
    for values in found.values():
        assert (values["Dice"], values["NSD"], values["HD95_mm"]) == (1.0, 1.0, 0.0)
