"""stunet_rank: which pre-trained model to fine-tune. runs/ranking.py ranks; rank_evaluate.py judges a ranking."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from stunet import console
from stunet.cli import common, experiment, rank_evaluate
from stunet.cli.shown import Shown
from stunet.errors import DataError, UsageError
from stunet.experiment.ranked import check_finetuning, write_finetuning
from stunet.plans import settings
from stunet.runs.ranking import ALL_INSTALLED, LAYERS, RankingRequest, RankingResult, rank

DESCRIPTION = """Ranks pre-trained models for a labelled dataset: reads what they compute at points of its classes,
scores that, and says how sure the order is. `stunet_rank evaluate` judges a ranking by what fine-tuning reached."""
EXAMPLES = f"""examples:
  stunet_rank -d 3 --models STU-Net-S STU-Net-B weights.pth mae=folder/
  stunet_rank -d 3 --models {ALL_INSTALLED} --scores ccfv probe static
  stunet_train 3 3d_fullres 0 --pretrained best-of $nnUNet_results/Dataset003_X/ranking/rank.json
  stunet_rank -d 3 --models STU-Net-S STU-Net-B other.pth --finetune 2 --set num_epochs=100
  stunet_rank evaluate rank.json results.json
Features are kept: another candidate or score later costs only itself. Candidates that fail are told of at the end, and
the exit code is then 3.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["evaluate"]:
        return rank_evaluate.main(words[1:])
    return common.run(_new_parser(), _command, words)


def _command(args: argparse.Namespace) -> int:
    """Rank, and with --finetune fine-tune; both go on where they stopped."""
    request = RankingRequest(
        dataset=args.d,
        models=args.models,
        scores=args.scores,
        cases=args.cases,
        fold=args.f,
        points=args.points,
        layers=args.layers,
        seed=args.seed,
        output=args.o,
        step_size=args.step_size,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        accept_licence=args.accept_licence,
    )
    if args.finetune is None and (args.set or args.c or args.p or args.j):
        raise UsageError("--set, -c, -p and -j are for --finetune", "--finetune 3")
    chosen, shown = settings.parse(args.set), _Shown(not args.disable_progress_bar, args.json, args.finetune is None)
    configuration = check_finetuning(args.d, args.f, args.c, args.p, chosen, shown) if args.finetune is not None else ""
    result = rank(request, shown)
    if args.finetune:
        file = write_finetuning(result, args.finetune, configuration, args.p, chosen)
        console.note(f"fine-tune: stunet_experiment {shlex.quote(str(file))}")
        words = [str(file), "-j", str(args.j or 1), *(["-device", args.device] if args.device else [])]
        experiment.compare([*words, *(["--json"] if args.json else [])])
    return DataError.exit_code if result.errors else 0


class _Shown(Shown):
    """Shows a ranking; as JSON if it is the last that the command shows, since stdout takes one document."""

    def __init__(self, progress: bool, as_json: bool, last: bool) -> None:
        super().__init__(progress)
        self._json, self._last = as_json, last

    def ranked(self, result: RankingResult) -> None:
        if not self._json:
            super().ranked(result)
        elif self._last:
            console.result_json(result.outcome.to_json())


def _new_parser() -> argparse.ArgumentParser:
    parser = common.new_parser("stunet_rank", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("-d", required=True, metavar="DATASET", help="number or name of the labelled dataset")
    add(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help=f"names of stunet_models list, files of weights, model folders, TITLE=PATH; {ALL_INSTALLED}",
    )
    add("--scores", nargs="+", default=(), metavar="SCORE", help="the first decides (default: ccfv static)")
    add("--cases", type=common.positive, default=20, metavar="N", help="labelled cases to look at (default: 20)")
    add("-f", type=int, metavar="FOLD", help="only training cases of this fold")
    add("--points", type=common.positive, metavar="N", help="of each class in a case (default: up to 1000)")
    add("--layers", choices=LAYERS, default="auto", help="where features are read (auto: decoder, if all have one)")
    add("--seed", type=int, default=0, metavar="N", help="of the points and the bootstrap (default: 0)")
    add("-o", type=Path, metavar="FOLDER", help="rank.json and the features (default: ranking/ beside the models)")
    add("-step_size", type=float, default=0.5, metavar="X", help="step between windows over their size (default: 0.5)")
    add("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="as in stunet_predict")
    add("--threads", type=common.positive, metavar="N", help="threads on the CPU (default: one per physical core)")
    add("--finetune", type=common.positive, metavar="N", help="then fine-tune the best N, train from scratch, compare")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of --finetune: as of stunet_train")
    add("-c", metavar="CONFIGURATION", help="of --finetune (default: 3d_fullres, of 2D images 2d)")
    add("-p", metavar="PLANS", help="of --finetune (default: those of the dataset)")
    add("-j", type=common.positive, metavar="N", help="of --finetune: trainings at a time (default: 1)")
    add("--json", action="store_true", help="the ranking, with --finetune the comparison, as JSON")
    add("--disable_progress_bar", action="store_true", help="show no progress")
    common.add_licence_flag(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
