"""Prepares a pre-training with labels whose cases no fine-tuned network is shown, for benchmarks/selfsupervised/*.toml.

    python benchmarks/finetuning.py 4 5 --seeds 0 1 2 --cases 16

makes dataset 5 from dataset 4 (the Decathlon's hippocampus, planned): the same images by reference, the anterior part
as the only class, and of fold 0's training cases only those that no seed chooses among its `num_cases`. Of fold
0's validation cases 20 are kept, and are in neither. benchmarks/selfsupervised.md has the commands
around it, benchmarks/finetuning.md the result.
"""

import argparse

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.crossval_split import generate_crossval_split

from stunet import workspace
from stunet.console import result
from stunet.datasets import read_dataset, write_dataset_json
from stunet.files import atomic_folder, read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="number of the dataset to fine-tune on")
    parser.add_argument("target", type=int, help="number of the dataset to pre-train on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=16, help="largest num_cases of the comparison")
    parser.add_argument("--held_out", type=int, default=20, help="validation cases of fold 0 to keep")
    args = parser.parse_args()
    source = workspace.dataset_name(args.source)
    write_splits(source, args.held_out)
    labelled = {case for seed in args.seeds for case in chosen(training_cases(source), seed, args.cases)}
    left = sorted(set(training_cases(source)) - labelled)
    raw = workspace.raw_dataset(source)
    target = raw.with_name(f"Dataset{args.target:03d}_Anterior")
    cases = {case.name: case for case in read_dataset(raw)[0]}
    with atomic_folder(target) as folder:
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir()
        for name in left:
            (folder / "imagesTr" / f"{name}_0000.nii.gz").symlink_to(cases[name].images[0].resolve())
            label = sitk.ReadImage(str(cases[name].label))
            sitk.WriteImage(sitk.Cast(label == 1, sitk.sitkUInt8), str(folder / "labelsTr" / f"{name}.nii.gz"))
        channels = {int(number): name for number, name in read_json(raw / "dataset.json")["channel_names"].items()}
        write_dataset_json(folder, target.name, channels, {"background": 0, "Anterior": 1}, len(left))
    result(f"{target}: {len(left)} cases; {len(labelled)} are left for fine-tuning")


def write_splits(dataset: str, held_out: int) -> None:
    """Writes nnU-Net's own split, with fewer validation cases in fold 0: every second one of 40, for 20."""
    names = sorted(case.name for case in read_dataset(workspace.raw_dataset(dataset))[0])
    folds = [dict(fold) for fold in generate_crossval_split(names, seed=12345, n_splits=5)]
    validation = sorted(map(str, folds[0]["val"]))
    folds[0]["val"] = validation[:: max(1, len(validation) // held_out)][:held_out]
    write_json(workspace.preprocessed_dataset(dataset) / "splits_final.json", folds)


def training_cases(dataset: str) -> list[str]:
    """Fold 0's training cases."""
    return sorted(map(str, read_json(workspace.preprocessed_dataset(dataset) / "splits_final.json")[0]["train"]))


def chosen(training: list[str], seed: int, count: int) -> list[str]:
    """The cases that `--set num_cases=COUNT seed=SEED` trains on, as trainers/trainer.py chooses them."""
    return list(np.random.default_rng(seed).permutation(sorted(training))[:count])


if __name__ == "__main__":
    main()
