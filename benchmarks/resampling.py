"""What do many labels cost in preprocessing, augmentation and online evaluation: nnU-Net's own code beside ours?

    OMP_NUM_THREADS=1 python benchmarks/resampling.py [--repeats 3] [--only image labels ...]

The CT is ct/thorax_1.5mm.nii.gz of the reference data ($STUNET_TEST_DATA, or ../shared/data beside the checkout),
brought to 1 x 0.6 x 0.6 mm; labels are smooth blobs on that grid, given as float32 as nnU-Net's readers do. Each run is
a fresh process with everything imported and the input in memory; times are CPU seconds, memory is how far the peak of
the resident set (VmHWM, which is set back for that) rises beyond what was there before. The results of both sides are
compared. Needs Linux.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import SpatialTransform, nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import zoom

from stunet.preprocessing.case import Preprocessor
from stunet.resampling import resample_image, resample_labels
from stunet.trainers.data.label_rotation import CornerVote
from stunet.trainers.metrics import count_labels

DATA = Path(os.environ.get("STUNET_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FINE_MM = (1.0, 0.6, 0.6)
LABELS = 104  # foreground, as TotalSegmentator v1 has
TASKS = {
    "image": "image, 1.5 mm",
    "image-slices": "image, 5 x 0.6 x 0.6 mm to 3 x 0.8 x 0.8 mm, slices apart",
    "image-finer": "image, 1.5 mm to 1 x 0.6 x 0.6 mm",
    "labels-3": "3 labels",
    "labels-25": "25 labels",
    "labels-104": "104 labels",
    "labels-104-finer": "104 labels, 1.5 mm to 1 x 0.6 x 0.6 mm",
    "case-training": "a case with 104 labels (run_case_npy)",
    "case-prediction": "a case without labels (run_case_npy)",
    "augmentation-1": "augmentation, 1 label",
    "augmentation-25": "augmentation, 25 labels",
    "augmentation-104": "augmentation, 104 labels",
    "augmentation-25-nearest": "augmentation, 25 labels, the nearest voxel's",
    "augmentation-104-nearest": "augmentation, 104 labels, the nearest voxel's",
    "evaluation": "online evaluation, 105 classes, 2 x 64^3",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # task, side, folder: what a fresh process does
    args = parser.parse_args()
    if args.one:
        return measure(*args.one)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print("| | nnunetv2 CPU s | stunet CPU s | ratio | nnunetv2 peak MB | stunet peak MB | equal |")
        print("|---|---:|---:|---:|---:|---:|---|", flush=True)
        for task in args.only:
            compare(task, args.repeats, Path(folder))
    return None


def prepare(folder: Path) -> None:
    """Writes the inputs: the CT on both grids, and labels on both."""
    ct = sitk.GetArrayFromImage(sitk.ReadImage(str(DATA / "ct" / "thorax_1.5mm.nii.gz"))).astype(np.float32)
    fine = tuple(round(n * 1.5 / mm) for n, mm in zip(ct.shape, FINE_MM, strict=True))
    np.save(folder / "ct.npy", ct[None])
    np.save(folder / "fine.npy", resample_image(ct[None], fine, order=1))
    for classes in (1, 3, 25, LABELS):
        labels = blobs(tuple(n // 2 for n in ct.shape), classes)
        np.save(folder / f"labels{classes}.npy", resample_labels(labels, ct.shape)[None].astype(np.float32))
        np.save(folder / f"fine{classes}.npy", resample_labels(labels, fine)[None].astype(np.float32))
        patch = resample_labels(blobs((85, 85, 85), classes), (170, 170, 170))
        np.save(folder / f"patch{classes}.npy", patch[None].astype(np.int16))


def blobs(shape: tuple[int, ...], classes: int) -> np.ndarray:
    """The highest of smooth random fields, one per label; half of the voxels or so are background."""
    generator = np.random.default_rng(0)
    coarse = [max(4, n // 8) for n in shape]
    best, labels = np.full(shape, 1.5 if classes > 1 else 0.0), np.zeros(shape, np.int16)
    for label in range(1, classes + 1):
        field = zoom(generator.normal(size=coarse), np.divide(shape, coarse), order=1, grid_mode=True, mode="nearest")
        labels[field > best] = label
        best = np.maximum(best, field)
    return labels


def compare(task: str, repeats: int, folder: Path) -> None:
    """Runs both sides in turn and prints a row of medians."""
    figures: dict[str, list[list[float]]] = {"stock": [], "ours": []}
    for _ in range(repeats):
        for side, rows in figures.items():
            command = [sys.executable, __file__, "--one", task, side, str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    (stock, stock_mb), (ours, ours_mb) = (
        [statistics.median(column) for column in zip(*rows, strict=True)] for rows in figures.values()
    )
    theirs, own = (np.load(folder / f"result-{side}.npy") for side in figures)
    different = np.mean(theirs != own)
    equal = "yes" if not different else f"{1 - different:.7%}, largest difference {np.abs(theirs - own).max():.1e}"
    row = f"{stock:.2f} | {ours:.3f} | {stock / ours:.0f}x | {stock_mb:.0f} | {ours_mb:.0f} | {equal}"
    print(f"| {TASKS[task]} | {row} |", flush=True)


def measure(task: str, side: str, folder: str) -> None:
    """In a fresh process: one run; prints CPU seconds and MB, and keeps the result."""
    torch.set_num_threads(1)
    work = prepare_task(task, side == "stock", Path(folder))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
    before, started = peak_mb(), time.process_time()
    result = work()
    seconds, peak = time.process_time() - started, peak_mb() - before
    np.save(Path(folder) / f"result-{side}.npy", np.asarray(result))
    print(json.dumps([seconds, peak]))


def peak_mb() -> float:
    """The highest that the resident set of this process has been."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def prepare_task(task: str, stock: bool, folder: Path) -> Callable[[], Any]:
    """The work of one side, with its input in memory."""
    kind, *rest = task.split("-")
    if kind == "image":
        return image_task(rest, stock, folder)
    if kind == "labels":
        return labels_task(int(rest[0]), "finer" in rest, stock, folder)
    if kind == "case":
        return case_task(rest[0] == "training", stock, folder)
    if kind == "augmentation":
        return augmentation_task(int(rest[0]), "nearest" in rest, stock, folder)
    return evaluation_task(stock)


