"""How long until a training on thousands of cases takes its first step, and what do its data loading processes take?

    python benchmarks/scale.py [--cases 10000] [--workers 2] [--classes 104] [--folder FOLDER]

One preprocessed case under many names (hard links), with an image of the size of TotalSegmentator's median case and
nnU-Net's 10,000 places of each class; beside it a raw dataset of linked small files. Real commands: the time is that
until the training's log says that its first epoch of one step is over, the memory that of each process (proportional
set size, benchmarks/measuring.py) at its highest. The command is then ended. Beside that, in this process: how long it
takes to draw a case, and to draw and augment a sample of a patch of 128 x 128 x 128. Needs Linux.
"""

import argparse
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import blosc2
import measuring
import numpy as np
import SimpleITK as sitk

from stunet.files import read_json, write_json
from stunet.workspace import VARIABLES

DATASET = "Dataset995_Many"
SHAPE = (228, 228, 240)  # voxels: TotalSegmentator's median at 1.5 mm
PLACES = 10_000  # per class, nnU-Net's limit
VALUES = ["num_epochs=1000", "num_iterations_per_epoch=1", "num_val_iterations_per_epoch=1", "batch_size=2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--classes", type=int, default=104)
    parser.add_argument(
        "--patch", type=int, default=64, help="voxels per axis; at 128 a step on two cores takes minutes"
    )
    parser.add_argument("--folder", type=Path, help="where the datasets are made (default: a temporary folder)")
    args = parser.parse_args()
    print(f"{'cases':>7} {'first step s':>13} {'trainer MB':>11} {'worker MB':>10} {'draw us':>8} {'sample CPU s':>13}")
    for cases in args.cases:
        with tempfile.TemporaryDirectory(dir=args.folder) as root:
            make(Path(root), cases, args.classes)
            seconds, trainer, worker = first_step(Path(root), args.workers, args.patch)
            draw, sample = drawing()
        numbers = (
            f"{cases:7} {seconds:13.1f} {trainer / 1e6:11.0f} {worker / 1e6:10.0f} {1e6 * draw:8.1f} {sample:13.2f}"
        )
        print(numbers, flush=True)


