"""Tests of engine/segmenter.py: what plans say about resampling and labels is done as in nnU-Net, voxel by voxel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from stunet.errors import DataError
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.inference.products import Products
from stunet.networks import STUNet
from stunet.weights.checkpoints import save_checkpoint
from tests.loops import for_each
from tests.predictor_models import SPACING, STRIDES, make_model, reference, run, same, write_image


def change(folder: Path, resampling: dict[str, Any], dataset: dict[str, Any] | None = None, **plan: Any) -> None:
    """Changes the plans of a model: options of the resampling of logits, dataset.json, and the configuration."""
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"] | plan
    configuration["resampling_fn_probabilities_kwargs"] |= resampling
    plans["configurations"]["3d_fullres"] = configuration
    (folder / "plans.json").write_text(json.dumps(plans))
    content = json.loads((folder / "dataset.json").read_text()) | (dataset or {})
    (folder / "dataset.json").write_text(json.dumps(content))


def image_of(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Path:
    """As write_image, without the rim of zeros and with spacing (D, H, W) in mm."""
    written = sitk.ReadImage(str(write_image(path, shape=shape)))
    voxels = sitk.GetArrayFromImage(written)
    voxels[:2] = voxels[2]
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


@for_each(
    ("shape", "spacing", "resampling"),
    [
        ((13, 25, 15), SPACING, {}),
        ((13, 25, 15), SPACING, {"order": 0}),
        ((7, 19, 15), (6.0, 1.2, 1.5), {}),  # the nearest slice along the first axis
        ((19, 7, 15), (1.2, 6.0, 1.5), {}),
        ((19, 15, 7), (1.2, 1.5, 6.0), {}),
        ((19, 15, 7), (1.2, 1.5, 6.0), {"force_separate_z": False}),
        ((13, 25, 15), SPACING, {"force_separate_z": True}),
        ((19, 15, 7), (1.2, 1.5, 6.0), {"separate_z_anisotropy_threshold": 9}),
        ((17, 16, 16), (1.5, 1.5, 1.5), {}),  # nothing is resampled, and a window has one plane less than the image
        ((13, 25, 15), SPACING, {"order": 3}),  # nnU-Net's own function, with all logits in memory
        ((17, 16, 16), (1.5, 1.5, 1.5), {"order": 3}),
        ((17, 12, 15), (1.5, 1.7, 1.2), {"order": 3}),
        ((19, 15, 7), (1.2, 1.5, 6.0), {"order_z": 1}),
    ],
)
def test_logits_are_resampled_as_the_plans_say(
    tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], resampling: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None, forward=(0, 1, 2))
    change(folder, resampling)
    image = image_of(tmp_path / "in/c_0000.nii.gz", shape, spacing)
    stock = reference(folder, [[image]], tmp_path / "stock")
    run(folder, image, tmp_path / "out")
    same(tmp_path / "out/c.nii.gz", stock / "c.nii.gz")


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "rim": 1}, "regions_class_order": [1, 2, 3]}


@for_each("spacing", [SPACING, (1.5, 1.5, 1.5)])
@for_each("order", [1, 3])
def test_regions_and_their_probabilities_are_nnunets(tmp_path: Path, spacing: tuple[float, ...], order: int) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    change(folder, {"order": order}, REGIONS)
    image = image_of(tmp_path / "in/c_0000.nii.gz", (17, 16, 16), spacing)
    stock = reference(folder, [[image]], tmp_path / "stock", probabilities=True)
    [outcome] = run(folder, image, tmp_path / "out", products=Products(probabilities=True))
    assert outcome.error is None
    ours, theirs = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / place / "c.nii.gz"))) for place in ("out", "stock")
    )
    assert len(np.unique(ours)) > 2
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (np.load(path / "c.npz")["probabilities"] for path in (tmp_path / "out", stock))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    run(folder, image, tmp_path / "labels_only")
    same_file = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels_only/c.nii.gz")))
    np.testing.assert_array_equal(same_file, sitk.GetArrayFromImage(sitk.ReadImage(str(outcome.file))))


def test_more_than_254_classes_become_uint16(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    network = STUNet(1, 300, "T", STRIDES)
    content = {"network_weights": network.state_dict(), "init_args": {"configuration": "3d_fullres", "plans": {}}}
    save_checkpoint(content | {"trainer_name": "nnUNetTrainer"}, folder / "fold_0/checkpoint_final.pth")
    change(folder, {}, {"labels": {"background": 0, **{f"c{n}": n for n in range(1, 300)}}})
    image = image_of(tmp_path / "in/c_0000.nii.gz", (9, 12, 11), (1.5, 1.2, 1.4))
    segmentation = Predictor(open_model(folder), Options(precision="fp32")).predict(image)
    assert segmentation.labels_DHW.dtype == np.uint16
    assert segmentation.labels_DHW.max() > 255
    stock = reference(folder, [[image]], tmp_path / "stock")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(stock / "c.nii.gz")))
    np.testing.assert_array_equal(segmentation.labels_DHW, theirs)


def test_a_small_crop_is_put_back_into_the_whole_image(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    voxels = np.zeros((20, 22, 24), np.float32)
    voxels[5:15, 8:12, 3:21] = np.random.default_rng(0).normal(size=(10, 4, 18))
    image = write_image(tmp_path / "in/c_0000.nii.gz", values=voxels)
    stock = reference(folder, [[image]], tmp_path / "stock", probabilities=True)
    [outcome] = run(folder, image, tmp_path / "out", products=Products(probabilities=True))
    same(outcome.file, stock / "c.nii.gz")
    ours, theirs = (np.load(path / "c.npz")["probabilities"] for path in (tmp_path / "out", stock))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert set(ours[0][voxels == 0]) >= {1.0}


class Overflowing(nn.Module):
    """A network that one voxel is too much for."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, windows_BCDHW: torch.Tensor) -> torch.Tensor:
        logits = windows_BCDHW.repeat(1, 3, 1, 1, 1)
        logits[:, 1, 3, 4, 5] = self.value
        return logits


@for_each("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_and_no_labels(tmp_path: Path, value: float) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    predictor = Predictor(open_model(folder), Options(precision="fp32"))
    predictor._windows.network = ReadyNetwork(Overflowing(value), [], torch.device("cpu"), "fp32")
    with pytest.raises(DataError, match="the network's logits are NaN or infinite") as caught:
        predictor.predict(write_image(tmp_path / "c.nii.gz"))
    assert "fp32" in caught.value.hint
