"""What does each method of self-supervised pre-training learn, and what is it worth with few labelled cases?

    python benchmarks/selfsupervised.py prepare 4 50     # dataset 4 planned (size T); 50: its images without labels
    python benchmarks/selfsupervised.py pretrain 50      # every method, one after the other; goes on where it stopped
    python benchmarks/selfsupervised.py table            # what benchmarks/results/selfsupervised.json says
    python benchmarks/selfsupervised.py link FOLDER      # links to the models by method, for selfsupervised/*.toml

`prepare` links the images that fold 0 does not hold out (finetuning.py writes that fold) into dataset 50. `pretrain`
runs stunet_pretrain for each method with the same steps, patch and batch, and adds to the results after each.
benchmarks/selfsupervised.md has the commands around it and the result.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from finetuning import write_splits

import stunet
from stunet import workspace
from stunet.cli.live import TrainingProgress
from stunet.cli.shown import Shown
from stunet.console import note, table
from stunet.datasets import read_dataset
from stunet.files import read_json, write_json
from stunet.runs.pretraining import PretrainingRequest, pretrain
from stunet.trainers.pretexts.methods import METHODS

RESULTS = Path(__file__).parent / "results" / "selfsupervised.json"
HELD_OUT = 20  # of fold 0's validation cases, which no pre-training sees
# The patch is inside every scan (the smallest has 24 x 40 x 31 voxels), so nothing is padded.
SET = {
    "patch_size": [24, 40, 24],
    "batch_size": 8,
    "num_epochs": 12,
    "num_iterations_per_epoch": 50,
    "num_val_iterations_per_epoch": 4,
    "momentum": 0.9,
    "initial_lr": 0.1,  # times the method's own share; with this momentum the same as nnU-Net's 0.01 with 0.99
}


class Progress(TrainingProgress):
    """Shows a training, and remembers the loss of its first step."""

    first: float | None = None

    def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
        if self.first is None and trainer.current_epoch == 0 and phase == "train" and done == 1:
            self.first = loss
        super().step(trainer, phase, done, loss)


class Watching(Shown):
    """Shows a run with the progress above."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = Progress()

    def training(self) -> Progress:
        return self.shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("source", help="number of the labelled dataset")
    preparing.add_argument("target", type=int, help="number of the dataset of its images")
    pretraining = commands.add_parser("pretrain")
    pretraining.add_argument("dataset", type=int)
    pretraining.add_argument("--methods", nargs="+", default=list(METHODS))
    pretraining.add_argument("--size", default="T")
    pretraining.add_argument("--set", nargs="+", default=[], help="other values, e.g. num_epochs=2 for a trial")
    commands.add_parser("table")
    commands.add_parser("link").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.source, args.target)
    elif args.command == "pretrain":
        given = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
        for method in args.methods:
            rate = SET["initial_lr"] * METHODS[method].rate
            measure(args.dataset, method, args.size, {**SET, "initial_lr": rate, **given})
    elif args.command == "link":
        link(args.folder)
    else:
        show()


def prepare(source: str, target: int) -> None:
    """Links the images that are not held out into a folder, from which stunet_convert makes the unlabelled dataset."""
    name = workspace.dataset_name(source)
    write_splits(name, HELD_OUT)
    held_out = set(read_json(workspace.preprocessed_dataset(name) / "splits_final.json")[0]["val"])
    folder = Path(os.environ["nnUNet_raw"]) / f"images_of_{name}"
    folder.mkdir(exist_ok=True)
    for case in read_dataset(workspace.raw_dataset(name))[0]:
        link = folder / f"{case.name}.nii.gz"
        if case.name not in held_out and not link.is_symlink():
            link.symlink_to(case.images[0].resolve())
    note(f"next: stunet_convert images -i {folder} -d {target} --name Images --channels MRI")


def measure(dataset: int, method: str, size: str, values: dict[str, Any]) -> None:
    """Pre-trains with one method, unless its result is there, and adds what came out to the results."""
    found = read_json(RESULTS) if RESULTS.is_file() else {}
    if found.get(method, {}).get("values") == values and found[method]["size"] == size:
        return
    start = None
    if after := METHODS[method].after:
        measure(dataset, after, size, values)
        name = read_json(RESULTS)[after]["model"]
        start = workspace.folder("nnUNet_results") / workspace.dataset_name(dataset) / name
    watching, before, started = Watching(), cpu_seconds(), time.monotonic()
    request = PretrainingRequest(dataset=dataset, method=method, pretrained=start, size=size, device="cpu", set=values)
    reached = pretrain(request, watching, resume_if_begun=True)
    assert reached.metrics is not None
    found = read_json(RESULTS) if RESULTS.is_file() else {}
    found[method] = {
        **reached.metrics,
        "first_loss": watching.shown.first,  # None: the run was interrupted, and the times are those of its last part
        "values": values,
        "size": size,
        "cpu_s": round(cpu_seconds() - before, 1),
        "wall_s": round(time.monotonic() - started, 1),
        "model": reached.folder.parent.name,
        "stunet": stunet.__version__,
    }
    write_json(RESULTS, found)


def link(folder: Path) -> None:
    """Links each method's model folder into a folder, under the method's name."""
    results = workspace.folder("nnUNet_results")
    for method, run in read_json(RESULTS).items():
        (found,) = results.glob(f"*/{run['model']}")
        if not (folder / method).is_symlink():
            (folder / method).symlink_to(found)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def show() -> None:
    """Prints the table: the held-out measure is the mean of the last three epochs."""
    found = read_json(RESULTS)
    losses = ("first loss", "its chance", "last loss")
    columns = ("method", "measure", "chance", "untrained", *losses, "held out", "CPU s")
    rows = []
    for method in (name for name in METHODS if name in found):
        run = found[method]
        last = run["val_measures"][-3:]
        # "untrained" is there where a network with random weights may be above chance.
        numbers = (run.get("untrained"), run["first_loss"], run["chance_loss"], run["train_losses"][-1])
        rows.append([
            method,
            run["measure"],
            f"{run['chance']:.4f}",
            *("-" if number is None else f"{number:.3f}" for number in numbers),
            f"{sum(last) / len(last):.3f}",
            f"{run['cpu_s']:.0f}",
        ])  # fmt: skip
    table(columns, rows)


if __name__ == "__main__":
    main()
