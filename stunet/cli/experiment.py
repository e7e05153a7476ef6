"""stunet_experiment: compare pre-trained weights and ways of fine-tuning on one dataset, in one resumable command."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import console, workspace
from stunet.cli import common
from stunet.errors import DataError, UsageError
from stunet.experiment.arms import SCRATCH, Arm, Experiment, arms, command, read_experiment
from stunet.experiment.runs import DONE, FAILED, Record, results, run
from stunet.folds import FILE as SPLITS
from stunet.folds import MADE, read_folds
from stunet.models import registry, store
from stunet.plans.files import plan_path, read_plan

if TYPE_CHECKING:
    from stunet.experiment.summary import Row

EXAMPLE = """example: a FILE.toml
  dataset = 4                               # number or name
  weights = ["none", "STU-Net-B"]           # as of stunet_train --pretrained; "none": training from scratch;
                                            # or with titles: { scratch = "none", ours = "folder/model.pth" }
  strategies = ["full", "ramp", "linear"]   # as of stunet_train --finetune; from scratch each schedule once
  cases = [4, 8, "all"]                     # labelled training cases of the fold
  seeds = [0, 1, 2]                         # each chooses its cases, the same ones in every arm
  # and what may be left out:
  heads = ["slice", "reset"]                # as of stunet_train --head
  configuration = "3d_fullres"
  fold = 0                                  # its validation cases are the held-out ones
  plans = "STUNetPlans_B"                   # as of stunet_train -p
  size = "B"
  set = { num_epochs = 100 }                # as of stunet_train --set, for all arms; a ramp is 5 % of the epochs
  set_scratch = { initial_lr = 0.01 }       # for the arms without weights
  set_pretrained = { initial_lr = 0.001 }   # for the arms with weights
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_experiment",
        "Trains every combination of weights, strategies, numbers of labelled cases and seeds that a TOML file names,\n"
        "with stunet_train, and compares them on the held-out cases. The same command again goes on where it stopped.",
        EXAMPLE,
    )
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="what to compare; see below")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="for logs and summary (default: FILE)")
    parser.add_argument("--dry_run", action="store_true", help="show the arms and their commands; write nothing")
    parser.add_argument("--summary_only", action="store_true", help="compare what is done; train nothing")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="arms at a time (default 1)")
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="as of stunet_train")
    parser.add_argument("--json", action="store_true", help="the summary as JSON instead of a table")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    if args.j < 1:
        raise UsageError(f"-j {args.j} must be 1 or more", "-j 1")
    if args.file.suffix != ".toml":
        raise UsageError(f"{str(args.file)!r} does not end with .toml", "see stunet_experiment --help for such a file")
    experiment = read_experiment(args.file)
    todo = {arm: command(experiment, arm) for arm in arms(experiment)}
    record = Record(args.o or args.file.with_suffix(""))
    left = {arm.title: arm.weights for arm, words in todo.items() if record.state(words) != DONE}
    if not args.summary_only:
        _check(experiment, left)
    _check_done(todo, record, args.summary_only)
    if args.dry_run:
        lines = [(shlex.join(words), record.state(words) or "to do") for words in todo.values()]
        return console.table(("command", "state"), lines, f"{len(todo)} arms")
    if not args.summary_only:
        for weights in set(left.values()) - {SCRATCH}:
            store.find_model(weights)  # downloads them, if needed, before the first arm
        program = common.find_command("stunet_train")
        device = ["-device", args.device] if args.device else []
        run(todo, record, lambda words: [program, *words[1:], *device], args.j, console.note)
    _summarise(todo, record, args.json)
    failed = [arm for arm, words in todo.items() if record.state(words) == FAILED]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(todo)} arms failed, first {failed[0].name}: {record.message(todo[failed[0]])}",
            f"see {record.log(failed[0])}, and run the same command again",
        )


