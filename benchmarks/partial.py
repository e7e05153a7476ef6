"""How good is a network that learned each class from other cases, beside one that learned from complete labels?

    python benchmarks/partial_data.py 4 --targets 11 12 13
    stunet_merge build benchmarks/partial.yaml            # dataset 14
    stunet_merge build benchmarks/partial_sigmoid.yaml    # dataset 15
    stunet_plan_and_preprocess -d 13 14 15 --size T -c 3d_fullres
    python benchmarks/partial.py --seeds 0 1
    python benchmarks/partial.py --seeds 0 1 --steps 400 --posterior 16 -o uneven.json

Trains every arm with every seed, one after the other, validates it on the 40 cases that were held out, and compares
these predictions with the complete labels, which only dataset 13 has. With --posterior so many of the 80 training cases
that annotate the posterior part are left: fold 1. Run again, it goes on where it was ended.
benchmarks/partial.md has the result.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stunet import workspace
from stunet.console import aligned, result
from stunet.evaluation.metrics import confusion
from stunet.files import read_json, write_json
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.settings import parse

COMPLETE = 13
ARMS: Mapping[str, tuple[int, str]] = {  # dataset and trainer
    "naive: what is not annotated is background": (14, "STUNetTrainer"),
    "partition: marginal Dice and cross entropy": (14, "STUNetPartialTrainer"),
    "masked sigmoid": (15, "STUNetPartialTrainer"),
    "complete labels": (COMPLETE, "STUNetTrainer"),
}
VALUES = ["num_epochs=20", "num_val_iterations_per_epoch=2", "initial_lr=0.05", "momentum=0.9", "batch_size=2"]
VALUES += ["patch_size=[32,40,32]", "mirror=none"]  # anterior and posterior differ by where they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=800, help="of 2 patches, in 20 epochs")
    parser.add_argument("--posterior", type=int, help="training cases that annotate the posterior part; default all")
    parser.add_argument("-o", default="partial.json", help="file for the Dice of every run, case and class")
    args = parser.parse_args()
    reference = workspace.preprocessed_dataset(workspace.dataset_name(COMPLETE)) / "gt_segmentations"
    if args.posterior:
        for dataset in {dataset for dataset, _ in ARMS.values()}:
            write_fold(workspace.preprocessed_dataset(workspace.dataset_name(dataset)), args.posterior)
    fold = 1 if args.posterior else 0
    labels = read_json(reference.parent / "dataset.json")["labels"]
    classes = [name for name in labels if name != "background"]
    dice: dict[str, dict[str, dict[str, list[float]]]] = {arm: {} for arm in ARMS}
    for seed in args.seeds:
        for arm, (dataset, trainer) in ARMS.items():
            values = [*VALUES, f"num_iterations_per_epoch={args.steps // 20}", f"seed={seed}"]
            folder = trained(dataset, trainer, fold, values)
            dice[arm][str(seed)] = {path.name: compared(path, reference) for path in sorted(folder.glob("*.nii.gz"))}
            write_json(Path(args.o), {"classes": classes, "steps": args.steps, "dice": dice})
    columns = ["arm", *classes, "mean", "lowest seed", "highest seed"]
    rows = []
    for arm, runs in dice.items():
        by_seed = np.array([np.mean([*cases.values()], axis=0) for cases in runs.values()])
        overall = by_seed.mean(1)
        numbers = [*by_seed.mean(0), overall.mean(), overall.min(), overall.max()]
        rows.append([arm, *(f"{number:.3f}" for number in numbers)])
    for line in aligned(columns, rows):
        result(line)


def write_fold(folder: Path, posterior: int) -> None:
    """Fold 1 is fold 0 with so many of the training cases from the source of the posterior part."""
    first = read_json(folder / "splits_final.json")[0]
    of_source = [case for case in first["train"] if case.startswith("posterior_")]
    left = {case for case in first["train"] if case not in of_source} | set(of_source[:posterior])
    write_json(folder / "splits_final.json", [first, {**first, "train": [c for c in first["train"] if c in left]}])


def trained(dataset: int, trainer: str, fold: int, values: list[str]) -> Path:
    """The folder with the predicted validation cases of a run, which is begun, or continued, or there already."""
    name = workspace.dataset_name(dataset)
    plan = read_plan(plan_path(name, "STUNetPlans_T"))
    dataset_json = read_json(workspace.preprocessed_dataset(name) / "dataset.json")
    plans_name = derive(plan, dataset_json, overrides=parse(values)).name
    folder = workspace.result_folder(name, plans_name, "3d_fullres", trainer) / f"fold_{fold}"
    command = [
        str(Path(sys.executable).with_name("stunet_train")),
        str(dataset),
        "-f",
        str(fold),
        "-tr",
        trainer,
        "-device",
        "cpu",
        "-p",
        "STUNetPlans_T",
    ]
    resume = ["--c"] if any(folder.glob("checkpoint_*.pth")) else []
    subprocess.run([*command, "--set", *values, *resume], check=True)
    return folder / "validation"


def compared(prediction: Path, folder: Path) -> list[float]:
    """The Dice of each class in a case."""
    paths = (folder / prediction.name, prediction)
    counts = confusion(*(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths))
    return [2 * int(counts[k, k]) / int(counts[k].sum() + counts[:, k].sum()) for k in (1, 2)]


if __name__ == "__main__":
    main()
