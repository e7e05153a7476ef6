"""Tests of the Python API of inference/predictor.py: whatever an image is given as, and in a server with threads."""

import json
import locale
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet.errors import DataError, OutOfMemoryError
from stunet.inference.predictor import Options, Predictor
from stunet.results.segmentation import Segmentation
from tests.inference.test_predictor_refusals import UNET
from tests.loops import for_each
from tests.predictor_models import SPACING, make_model, run, write_image

FP32 = Options(precision="fp32")
SHAPE = (13, 25, 15)  # two windows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two channels and two folds."""
    return make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres", folds=(0, 1), channels=2, mirror=(1,))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(model, FP32)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"in/c_000{n}.nii.gz", n, SHAPE) for n in (0, 1)]


def voxels(files: list[Path]) -> np.ndarray:
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files])


def equal(one: Segmentation, other: Segmentation) -> bool:
    assert len(np.unique(one.labels_DHW)) == 3
    return np.array_equal(one.labels_DHW, other.labels_DHW)


def test_files_in_any_form_and_arrays_give_what_the_command_writes(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    [outcome] = run(model, files[0].parent, tmp_path / "out")
    written = sitk.ReadImage(str(outcome.file))
    predictor = Predictor.from_folder(str(model), FP32)
    four = sitk.JoinSeries([sitk.ReadImage(str(file)) for file in files])
    sitk.WriteImage(four, str(tmp_path / "4d.nii.gz"))
    for given in (
        files,
        [str(file) for file in files],
        tuple(files),
        tmp_path / "4d.nii.gz",
        str(tmp_path / "4d.nii.gz"),
    ):
        found = predictor.predict(given)
        np.testing.assert_array_equal(found.labels_DHW, sitk.GetArrayFromImage(written))
        assert (found.origin, found.direction) == (written.GetOrigin(), written.GetDirection())
        np.testing.assert_allclose(found.spacing, SPACING, rtol=1e-6)
        assert found.names == {"a": 1, "b": 2}
    array = voxels(files)
    kept = array.copy()
    windows: list[int] = []
    for given in (array, array.astype(np.float64), np.asfortranarray(array), torch.from_numpy(array).numpy()):
        found = predictor.predict(given, found.spacing, on_window=lambda: windows.append(1))
        np.testing.assert_array_equal(found.labels_DHW, sitk.GetArrayFromImage(written))
        assert found.labels_DHW.dtype == np.uint8
    np.testing.assert_array_equal(array, kept)
    assert windows


def test_an_array_of_integers_and_a_read_only_one_are_images(model: Path) -> None:
    predictor = Predictor(model, FP32)
    array = np.random.default_rng(1).integers(-1000, 1000, (2, *SHAPE), np.int16)
    expected = predictor.predict(array.astype(np.float32), SPACING)
    array.flags.writeable = False
    assert equal(predictor.predict(array, list(SPACING)), expected)
    assert equal(predictor.predict(array, np.array(SPACING)), expected)


@for_each(
    ("shape", "spacing", "what"),
    [
        (SHAPE, SPACING, "an array of shape .*, but the model takes 2 channel"),
        ((3, *SHAPE), SPACING, "an array of shape"),
        ((2, 1, *SHAPE), SPACING, "an array of shape"),
        (SHAPE[1:], SPACING, "an array of shape"),
        ((2, *SHAPE), None, "spacing None of an array"),
        ((2, *SHAPE), (1.0, 1.0), "is not three positive numbers"),
        ((2, *SHAPE), (1.0, 0.0, 1.0), "is not three positive numbers"),
        ((2, *SHAPE), (1.0, -1.0, 1.0), "is not three positive numbers"),
        ((2, *SHAPE), (1.0, np.nan, 1.0), "is not three positive numbers"),
        ((2, *SHAPE), (1.0, np.inf, 1.0), "is not three positive numbers"),
        ((2, *SHAPE), (1e6, 1e6, 1e6), r"the array: 13 x 25 x 15 voxels of 1e\+06 x 1e\+06 x 1e\+06 mm would be"),
        ((2, *SHAPE), (1e-3, 1e-3, 1e-3), r"the array: .* mm would be 0 x 0 x 0 voxels"),
        ((2, 0, 4, 4), SPACING, "no voxels"),
    ],
)
def test_arrays_that_are_no_image_of_the_model_are_refused(
    predictor: Predictor, shape: tuple[int, ...], spacing: Any, what: str
) -> None:
    with pytest.raises((DataError, OutOfMemoryError), match=what) as caught:
        predictor.predict(np.ones(shape, np.float32), spacing)
    assert caught.value.hint


@for_each("value", [np.nan, np.inf, -np.inf])
def test_arrays_with_voxels_that_are_not_finite_are_refused(predictor: Predictor, value: float) -> None:
    array = np.ones((2, *SHAPE), np.float32)
    array[1, 5, 6, 7] = value
    with pytest.raises(DataError, match="NaN or infinite voxels in the array"):
        predictor.predict(array, SPACING)


@for_each("name", ["none.nii.gz", "folder"])
def test_a_path_that_is_no_image_is_named(predictor: Predictor, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=name):
        predictor.predict(tmp_path / name)


def test_threads_that_share_a_predictor_get_what_they_get_one_after_the_other(model: Path) -> None:
    predictor = Predictor(model, FP32)
    shapes = [SHAPE, (31, 14, 17), (12, 20, 40), (16, 16, 16)]
    arrays = [np.random.default_rng(n).normal(size=(2, *shape)).astype(np.float32) for n, shape in enumerate(shapes)]
    expected = [predictor.predict(array, SPACING) for array in arrays]
    ready = threading.Barrier(4)

    def predict(array: np.ndarray) -> Segmentation:
        ready.wait()
        return predictor.predict(array, SPACING)

    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(predict, arrays), expected, strict=True):
            assert equal(one, other)


