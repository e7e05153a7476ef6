"""How much memory does a large CT need with 105 outputs, and how much more does one that is twice as long?

    python benchmarks/inference_large.py --work FOLDER [--lengths 300 600] [--edge 512]

CT of 512x512 voxels of 0.8 mm in slices of 1 mm, predicted at 1.5 mm by stunet's pipeline with the model of 105
outputs, in which a stand-in takes the network's place (inference_standin.py); each in a process of its own. Stock does
not fit into a common machine: what its export needs is computed. The goals are 6 GB for 600 slices, and a growth of
15 % where the image and the result themselves (float32 and 8 bits) are not counted.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from inference_models import add_folders, model_folder, variables
from inference_standin import CLASSES, SPACING_XYZ
from measuring import Usage, run

SCRIPT = [sys.executable, str(Path(__file__).with_name("inference_standin.py"))]
MODEL_SPACING = 1.5
BYTES_PER_VOXEL = 4 + 1  # of the image that is read, and of the segmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--lengths", nargs="+", type=int, default=[300, 600], help="slices (default: 300 600)")
    parser.add_argument("--edge", type=int, default=512, help="voxels of a slice (default: 512)")
    parser.add_argument("--threads", type=int, help="default: what the predictor takes")
    args = parser.parse_args()
    print(
        "| CT | wall s | CPU s | peak GB | image and result GB | stock GB, computed |\n|---|---:|---:|---:|---:|---:|"
    )
    peaks = []
    for length in args.lengths:
        shape = (length, args.edge, args.edge)
        usage = predict(shape, args.work, args.threads)
        volumes = BYTES_PER_VOXEL * np.prod(shape) / 1e9
        peaks.append((usage.peak / 1e9, volumes))
        row = f"{usage.wall_s:.0f} | {usage.cpu_s:.0f} | {usage.peak / 1e9:.2f} | {volumes:.2f} | {stock_gb(shape):.0f}"
        print(f"| {args.edge}x{args.edge}x{length} | {row} |", flush=True)
    (short, short_volumes), (long, long_volumes) = peaks[0], peaks[-1]
    growth = (long - short - (long_volumes - short_volumes)) / short
    print(f"growth from {args.lengths[0]} to {args.lengths[-1]} slices, beyond image and result: {100 * growth:.1f} %")


def predict(shape: tuple[int, int, int], work: Path, threads: int | None) -> Usage:
    """Predicts a synthetic CT of this shape (D, H, W), which is made where it is missing."""
    model, environment = model_folder("105", work), variables(work, threads)
    file = work / "images" / f"synthetic_{'x'.join(map(str, shape))}.nii.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        run([*SCRIPT, "image", str(model / "plans.json"), str(shape[0]), str(shape[1]), str(file)], environment)
    usage, said = run([*SCRIPT, "predict", str(model), str(file), str(work / "predictions" / "standin")], environment)
    print(said.strip().splitlines()[-1], file=sys.stderr, flush=True)
    return usage


def stock_gb(shape: tuple[int, int, int]) -> float:
    """What nnU-Net's export of logits needs at its peak, beside the process itself.

    It holds the logits in float16 on both grids. While it interpolates, those of the network's grid are there in
    float64 too; after that, numpy's argmax over the first axis copies those of the image's grid.
    """
    voxels = np.prod(shape, dtype=float)
    low = voxels * np.prod(SPACING_XYZ) / MODEL_SPACING**3
    return CLASSES * (2 * low + 2 * voxels + max(8 * low, 2 * voxels)) / 1e9


if __name__ == "__main__":
    main()
