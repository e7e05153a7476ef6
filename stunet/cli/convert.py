"""stunet_convert: public datasets into nnU-Net's raw format. Read datasets/msd.py for what is done."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stunet import console, workspace
from stunet.cli.common import new_parser, run

EXAMPLES = """examples:
  stunet_convert msd -i Task04_Hippocampus
  stunet_convert msd -i Task04_Hippocampus -d 104 --name HippocampusMSD
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options: one sub-command per format."""
    parser = new_parser("stunet_convert", "Convert a public dataset into nnU-Net's raw format.", EXAMPLES)
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    msd = formats.add_parser("msd", help="a task of the Medical Segmentation Decathlon", allow_abbrev=False)
    msd.add_argument(
        "-i", dest="source", type=Path, required=True, metavar="FOLDER", help="the task, such as Task04_Liver"
    )
    msd.add_argument(
        "-d", dest="dataset_id", type=int, metavar="ID", help="number of the dataset (default: the task's)"
    )
    msd.add_argument(
        "-o", dest="raw", type=Path, metavar="FOLDER", help="where DatasetXXX_Name goes (default: nnUNet_raw)"
    )
    msd.add_argument("--name", help="name of the dataset (default: the task's)")
    for flag, text in (
        ("--verbose", "also show what the libraries print"),
        ("--debug", "show the traceback of an error"),
    ):
        msd.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(build_parser(), _convert_msd, argv)


def _convert_msd(args: argparse.Namespace) -> None:
    from stunet.datasets.msd import convert_msd, msd_images

    raw = args.raw or workspace.folder("nnUNet_raw")
    with console.Progress("convert", len(msd_images(args.source))) as progress:
        target = convert_msd(args.source, raw, args.dataset_id, args.name, progress.step)
    console.result(str(target))
    console.note(f"next: stunet_plan_and_preprocess -d {int(target.name[7:10])}")
