"""stunet_features: features of any encoder, and probes of them. runs/features.py does the work."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.errors import DataError
from stunet.runs.features import FeaturesRequest, features

DESCRIPTION = """Computes what the stages of any encoder make of images, averaged over each case, over its classes, or
at points, and tells by a probe whether that predicts something about the cases."""
EXAMPLES = """examples:
  stunet_features -i imagesTr -o features --model OpenMind-ResEncL-MAE
  stunet_features -i imagesTr -o features --model STU-Net-B --labels labelsTr --probe diagnosis.csv
  stunet_features -i scans -o features -d 3 -c 3d_fullres -f 0 --points nodules.csv --world LPS --stages 3 4
Cases that are done are kept; after a change of model or options, --overwrite replaces them.
"""
POOL = "case, class and point: what rows are of (default: class with --labels, point with --points, else case)"
ORIENTATION = "of the training images, e.g. LPS or RAS (nibabel's letters), where the model does not say it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return common.run(_new_parser(), _command, argv)


def _command(args: argparse.Namespace) -> int:
    request = FeaturesRequest(
        input=args.i,
        output=args.o,
        model=args.model,
        dataset=args.d,
        configuration=args.c,
        plans=args.p,
        trainer=args.tr,
        fold=args.f,
        checkpoint=args.chk,
        series=args.series,
        labels=args.labels,
        points=args.points,
        world=args.world,
        pools=args.pool,
        stages=args.stages,
        probe=args.probe,
        targets=args.target or (),
        task=args.task,
        seed=args.seed,
        orientation=args.orientation,
        step_size=args.step_size,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        cluster=args.cluster,
        overwrite=args.overwrite,
        accept_licence=args.accept_licence,
        **common.parts(args, args.i),
    )
    errors = features(request, Shown(not args.disable_progress_bar)).errors
    # Cases fail one by one; if all failed for the same reason, the exit code says so.
    codes = {error.exit_code for error in errors.values()}
    return 0 if not codes else codes.pop() if len(codes) == 1 else DataError.exit_code


def _new_parser() -> argparse.ArgumentParser:
    parser = common.new_parser("stunet_features", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("-i", required=True, type=Path, metavar="IN", help="folder with CASE_0000.nii.gz ..., an image or DICOM folder")
    add("-o", required=True, type=Path, metavar="OUT", help="folder: CASE.safetensors, features.csv, probe.csv")
    add("--model", metavar="NAME|PATH", help="a model by its name in stunet_models list, its folder, or its weights")
    add("-d", metavar="DATASET", help="or the dataset that the model was trained on: number or name")
    add("-c", metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres")
    add("-p", metavar="PLANS", help="plans (default: the only ones trained)")
    add("-tr", metavar="TRAINER", help="trainer (default: that of the only model there is)")
    add("-f", type=common.fold, metavar="FOLD", help="fold of the model, or all (default: the lowest trained)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="name of the checkpoint (default: %(default)s)")
    add("--pool", nargs="+", choices=["case", "class", "point"], metavar="POOL", help=POOL)
    add("--labels", type=Path, metavar="DIR", help="label maps called like the cases; dataset.json names the classes")
    add("--points", type=Path, metavar="CSV", help="points: columns case, x, y, z in mm, and name")
    add("--world", choices=["RAS", "LPS"], default="RAS", help="of the points: RAS as in NIfTI, LPS as in DICOM, ITK")
    add("--stages", nargs="+", type=int, metavar="N", help="encoder stages, from 0, the finest (default: all)")
    add("--probe", type=Path, metavar="CSV", help="what to predict: columns case, one per target, subject, name")
    add("--target", nargs="+", metavar="COLUMN", help="columns of it (default: all)")
    add("--task", choices=["classification", "regression"], help="default: by the values of each target")
    add("--seed", type=int, default=0, metavar="N", help="of the probe's folds (default: 0)")
    add("--series", metavar="UID", help="which series of a DICOM folder: its UID, number or description")
    add("--orientation", metavar="CODE", help=ORIENTATION)
    add(
        "-step_size",
        type=float,
        default=0.5,
        metavar="X",
        help="step from window to window over their size; 1 is up to 8 times faster (default: 0.5)",
    )
    add("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="as in stunet_predict")
    add("--threads", type=common.positive, metavar="N", help="threads on the CPU (default: one per physical core)")
    common.add_part_flags(parser)
    common.add_cluster_flag(parser)
    add("--overwrite", action="store_true", help="compute all cases again")
    add("--disable_progress_bar", action="store_true", help="show no progress")
    common.add_licence_flag(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
