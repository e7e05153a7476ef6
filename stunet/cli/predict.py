"""stunet_predict: segment images with a trained model. runs/prediction.py does the work."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from stunet import console
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.errors import DataError, UsageError
from stunet.results.formats import DEFAULT, FORMATS
from stunet.runs.overview import last_trained
from stunet.runs.prediction import PredictionRequest, formats_by_ending, predict

DESCRIPTION = "Segment images with a trained model; options of nnUNetv2_predict keep their names and meaning."
EXAMPLES = """examples:
  stunet_predict -i imagesTs -o out -d 3 -c 3d_fullres
  stunet_predict -i scan.nii.gz -o scan_seg.nii.gz --model STUNetTrainer__STUNetPlans__3d_fullres
  stunet_predict -i dicom_folder -o out -d 3 -c 3d_fullres -f 0 --disable_tta
  stunet_predict -i imagesTs -o out --model STU-Net-B --labels amos
"""
PRECISION = "of the network: auto is bf16 on CPUs that compute with it, fp16 on CUDA, else fp32 (default: auto)"
ORIENTATION = "of the training images, e.g. LPS or RAS (nibabel's letters), where the model does not say it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return common.run(_new_parser(), _command, argv)


def _command(args: argparse.Namespace) -> int:
    if args.last:
        _name_last(args)
    request = PredictionRequest(
        input=args.i,
        output=args.o,
        model=args.model,
        dataset=args.d,
        configuration=args.c,
        plans=args.p,
        trainer=args.tr,
        folds=args.f,
        checkpoint=args.chk,
        series=args.series,
        labels=args.labels,
        roi_subset=args.roi_subset or (),
        v1_preprocessing=args.v1_preprocessing,
        orientation=args.orientation,
        step_size=args.step_size,
        disable_tta=args.disable_tta,
        precision=args.precision,
        fast=args.fast,
        save_probabilities=args.save_probabilities,
        continue_prediction=args.continue_prediction,
        prev_stage_predictions=args.prev_stage_predictions,
        **common.parts(args, args.i, args.o),
        device=args.device,
        not_on_device=args.not_on_device,
        max_memory=args.max_memory,
        threads=args.threads,
        format=args.format,
        statistics=args.statistics,
        preview=args.preview,
        report=args.report,
        index=args.index,
        shard=args.shard,
        cluster=args.cluster,
        npp=args.npp,
        nps=args.nps,
        verbose=args.verbose,
        accept_licence=args.accept_licence,
        dry_run=args.dry_run,
    )
    done = predict(request, Shown(not args.disable_progress_bar))
    if any(case.file for case in done.cases) and request.format in (None, "image"):
        console.note(f"next, where there are references: stunet_evaluate REFERENCES {shlex.quote(str(args.o))}")
    errors = done.errors
    # Cases fail one by one; if all failed for the same reason, the exit code says so.
    codes = {error.exit_code for error in errors.values()}
    return 0 if not codes else codes.pop() if len(codes) == 1 else DataError.exit_code


def _name_last(args: argparse.Namespace) -> None:
    """Put the model and fold that were trained last where the user's would be."""
    if any((args.d, args.c, args.p, args.tr, args.model, args.f)):
        raise UsageError("--last names the model: -d, -c, -p, -tr, -f and --model", "leave them out")
    fold = last_trained()
    console.note(f"the model that was trained last: {fold.name}")
    args.model, args.f = str(fold.folder.parent), [fold.fold]