def _check(experiment: Experiment, weights: Mapping[str, str]) -> None:
    """Check that everything the arms need exists; download nothing."""
    from stunet.cli.train_plans import choose_trainer
    from stunet.plans.check import check_plan
    from stunet.runs.readiness import check_data

    dataset = workspace.dataset_name(experiment.dataset)
    plan = read_plan(plan_path(dataset, experiment.plans))
    check_plan(plan, experiment.configuration)
    splits = workspace.preprocessed_dataset(dataset) / SPLITS
    folds = len(read_folds(splits)) if splits.is_file() else MADE
    if experiment.fold >= folds:
        what = f"fold {experiment.fold} is asked for, but {dataset} has {folds}"
        raise DataError(what, f"fold = N, from 0 to {folds - 1}")
    trainer = choose_trainer(dataset, plan.to_json(), None)
    for warning in check_data(dataset, plan, experiment.configuration, experiment.fold, trainer):
        console.warn(warning)
    _check_weights(experiment, weights, plan.size)


def _check_done(todo: Mapping[Arm, Sequence[str]], record: Record, only_warn: bool) -> None:
    """Raise DataError, or warn, if a finished arm was made from other cases or data than there are now."""
    from stunet.provenance import check_result

    for arm, words in todo.items():
        if record.state(words) != DONE or not (reasons := check_result(record.summary(words).parents[1])):
            continue
        what = f"the arm {arm.name} is done, but {reasons[0]}"
        if not only_warn:
            raise DataError(what, f"train it again: {shlex.join([*words, '--overwrite'])}, or another folder with -o")
        console.warn(what)


def _check_weights(experiment: Experiment, weights: Mapping[str, str], planned: str) -> None:
    """Check that all weights are known, distinct, and of the requested size.

    Warn if training from scratch is compared with weights of another size than planned.
    """
    found = {title: _known(text) for title, text in weights.items() if text != SCRATCH}
    for (one, (place, _)), (other, (same, _)) in combinations(found.items(), 2):
        if place == same:
            raise DataError(f"{one!r} and {other!r} are the same weights", "leave one of them out")
    unlike = {title: size for title, (_, size) in found.items() if size not in (None, experiment.size or planned)}
    if experiment.size and unlike:
        title, size = unlike.popitem()
        what = f"size {experiment.size} is asked for, but the weights {title!r} are of size {size}"
        raise DataError(what, "leave the size out, or these weights")
    if unlike and SCRATCH in experiment.weights.values():
        others = ", ".join(f"{title} of {size}" for title, size in unlike.items())
        console.warn(f"training from scratch is of size {planned}, but {others}: the difference mixes size and weights")


def _known(text: str) -> tuple[str, str | None]:
    """Return what uniquely identifies these weights, and their size."""
    entry = registry.look_up(text)
    if entry and not store.find_installed(text):
        return entry.name, entry.size
    from stunet.weights.reading import read_weights

    path = store.find_model(text, offline=True)
    return str(path.resolve()), entry.size if entry else read_weights(path).architecture.size


def _summarise(todo: Mapping[Arm, Sequence[str]], record: Record, as_json: bool) -> None:
    from stunet.experiment import summary

    found = results(todo, record)
    if not found:
        if any(record.state(words) == FAILED for words in todo.values()):
            return
        raise DataError(f"no arm is done in {str(record.folder)!r}", "the same command without --summary_only")
    rows = summary.summarise(found)
    if as_json:
        console.result_json(summary.to_json(rows))
    else:
        columns = ("arm", "cases", "seeds", "Dice", "sd", "difference", "95 % interval", "pairs", "against")
        console.table(columns, map(_cells, rows))
    for path in summary.write(rows, record.folder):
        console.note(f"wrote {path}")
    done = sum(record.state(words) == DONE for words in todo.values())
    if done < len(todo):
        console.warn(f"{done} of {len(todo)} arms are done")


def _cells(row: "Row") -> list[str]:
    def number(value: float, sign: str = "") -> str:
        return "-" if isnan(value) else f"{value:{sign}.4f}"

    interval = "-" if isnan(row.low) else f"{row.low:+.4f} to {row.high:+.4f}"
    measured = [number(row.dice), number(row.sd), number(row.difference, "+"), interval]
    return [row.line, str(row.cases), str(len(row.seeds)), *measured, str(row.pairs or "-"), row.baseline or "-"]
