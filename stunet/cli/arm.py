"""The process of an arm of stunet_experiment: python -m stunet.cli.arm REQUEST.json ENDING.json.

It shows what stunet_train shows. Not a command of its own: its arguments are files of experiment/child.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.experiment.child import train_arm


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arm and return its exit code, which is that of stunet_train."""
    parser = common.new_parser("stunet_train", "Trains one arm of stunet_experiment.")
    parser.add_argument("request", type=Path, help="what to train")
    parser.add_argument("ending", type=Path, help="where to write how it ended")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    train_arm(args.request, args.ending, Shown())


if __name__ == "__main__":
    raise SystemExit(main())