def make(root: Path, cases: int, classes: int) -> None:
    """nnU-Net's folders below `root`, with a planned dataset of links."""
    raw, preprocessed = root / "nnUNet_raw" / DATASET, root / "nnUNet_preprocessed" / DATASET
    names = [f"case_{number:06d}" for number in range(cases)]
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed / "data", preprocessed / "gt_segmentations"):
        folder.mkdir(parents=True)
    _write_case(preprocessed / "data", names[0], classes)
    small = str(raw / "small.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8)), small)
    for name in names:
        for path in (raw / "imagesTr" / f"{name}_0000.nii.gz", raw / "labelsTr" / f"{name}.nii.gz"):
            _link(Path(small), path)
        _link(Path(small), preprocessed / "gt_segmentations" / f"{name}.nii.gz")
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            if name != names[0]:
                _link(preprocessed / "data" / f"{names[0]}{ending}", preprocessed / "data" / f"{name}{ending}")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {f"class_{number:03d}": number for number in range(1, classes + 1)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    fingerprint = {
        "spacings": [[1.5, 1.5, 1.5]] * cases,
        "shapes_after_crop": [list(SHAPE)] * cases,
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
        },
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(raw / "dataset.json", description)
    write_json(preprocessed / "dataset.json", description)
    write_json(preprocessed / "dataset_fingerprint.json", fingerprint)
    os.environ.update({name: str(root / name) for name in VARIABLES})
    _plan(preprocessed)


def _plan(preprocessed: Path) -> None:
    """A plan of the planner's for these folders, size T, patch 128 x 128 x 128."""
    code = (
        "from stunet.plans.planner import STUNetPlanner\n"
        f"STUNetPlanner({DATASET!r}, size='T', suppress_transpose=True).plan_experiment()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    path = preprocessed / "STUNetPlans_T.json"
    plans = read_json(path)
    plans["configurations"]["3d_fullres"]["data_identifier"] = "data"
    write_json(path, plans)


def _write_case(folder: Path, name: str, classes: int) -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(1, *SHAPE)).astype(np.float16).astype(np.float32)
    labels = generator.integers(0, classes + 1, (1, *(-(-n // 8) for n in SHAPE)), dtype=np.int8)
    for axis in (1, 2, 3):
        labels = labels.repeat(8, axis)
    labels = np.ascontiguousarray(labels[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]])
    chunks, blocks = (1, 128, 128, 128), (1, 32, 32, 32)
    blosc2.asarray(image, urlpath=str(folder / f"{name}.b2nd"), chunks=chunks, blocks=blocks)
    blosc2.asarray(labels, urlpath=str(folder / f"{name}_seg.b2nd"), chunks=chunks, blocks=blocks)
    places = {
        label: np.column_stack([np.zeros(PLACES, int), *(generator.integers(0, n, PLACES) for n in SHAPE)])
        for label in range(1, classes + 1)
    }
    (folder / f"{name}.pkl").write_bytes(pickle.dumps({"class_locations": places, "spacing": [1.5, 1.5, 1.5]}))


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy, which new links are then made to, where the file has as many as it can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
        os.replace(target, source)
        os.link(source, target)


def first_step(root: Path, workers: int, patch: int) -> tuple[float, int, int]:
    """Seconds until the first epoch of one step is over, and the bytes of the trainer and of its largest worker."""
    command = [sys.executable, "-c", "import sys\nfrom stunet.cli.train import main\nsys.exit(main())"]
    command += [
        "995",
        "3d_fullres",
        "0",
        "-device",
        "cpu",
        "--set",
        *VALUES,
        f"patch_size={[patch] * 3}".replace(" ", ""),
    ]
    environment = {**os.environ, "nnUNet_n_proc_DA": str(workers), "OMP_NUM_THREADS": "1"}
    started, trainer, largest = time.monotonic(), 0, 0
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            trainer = max(trainer, measuring.memory([process.pid]))
            largest = max([largest, *(measuring.memory([pid]) for pid in measuring.descendants(process.pid))])
            logs = list((root / "nnUNet_results").rglob("training_log_*.txt"))
            if logs and "val_loss" in logs[0].read_text():
                return time.monotonic() - started, trainer, largest
            time.sleep(0.2)
        raise SystemExit(process.communicate()[1].decode())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def drawing() -> tuple[float, float]:
    """CPU seconds to draw a case with weights, and to draw and augment a sample of the training."""
    code = (
        "import time, torch\n"
        "from stunet import workspace\n"
        "from stunet.plans.derive import derive\n"
        "from stunet.files import read_json\n"
        "from stunet.plans.files import plan_path, read_plan\n"
        "from stunet.trainers.supervised import STUNetTrainer\n"
        "torch.set_num_threads(1)\n"
        f"plan = read_plan(plan_path({DATASET!r}))\n"
        f"description = read_json(workspace.preprocessed_dataset({DATASET!r}) / 'dataset.json')\n"
        "plans = derive(plan, description, overrides={'patch_size': [128] * 3}).to_json()\n"
        "trainer = STUNetTrainer(plans, '3d_fullres', 0, description, torch.device('cpu'))\n"
        "trainer.initialize()\n"
        "source = trainer.get_dataloaders()[0]._loader.dataset.source\n"
        "source.weigh(range(1, len(source.indices) + 1))\n"
        "source.get_indices()\n"
        "start = time.process_time()\n"
        "for _ in range(10_000):\n"
        "    source.get_indices()\n"
        "middle = time.process_time()\n"
        "for number in range(20):\n"
        "    source.sample(number % 2)\n"
        "print((middle - start) / 10_000, (time.process_time() - middle) / 20)"
    )
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    draw, sample = map(float, done.stdout.splitlines()[-1].split())
    return draw, sample


if __name__ == "__main__":
    main()
