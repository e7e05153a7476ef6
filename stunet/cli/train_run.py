"""Run a prepared training, in this process and its children or as one of torchrun's processes."""

import argparse
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console
from stunet.cli import common
from stunet.errors import DataError, Interrupted, UsageError, first_few
from stunet.files import json_differences
from stunet.kinds import SUMMARY, read
from stunet.plans.files import read_plan
from stunet.workspace import FINAL

if TYPE_CHECKING:
    from stunet.runs.launch import Run

# Returns the run that a command line means, or None if there is nothing to train. Its argument: whether torchrun has
# restarted the command.
Prepare = Callable[[bool], "Run | None"]


def train(args: argparse.Namespace, prepare: Prepare) -> None:
    """Prepare, train and validate; show the result."""
    if {"RANK", "WORLD_SIZE"} <= set(os.environ):
        _as_one_of_several(args, prepare)
        return
    run = prepare(False)
    if run is None:
        return
    from stunet.runs.launch import launch

    if left := _left(run):
        launch(left, console.TrainingProgress)
    _show_result(run)


def _as_one_of_several(args: argparse.Namespace, prepare: Prepare) -> None:
    """Train as one of several processes: the first one decides and shows the result, all of them train."""
    from stunet.runs.launch import join, reserved
    from stunet.trainers.distributed.group import decided, restarted, started_by_torchrun, together

    member, device = started_by_torchrun(), common.device(args.device)
    if args.num_gpus not in (1, member.size):
        raise UsageError(f"-num_gpus {args.num_gpus}, but torchrun has started {member.size} processes", "leave it out")
    args.num_gpus = member.size

    def decide() -> tuple["Run | None", "Run | None", Path | None]:
        run = prepare(again)
        left = _left(run) if run else None
        return run, left, held.enter_context(reserved(left)) if left else None

    try:
        with ExitStack() as held, together(member, device):
            again = restarted(member, device)
            run, left, checkpoint = decided(decide, member)
            if left is not None:
                join(left, checkpoint, member, console.TrainingProgress)
            if run is not None and member.leads:
                _show_result(run)
    except Interrupted as error:
        if member.leads or error.__cause__ is not None:
            raise
        raise SystemExit(error.exit_code) from None  # the first process has reported it


def _left(run: "Run") -> "Run | None":
    """Return what is left to do of a run; None if its fold is trained and validated.

    Raises:
        DataError: It is trained and validated, but with other plans, cases or data than there are now.
    """
    from stunet.plans.check import training_part
    from stunet.plans.plan import Plan
    from stunet.provenance import check_result
    from stunet.runs.readiness import lacking_next_stage

    if run.only_validate or not run.resume or run.validate_best:
        return run
    if not ((run.folder / FINAL).is_file() and _summary(run).is_file()):
        return run
    before = training_part(read_plan(run.folder.parent / "plans.json"), run.configuration)
    changed = json_differences(before, training_part(Plan(run.plans), run.configuration), run.plans["plans_name"])
    reasons = [f"with other plans than today's ({first_few(changed)})"] if changed else check_result(run.folder)
    if reasons:
        hint = "--val to validate it again, where its training cases are the same; --overwrite to train anew"
        raise DataError(f"this fold is trained and validated, but {reasons[0]}", hint)
    if lacking := lacking_next_stage(run.dataset, Plan(run.plans), run.configuration, run.fold, run.folder.parent):
        console.note(f"this fold is trained; it is validated again, because {lacking}")
        return replace(run, resume=False, only_validate=True)
    console.note("this fold is trained and validated; nothing to do")
    return None


def _summary(run: "Run") -> Path:
    return run.folder / "validation" / "summary.json"


def _show_result(run: "Run") -> None:
    console.result(f"mean validation Dice {mean_dice(read(_summary(run), SUMMARY)):.4f}  {run.folder}")


def mean_dice(summary: dict[str, Any]) -> float:
    """Return the mean Dice over the classes that occur in validation; nnU-Net's is NaN if any class does not occur."""
    if not math.isnan(overall := summary["foreground_mean"]["Dice"]):
        return float(overall)
    found = [mean["Dice"] for mean in summary["mean"].values() if not math.isnan(mean["Dice"])]
    return sum(found) / len(found) if found else math.nan
