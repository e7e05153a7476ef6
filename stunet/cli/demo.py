"""stunet_demo: run the whole workflow on a synthetic dataset with the Python API, in minutes on two CPU cores."""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stunet
from stunet import console, workspace
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.errors import DataError
from stunet.runs.prediction import PredictedCase

DATASET_ID = 999
DATASET = f"Dataset{DATASET_ID}_Phantom"
CASES, HELD_OUT = 12, 4
SIZE = "S"
CONFIGURATION = "3d_fullres"
# 80 steps, so a momentum of 0.9: nnU-Net's 0.99 needs hundreds of steps to gather speed
TRAINING = {
    "num_epochs": 4,
    "num_iterations_per_epoch": 20,
    "num_val_iterations_per_epoch": 2,
    "batch_size": 2,
    "initial_lr": 0.02,
    "momentum": 0.9,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_demo",
        "Makes a small CT-like dataset; plans, preprocesses, trains, predicts and evaluates it.",
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
            raise DataError(f"{str(folder)!r} is not empty and not an earlier demo", "another folder: -o DIR")
        raw.parent.mkdir(parents=True, exist_ok=True)
        make_phantom(raw, CASES, seed=1, held_out=HELD_OUT)
    os.environ.update({name: str(path) for name, path in folders.items()})
    console.note(f"{CASES} training and {HELD_OUT} held-out cases in {raw}")
    summary = _run(raw, folder / "predictions", args.device)
    dice = summary["foreground_mean"]["Dice"]
    console.result(f"mean foreground Dice {dice:.3f} on {HELD_OUT} held-out cases, in {time.monotonic() - start:.0f} s")
    console.result(
        f"dataset      {raw}\nmodel        {folders['nnUNet_results'] / DATASET}\npredictions  {folder / 'predictions'}"
    )


def _run(raw: Path, predictions: Path, device: str | None) -> Mapping[str, Any]:
    """Plan, train, predict and evaluate; show each step as the command that does the same. Return the summary."""
    shown = Messages()
    _show("stunet_plan_and_preprocess", "-d", DATASET_ID, "--size", SIZE, "-c", CONFIGURATION)
    stunet.plan(DATASET_ID, size=SIZE, configurations=[CONFIGURATION], listener=shown)

    # A demo that was stopped goes on; --c needs a checkpoint, and without --c training refuses a fold that has one.
    begun = any(workspace.folder("nnUNet_results").glob("*/*/fold_0/checkpoint_*.pth"))
    on = ["-device", device] if device else []
    values = [f"{key}={value}" for key, value in TRAINING.items()]
    _show("stunet_train", DATASET_ID, CONFIGURATION, 0, "--set", *values, *(["--c"] if begun else []), *on)
    stunet.train(DATASET_ID, CONFIGURATION, 0, set=TRAINING, resume=begun, device=device, listener=shown)

    images, labels = raw / "imagesTs", raw / "labelsTs"
    _show("stunet_predict", "-i", images, "-o", predictions, "-d", DATASET_ID, "-c", CONFIGURATION, *on)
    predicted = stunet.predict(
        images, predictions, dataset=DATASET_ID, configuration=CONFIGURATION, device=device, listener=shown
    )
    for error in predicted.errors.values():
        raise error

    _show("stunet_evaluate", labels, predictions)
    return stunet.evaluate(labels, predictions, listener=shown).metrics


def _show(*command: object) -> None:
    console.note(f"\n$ {' '.join(map(str, command))}")


class Messages(Shown):
    """Shows messages and progress, and of the results only the measured ones."""

    def planned(self, result: stunet.PlanningResult) -> None:
        return

    def trained(self, result: stunet.TrainingResult) -> None:
        return

    def predicted(self, case: PredictedCase) -> None:
        if case.error:
            super().predicted(case)
