"""stunet_evaluate: measure how good predictions are. evaluation/ does the work, its metrics.py defines the numbers."""

import argparse
import os
from collections.abc import Iterable, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console, files, workspace
from stunet.cli.common import new_parser, run
from stunet.errors import DataError, UsageError
from stunet.kinds import DATASET, read

if TYPE_CHECKING:
    from stunet.evaluation.folders import Labels

EXAMPLES = """examples:
  stunet_evaluate nnUNet_raw/Dataset003_Liver/labelsTs predictions --tolerance 2 --csv results.csv
  stunet_evaluate -d 3 predictions --chill
  stunet_evaluate amos22/labelsVa predictions --labels amos

Dice, IoU and counts are nnU-Net's. NSD is the surface Dice of Nikolov et al. (2021): the share of both surfaces that
lies within the tolerance of the other. HD95 is the distance that 95 % of each surface keep, in mm, by area, the larger
of both directions. Both equal the authors' surface-distance package; tools that measure between voxel centres differ.
A class that neither file of a case has is left out of the means. One that only one file has gets Dice 0 and NSD 0; its
HD95 is infinite, not in the mean, and counted in the last column.
With --labels, references have the ids of the dataset that it names. Predictions have them too, or those of the model
that the dataset.json beside them (or -djfile) tells: its classes are then found by name, with unions such as lung,
and the others are background.
"""
MAX_PROCESSES = 8  # default; each process holds two volumes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = new_parser(
        "stunet_evaluate", "Compare predictions with reference segmentations: Dice, NSD and HD95.", EXAMPLES
    )
    parser.add_argument("gt_folder", nargs="?", type=Path, help="references: a folder or a file; not needed with -d")
    parser.add_argument("pred_folder", type=Path, help="predictions: a folder or a file")
    parser.add_argument("-d", metavar="ID", help="dataset whose labels to take: labelsTr, labelsTs or gt_segmentations")
    parser.add_argument(
        "-djfile", type=Path, help="dataset.json; default: beside predictions or references, or above these"
    )
    parser.add_argument("-pfile", type=Path, help="accepted as in nnU-Net, not needed")
    parser.add_argument(
        "-o", type=Path, metavar="FILE", help="default: summary.json in pred_folder; none for a single file"
    )
    parser.add_argument(
        "-np", type=int, default=min(MAX_PROCESSES, os.cpu_count() or 1), help="processes (%(default)s)"
    )
    parser.add_argument("--chill", action="store_true", help="leave out files without a partner, and damaged ones")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="MM",
        help="distance at which surfaces still agree, for NSD (%(default)s): choose what two experts differ by, and "
        "no less than the voxel spacing; usual are 1 mm for small structures and vessels, 2 or 3 mm for organs",
    )
    parser.add_argument(
        "--labels", metavar="NAME", help="label system of the references: amos, word, btcv, ..., or a .toml file"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one row per case and class")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of the table")
    return run(parser, _evaluate, argv)


def _evaluate(args: argparse.Namespace) -> None:
    _check(args)
    output: Path | None = args.o or (None if args.pred_folder.is_file() else args.pred_folder / "summary.json")
    labels, ending = _labels(args)
    reference = args.gt_folder or _dataset_references(args.d, args.pred_folder, ending)

    from stunet.datasets.listing import named
    from stunet.evaluation import folders as evaluation

    cases, alone = evaluation.pair(reference, args.pred_folder, ending, args.chill)
    if alone:
        console.warn(f"{len(alone)} files without a partner or content are left out: {named(map(Path, alone))}")
    with console.Progress("evaluate", len(cases)) as progress:
        bad: dict[str, DataError] = {}
        leave_out = (lambda case, error: bad.update({case.name: error})) if args.chill else None
        summary = evaluation.evaluate(cases, labels, args.tolerance, args.np, progress.step, leave_out)
    for name, error in bad.items():
        console.warn(f"case {name!r} is left out: {error.message}")
    cases = [case for case in cases if case.name not in bad]
    if args.labels:
        summary["label_system"] = args.labels
    if args.json:
        console.result_json(_without_nan(summary))
    else:
        _print_table(summary)
    if output:
        files.write_json(_with_folder(output), summary)
        console.note(f"wrote {output}")
    if args.csv:
        evaluation.write_csv(summary, cases, _with_folder(args.csv))
        console.note(f"wrote {args.csv}")


