"""What does extracting features cost, by case: time, CPU time, and peak memory of all processes?

    python benchmarks/features.py IMAGES... --sizes S B

IMAGES are folders of one-channel images. Networks have random weights, a window of 64^3 at 1.5 mm, and get every image
alone and then all of a folder, in fp32; what a start costs is what a folder with one tiny image takes. Results stand in
benchmarks/results/features.json and docs/features.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from measuring import Usage, run
from ranking_reading import make_candidate

from stunet.files import write_json

RESULTS = Path(__file__).parent / "results" / "features.json"
WINDOW, SPACING = (64, 64, 64), 1.5


def extract(images: Path, model: str, work: str) -> Usage:
    """Runs the command over a folder."""
    command = [sys.executable, "-m", "stunet.cli.features", "-i", str(images), "-o", f"{work}/out", "--model", model]
    return run([*command, "-device", "cpu", "--precision", "fp32", "--overwrite", "--disable_progress_bar"])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["S"])
    args = parser.parse_args()
    description = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    found: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as work:
            model = make_candidate(Path(work) / "m", 0, {**description, "numTraining": 1}, WINDOW, SPACING, size)
            tiny = Path(work) / "tiny"
            tiny.mkdir()
            image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
            sitk.WriteImage(image, str(tiny / "tiny_0000.nii.gz"))
            start = extract(tiny, model, work)
            for folder in args.images:
                files = sorted(folder.glob("*.nii.gz"))
                used = extract(folder, model, work)
                shapes = sorted({sitk.ReadImage(str(file)).GetSize() for file in files}, key=lambda s: np.prod(s))
                found.append({
                    "size": size, "images": len(files), "largest": shapes[-1][::-1],
                    "wall_s_per_case": (used.wall_s - start.wall_s) / len(files),
                    "cpu_s_per_case": (used.cpu_s - start.cpu_s) / len(files),
                    "peak_gb": used.peak / 1e9, "peak_gb_of_a_start": start.peak / 1e9,
                })  # fmt: skip
                print(found[-1])
    write_json(RESULTS, found)


if __name__ == "__main__":
    main()
