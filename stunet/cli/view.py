"""stunet_view: look at segmentations in a browser. runs/viewing.py does the work."""

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from stunet import console
from stunet.cli.common import new_parser, run
from stunet.cli.shown import Shown
from stunet.errors import UsageError
from stunet.runs.overview import last_trained
from stunet.runs.viewing import ViewingRequest, open_viewer, write_page

EXAMPLES = """examples:
  stunet_view scan.nii.gz segmentation.nii.gz
  stunet_view flair.nii.gz t1.nii.gz segmentation.nii.gz --reference truth.nii.gz
  stunet_view -d 3 out                            # predictions beside images and labels of dataset 3
  stunet_view -d 3                                # its labels
  stunet_view --last                              # the validation of the training that was finished last
  stunet_view imagesTs out --reference labelsTs
  stunet_view -d 3 out --case liver_7 --html liver_7.html

The page is served to this machine only, under an address that changes with every start; Ctrl-C ends it. On a machine
without a display, forward the port: ssh -L 8000:127.0.0.1:8000 MACHINE, with --port 8000.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = new_parser(
        "stunet_view", "Look at images, segmentations and references in a browser, in 2D and 3D.", EXAMPLES
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="images (one file per channel) and then the segmentation, or two folders of them; with -d only the "
        "segmentations",
    )
    parser.add_argument("--reference", type=Path, metavar="PATH", help="file or folder to compare with")
    parser.add_argument("-d", metavar="ID", help="dataset whose images, labels and class names to take")
    parser.add_argument(
        "--last", action="store_true", help="the validation cases of the training that was finished last"
    )
    parser.add_argument(
        "-djfile", type=Path, help="dataset.json with the names of the classes; default: beside the files"
    )
    parser.add_argument("--case", metavar="NAME", help="the case to begin with")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one case as a page that needs no server, to send or to keep"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the server (any that is free)")
    parser.add_argument("--no_browser", action="store_true", help="only show the address")
    return run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    if args.last:
        _name_last(args)
    request = ViewingRequest(
        paths=args.paths,
        reference=args.reference,
        dataset=args.d,
        djfile=args.djfile,
        case=args.case,
        html=args.html,
        port=args.port,
    )
    if request.html:
        path = write_page(request, Shown())
        console.note(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
        return
    server = open_viewer(request)
    console.result(server.address)
    console.note("open it in a browser of this machine; Ctrl-C ends it")
    if not args.no_browser and _has_display():
        webbrowser.open(server.address)
    try:
        server.run()
    except KeyboardInterrupt:
        console.note("stopped")


def _name_last(args: argparse.Namespace) -> None:
    """Put the validation of the training that was finished last where the user's files would be."""
    if args.paths or args.d or args.reference:
        raise UsageError("--last names the files: no paths, -d or --reference", "leave them out")
    fold = last_trained()
    console.note(f"the validation of {fold.name}")
    args.paths, args.d = [fold.folder / "validation"], fold.dataset


def _has_display() -> bool:
    """Return whether a browser can open a window; without one, a browser for the terminal would take it over."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
