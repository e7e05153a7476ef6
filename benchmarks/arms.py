"""Runs the arms of an experiment in one process, which saves each the start of a process: 10 s of CPU, of 40.

    python benchmarks/arms.py selfsupervised/few_cases.toml -o arms/mae --weights mae simclr

Results are those of stunet_experiment. Give each process that runs at the same time a folder of its own, with links to
the weights in it; `claims.py collect` and `stunet_rank evaluate` take several folders, one after the other.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from stunet.console import note
from stunet.errors import Interrupted, StunetError
from stunet.experiment.arms import arms, command, read_experiment, request
from stunet.experiment.runs import BEGUN, DONE, FAILED, Record
from stunet.runs.training import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("-o", type=Path, required=True, help="folder of the record; weights are looked for in it")
    parser.add_argument("--weights", nargs="+", default=[], help="titles of the weights to run (default: all)")
    args = parser.parse_args()
    args.o.mkdir(parents=True, exist_ok=True)
    copy = args.o / args.experiment.name
    copy.write_text(args.experiment.read_text())
    experiment, record = read_experiment(copy), Record(args.o)
    if unknown := set(args.weights) - set(experiment.weights):
        parser.error(f"no weights {', '.join(sorted(unknown))}; there are {', '.join(experiment.weights)}")
    for arm in arms(experiment):
        words = command(request(experiment, arm))
        if (args.weights and arm.title not in args.weights) or record.state(words) == DONE:
            continue
        try:
            trained = train(replace(request(experiment, arm), device="cpu"), resume_if_begun=True)
            record.write(arm, words, DONE, folder=str(trained.folder))
        except Interrupted:
            record.write(arm, words, BEGUN)
            raise
        except StunetError as error:
            record.write(arm, words, FAILED, message=error.message)
        note(f"{arm.name}: {record.state(words)}")


if __name__ == "__main__":
    main()
