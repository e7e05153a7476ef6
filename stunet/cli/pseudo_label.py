"""stunet_pseudo_label: complete the classes that cases lack with a teacher. merging/completing.py has the rules."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stunet import console, workspace
from stunet.cli import common, live
from stunet.errors import DataError, UsageError
from stunet.models import store
from stunet.parts import Part, unfinished
from stunet.runs.devices import choose_device

EXAMPLES = """examples:
  stunet_pseudo_label -d 900 --teacher STU-Net-L --name Dataset901_Completed
  stunet_pseudo_label -d 7 --teacher RESULT_FOLDER --name Dataset017_Both --classes liver spleen --confidence liver=0.8
What is annotated stays; where the teacher is not sure, voxels are ignored. A run that was stopped goes on."""
DEFAULT = 0.9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_pseudo_label", "Completes the classes that cases of a dataset lack with a teacher.", EXAMPLES
    )
    add = parser.add_argument
    add("-d", required=True, metavar="ID", help="the dataset: number or name; a union of stunet_merge, or any other")
    add("--teacher", required=True, metavar="NAME|DIR", help="a model by its name in stunet_models list, or its folder")
    add("--name", required=True, metavar="DatasetXXX_Name", help="the dataset that is written")
    add("--classes", nargs="+", default=(), metavar="CLASS", help="what to complete (default: what some case lacks)")
    add(
        "--min_confidence",
        type=float,
        default=DEFAULT,
        metavar="P",
        help="probability that a voxel's class has to reach (default: %(default)s); below it the voxel is ignored",
    )
    add("--confidence", nargs="+", type=_pair, default=(), metavar="CLASS=P", help="the same for single classes")
    add("--orientation", metavar="CODE", help="of the teacher's training images, e.g. LPS, where it does not say it")
    add("-f", nargs="+", type=common.fold, metavar="FOLD", help="folds of the teacher to average (default: all)")
    add("-chk", default="checkpoint_final.pth", metavar="FILE", help="its checkpoint (default: %(default)s)")
    add("-step_size", type=float, default=0.5, metavar="X", help="as in stunet_predict (default: 0.5)")
    add("--disable_tta", action="store_true", help="no mirroring: up to 8 times faster, less accurate")
    add("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="of the network (default: auto)")
    common.add_part_flags(parser)
    common.add_licence_flag(parser)
    add("--dry_run", action="store_true", help="say what would be completed, and write nothing")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    _check(args)
    asked = common.parts(args)
    folder = workspace.raw_dataset(workspace.dataset_name(args.d))
    target = workspace.folder("nnUNet_raw", for_writing=True) / args.name
    model = Path(args.teacher)
    if not model.is_dir():
        model = store.find_model(args.teacher, accept_licence=args.accept_licence)

    from stunet.inference.predictor import Options, Predictor
    from stunet.merging.completing import complete, complete_part, merge_parts
    from stunet.merging.provenance import is_there
    from stunet.merging.pseudo import plan_completion

    options = Options(
        device=choose_device(args.device),
        precision=args.precision,
        step_size=args.step_size,
        mirroring=not args.disable_tta,
        orientation=args.orientation,
    )
    teacher = Predictor(model, options, args.f, args.chk)
    if teacher.previous_stage:
        raise UsageError(f"{args.teacher!r} is a cascade", "a teacher of one stage, such as its 3d_fullres")
    todo = plan_completion(folder, teacher.model, args.classes, args.min_confidence, dict(args.confidence))
    record = {"name": str(args.teacher), **teacher.made_by}
    lacking = Counter(leaf for case in todo.cases for leaf in todo.missing(case.name))
    rows = [[n, " + ".join(of), f"{todo.thresholds[n]:g}", str(lacking[n])] for n, of in todo.classes.items()]
    console.table(["class", "teacher's", "confidence", "cases"], rows, f"{folder.name} -> {args.name}")
    if is_there(target, todo.state(record)):
        console.note("it is there already, made from the same dataset by the same teacher")
    elif args.merge:
        merge_parts(todo, target, record, asked["num_parts"])
    elif not args.dry_run:
        part = Part(asked["part_id"], asked["num_parts"])
        with live.Progress("complete", len(part.take(todo.cases))) as progress:
            if part.is_whole:
                complete(todo, target, teacher, record, progress.step)
            elif missing := complete_part(todo, target, teacher, record, part, progress.step):
                console.note(unfinished(part, missing))
                return
    if not args.dry_run:
        console.result(str(target))
        console.note(f"next: stunet_plan_and_preprocess -d {workspace.dataset_number(args.name)}")


def _check(args: argparse.Namespace) -> None:
    if not re.fullmatch(r"Dataset[0-9]{3}_[A-Za-z0-9_-]{1,64}", args.name):
        raise UsageError(f"--name {args.name!r} is not the name of a dataset", "--name Dataset901_Completed")
    if not 0 < args.step_size <= 1:
        raise UsageError(f"-step_size {args.step_size:g} is not above 0 and at most 1", "-step_size 0.5")
    if args.name == workspace.dataset_name(args.d):
        raise DataError(f"{args.name!r} is the dataset itself", "another name: nothing is changed in place")


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = None
    if not name or number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CLASS=0.8")
    return name, number