def test_models_can_be_loaded_and_used_in_several_threads_at_once(model: Path, files: list[Path]) -> None:
    expected = Predictor(model, FP32).predict(files)
    with ThreadPoolExecutor(3) as pool:
        for one in pool.map(lambda _: Predictor(model, FP32).predict(files), range(3)):
            assert equal(one, expected)


def state() -> list[Any]:
    """What belongs to the process and not to us."""
    names = ("deterministic", "benchmark", "enabled")
    return [
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist(),
        [getattr(torch.backends.cudnn, name) for name in names], torch.is_inference_mode_enabled(),
        os.getcwd(), dict(os.environ), random.getstate(), [part.tolist() for part in np.random.get_state()[1:2]],
        locale.setlocale(locale.LC_ALL), np.geterr(), threading.active_count(),
    ]  # fmt: skip


@for_each("ours", [True, False])
def test_nothing_of_the_process_is_changed(tmp_path: Path, ours: bool) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", folds=(0, 1) if ours else (0,), mirror=None)
    image = write_image(tmp_path / "c_0000.nii.gz")
    if not ours:
        use_unet(folder)
    Predictor(folder, FP32).predict(image)  # imports, which change what they like once
    before = state()
    Predictor(folder, FP32).predict(image)
    assert state() == before


def use_unet(folder: Path) -> None:
    """Makes it a model of nnU-Net's own network."""
    from stunet.inference.model import open_model
    from stunet.inference.network import build
    from stunet.weights.checkpoints import load_checkpoint, save_checkpoint

    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"] |= UNET
    (folder / "plans.json").write_text(json.dumps(plans))
    content = load_checkpoint(folder / "fold_0/checkpoint_final.pth")
    network = build(open_model(folder), "3d_fullres")[2]
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # build() leaves that to who loads weights
    content["network_weights"] = network.state_dict()
    save_checkpoint(content, folder / "fold_0/checkpoint_final.pth")
