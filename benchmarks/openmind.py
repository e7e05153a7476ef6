"""What is a static list worth on the OpenMind benchmark, beside a random order and "always MAE"?

    python benchmarks/openmind.py             # the table; the first rows are the figures of the data's README
    python benchmarks/openmind.py --tau topote
    python benchmarks/openmind.py --write DIR # scores.json and results.json of both networks, for stunet_rank evaluate

The Dice after fine-tuning are in openmind/finetuned_dice.csv of the reference data ($STUNET_TEST_DATA, or
../shared/data beside the checkout). The candidates are the seven self-supervised models of a network, the static list
is the mean of standardised Dice on the eleven other targets, and the six targets are TopoTE's (arXiv 2602.23916).
"""

import argparse
import csv
import os
from pathlib import Path

from stunet.console import note, table
from stunet.files import write_json
from stunet.ranking import verdicts
from stunet.ranking.formats import MEAN, Scored, Scores, to_results, write_results
from stunet.ranking.judging import judge

DATA = Path(os.environ.get("STUNET_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SIX = ("ISL", "HNT", "MSF", "TPC", "ACD", "KIT")
NOT_PRETRAINED = ("scratch", "scratch_1k", "nnunet_def", "nnunet_def_1k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tau", choices=["scipy", "topote"], default="scipy")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    with (DATA / "openmind" / "finetuned_dice.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["pretraining"] not in NOT_PRETRAINED]
    names = [key for key in lines[0] if key not in ("network", "pretraining")]
    rows = []
    for network in dict.fromkeys(line["network"] for line in lines):
        pool = {line["pretraining"]: line for line in lines if line["network"] == network}
        dice = {
            name: {key: {MEAN: {MEAN: {MEAN: float(line[name]) / 100}}} for key, line in pool.items()} for name in names
        }
        always = {key: float(key == "mae") for key in pool}
        if args.write:
            folder = args.write / network
            folder.mkdir(parents=True, exist_ok=True)
            content = {name: {"scores": {"always MAE": always}} for name in names}
            write_json(
                folder / "scores.json", {"targets": content, "candidates": {k: {"architecture": network} for k in pool}}
            )
            write_results(dice, folder / "results.json")
            note(f"wrote {folder}")
        for targets in (SIX, names):
            scores = Scores({name: {"always MAE": {k: Scored(v) for k, v in always.items()}} for name in targets})
            found = judge(scores, to_results(dice, "openmind"), args.tau)
            columns, cells = verdicts.table(found)
            rows += [[f"{network}, {len(targets)} targets", *line[1:]] for line in cells]
    table(columns, rows)


if __name__ == "__main__":
    main()
