"""How long does preprocessing take, and how much memory, beside stock nnU-Net with the same plans and workers?

    python benchmarks/preprocessing.py path/to/Task04_Hippocampus --workers 1 2 --repeats 3

Takes a dataset in the format of the Medical Segmentation Decathlon, plans it with stock nnU-Net, and runs both in turn,
each in a fresh process and into an empty folder. Wall and CPU time in seconds, all processes together; memory is their
peak (measuring.py says how). Read next: stunet/preprocessing/.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import run

DATASET = "Dataset904_Benchmark"
CONFIGURATION = "3d_fullres"
OURS = f"""
import sys
from stunet.plans.files import read_plan
from stunet.preprocessing.dataset import preprocess
from stunet.workspace import preprocessed_dataset

if __name__ == "__main__":
    plan = read_plan(preprocessed_dataset({DATASET!r}) / "nnUNetPlans.json")
    preprocess({DATASET!r}, plan, [{CONFIGURATION!r}], int(sys.argv[1]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with dataset.json, imagesTr and labelsTr")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(work) / variable)
        cases = convert(args.source, Path(work) / "nnUNet_raw" / DATASET)
        for command in (["nnUNetv2_extract_fingerprint", "-np", "2"], ["nnUNetv2_plan_experiment"]):
            run(stock(*command))
        print(f"{cases} cases, {CONFIGURATION}\n")
        print(f"{'':16}{'workers':>8}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
        data = Path(work) / "nnUNet_preprocessed" / DATASET / f"nnUNetPlans_{CONFIGURATION}"
        for workers in args.workers:
            compare(data, workers, args.repeats)


def convert(source: Path, target: Path) -> int:
    """Copies a Decathlon dataset of one channel into nnU-Net's raw format; returns the number of cases."""
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
    labels = [path for path in sorted((source / "labelsTr").glob("*.nii.gz")) if not path.name.startswith(".")]
    for label in labels:
        shutil.copy(label, target / "labelsTr")
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(source / "imagesTr" / label.name, target / "imagesTr" / image)
    theirs = json.loads((source / "dataset.json").read_text())
    content = {
        "channel_names": theirs["modality"],
        "labels": {name: int(number) for number, name in theirs["labels"].items()},
        "numTraining": len(labels),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(content))
    return len(labels)


def compare(data: Path, workers: int, repeats: int) -> None:
    """Runs stock and ours in turn, prints each run and the ratios of the medians, and compares the data."""
    commands = {
        "nnUNetv2": stock("nnUNetv2_preprocess", "-c", CONFIGURATION, "-np", str(workers)),
        "stunet": [sys.executable, "-c", OURS, str(workers)],
    }
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    kept = data.with_name("kept")
    for _ in range(repeats):
        for name, command in commands.items():
            shutil.rmtree(data, ignore_errors=True)
            shutil.rmtree(data.parent / "gt_segmentations", ignore_errors=True)
            usage, _ = run(command)
            figures[name].append((usage.wall_s, usage.cpu_s, usage.peak / 1e6))
            print(f"{name:16}{workers:8}" + "{:8.1f}{:8.1f}{:9.0f}".format(*figures[name][-1]), flush=True)
            if name == "nnUNetv2":
                shutil.rmtree(kept, ignore_errors=True)
                data.rename(kept)
    medians = {name: np.median(rows, axis=0) for name, rows in figures.items()}
    ratios = medians["stunet"] / medians["nnUNetv2"]
    print(f"{'stunet/nnUNetv2':16}{workers:8}" + "{:8.2f}{:8.2f}{:9.2f}".format(*ratios))
    print(f"{'':16}{comparison(data, kept)}\n")


def stock(command: str, *options: str) -> list[str]:
    """A command of the nnU-Net that is installed beside this Python."""
    return [str(Path(sys.executable).with_name(command)), "-d", str(int(DATASET[7:10])), *options]


def comparison(ours: Path, theirs: Path) -> str:
    """How two data folders compare: properties and labels to the last bit, images by their largest difference."""
    import blosc2

    names = sorted(path.name for path in theirs.iterdir())
    if names != sorted(path.name for path in ours.iterdir() if path.is_file()):
        return "other cases"
    largest, same = 0.0, True
    for name in names:
        a, b = ours / name, theirs / name
        if name.endswith(".pkl"):
            same &= a.read_bytes() == b.read_bytes()
            continue
        first, second = (blosc2.open(str(path), mode="r")[:] for path in (a, b))
        if name.endswith("_seg.b2nd"):
            same &= np.array_equal(first, second)
        else:
            largest = max(largest, float(np.abs(first - second).max()))
    return f"labels and properties equal: {same}, largest difference of images: {largest:.1e}"


if __name__ == "__main__":
    main()
