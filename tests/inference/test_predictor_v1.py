"""nnU-Net v1's order of preprocessing: equal to the steps written out, and not equal to v2's order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.errors import UsageError
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.inference.v1_preprocessing import V1Preprocessor
from tests.loops import for_each
from tests.predictor_models import SHAPE, SPACING, make_model, run, write_image

TARGET = [1.5, 1.5, 1.5]


def image_CDHW() -> np.ndarray:
    """Two channels of noise in a box of zeros: a rim that is cropped, and a hole that is not."""
    generator = np.random.default_rng(0)
    image = np.zeros((2, 12, 14, 16), np.float32)
    image[0, 2:10, 3:13, 1:14] = generator.normal(100, 30, (8, 10, 13))
    image[1, 3:10, 3:12, 1:14] = generator.gamma(2, 50, (7, 9, 13))
    image[:, 2:6, 3:6, 1:5] = 0
    return image


def by_hand(image: np.ndarray, forward: list[int], masked: bool) -> np.ndarray:
    """v1's steps: transpose, crop to what is not zero, resample, then z-score of the whole image or within a mask."""
    image = image.transpose([0, *(axis + 1 for axis in forward)])
    spacing = [SPACING[axis] for axis in forward]
    there = np.nonzero((image != 0).any(0))
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in there)
    image = image[:, *box]
    mask = np.where((image != 0).any(0), 0.0, -1.0)[None]
    shape = [round(n * old / new) for n, old, new in zip(image.shape[1:], spacing, TARGET, strict=True)]
    resampled = resample_data_or_seg_to_shape(image, shape, spacing, TARGET, order=3, order_z=0)
    mask = resample_data_or_seg_to_shape(mask, shape, spacing, TARGET, is_seg=True, order=1, order_z=0)
    inside = mask[0] >= 0 if masked else np.ones(shape, bool)
    result = np.zeros_like(resampled)
    for channel, values in enumerate(resampled):
        result[channel][inside] = (values[inside] - values[inside].mean()) / values[inside].std()
    return result


def preprocessed(kind: type, folder: Path, masked: bool, seg: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Image and segmentation as a preprocessor makes them for the model."""
    model = open_model(folder)
    plan = model.plan.with_configuration("3d_fullres", use_mask_for_norm=[masked] * 2)
    plans = PlansManager(plan.to_json())
    configuration = plans.get_configuration("3d_fullres")
    properties: dict[str, Any] = {"spacing": SPACING}
    return kind(False).run_case_npy(image_CDHW(), seg, properties, plans, configuration, model.dataset)[:2]


@for_each("forward", [[0, 1, 2], [1, 2, 0]])
@for_each("masked", [False, True])
def test_it_crops_and_resamples_before_it_normalises(tmp_path: Path, forward: list[int], masked: bool) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2, forward=forward)
    ours, seg = preprocessed(V1Preprocessor, folder, masked)
    expected = by_hand(image_CDHW(), forward, masked)
    assert ours.shape == expected.shape == (2, *seg.shape[1:])
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    v2 = preprocessed(DefaultPreprocessor, folder, masked)[0]
    assert np.abs(v2 - ours).max() > 0.05


def test_a_segmentation_comes_along_as_in_v2_and_changes_nothing(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2)
    labels = np.random.default_rng(1).integers(0, 3, (1, 12, 14, 16)).astype(np.float32)
    ours, seg = preprocessed(V1Preprocessor, folder, False, labels)
    np.testing.assert_array_equal(seg, preprocessed(DefaultPreprocessor, folder, False, labels)[1])
    np.testing.assert_array_equal(ours, preprocessed(V1Preprocessor, folder, False)[0])


def test_the_option_reaches_the_network_and_is_refused_for_cascades(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    image = write_image(tmp_path / "c_0000.nii.gz", values=np.random.default_rng(2).gamma(2, 50, SHAPE))
    v2, v1 = (run(folder, image, tmp_path / f"out_{order}", v1_preprocessing=order)[0].file for order in (False, True))
    different = sitk.GetArrayFromImage(sitk.ReadImage(str(v2))) != sitk.GetArrayFromImage(sitk.ReadImage(str(v1)))
    assert 0 < different.mean() < 0.5
    cascade = make_model(tmp_path / "T__P__3d_cascade_fullres")
    with pytest.raises(UsageError, match="not for a cascade such as 3d_cascade_fullres"):
        Predictor(open_model(cascade), Options(v1_preprocessing=True))
