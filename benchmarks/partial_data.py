"""Makes the data of the partial-label experiment: two halves of a dataset, each of which annotates one of its classes.

    python benchmarks/partial_data.py 4 --targets 11 12 13
    stunet_merge build benchmarks/partial.yaml

From dataset 4 (the Decathlon's hippocampus: 200 cases, Anterior and Posterior) it makes 11, half of the cases with
Anterior alone, 12, the other half with Posterior alone, and 13, all cases with both, as an upper bound. Images are
linked. Each has one fold, with a fifth of its cases held out: these stand in imagesTs and labelsTs of 13, with complete
labels, for evaluation. Cases of 13 have the names that they have in the union of 11 and 12 (dataset 14).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from stunet import workspace
from stunet.console import result
from stunet.datasets import RawCase, read_dataset, write_dataset_json
from stunet.files import atomic_folder, read_json, write_json

SOURCES = ("anterior", "posterior")  # their ids in partial.yaml, before the names of cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="number of a dataset with two classes")
    parser.add_argument("--targets", nargs=3, type=int, required=True, help="numbers of the datasets to make")
    parser.add_argument("--seed", type=int, default=0, help="chooses the halves")
    args = parser.parse_args()
    raw = workspace.raw_dataset(workspace.dataset_name(args.source))
    cases = read_dataset(raw)[0]
    order = np.random.default_rng(args.seed).permutation(len(cases))
    halves = [[cases[i] for i in sorted(order[start::2])] for start in range(2)]
    labels = read_json(raw / "dataset.json")["labels"]
    names = [name for name in labels if name != "background"]
    both: dict[str, RawCase] = {}
    for number, name, half, source in zip(args.targets, names, halves, SOURCES, strict=False):
        write(raw, raw.with_name(f"Dataset{number:03d}_Only{name}"), {case.name: case for case in half}, [name])
        both |= {f"{source}_{case.name}": case for case in half}
    write(raw, raw.with_name(f"Dataset{args.targets[2]:03d}_Both"), both, names)


def write(raw: Path, folder: Path, cases: Mapping[str, RawCase], names: Sequence[str]) -> None:
    """A raw dataset of these cases and classes with one fold; every fifth case is held out, of Both also a test set."""
    description = read_json(raw / "dataset.json")
    lookup = np.zeros(256, np.uint8)
    lookup[[description["labels"][name] for name in names]] = range(1, 1 + len(names))
    training, validation = [c for i, c in enumerate(cases) if i % 5], list(cases)[::5]
    with atomic_folder(folder) as part:
        for subset, chosen in (("Tr", list(cases)), ("Ts", validation if len(names) > 1 else [])):
            for name in chosen:
                _place(part, subset, name, cases[name], lookup)
        about = {key: description[key] for key in ("reference", "licence") if key in description}
        channels = {int(number): name for number, name in description["channel_names"].items()}
        values = {name: value for value, name in enumerate(["background", *names])}
        write_dataset_json(part, folder.name[11:], channels, values, len(cases), **about)
        write_json(part / "splits_final.json", [{"train": training, "val": validation}])
    result(f"{folder}: {len(cases)} cases, {len(validation)} of them held out")


def _place(folder: Path, subset: str, name: str, case: RawCase, lookup: np.ndarray) -> None:
    for kind in ("images", "labels"):
        (folder / f"{kind}{subset}").mkdir(exist_ok=True)
    (folder / f"images{subset}" / f"{name}_0000.nii.gz").symlink_to(case.images[0].resolve())
    label = nibabel.load(case.label)
    array = lookup[np.asanyarray(label.dataobj).astype(np.uint8)]
    nibabel.save(nibabel.Nifti1Image(array, label.affine), folder / f"labels{subset}" / f"{name}.nii.gz")


if __name__ == "__main__":
    main()
