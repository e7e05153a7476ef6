"""What does a prediction take beside stock nnU-Net: time, and memory of all processes together?

    python benchmarks/inference_models.py --work FOLDER              # once; an hour
    python benchmarks/inference.py --work FOLDER [105 25 5 small] [--repeats 3]

105, 25, 5: so many outputs of size S, a CT of 244x204x224 voxels at 0.75 mm, predicted at 1.5 mm; small: one
hippocampus. nnUNetv2_predict and stunet_predict take turns, each from the shell with its defaults, on the same
checkpoint and file. nnU-Net's export also runs alone, on saved logits (inference_stock.py); ours is a stage of
stunet_predict's report. measuring.py says how time and memory are measured. inference_large.py has what stock cannot
do on a common machine, and inference_network.py the network alone.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import SimpleITK as sitk
from inference_models import CONFIGURATION, RECIPES, add_folders, model_folder, variables
from measuring import run

from stunet.files import atomic_folder, read_json

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
STOCK, OURS = "nnUNetv2_predict", "stunet_predict"
# Ours to stock, at most.
GOALS = {
    "105": {"peak MB": 1 / 5, "export s": 1 / 10, "wall s": 1 / 2},
    "25": {"export s": 1 / 5, "wall s": 1},
    "5": {"export s": 1 / 3, "wall s": 1},
    "small": {"wall s": 1 / 2},
}
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("cases", nargs="*", default=list(GOALS), help=f"default: {' '.join(GOALS)}")
    parser.add_argument("--repeats", type=int, default=1, help="turns of both tools; the medians count (default: 1)")
    parser.add_argument("--threads", type=int, help="of both tools (default: what each takes)")
    parser.add_argument("--disable_tta", action="store_true", help="neither mirrors")
    args = parser.parse_args()
    for name in args.cases:
        compare(name, args)


def compare(name: str, args: argparse.Namespace) -> None:
    """Runs both tools on one case in turn, and prints what they took."""
    images = case_folder(name, args.work, args.data)
    environment = variables(args.work, args.threads)
    options = ["--disable_tta"] if args.disable_tta else []
    taken: dict[str, list[Figures]] = {STOCK: [], OURS: []}
    for _ in range(args.repeats):
        taken[STOCK].append(
            predict(STOCK, name, images, args.work, environment, options)
            | stock_export(name, images, args.work, environment)
        )
        taken[OURS].append(predict(OURS, name, images, args.work, environment, options))
    print(f"\n{name}: {equal_labels(name, args.work):.6f} of the labels equal\n")
    print(f"| {name} | {STOCK} | {OURS} | ratio | goal |\n|---|---:|---:|---:|---:|")
    for key in dict.fromkeys([*taken[STOCK][0], *taken[OURS][0]]):
        stock, ours = ([run[key] for run in taken[tool] if key in run] for tool in (STOCK, OURS))
        ratio = f"{statistics.median(ours) / statistics.median(stock):.3f}" if stock and ours else ""
        goal = f"{GOALS[name][key]:.3f}" if key in GOALS[name] else ""
        columns = [key, *(", ".join(f"{value:.1f}" for value in values) for values in (stock, ours)), ratio, goal]
        print(f"| {' | '.join(columns)} |", flush=True)


def predict(tool: str, name: str, images: Path, work: Path, environment: dict[str, str], options: list[str]) -> Figures:
    """Runs one of the tools from the shell, into an empty folder."""
    out = work / "predictions" / name / tool
    shutil.rmtree(out, ignore_errors=True)
    model, recipe = model_folder(name, work), RECIPES[name]
    trainer, plans, _ = model.name.split("__")
    named = ["-d", str(recipe.number), "-c", CONFIGURATION, "-p", plans, "-tr", trainer, "-f", recipe.fold]
    report = ["--report", f"{out}.json"] if tool == OURS else []
    command = [str(BIN / tool), "-i", str(images), "-o", str(out), *named, "-device", "cpu", *options, *report]
    usage, _ = run(command, environment)
    figures = {"wall s": usage.wall_s, "CPU s": usage.cpu_s, "peak MB": usage.peak / 1e6}
    if report:
        (case,) = read_json(Path(f"{out}.json"))["cases"]
        figures |= {f"{stage} s": seconds for stage, seconds in case["seconds"].items()}
    return figures


def stock_export(name: str, images: Path, work: Path, environment: dict[str, str]) -> Figures:
    """nnU-Net's export alone, of logits that are saved when they are needed first."""
    folder, model = work / "logits" / name, model_folder(name, work)
    script = [sys.executable, str(HERE / "inference_stock.py")]
    if not (folder / "logits.npy").exists():
        _, said = run([*script, "logits", str(model), str(next(images.iterdir())), str(folder)], environment)
        print(said.strip().splitlines()[-1], flush=True)
    usage, said = run([*script, "export", str(model), str(folder)], environment)
    seconds = json.loads(said.strip().splitlines()[-1])
    return {"export s": seconds["wall_s"], "export CPU s": seconds["cpu_s"], "export peak MB": usage.peak / 1e6}


def case_folder(name: str, work: Path, data: Path) -> Path:
    """The folder with the one image of a case, which is made where it is missing."""
    folder = work / "images" / ("hippocampus" if name == "small" else "thorax")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as new:
            if name == "small":
                image = sitk.ReadImage(str(data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"))
            else:
                image = halved(sitk.ReadImage(str(data / "ct" / "thorax_1.5mm.nii.gz")))
            sitk.WriteImage(image, str(new / f"{folder.name}_0000.nii.gz"))
    return folder


def halved(image: sitk.Image) -> sitk.Image:
    """The image with voxels of half the edge, interpolated linearly."""
    size = [2 * count for count in image.GetSize()]
    spacing = [pitch / 2 for pitch in image.GetSpacing()]
    origin = image.TransformContinuousIndexToPhysicalPoint([-0.25] * 3)
    return sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, origin, spacing, image.GetDirection(), -1024, sitk.sitkInt16
    )


def equal_labels(name: str, work: Path) -> float:
    """The fraction of voxels to which both tools gave the same label."""
    one, other = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        for tool in (STOCK, OURS)
        for file in (work / "predictions" / name / tool).glob("*.nii.gz")
    )
    return float((one == other).mean())


if __name__ == "__main__":
    main()
