"""How is a training run that has been prepared: in this process and its children, or as one of torchrun's processes?"""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console
from stunet.cli import common
from stunet.errors import Interrupted, UsageError
from stunet.kinds import SUMMARY, read

if TYPE_CHECKING:
    from stunet.trainers.launch import Run

# What a command line means, and None where there is nothing to train; told whether torchrun has started it anew.
Prepare = Callable[[bool], "Run | None"]


def train(args: argparse.Namespace, prepare: Prepare) -> None:
    """Prepares, trains and validates; shows the result."""
    if {"RANK", "WORLD_SIZE"} <= set(os.environ):
        _as_one_of_several(args, prepare)
        return
    run = prepare(False)
    if run is None:
        return
    from stunet.trainers.launch import launch

    if not _is_finished(run):
        launch(run, console.TrainingProgress)
    _show_result(run)


def _as_one_of_several(args: argparse.Namespace, prepare: Prepare) -> None:
    """The first process decides and shows, all of them train."""
    from stunet.trainers.launch import join, starting_point
    from stunet.trainers.processes import decided, restarted, started_by_torchrun, together

    member, device = started_by_torchrun(), common.device(args.device)
    if args.num_gpus not in (1, member.size):
        raise UsageError(f"-num_gpus {args.num_gpus}, but torchrun has started {member.size} processes", "leave it out")
    args.num_gpus = member.size

    def decide() -> tuple["Run | None", Path | None, bool]:
        run = prepare(again)
        return run, starting_point(run) if run else None, _is_finished(run) if run else True

    try:
        with together(member, device):
            again = restarted(member, device)
            run, checkpoint, finished = decided(decide, member)
            if run is not None and not finished:
                join(run, checkpoint, member, console.TrainingProgress)
            if run is not None and member.leads:
                _show_result(run)
    except Interrupted as error:
        if member.leads or error.__cause__ is not None:
            raise
        raise SystemExit(error.exit_code) from None  # the first process has said it


def _is_finished(run: "Run") -> bool:
    from stunet.trainers.launch import FINAL

    if run.only_validate or not run.resume or run.validate_best:
        return False
    if not ((run.folder / FINAL).is_file() and _summary(run).is_file()):
        return False
    console.note("this fold is trained and validated; nothing to do")
    return True


def _summary(run: "Run") -> Path:
    return run.folder / "validation" / "summary.json"


def _show_result(run: "Run") -> None:
    console.result(f"mean validation Dice {mean_dice(read(_summary(run), SUMMARY)):.4f}  {run.folder}")


def mean_dice(summary: dict[str, Any]) -> float:
    """The mean over the classes that a validation case has; nnU-Net's is NaN as soon as no case has one of them."""
    if not math.isnan(overall := summary["foreground_mean"]["Dice"]):
        return float(overall)
    found = [mean["Dice"] for mean in summary["mean"].values() if not math.isnan(mean["Dice"])]
    return sum(found) / len(found) if found else math.nan
