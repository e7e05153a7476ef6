"""Makes one class rare: most training cases are cut so that they show the other class alone.

    python benchmarks/rare.py 4 6 --seeds 0 1 2 --cases 8 --keep 2

makes dataset 6 from dataset 4 (the Decathlon's hippocampus, planned): the same cases, but of fold 0's training cases
only those keep the posterior part that a seed chooses first, `keep` for each seed. The others are cut behind it, image
and label alike. Held-out cases are whole. benchmarks/selfsupervised.md has the commands around it and the result.
"""

import argparse

import numpy as np
import SimpleITK as sitk
from finetuning import chosen, training_cases

from stunet import workspace
from stunet.console import result
from stunet.datasets import read_dataset, write_dataset_json
from stunet.files import atomic_folder, read_json

RARE = 2  # the posterior part, which lies on one side of the anterior one along AXIS
AXIS = 1  # of the array: anterior to posterior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="number of the planned dataset")
    parser.add_argument("target", type=int, help="number of the dataset to make")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=8, help="num_cases of the comparison")
    parser.add_argument("--keep", type=int, default=2, help="of these, how many keep the class")
    args = parser.parse_args()
    source = workspace.dataset_name(args.source)
    training = training_cases(source)
    whole = {case for seed in args.seeds for case in chosen(training, seed, args.cases)[: args.keep]}
    raw = workspace.raw_dataset(source)
    target = raw.with_name(f"Dataset{args.target:03d}_Rare")
    cases = read_dataset(raw)[0]
    with atomic_folder(target) as folder:
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir()
        for case in cases:
            image, label = (sitk.ReadImage(str(path)) for path in (case.images[0], case.label))
            if case.name in training and case.name not in whole:
                first = 1 + int(np.nonzero((sitk.GetArrayViewFromImage(label) == RARE).any((0, 2)))[0].max())
                image, label = image[:, first:, :], label[:, first:, :]
            sitk.WriteImage(image, str(folder / "imagesTr" / f"{case.name}_0000.nii.gz"))
            sitk.WriteImage(label, str(folder / "labelsTr" / f"{case.name}.nii.gz"))
        given = read_json(raw / "dataset.json")
        channels = {int(number): name for number, name in given["channel_names"].items()}
        write_dataset_json(folder, target.name, channels, given["labels"], len(cases))
    result(f"{target}: {len(training) - len(whole)} of {len(training)} training cases lack class {RARE}")


if __name__ == "__main__":
    main()
