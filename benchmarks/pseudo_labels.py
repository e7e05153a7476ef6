"""How right is what a teacher completed? Compares a completed dataset with complete labels of the same cases.

    python benchmarks/pseudo_labels.py 16 13 Posterior --prefix anterior_

Counts voxels over all cases: of the class that was completed, of the ignored ones, and of those that were annotated
before and have changed. `--prefix` stands before the names of the cases in the dataset with complete labels.
"""

import argparse

import nibabel
import numpy as np

from stunet import workspace
from stunet.console import result
from stunet.datasets import read_dataset
from stunet.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completed", help="number of the completed dataset")
    parser.add_argument("complete", help="number of the dataset with complete labels")
    parser.add_argument("classes", metavar="class", help="the class that was completed")
    parser.add_argument("--prefix", default="", help="of the names of cases in the complete dataset")
    args = parser.parse_args()
    folders = [workspace.raw_dataset(workspace.dataset_name(number)) for number in (args.completed, args.complete)]
    values, truths = (read_json(folder / "dataset.json")["labels"] for folder in folders)
    files = {case.name: case.label for case in read_dataset(folders[1])[0]}
    others = [name for name in truths if name in values and name not in ("background", args.classes)]
    both = false = missed = ignored = changed = voxels = 0
    for case in read_dataset(folders[0])[0]:
        own, truth = (np.asanyarray(nibabel.load(p).dataobj) for p in (case.label, files[args.prefix + case.name]))
        seen, there = own == values[args.classes], truth == truths[args.classes]
        unsure = own == values["ignore"]
        both, false = both + int((seen & there).sum()), false + int((seen & ~there).sum())
        missed += int((~seen & there & ~unsure).sum())
        ignored, voxels = ignored + int(unsure.sum()), voxels + own.size
        changed += sum(int(((own == values[name]) != (truth == truths[name])).sum()) for name in others)
    result(f"Dice {2 * both / (2 * both + false + missed):.3f} (ignored voxels left out)")
    result(f"precision {both / (both + false):.3f}, recall {both / (both + missed):.3f}")
    result(f"ignored {ignored / voxels:.2%} of the voxels; annotated voxels that have changed: {changed}")


if __name__ == "__main__":
    main()
