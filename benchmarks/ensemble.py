"""What is the ensemble of two fine-tunings worth, the baseline of a network with both of their pre-trained encoders?

    python benchmarks/ensemble.py FILE.toml mae simclr

FILE.toml is that of a stunet_experiment, whose arms with these titles are trained. For each number of cases and seed,
the networks predict the held-out cases, with mirroring as in their own validation, nnU-Net averages the probabilities,
and the Dice of each class goes into benchmarks/results/ensemble.csv. What stands there is not computed again. The
segmentations, and a summary.json with the Dice of each case, are in `ensembles` in the experiment's folder.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import stunet
from stunet import workspace
from stunet.console import result, warn
from stunet.datasets import read_dataset
from stunet.datasets.listing import ending_of
from stunet.experiment.arms import Arm, Experiment, arms, command, read_experiment, request
from stunet.experiment.runs import DONE, Record, read_dice
from stunet.files import atomic_write, read_json, write_json
from stunet.kinds import mean_dice

RESULTS = Path(__file__).parent / "results" / "ensemble.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="of the experiment")
    parser.add_argument("titles", nargs="+", metavar="title", help="of the weights whose fine-tunings are averaged")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="as of stunet_experiment (default: FILE)")
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="as of stunet_predict")
    args = parser.parse_args()
    experiment, record = read_experiment(args.file), Record(args.o or args.file.with_suffix(""))
    if len(set(args.titles)) < 2 or not set(args.titles) <= experiment.weights.keys():
        parser.error(f"two or more titles of {', '.join(experiment.weights)}")
    for arm, folders in trained(experiment, record, args.titles).items():
        row = {"experiment": args.file.stem, "arm": arm.line, "cases": str(arm.cases), "seed": str(arm.seed)}
        if any(row.items() <= there.items() for there in read_rows()):
            continue
        if len(folders) < len(args.titles):
            warn(f"{arm.name}: {len(folders)} of {len(args.titles)} networks are trained")
            continue
        target = record.folder / "ensembles" / arm.name
        metrics = measure(experiment, folders, target, args.device)
        write_json(target / "summary.json", {**metrics, **row})
        classes = {f"dice_{metrics['labels'][key]}": mean["Dice"] for key, mean in metrics["mean"].items()}
        write_rows([*read_rows(), {**row, "dice": mean_dice(metrics), **classes}])
        result(f"{arm.name}: Dice {mean_dice(metrics):.4f}")


def trained(experiment: Experiment, record: Record, titles: Sequence[str]) -> dict[Arm, list[Path]]:
    """The folds' folders of the arms that differ in nothing but these titles, by what they would be as one arm."""
    found: dict[Arm, list[Path]] = {}
    for arm in arms(experiment):
        if arm.title in titles:
            words, together = command(request(experiment, arm)), replace(arm, title=" + ".join(titles), weights=())
            done = [record.summary(words).parents[1]] if record.state(words) == DONE else []
            found.setdefault(together, []).extend(done)
    return found


def measure(experiment: Experiment, folders: Sequence[Path], target: Path, device: str | None) -> dict[str, Any]:
    """The summary of the averaged predictions of the cases that the networks were validated on."""
    first, dataset = folders[0].parent, workspace.dataset_name(experiment.dataset)
    held_out, *others = (read_dice(folder / "validation" / "summary.json").keys() for folder in folders)
    assert all(other == held_out for other in others), "validated on different cases"
    description, plans = read_json(first / "dataset.json"), PlansManager(read_json(first / "plans.json"))
    ending = description["file_ending"]
    names = {file.removesuffix(ending) for file in held_out}
    with tempfile.TemporaryDirectory() as place:
        images, references, *predictions = (Path(place, str(number)) for number in range(2 + len(folders)))
        images.mkdir()
        references.mkdir()
        for case in read_dataset(workspace.raw_dataset(dataset))[0]:
            for channel, image in enumerate(case.images if case.name in names else ()):
                name = f"{case.name}_{channel:04d}{ending_of(image.name, ending)}"
                (images / name).symlink_to(image.resolve())
        for file in held_out:
            reference = workspace.preprocessed_dataset(dataset) / "gt_segmentations" / file
            (references / file).symlink_to(reference.resolve())
        for folder, predicted in zip(folders, predictions, strict=True):
            model, folds = folder.parent, [experiment.fold]
            done = stunet.predict(images, predicted, model=model, folds=folds, device=device, save_probabilities=True)
            for error in done.errors.values():
                raise error
        target.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            files = [str(predicted / f"{name}.npz") for predicted in predictions]
            reader, labels = plans.image_reader_writer_class(), plans.get_label_manager(description)
            merge_files(files, str(target / name), ending, reader, labels)
        return dict(stunet.evaluate(references, target, djfile=first / "dataset.json", np=1).metrics)


def read_rows() -> list[dict[str, Any]]:
    return list(csv.DictReader(RESULTS.read_text().splitlines())) if RESULTS.is_file() else []


def write_rows(rows: Sequence[dict[str, Any]]) -> None:
    with atomic_write(RESULTS) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