def _check(args: argparse.Namespace) -> None:
    if args.gt_folder is None and args.d is None:
        raise UsageError("only one folder is given", "stunet_evaluate GT PRED, or stunet_evaluate -d ID PRED")
    if args.np < 1:
        raise UsageError(f"-np {args.np}: at least one process is needed", "-np 1")
    if not isfinite(args.tolerance) or args.tolerance < 0:
        raise UsageError(f"--tolerance {args.tolerance} is no distance in mm", "--tolerance 1")
    if args.o and args.o.suffix != ".json":
        raise UsageError(f"-o {str(args.o)!r} does not end with .json", f"-o {args.o / 'summary.json'}")
    for path in filter(None, (args.gt_folder, args.pred_folder)):
        if not path.exists():
            raise DataError(f"no file or folder {str(path)!r}", "check the path")


def _labels(args: argparse.Namespace) -> "tuple[Labels, str]":
    """Return the labels and the ending of the file names."""
    from stunet.evaluation import folders as evaluation
    from stunet.labels import systems

    if not args.labels:
        file = _dataset_file(args)
        dataset = _read_dataset(file)
        return evaluation.labels_of(dataset, file), dataset["file_ending"]
    system = systems.load(args.labels)
    folder = args.pred_folder.parent if args.pred_folder.is_file() else args.pred_folder
    file = args.djfile or folder / "dataset.json"
    if not args.djfile and not file.is_file():
        return evaluation.labels_of_system(system), ".nii.gz"
    dataset = _read_dataset(file)
    evaluation.labels_of(dataset, file)  # raises an error if they are wrong
    return evaluation.labels_of_system(system, dataset["labels"]), dataset["file_ending"]


def _read_dataset(file: Path) -> dict[str, Any]:
    dataset: dict[str, Any] = read(file, DATASET)
    return dataset


def _dataset_file(args: argparse.Namespace) -> Path:
    if args.djfile:
        return args.djfile
    if args.d:
        name = workspace.dataset_name(args.d)
        places = [workspace.folder("nnUNet_raw") / name, workspace.preprocessed_dataset(name)]
    else:
        predictions, references = (p.parent if p.is_file() else p for p in (args.pred_folder, args.gt_folder))
        places = [predictions, references, references.resolve().parent]
    for place in places:
        if (place / "dataset.json").is_file():
            return place / "dataset.json"
    raise DataError(f"no dataset.json in {', '.join(repr(str(p)) for p in places)}", "-djfile /path/to/dataset.json")


def _dataset_references(dataset: str, predictions: Path, ending: str) -> Path:
    """Return a dataset's first folder of labels that has the name of a prediction, whatever their endings."""
    from stunet.datasets.listing import ending_of, visible

    def names(files: Iterable[Path]) -> set[str]:
        ends = ((file.name, len(ending_of(file.name, ending))) for file in visible(files))
        return {name[:-length] for name, length in ends if length}

    name = workspace.dataset_name(dataset)
    raw = workspace.folder("nnUNet_raw") / name
    wanted = names([predictions] if predictions.is_file() else predictions.iterdir())
    folders = [raw / "labelsTr", raw / "labelsTs", workspace.preprocessed_dataset(name) / "gt_segmentations"]
    for folder in folders:
        if wanted & names(folder.glob("*")):
            return folder
    raise DataError(
        f"no reference of {name} has the name of a prediction in {str(predictions)!r}",
        f"stunet_evaluate GT {predictions}, with the folder of the references",
    )


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _print_table(summary: dict[str, Any]) -> None:
    from stunet.evaluation.metrics import METRICS

    headings = {name: metric.heading.format(**summary) for name, metric in METRICS.items() if metric.heading}

    def cells(values: dict[str, float]) -> list[str]:
        return ["-" if isnan(values[name]) else format(values[name], METRICS[name].format) for name in headings]

    rows = [
        [summary["labels"][key], *cells(mean), str(mean["n_cases"]), str(mean["n_infinite"])]
        for key, mean in summary["mean"].items()
    ]
    n_cases, n_infinite = (
        str(sum(mean[key] for mean in summary["mean"].values())) for key in ("n_cases", "n_infinite")
    )
    rows.append(["foreground mean", *cells(summary["foreground_mean"]), n_cases, n_infinite])
    console.table(["class", *headings.values(), "cases", "one empty"], rows)


def _without_nan(document: Any) -> Any:
    """Return the document with None for NaN, which JSON does not have."""
    if isinstance(document, dict):
        return {key: _without_nan(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_without_nan(value) for value in document]
    return None if isinstance(document, float) and isnan(document) else document
