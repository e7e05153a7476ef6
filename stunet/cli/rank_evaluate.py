"""stunet_rank evaluate: how well scores ranked candidates, by what fine-tuning them reached."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import console
from stunet.cli import common
from stunet.errors import UsageError

if TYPE_CHECKING:
    from stunet.ranking.formats import Results, Scores

EXAMPLES = """examples:
  stunet_rank evaluate rank.json results.json -o judged
  stunet_rank evaluate ranks/rank.json hippocampus.toml --cases 8
  stunet_rank evaluate a/rank.json a/results.json b/rank.json b/results.json --tau topote

rank.json, from stunet_rank: values by target (dataset), score and candidate, higher is better:
  {"targets": {"Dataset004_Hippocampus": {"scores": {"ccfv": {"mae": -0.42, "simclr": {"error": "no decoder"}}}}},
   "candidates": {"mae": {"architecture": "STU-Net"}}}
In place of a number may stand {"score": -0.42, "low": -0.49, "high": -0.36, "draws": [-0.41, -0.44]}.

results.json: Dice from 0 to 1 after fine-tuning, of a candidate as a whole, by seed, case, or class:
  {"targets": {"Dataset004_Hippocampus": {
    "mae": {"dice": {"0": {"case_1": {"Anterior": 0.87, "Posterior": null}}}}, "simclr": {"dice": 0.85}}}}
or an experiment of stunet_experiment: its folder, or its .toml file. Candidates are found by title or weights.

Regret is in Dice points: what the best of the first one or three loses to the best of all. Intervals resample held-out
cases and seeds, which adds noise: those of a high correlation or a low regret may lie beside the value. p is that of a
random order to reach this weighted tau. "minus static" is what it gains over the static list, in the same draws. Beside
the scores stand a random order and, with results of other targets, a static list: the mean standardised Dice on these.
Fewer than four candidates have no correlations. The two definitions of the weighted tau give different numbers: never
compare one with the other.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_rank evaluate", "Judge scores of pre-trained models by what fine-tuning these reached.", EXAMPLES
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="SCORES RESULTS", help="two files, or two for each target"
    )
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="also write judged.json, judged.csv and judged.png")
    parser.add_argument(
        "--tau",
        choices=["scipy", "topote"],
        default="scipy",
        help="definition of the weighted tau: that of scipy and most publications (default), or of TopoTE",
    )
    parser.add_argument("--cases", metavar="N", help="of an experiment with several numbers of labelled cases")
    parser.add_argument("--arms", metavar="TEXT", help='of an experiment with several strategies, such as "full slice"')
    parser.add_argument("--json", action="store_true", help="everything, also by target, as JSON in place of the table")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    from stunet.ranking import verdicts
    from stunet.ranking.judging import judge

    if len(args.files) % 2:
        raise UsageError(f"{len(args.files)} files are not pairs of scores and results", "SCORES RESULTS")
    scores, results = _read(args.files, args.arms, args.cases)
    judgement = judge(scores, results, args.tau)
    if args.json:
        console.result_json(verdicts.to_json(judgement))
    else:
        console.table(*verdicts.table(judgement))
    for note in judgement.notes:
        console.note(note)
    if args.o:
        for path in verdicts.write(judgement, args.o):
            console.note(f"wrote {path}")


def _read(files: Sequence[Path], way: str | None, cases: str | None) -> tuple["Scores", "Results"]:
    """Read pairs of files; a target may be in one pair only."""
    from stunet.experiment.finetuned import read_finetuned
    from stunet.ranking import formats

    pairs = list(zip(files[::2], files[1::2], strict=True))
    scores = formats.merge_scores([formats.read_scores(path) for path, _ in pairs])
    known = {
        **{weights: name for name, weights in scores.weights.items()},
        **{name: name for name in scores.candidates},
    }
    found = []
    for _, path in pairs:
        if path.suffix == ".toml" or (path / "arms.json").is_file():
            targets, notes = read_finetuned(path, known, way, cases)
            found.append(formats.to_results(targets, repr(str(path)), notes))
        else:
            found.append(formats.read_results(path))
    return scores, formats.merge_results(found)
