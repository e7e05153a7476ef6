"""stunet_plan_and_preprocess: check, plan and preprocess datasets. runs/planning.py does the work."""

import argparse
from collections.abc import Sequence

from stunet import presets
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.plans.blueprints import STOCK_PLANS, blueprints
from stunet.plans.plan import PLANNER
from stunet.runs.planning import plan_each
from stunet.runs.planning_request import CONFIGURATIONS, PlanningRequest
from stunet.sizes import DEFAULT, SIZES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_plan_and_preprocess",
        "Plans STU-Net, or a network of nnU-Net, for datasets in nnU-Net raw format and preprocesses them.",
        "example: stunet_plan_and_preprocess -d 3 --size L",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="ID", help="datasets: numbers or names")
    parser.add_argument("--size", choices=list(SIZES), help=f"size of STU-Net (default {DEFAULT})")
    parser.add_argument("--network", choices=list(blueprints()), help="the network; stunet-b is --size B")
    parser.add_argument(
        "--preset", metavar="NAME|FILE", help=f"start from a preset: {', '.join(presets.names())}, or a .toml file"
    )
    parser.add_argument(
        "--stages",
        metavar="N|auto",
        help="stages of the network (default 6, of nnU-Net's auto: what the patch supports)",
    )
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: larger patches, slower steps"
    )
    parser.add_argument("--probe", action="store_true", help="measure the memory of a real training step on the GPU")
    parser.add_argument("--dry_run", action="store_true", help="show the plan; write nothing")
    parser.add_argument("--no_check", action="store_true", help="do not read the dataset once to find broken files")
    parser.add_argument(
        "-gpu_memory_target", type=float, metavar="GB", help="GPU memory to plan for (default: the network's)"
    )
    parser.add_argument(
        "-overwrite_target_spacing", nargs=3, type=float, metavar=("Z", "Y", "X"), help="spacing of 3d_fullres, in mm"
    )
    parser.add_argument(
        "--spacing",
        nargs="+",
        metavar="MM",
        help="the same: 1mm, or three numbers in that order; median: that of the images per axis; none: every image "
        "keeps its own; dataset: nnU-Net's rule (default); pretrained: that of the weights (default with --pretrained)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="NAME|FILE|DIR",
        help="plan for pre-trained weights: their network and normalization, their spacing unless another is given",
    )
    common.add_licence_flag(parser)
    parser.add_argument(
        "--like",
        metavar="ID[:PLANS]",
        help="plan as another dataset was: same spacing, normalization, patch and strides; for pre-training",
    )
    parser.add_argument("-p", metavar="PLANS", help="preprocess as these plans say, which are there; plan nothing")
    parser.add_argument("-overwrite_plans_name", metavar="NAME", help="default STUNetPlans_<size>")
    parser.add_argument("-c", nargs="+", default=CONFIGURATIONS, metavar="CONFIGURATION", help="what to preprocess")
    parser.add_argument(
        "-np", nargs="+", type=int, metavar="N", help="processes for preprocessing, one or per configuration"
    )
    parser.add_argument("-npfp", type=int, metavar="N", help="processes for checks and fingerprint")
    parser.add_argument("-preprocessor_name", default="DefaultPreprocessor", help="nnU-Net preprocessor")
    parser.add_argument(
        "-fpe",
        default="DatasetFingerprintExtractor",
        choices=["DatasetFingerprintExtractor"],
        help="fingerprint extractor",
    )
    parser.add_argument(
        "-pl", default=PLANNER, choices=[PLANNER, *STOCK_PLANS], help="planner; those of nnU-Net plan as nnU-Net does"
    )
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="always done here (see --no_check)")
    parser.add_argument(
        "--clean", action="store_true", help="extract the fingerprint again even if the data did not change"
    )
    parser.add_argument("--no_report", action="store_true", help="write no page about the dataset beside the plans")
    common.add_part_flags(parser)
    common.add_cluster_flag(parser)
    parser.add_argument("--no_pp", action="store_true", help="plan only")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    request = PlanningRequest(
        # plan_each() puts each dataset in its place.
        dataset=args.d[0],
        network=args.network,
        size=args.size,
        preset=args.preset,
        stages=args.stages,
        gpu_memory_target=args.gpu_memory_target,
        overwrite_target_spacing=args.overwrite_target_spacing,
        spacing=args.spacing,
        pretrained=args.pretrained,
        accept_licence=args.accept_licence,
        like=args.like,
        checkpointing=args.checkpointing,
        probe=args.probe,
        plans=args.p,
        planner=args.pl,
        overwrite_plans_name=args.overwrite_plans_name,
        configurations=args.c,
        np=args.np,
        npfp=args.npfp,
        preprocessor_name=args.preprocessor_name,
        no_check=args.no_check,
        clean=args.clean,
        no_pp=args.no_pp,
        dry_run=args.dry_run,
        report=not args.no_report,
        cluster=args.cluster,
        **common.parts(args),
    )
    common.raise_last(plan_each(request, args.d, Shown(not args.no_pbar)), "stunet_plan_and_preprocess")
