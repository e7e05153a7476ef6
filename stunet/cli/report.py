"""stunet_report: write reports of trainings that are done, or under way. runs/reporting.py does the work."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stunet import console
from stunet.cli.common import new_parser, run
from stunet.cli.shown import Shown
from stunet.runs.reporting import write_reports

EXAMPLES = """examples:
  stunet_report nnUNet_results/Dataset003_Liver/STUNetTrainer__STUNetPlans_B__3d_fullres
  stunet_report nnUNet_results/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0 -o liver.html

A report is one HTML file, which can be mailed and printed: it loads nothing from anywhere. Trainings of stock nnU-Net
and of earlier versions are read from their checkpoints or logs. Images of the worst cases are those of nnUNet_raw;
where they are not found, outlines are drawn without them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = new_parser("stunet_report", "Write the report of a model with all its folds, or of one fold.", EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="RESULT_FOLDER", help="folder of a model, or of a fold in it")
    parser.add_argument(
        "-o", type=Path, metavar="FILE", help="this report alone, into this file; default: report.html in each folder"
    )
    parser.add_argument("--no_slices", action="store_true", help="read no images: no slices of the worst cases")
    parser.add_argument(
        "--views", action="store_true", help="also write the worst cases as pages of the viewer, which reports link to"
    )
    return run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    written = write_reports(args.folder, args.o, not args.no_slices, args.views, Shown())
    console.result(str(written[-1]))
