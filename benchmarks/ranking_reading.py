"""What does reading features at points cost: interpolated there, against enlarged maps that are read in a loop?

    python benchmarks/ranking_reading.py points          # a window as in the public code of CC-FV
    python benchmarks/ranking_reading.py scans           # memory of a ranking of scans that are longer and longer
    python benchmarks/ranking_reading.py rank 4 --candidates 12    # a whole ranking of dataset 4

`points`: three layers of a U-Net at 1/4, 1/2 and full resolution of the public window, and 700 points of each of five
classes. That code enlarges each map to the window and reads voxel by voxel; here this is written from its description.
Each side runs in a process of its own, with one thread, and both have to agree to 1e-6 of the largest feature. `rank`
writes random networks of size S, so that nothing but the dataset is needed. Results stand in
benchmarks/results/ranking_reading.json and benchmarks/ranking.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ranking_reading.json"
WINDOW = (64, 144, 112)
LAYERS = ((256, 4), (128, 2), (64, 1))  # channels, and voxels of the window that a value stands for, per axis
CLASSES, POINTS, SEED = 5, 700, 0
SIDES = ("nothing", "points", "enlarged")  # the first makes the maps alone
DEPTHS = (64, 256, 1024)  # slices of a scan of 96 x 96


def maps() -> list[Any]:
    """The maps of a window."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return [torch.randn(channels, *(n // block for n in WINDOW)) for channels, block in LAYERS]


def places() -> np.ndarray:
    """The points (N, 3) in voxels of the window."""
    return np.random.default_rng(SEED).integers(0, WINDOW, (CLASSES * POINTS, 3))


def read(side: str, times: int, output: Path | None) -> None:
    """Reads the points on one side, several times, and prints the CPU time; the last result goes into a file."""
    import torch
    from torch.nn import functional

    from stunet.inference.engine.pooling import Interpolated
    from stunet.inference.engine.windows import Window

    stages, at = maps(), places()
    found: list[Any] = []
    started = time.process_time()
    for _ in range(times):
        if side == "points":
            pool = Interpolated(at)
            ones = [torch.ones(n) for n in WINDOW]
            window = Window([slice(0, n) for n in WINDOW], ones, (0, 0, 0), stages)
            pool.add(window, [(block,) * 3 for _, block in LAYERS])
            found = [values.numpy() for values in pool.means()]
        elif side == "enlarged":
            found = []
            for stage in stages:
                whole = functional.interpolate(stage[None], WINDOW, mode="trilinear")[0]
                found.append(np.stack([whole[:, z, y, x].numpy() for z, y, x in at.tolist()]))
    print(time.process_time() - started)
    if output:
        np.savez(output, *found)


def points() -> dict[str, Any]:
    """Both sides, each in a process of its own, without what makes the maps."""
    from measuring import run

    times = 5
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        used, cpu_s, values = {}, {}, {}
        for side in SIDES:
            file = Path(folder) / f"{side}.npz"
            command = [sys.executable, __file__, "read", side, str(times), str(file)]
            used[side], cpu_s[side] = run(command, environment)
            values[side] = [value for _, value in sorted(np.load(file).items())]
    apart = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(values["points"], values["enlarged"], strict=True)
    )
    assert apart < 1e-6, apart
    found: dict[str, Any] = {"points": CLASSES * POINTS, "window": WINDOW, "largest_difference": apart}
    for side in SIDES[1:]:
        found[side] = {
            "cpu_s": float(cpu_s[side].split()[-1]) / times,
            "peak_gb": (used[side].peak - used["nothing"].peak) / 1e9,
        }
    found["times"] = found["enlarged"]["cpu_s"] / found["points"]["cpu_s"]
    return found


def make_candidate(
    folder: Path, seed: int, description: dict[str, Any], shape: Sequence[int], spacing: float, size: str = "S"
) -> str:
    """Writes a model folder with an STU-Net of random weights, whose window has this shape; returns its path."""
    import torch

    from stunet.files import write_json
    from stunet.networks import STUNet
    from stunet.weights.checkpoints import save_checkpoint
    from stunet.weights.v2 import make_plan

    strides = [[1] * 3, *([2 if n >= 8 * 2**stage else 1 for n in shape] for stage in range(5))]
    plan = make_plan(
        "Dataset001_Random", "3d_fullres", size, strides=strides, spacing=[spacing] * 3, patch_size=list(shape),
        median_shape=list(shape), normalization=["ZScoreNormalization"], mirror_axes=(),
    ).to_json()  # fmt: skip
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", plan)
    write_json(folder / "dataset.json", description)
    torch.manual_seed(seed)
    network = STUNet(1, len(description["labels"]), size, strides)
    network.apply(network.initialize)
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "STUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "plans": plan, "fold": 0},
        "inference_allowed_mirroring_axes": (),
    }
    save_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    return str(folder)


