"""stunet_experiment: compare pre-trained weights and ways of fine-tuning on one dataset, in one resumable command."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stunet import console
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.errors import DataError, UsageError
from stunet.experiment.arms import Arm, arms, command, read_experiment, request
from stunet.experiment.checks import check_done, check_experiment
from stunet.experiment.child import MODULE, write_request
from stunet.experiment.runs import DONE, FAILED, Record, results, run
from stunet.models import store

EXAMPLE = """example: a FILE.toml
  dataset = 4                               # number or name
  weights = ["none", "STU-Net-B"]           # as of stunet_train --pretrained; "none": training from scratch;
                                            # or with titles: { scratch = "none", ours = "folder/model.pth" };
                                            # { both = ["a.pth", "b.pth"] }: a network with an encoder for each
  strategies = ["full", "ramp", "linear"]   # as of stunet_train --finetune; from scratch each schedule once
  cases = [4, 8, "all"]                     # labelled training cases of the fold
  seeds = [0, 1, 2]                         # each chooses its cases, the same ones in every arm
  # and what may be left out:
  heads = ["slice", "reset"]                # as of stunet_train --head
  transfers = ["encoder", "all"]            # as of stunet_train --transfer
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
    return common.run(_new_parser(), _command, argv)


def compare(words: Sequence[str]) -> None:
    """Do what the command does with these arguments, as a part of another one."""
    _command(_new_parser().parse_args(words))


def _new_parser() -> argparse.ArgumentParser:
    parser = common.new_parser(
        "stunet_experiment",
        "Trains every combination of weights, strategies, numbers of labelled cases and seeds that a TOML file names,\n"
        "with stunet_train, and compares them on the held-out cases. The same command again goes on where it stopped.",
        EXAMPLE,
    )
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="what to compare; see below")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="for logs and summary (default: FILE)")
    common.add_licence_flag(parser)
    parser.add_argument("--dry_run", action="store_true", help="show the arms and their commands; write nothing")
    parser.add_argument("--summary_only", action="store_true", help="compare what is done; train nothing")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="arms at a time (default 1)")
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="as of stunet_train")
    parser.add_argument("--json", action="store_true", help="the summary as JSON instead of a table")
    return parser


def _command(args: argparse.Namespace) -> None:
    if args.j < 1:
        raise UsageError(f"-j {args.j} must be 1 or more", "-j 1")
    if args.file.suffix != ".toml":
        raise UsageError(f"{str(args.file)!r} does not end with .toml", "see stunet_experiment --help for such a file")
    experiment, shown = read_experiment(args.file), Shown()
    requests = {arm: replace(request(experiment, arm), device=args.device) for arm in arms(experiment)}
    todo = {arm: command(asked) for arm, asked in requests.items()}
    record = Record(args.o or args.file.with_suffix(""))
    # Weights of finished arms are not needed any more, and may be gone.
    left = {arm.title: arm.weights for arm, words in todo.items() if record.state(words) != DONE}
    if not args.summary_only:
        check_experiment(experiment, left, shown)
    check_done(todo, record, args.summary_only, shown)
    if args.dry_run:
        lines = [(shlex.join(words), record.state(words) or "to do") for words in todo.values()]
        return console.table(("command", "state"), lines, f"{len(todo)} arms")
    if not args.summary_only:
        for weights in {each for texts in left.values() for each in texts}:
            # Downloads them, if needed, before the first arm.
            store.find_model(weights, accept_licence=args.accept_licence)

        def start(arm: Arm, ending: Path) -> list[str]:
            file = ending.with_name("request.json")
            write_request(requests[arm], file)
            # -P: as in a command, a module of the same name in the current folder is not imported.
            return [sys.executable, "-P", "-m", MODULE, str(file), str(ending)]

        run(todo, record, start, args.j, console.note)
    _summarise(todo, record, args.json)
    failed = [arm for arm, words in todo.items() if record.state(words) == FAILED]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(todo)} arms failed, first {failed[0].name}: {record.message(todo[failed[0]])}",
            f"see {record.log(failed[0])}, and run the same command again",
        )


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
        console.table(*summary.table_of(rows))
    for path in summary.write(rows, record.folder):
        console.note(f"wrote {path}")
    done = sum(record.state(words) == DONE for words in todo.values())
    if done < len(todo):
        console.warn(f"{done} of {len(todo)} arms are done")
