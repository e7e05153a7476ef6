"""What the tests of prediction share: models with random weights, images, nnU-Net's own prediction, a comparison."""

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from stunet.inference.cases import find_cases
from stunet.inference.model import open_model
from stunet.inference.pipeline import Outcome, Pipeline
from stunet.inference.predictor import Options, Predictor
from stunet.inference.products import Products
from stunet.networks import STUNet
from stunet.weights.checkpoints import save_checkpoint

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
SEED = 3  # gives networks that find every class
SHAPE = (18, 25, 21)  # voxels (D, H, W)
SMALL = (13, 19, 16)  # the same with fewer patches
SPACING = (1.8, 1.2, 1.5)  # mm in array order


def make_model(
    folder: Path,
    folds: Sequence[int | str] = (0,),
    channels: int = 1,
    mirror: tuple[int, ...] | None = (0, 1, 2),
    reader: str = "SimpleITKIO",
    ending: str = ".nii.gz",
    forward: Sequence[int] = (1, 2, 0),
) -> Path:
    """A model folder called TRAINER__PLANS__CONFIGURATION as training leaves it, with random weights."""
    name = folder.name.split("__")[2]
    ndim = 2 if name == "2d" else 3
    strides = [stride[:ndim] for stride in STRIDES]
    forward = forward if ndim == 3 else (0, 1, 2)
    resampling = {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
    } | {
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * ndim,
        "spacing": [1.5] * ndim,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        **resampling,
        "architecture": {
            "network_class_name": "stunet.networks.STUNet",
            "arch_kwargs": {"size": "T", "strides": strides},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Test",
        "plans_name": "STUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(forward),
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(channels)},
        "configurations": {
            "2d": full,
            "3d_fullres": full,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [2.5, 2.5, 2.5]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }
    dataset = {
        "channel_names": {str(i): f"MR{i}" for i in range(channels)},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ending,
        "numTraining": 1,
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    inputs = channels + (2 if "cascade" in name else 0)
    for fold in folds:
        torch.manual_seed(SEED + (fold if isinstance(fold, int) else 99))
        network = STUNet(inputs, 3, "T", strides)
        network.apply(network.initialize)
        content = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": name, "plans": {}, "fold": fold},
            "inference_allowed_mirroring_axes": mirror,
        }
        (folder / f"fold_{fold}").mkdir()
        save_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, values: np.ndarray | None = None) -> Path:
    """Smoothed noise with a rim of zeros, which nnU-Net crops, and with an origin and axes of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 1.5) if values is None else None
    array = sitk.GetArrayFromImage(image) if image is not None else values
    assert array is not None
    array[:2] = 0
    result = sitk.GetImageFromArray(array, isVector=False)
    if array.ndim == 3:
        result.SetSpacing(SPACING[::-1])
        result.SetOrigin((3.0, -7.0, 11.0))
        result.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(result, str(path))
    return path


def write_png(path: Path, shape: tuple[int, ...]) -> None:
    """Noise of (H, W) or (H, W, channels)."""
    values = np.random.default_rng(4).integers(0, 255, shape, np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=len(shape) == 3), str(path))


def write_dicom(folder: Path) -> list[Path]:
    """A CT of 10 slices, 2 mm apart."""
    folder.mkdir()
    paths = []
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    voxels = np.random.default_rng(3).integers(-500, 500, (10, 20, 20)).astype(np.int16)
    for n, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((1.5, 1.5))
        tags = {
            "0008|0060": "CT",
            "0010|0020": "anonymous",
            "0020|000d": "1.2.826.0.1.3680043.2.1125",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0052": "1.2.826.0.1.3680043.2.1125.2",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{n + 1}",
            "0020|0032": f"0\\0\\{2 * n}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(n),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        paths.append(folder / f"slice{n:02d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def reference(folder: Path, inputs: list[list[Path]], out: Path, **options: Any) -> Path:
    """nnU-Net's own prediction of the same model, in this process, with network and logits in float64.

    nnU-Net adds logits in half precision, which decides voxels where two classes are close; `exact=False` leaves it so.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    folds, previous = options.pop("folds", (0,)), options.pop("previous", None)
    probabilities, exact = options.pop("probabilities", False), options.pop("exact", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its search for the trainer imports all of them
        stock = nnUNetPredictor(
            device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False, **options
        )
        stock.initialize_from_trained_model_folder(str(folder), folds)
        if exact:
            stock._internal_predict_sliding_window_return_logits = partial(_exact_logits, stock)
        files = [[str(path) for path in case] for case in inputs]
        stock.predict_from_files_sequential(
            files, str(out), probabilities, True, None if previous is None else str(previous)
        )
    return out


def _exact_logits(stock: Any, image_CDHW: torch.Tensor, slicers: list[tuple], on_device: bool) -> torch.Tensor:
    """What the method of nnU-Net's predictor computes that this stands for, in float64."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    stock.network.double()
    patch, heads = tuple(stock.configuration_manager.patch_size), stock.label_manager.num_segmentation_heads
    gaussian = compute_gaussian(patch, dtype=torch.float64, device=torch.device("cpu"))
    sums = torch.zeros((heads, *image_CDHW.shape[1:]), dtype=torch.float64)
    weights = torch.zeros(image_CDHW.shape[1:], dtype=torch.float64)
    for window in slicers:
        sums[window] += stock._internal_maybe_mirror_and_predict(image_CDHW[window][None].double())[0] * gaussian
        weights[window[1:]] += gaussian
    return sums / weights


def run(
    folder: Path,
    source: Path,
    out: Path,
    folds: Sequence[int | str] | None = None,
    products: Products | None = None,
    **options: Any,
) -> list[Outcome]:
    """Predicts in float32, as nnU-Net does."""
    model = open_model(folder, folds)
    out.mkdir(exist_ok=True)
    predictor = Predictor(model, Options(**{"precision": "fp32", **options}))
    return list(Pipeline(predictor, out, products).run(find_cases(source, model)))


def same(a: Path, b: Path) -> None:
    """Equal voxels, and not a constant image, which would prove nothing; equal geometry."""
    first, second = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    voxels = sitk.GetArrayFromImage(first)
    assert len(np.unique(voxels)) == 3
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(second))
    for geometry_of in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        assert getattr(first, geometry_of)() == getattr(second, geometry_of)()


def network_like(shape: Sequence[int], classes: int, seed: int = 0) -> torch.Tensor:
    """Logits (D, H, W, K) as trained networks have them: steep at smooth borders, flat inside, with a little noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"), -1)
    logits = np.zeros((*shape, classes), np.float32)
    for k in range(1, classes):
        middle, stretch = rng.uniform(0, 1, 3) * shape, rng.uniform(0.6, 1.6, 3)
        distance = np.linalg.norm((grid - middle) * stretch, axis=-1)
        logits[..., k] = np.clip(5 * (rng.uniform(4, 9) - distance), -14, 14)
    logits += gaussian_filter(rng.normal(size=logits.shape), (2, 2, 2, 0)) * 10
    return torch.from_numpy(logits.astype(np.float32))
