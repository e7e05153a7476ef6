"""stunet_evaluate: measure how good predictions are. runs/evaluation.py does the work."""

import argparse
import os
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from stunet import console
from stunet.cli.common import add_cluster_flag, add_part_flags, new_parser, parts, run
from stunet.cli.shown import Shown
from stunet.runs.evaluation import MAX_PROCESSES, EvaluationRequest, EvaluationResult, evaluate

IN_FOLDER = Path("report.html")  # the name of the report where none is given
EXAMPLES = """examples:
  stunet_evaluate nnUNet_raw/Dataset003_Liver/labelsTs predictions --tolerance 2 --csv results.csv
  stunet_evaluate -d 3 predictions --chill --report
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
    parser.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=IN_FOLDER,
        metavar="FILE",
        help="also write a page for readers: classes, volumes, worst cases (report.html in pred_folder)",
    )
    add_part_flags(parser)
    add_cluster_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of the table")
    return run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    request = EvaluationRequest(
        gt_folder=args.gt_folder,
        pred_folder=args.pred_folder,
        dataset=args.d,
        djfile=args.djfile,
        output=args.o,
        np=args.np,
        chill=args.chill,
        tolerance=args.tolerance,
        labels=args.labels,
        csv=args.csv,
        report=_report(args),
        cluster=args.cluster,
        **parts(args, args.pred_folder),
    )
    evaluate(request, ShownAsJson() if args.json else Shown())


def _report(args: argparse.Namespace) -> Path | None:
    """Return the file of --report, which stands without a value for one beside the predictions."""
    if args.report is not IN_FOLDER:
        return args.report
    folder: Path = args.pred_folder.parent if args.pred_folder.is_file() else args.pred_folder
    return folder / IN_FOLDER


class ShownAsJson(Shown):
    """Shows the summary as JSON instead of the table."""

    def evaluated(self, result: EvaluationResult) -> None:
        console.result_json(_without_nan(result.metrics))


def _without_nan(document: Any) -> Any:
    """Return the document with None for NaN, which JSON does not have."""
    if isinstance(document, dict):
        return {key: _without_nan(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_without_nan(value) for value in document]
    return None if isinstance(document, float) and isnan(document) else document
