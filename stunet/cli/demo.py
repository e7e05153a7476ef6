"""stunet_demo: run the whole workflow on a synthetic dataset with the real commands, in minutes on two CPU cores."""

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from stunet import console, workspace
from stunet.cli import common
from stunet.errors import DataError, StunetError
from stunet.kinds import SUMMARY, read

DATASET_ID = 999
DATASET = f"Dataset{DATASET_ID}_Phantom"
CASES, HELD_OUT = 12, 4
SIZE = "S"
# 80 steps, so a momentum of 0.9: nnU-Net's 0.99 needs hundreds of steps to gather speed
TRAINING = (
    "num_epochs=4",
    "num_iterations_per_epoch=20",
    "num_val_iterations_per_epoch=2",
    "batch_size=2",
    "initial_lr=0.02",
    "momentum=0.9",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_demo",
        "Makes a small CT-like dataset; plans, preprocesses, trains, predicts and evaluates it with the real commands.",
    )
    parser.add_argument(
        "-o", type=Path, default=Path("stunet_demo"), metavar="DIR", help="where to work (default ./stunet_demo)"
    )
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    from stunet.datasets.phantom import make_phantom

    start = time.monotonic()
    folder = args.o.resolve()
    folders = {name: folder / name for name in workspace.VARIABLES}  # the demo's own, whatever the user's variables are
    raw = folders["nnUNet_raw"] / DATASET
    if not raw.is_dir():
        if folder.is_dir() and any(folder.iterdir()) and not any(path.is_dir() for path in folders.values()):
            raise DataError(f"{str(folder)!r} is not empty and no earlier demo", "another folder: -o DIR")
        raw.parent.mkdir(parents=True, exist_ok=True)
        make_phantom(raw, CASES, seed=1, held_out=HELD_OUT)
    environment = {**os.environ, **{name: str(path) for name, path in folders.items()}}
    console.note(f"{CASES} training and {HELD_OUT} held-out cases in {raw}")
    predictions = folder / "predictions"
    device = ["-device", args.device] if args.device else []
    _run(environment, "stunet_plan_and_preprocess", "-d", str(DATASET_ID), "--size", SIZE, "-c", "3d_fullres")
    resume = ["--c"] if list(folders["nnUNet_results"].glob("*/*/fold_0/checkpoint_*.pth")) else []
    training = ["stunet_train", str(DATASET_ID), "3d_fullres", "0", "--set", *TRAINING]
    _run(environment, *training, *resume, *device)
    images = ["-i", str(raw / "imagesTs"), "-o", str(predictions)]
    _run(environment, "stunet_predict", *images, "-d", str(DATASET_ID), "-c", "3d_fullres", *device)
    table = _run(environment, "stunet_evaluate", str(raw / "labelsTs"), str(predictions))
    console.result(table.strip())
    dice = read(predictions / "summary.json", SUMMARY)["foreground_mean"]["Dice"]
    console.result(f"mean foreground Dice {dice:.3f} on {HELD_OUT} held-out cases, in {time.monotonic() - start:.0f} s")
    console.result(
        f"dataset      {raw}\nmodel        {folders['nnUNet_results'] / DATASET}\npredictions  {predictions}"
    )


def _run(environment: dict[str, str], *command: str) -> str:
    """Run one of our commands, show it and its messages, and return what it printed as its result."""
    console.note(f"\n$ {' '.join(command)}")
    program = [common.find_command(command[0]), *command[1:]]
    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        error = StunetError(f"{command[0]} ended with exit code {done.returncode}", "see its message above")
        error.exit_code = done.returncode
        raise error
    return done.stdout