def _new_parser() -> argparse.ArgumentParser:
    """Return the command's parser, with nnUNetv2_predict's options and ours."""
    parser = common.new_parser("stunet_predict", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add(
        "-i",
        required=True,
        type=Path,
        metavar="IN",
        help="folder with CASE_0000.nii.gz ..., an image or DICOM folder; a list: .txt, an image per line, or .csv",
    )
    add("-o", required=True, type=Path, metavar="OUT", help="folder of the results; for one input also a file")
    add("--series", metavar="UID", help="which series of a DICOM folder: its UID, number or description")
    add("-d", metavar="DATASET", help="dataset that the model was trained on: number or name")
    add("-c", metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres")
    add("-p", metavar="PLANS", help="plans (default: the only ones trained)")
    add("-tr", metavar="TRAINER", help="trainer (default: that of the only model there is)")
    add("--model", metavar="NAME|DIR", help="a model by its name in stunet_models list, or its folder; no -d -c then")
    add("--last", action="store_true", help="the model whose training was finished last; no -d -c then")
    add("--labels", metavar="NAME|FILE", help="label system of the results: amos, btcv ... or a .toml file")
    add("--v1_preprocessing", action="store_true", help="resample before normalising, as nnU-Net v1 did")
    add("--orientation", metavar="CODE", help=ORIENTATION)
    add(
        "-f",
        nargs="+",
        type=common.fold,
        metavar="FOLD",
        help="folds to average, or all (default: those that were trained)",
    )
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="name of the checkpoint (default: %(default)s)")
    add(
        "-step_size", type=float, default=0.5, metavar="X", help="step from tile to tile over their size (default: 0.5)"
    )
    add("--disable_tta", action="store_true", help="no mirroring: up to 8 times faster, less accurate")
    add("--save_probabilities", action="store_true", help="also write each case's probabilities (.npz, .pkl)")
    add("--continue_prediction", action="store_true", help="skip cases whose result is there (default: overwrite)")
    previous = (
        "segmentations of a cascade's previous stage (default: predicted first, into OUT/prev_stage_CONFIGURATION)"
    )
    add("-prev_stage_predictions", type=Path, metavar="DIR", help=previous)
    common.add_part_flags(parser)
    add("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    add("--not_on_device", action="store_true", help="keep logits in the machine's memory instead of the GPU's")
    add("-npp", type=int, metavar="N", help="accepted as in nnU-Net, without effect: one thread preprocesses")
    add("-nps", type=int, metavar="N", help="accepted as in nnU-Net, without effect: this process writes the results")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help=PRECISION)
    add(
        "--max_memory",
        type=_gigabytes,
        metavar="8GB",
        help="memory that this process may take (default: 90 %% of what there is)",
    )
    add("--threads", type=common.positive, metavar="N", help="threads on the CPU (default: one per physical core)")
    add("--fast", action="store_true", help="use the model's 3d_lowres configuration instead")
    add("--roi_subset", nargs="+", metavar="CLASS", help="keep these classes only, e.g. liver spleen")
    add("--format", choices=list(FORMATS), help=_format_help())
    add(
        "--statistics", action="store_true", help="volume and mean intensity per class: statistics.json, statistics.csv"
    )
    add("--preview", action="store_true", help="a picture of each case: CASE_preview.png")
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help="times, memory, versions, hashes: JSON, or a page for readers if it ends with .html",
    )
    add(
        "--index",
        action="store_true",
        help="index.csv: status, seconds, volumes, hash per case; failed.csv; goes on without opening results (a list "
        "has it always)",
    )
    add("--shard", type=int, default=0, metavar="N", help="results in folders by N digits of the name's hash, e.g. 2")
    common.add_cluster_flag(parser)
    add("--disable_progress_bar", action="store_true", help="show no progress")
    common.add_licence_flag(parser)
    add("--dry_run", action="store_true", help="say what would be predicted, and write nothing")
    return parser


def _format_help() -> str:
    *titles, last = (each.title for each in FORMATS.values())
    implied = ", ".join(formats_by_ending())
    return f"of the results: {', '.join(titles)}, or {last} (default: {DEFAULT}, or what -o ends with: {implied})"


def _gigabytes(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB?|MB?)?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 8GB or 500MB")
    return float(match[1]) / (1000 if (match[2] or "G")[0].upper() == "M" else 1)