def rank(dataset: str, number: int, cases: int) -> dict[str, Any]:
    """A ranking from the command line to its files, and where its time goes; then the same with all features there."""
    from measuring import run

    from stunet import workspace
    from stunet.files import read_json

    folder = workspace.raw_dataset(workspace.dataset_name(dataset))
    description = read_json(folder / "dataset.json")
    with tempfile.TemporaryDirectory() as work:
        models = [
            make_candidate(Path(work) / f"candidate{n}", n, description, (40, 56, 40), 1.0) for n in range(number)
        ]
        command = [
            sys.executable, "-m", "stunet.cli.rank", "-d", dataset, "-o", f"{work}/out", "--cases", str(cases),
            "-device", "cpu", "--precision", "fp32", "--scores", "ccfv", "probe", "static", "--models", *models,
        ]  # fmt: skip
        first, _ = run(command)
        again, _ = run(command)
        size = sum(path.stat().st_size for path in Path(work, "out/bank").rglob("*.safetensors"))
    return {
        "candidates": number,
        "cases": cases,
        "wall_s": first.wall_s,
        "cpu_s": first.cpu_s,
        "peak_gb": first.peak / 1e9,
        "with_all_features": {"wall_s": again.wall_s, "cpu_s": again.cpu_s, "peak_gb": again.peak / 1e9},
        "bank_gb": size / 1e9,
    }


def scans() -> list[dict[str, Any]]:
    """The memory of a ranking of two scans, which are longer and longer."""
    import SimpleITK as sitk
    from measuring import run

    from stunet.datasets import write_dataset_json

    found = []
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory() as work:
            raw = Path(work) / "raw" / "Dataset001_Long"
            for name in ("imagesTr", "labelsTr"):
                (raw / name).mkdir(parents=True)
            random = np.random.default_rng(SEED)
            for case in range(2):
                image = random.normal(size=(depth, 96, 96)).astype(np.float32)
                labels = np.zeros(image.shape, np.uint8)
                labels[10:40, 20:60, 20:60] = 1
                labels[-20:, 60:80, 60:80] = 2
                for array, path in ((image, f"imagesTr/c{case}_0000.nii.gz"), (labels, f"labelsTr/c{case}.nii.gz")):
                    sitk.WriteImage(sitk.GetImageFromArray(array), str(raw / path))
            write_dataset_json(raw, "Long", {0: "MR"}, {"background": 0, "a": 1, "b": 2}, 2)
            description = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
            model = make_candidate(Path(work) / "model", 0, {**description, "numTraining": 1}, (64, 64, 64), 1.0)
            command = [
                sys.executable, "-m", "stunet.cli.rank", "-d", "1", "-o", f"{work}/out", "-device", "cpu",
                "--precision", "fp32", "--models", model,
            ]  # fmt: skip
            usage, _ = run(command, {**os.environ, "nnUNet_raw": f"{work}/raw", "STUNET_MODELS": f"{work}/store"})
            image_gb = depth * 96 * 96 * 4 / 1e9
            found.append({"slices": depth, "image_gb": image_gb, "peak_gb": usage.peak / 1e9, "cpu_s": usage.cpu_s})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("points")
    actions.add_parser("scans")
    ranking = actions.add_parser("rank")
    ranking.add_argument("dataset")
    ranking.add_argument("--candidates", type=int, default=12)
    ranking.add_argument("--cases", type=int, default=20)
    reading = actions.add_parser("read")
    reading.add_argument("side", choices=SIDES)
    reading.add_argument("times", type=int)
    reading.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.action == "read":
        return read(args.side, args.times, args.output)
    from stunet.files import read_json, write_json

    if args.action == "points":
        found: Any = points()
    else:
        found = scans() if args.action == "scans" else rank(args.dataset, args.candidates, args.cases)
    known = read_json(RESULTS) if RESULTS.is_file() else {}
    write_json(RESULTS, {**known, args.action: found})
    print(found)


if __name__ == "__main__":
    main()