def image_task(options: list[str], stock: bool, folder: Path) -> Callable[[], Any]:
    image, new, axis = np.load(folder / "fine.npy"), np.load(folder / "ct.npy").shape[1:], None
    if options == ["finer"]:
        image, new = np.load(folder / "ct.npy"), image.shape[1:]
    if options == ["slices"]:
        image, axis = np.ascontiguousarray(image[:, ::5]), 0
        new = (round(image.shape[1] * 5 / 3), *(round(n * 0.6 / 0.8) for n in image.shape[2:]))
    if stock:
        return lambda: resample_data_or_seg(image, new, False, axis, 3, axis is not None, order_z=0)
    return lambda: resample_image(image, new, axis)


def labels_task(classes: int, finer: bool, stock: bool, folder: Path) -> Callable[[], Any]:
    labels, new = np.load(folder / f"fine{classes}.npy"), np.load(folder / "ct.npy").shape[1:]
    if finer:
        labels, new = np.load(folder / f"labels{classes}.npy"), labels.shape[1:]
    if stock:
        return lambda: resample_data_or_seg(labels, new, True, None, 1, False, order_z=0)
    return lambda: resample_labels(labels, new)


def case_task(training: bool, stock: bool, folder: Path) -> Callable[[], Any]:
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        **{"preprocessor_name": "DefaultPreprocessor", "architecture": {}, "spacing": [1.5, 1.5, 1.5]},
        **{"normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False]},
        **{f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg")},
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
    }
    intensities = {"mean": 20.0, "std": 200.0, "percentile_00_5": -990.0, "percentile_99_5": 900.0}
    plans = PlansManager(
        {
            **{"transpose_forward": [0, 1, 2], "label_manager": "LabelManager"},
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "configurations": {"3d_fullres": configuration},
        }
    )
    dataset = {"labels": {"background": 0} | {f"label{n}": n for n in range(1, LABELS + 1)}}
    rest = ({"spacing": list(FINE_MM)}, plans, plans.get_configuration("3d_fullres"), dataset)
    image, labels = np.load(folder / "fine.npy"), np.load(folder / f"fine{LABELS}.npy") if training else None
    preprocessor = DefaultPreprocessor(False) if stock else Preprocessor(False, needs_mask=training)
    return lambda: preprocessor.run_case_npy(image, labels, *rest)[0]


def augmentation_task(classes: int, nearest: bool, stock: bool, folder: Path) -> Callable[[], Any]:
    labels = torch.from_numpy(np.load(folder / f"patch{classes}.npy"))
    transform = (SpatialTransform if stock else CornerVote)(
        (128, 128, 128), 0, False, p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1, border_mode_seg="constant", padding_value_seg=-1,
        mode_seg="nearest" if nearest and not stock else "bilinear",
    )  # fmt: skip
    np.random.seed(0)
    parameters = transform.get_parameters(image=torch.zeros(1, *labels.shape[1:]))
    return lambda: transform._apply_to_segmentation(labels, **parameters).numpy()


def evaluation_task(stock: bool) -> Callable[[], Any]:
    """The step without network and loss: the logits are there, and the loss is nothing."""
    torch.manual_seed(0)
    logits = torch.randn(2, LABELS + 1, 64, 64, 64)
    trainer = SimpleNamespace(
        **{"device": torch.device("cpu"), "network": lambda data: logits, "enable_deep_supervision": False},
        loss=lambda output, target: torch.zeros(()),
        label_manager=SimpleNamespace(has_regions=False, has_ignore_label=False, ignore_label=None),
    )
    batch = {"data": torch.zeros(1), "target": torch.randint(0, LABELS + 1, (2, 1, 64, 64, 64), dtype=torch.int16)}
    if not stock:
        return lambda: count_labels(logits, batch["target"], None).numpy()
    step = nnUNetTrainer.validation_step
    return lambda: [step(trainer, batch)[name] for name in ("tp_hard", "fp_hard", "fn_hard")]


if __name__ == "__main__":
    main()
