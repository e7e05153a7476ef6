"""Resampled datasets have the voxel centres of nnU-Net's preprocessing, and an affine that says so."""

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from stunet.datasets.spacing import new_grid, resample
from stunet.errors import DataError

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 4.0, 11], [0, 0, 0, 1]])


def test_the_grid_covers_the_same_extent_and_is_nnunets_own() -> None:
    shape, affine = new_grid((40, 31, 11), AFFINE, 3.0)
    assert list(shape) == list(compute_new_shape((40, 31, 11), (1.5, 2, 4), (3, 3, 3)))
    for old, new in ((np.full(3, -0.5), np.full(3, -0.5)), (np.array([40, 31, 11]) - 0.5, np.array(shape) - 0.5)):
        np.testing.assert_allclose(affine @ [*new, 1], AFFINE @ [*old, 1])
    pitch = np.linalg.norm(affine[:3, :3], axis=0)
    assert list(compute_new_shape(shape, pitch, (3, 3, 3))) == list(shape)


def test_a_linear_ramp_stays_one_and_labels_stay_labels() -> None:
    x = np.arange(24.0)[:, None, None] * np.ones((24, 8, 8))
    image, labels, affine = resample(
        x.astype(np.int16) * 10, (x > 11).astype(np.uint8) * 117, np.diag([1, 1, 1, 1.0]), 2.0
    )
    assert image.shape == labels.shape == (12, 4, 4)
    assert image.dtype == np.int16
    position = (affine @ [6, 0, 0, 1])[0]
    assert image[6, 2, 2] == pytest.approx(10 * position, abs=1)
    assert set(np.unique(labels)) == {0, 117}
    assert labels[:6].max() == 0


def test_slices_that_are_far_apart_are_not_mixed() -> None:
    image = np.zeros((8, 8, 4), np.float32)
    image[..., 2] = 100
    resampled, _, _ = resample(image, image.astype(np.uint8), np.diag([1, 1, 5, 1.0]), 1.0)
    assert resampled.shape == (8, 8, 20)
    assert set(np.unique(resampled)) == {0, 100}


def test_several_channels_in_a_file_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be resampled"):
        resample(np.zeros((4, 4, 4, 2)), np.zeros((4, 4, 4), np.uint8), np.eye(4), 2)


def test_labels_are_those_of_nnunets_preprocessing_ties_included() -> None:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    labels = np.random.default_rng(0).integers(0, 5, (12, 10, 8)).astype(np.uint8)
    _, ours, _ = resample(labels.astype(np.float32), labels, np.diag([1.5, 1.5, 1.5, 1]), 3.0)
    theirs = resample_data_or_seg_to_shape(
        labels.T[None], (4, 5, 6), [1.5] * 3, [3.0] * 3, is_seg=True, order=1, order_z=0, force_separate_z=None
    )
    np.testing.assert_array_equal(ours.T, theirs[0])
