"""stunet_plan_and_preprocess: check a dataset, extract its fingerprint, plan, preprocess."""

import argparse
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet import console, presets, workspace
from stunet.cli import common
from stunet.errors import DataError, StunetError, UsageError, closest
from stunet.kinds import FINGERPRINT, read
from stunet.names import name_problem
from stunet.plans.files import list_planned, list_plans, plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.sizes import DEFAULT, SIZES

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
CASCADE = "3d_cascade_fullres"
WORKERS = {"2d": 8, "3d_lowres": 8}  # upper limits, as in nnU-Net; larger images get fewer because of their memory
FEWER = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_plan_and_preprocess",
        "Plans STU-Net for datasets in nnU-Net raw format and preprocesses them.",
        "example: stunet_plan_and_preprocess -d 3 --size L",
    )
    parser.add_argument("-d", nargs="+", required=True, metavar="ID", help="datasets: numbers or names")
    parser.add_argument("--size", choices=list(SIZES), help=f"network size (default {DEFAULT})")
    parser.add_argument(
        "--preset", metavar="NAME|FILE", help=f"start from a preset: {', '.join(presets.names())}, or a .toml file"
    )
    parser.add_argument(
        "--stages", metavar="N|auto", help="stages of the network (default 6; auto: what the patch supports)"
    )
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: larger patches, slower steps"
    )
    parser.add_argument("--probe", action="store_true", help="measure the memory of a real training step on the GPU")
    parser.add_argument("--dry_run", action="store_true", help="show the plan; write nothing")
    parser.add_argument("--no_check", action="store_true", help="do not read the dataset once to find broken files")
    parser.add_argument("-gpu_memory_target", type=float, metavar="GB", help="GPU memory to plan for (default by size)")
    parser.add_argument("-overwrite_target_spacing", nargs=3, type=float, metavar="MM", help="spacing of 3d_fullres")
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
    parser.add_argument("-pl", default="STUNetPlanner", choices=["STUNetPlanner"], help="planner")
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="always done here (see --no_check)")
    parser.add_argument(
        "--clean", action="store_true", help="extract the fingerprint again even if the data did not change"
    )
    parser.add_argument("--no_pp", action="store_true", help="plan only")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    datasets = [_dataset(d) for d in args.d]
    workspace.folder("nnUNet_preprocessed")
    _check_options(args)
    _check_configurations(datasets, args.c)
    problems = []
    for dataset in datasets:
        try:
            _plan_and_preprocess(dataset, args)
        except StunetError as error:
            problems.append(error if len(datasets) == 1 else type(error)(f"{dataset}: {error.message}", error.hint))
    common.raise_last(problems, "stunet_plan_and_preprocess")


@contextmanager
def _scratch(args: argparse.Namespace) -> Iterator[None]:
    """With --dry_run, use a temporary folder in place of nnUNet_preprocessed."""
    if not args.dry_run:
        yield
        return
    before = os.environ["nnUNet_preprocessed"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_preprocessed"] = folder
        try:
            yield
        finally:
            os.environ["nnUNet_preprocessed"] = before


def _dataset(number_or_name: str) -> str:
    """Return the full name of a raw dataset; for a folder of pairs, raise an error with the command to convert it."""
    from stunet.datasets.layout import pairs_command

    folder = Path(number_or_name)
    try:
        name = workspace.dataset_name(number_or_name)
        folder = workspace.folder("nnUNet_raw") / name
        workspace.raw_dataset(name)
        return name
    except DataError as error:
        command = pairs_command(folder) if folder.is_dir() else None
        raise DataError(error.message, command or error.hint) from None


def _check_configurations(datasets: list[str], configurations: Sequence[str]) -> None:
    """Reject names that are neither nnU-Net's nor those of a configuration that somebody added to the plans."""
    known = [*CONFIGURATIONS, CASCADE]
    for dataset in datasets if set(configurations) - set(known) else ():
        for plans in list_plans(dataset):
            known += read_plan(plan_path(dataset, plans)).to_json()["configurations"]
    for name in configurations:
        if name not in known:
            raise UsageError(f"unknown configuration {name!r}{closest(name, known)}", f"-c takes {', '.join(known)}")


def _check_options(args: argparse.Namespace) -> None:
    from stunet.plans.settings import checked, parse_stages

    args.normalization = None
    if args.p and (other := [option for option, given in _planning(args).items() if given]):
        raise UsageError(f"-p {args.p} takes plans as they are, and {other[0]} plans", "one of them")
    if args.preset:
        preset = presets.load(args.preset)
        if preset.note:
            console.note(f"{args.preset}: {preset.note}")
        if preset.spacing and not args.overwrite_target_spacing:
            args.overwrite_target_spacing = [float(pitch) for pitch in preset.spacing]
        args.normalization = presets.NORMALIZATIONS.get(preset.normalization or "")
        options = preset.complete(args.size, args.gpu_memory_target, args.stages)
        args.size, args.gpu_memory_target, args.stages = options
        given = {key: checked(key, value) for key, value in preset.set.items()}
        args.checkpointing = args.checkpointing or given.get("checkpointing", False)
    args.size = args.size or DEFAULT
    args.stages = parse_stages(args.stages) or 6
    if args.probe:
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--probe needs a CUDA device, and torch finds none", "leave it out: the estimate is used")
    if args.overwrite_plans_name and (problem := name_problem(args.overwrite_plans_name)):
        raise UsageError(f"-overwrite_plans_name {args.overwrite_plans_name!r} {problem}", "a name such as MyPlans")
    for flag, numbers in (("-np", args.np or ()), ("-npfp", () if args.npfp is None else (args.npfp,))):
        if min(numbers, default=1) < 1:
            raise UsageError(f"{flag} {min(numbers)} must be 1 or more", f"{flag} 1")
    if "__" in (args.overwrite_plans_name or ""):
        raise UsageError(
            f"-overwrite_plans_name {args.overwrite_plans_name!r}: nnU-Net splits folder names at '__'", "one '_'"
        )
    if not all(0 < pitch < math.inf for pitch in args.overwrite_target_spacing or ()):
        asked = " ".join(f"{pitch:g}" for pitch in args.overwrite_target_spacing)
        raise UsageError(f"-overwrite_target_spacing {asked}: mm must be positive", "1.5 1.5 1.5")
    if args.np and len(args.np) not in (1, len(args.c)):
        raise UsageError(
            f"-np has {len(args.np)} values for {len(args.c)} configurations", "one value, or one per configuration"
        )


def _planning(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that define how to plan, by name."""
    names = ("size", "preset", "stages", "checkpointing", "probe", "no_pp")
    nnunets = ("gpu_memory_target", "overwrite_target_spacing", "overwrite_plans_name")
    return {f"--{name}": getattr(args, name) for name in names} | {f"-{name}": getattr(args, name) for name in nnunets}


def _plan_and_preprocess(dataset: str, args: argparse.Namespace) -> None:
    from stunet import nnunet

    nnunet.check_nnunet()
    readers = args.npfp or min(8, _cores())
    nnunet.limit_processes()
    from stunet.plans.splits import check_splits

    check_splits(dataset)
    planned = _planned(dataset, args) if args.p else None
    if not args.no_check:
        _check(dataset, readers, args.no_pbar)
    if planned is None:
        with _scratch(args), workspace.planning(dataset):
            planned = _plan(dataset, readers, args)
    plans = planned
    console.result(f"{dataset}: {plans['plans_name']}")
    console.table(*_summary(plans))
    for warning in _warnings(plans):
        console.warn(warning)
    if args.dry_run:
        return
    console.note(f"plans: {workspace.preprocessed_dataset(dataset) / plans['plans_name']}.json")
    if not args.no_pp:
        _preprocess(dataset, plans, args)
        first = "3d_fullres" if "3d_fullres" in plans["configurations"] else "2d"
        only = list_planned(dataset) == [plans["plans_name"]]
        chosen = "" if only else f" -p {plans['plans_name']}"
        preset = f" --preset {args.preset}" if args.preset else ""
        console.note(
            f"next: stunet_train {int(dataset[7:10])} {first} {_first_fold(dataset, plans, first)}{chosen}{preset}"
        )


def _planned(dataset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the existing plans that were asked for."""
    from stunet.plans.check import check_plan

    plan = read_plan(plan_path(dataset, args.p))
    asked = [name for name in args.c if name in plan.configurations or name not in CONFIGURATIONS]
    if not asked:
        what = f"the plans {args.p!r} have no configuration {' or '.join(args.c)}"
        raise UsageError(what, f"-c {' '.join(plan.configurations)}")
    for name in asked:
        check_plan(plan, name)
    return plan.to_json()


def _first_fold(dataset: str, plans: dict[str, Any], configuration: str) -> int | str:
    """Return the fold to begin with: 0, or 'all' if there are too few cases to make folds."""
    from stunet.folds import ALL
    from stunet.preprocessing.folds import find_fold

    try:
        find_fold(dataset, Plan(plans), configuration, 0)
    except DataError:
        return ALL
    return 0


def _check(dataset: str, workers: int, quiet: bool) -> None:
    from stunet.datasets import read_dataset
    from stunet.datasets.check import check_dataset

    folder = workspace.raw_dataset(dataset)
    with console.Progress(f"check {dataset}", len(read_dataset(folder)[0]), quiet) as progress:
        warnings = check_dataset(folder, workers, progress.step)
    for warning in warnings:
        console.warn(warning)


def _plan(dataset: str, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    from stunet.plans.fingerprint import extract_fingerprint
    from stunet.plans.planner import STUNetPlanner
    from stunet.plans.probe import measure_step

    console.note("extract the fingerprint, plan")
    with console.Progress("fingerprint", 0, args.no_pbar) as progress:

        def step(name: str, cases: int) -> None:
            progress.total = cases
            progress.step(name)

        extract_fingerprint(dataset, workers, args.clean, step)
    planner = STUNetPlanner(
        dataset,
        args.gpu_memory_target,
        args.preprocessor_name,
        args.overwrite_plans_name,
        args.overwrite_target_spacing,
        size=args.size,
        stages=None if args.stages == "auto" else args.stages,
        checkpointing=args.checkpointing,
        normalization=args.normalization,
        measure=measure_step if args.probe else None,
    )
    return planner.plan_experiment()


def _preprocess(dataset: str, plans: dict[str, Any], args: argparse.Namespace) -> None:
    from stunet.preprocessing.dataset import pending_cases, preprocess, stale_cases

    for position, name in enumerate(args.c):
        if name not in plans["configurations"] and name in CONFIGURATIONS:
            continue  # this dataset needs no 3d_lowres, or has no third dimension
        if args.np:
            workers = args.np[position if len(args.np) > 1 else 0]
        else:
            workers = _fitting(dataset, plans, name, min(WORKERS.get(name, FEWER), _cores()))
        todo = len(pending_cases(dataset, Plan(plans), [name]))
        for reason in stale_cases(dataset, Plan(plans), [name]):
            console.note(reason)
        with console.Progress(f"preprocess {name}", todo, args.no_pbar) as progress:
            preprocess(dataset, Plan(plans), [name], workers, progress.step)


def _fitting(dataset: str, plans: dict[str, Any], name: str, wanted: int) -> int:
    """Return how many processes the memory can hold, up to `wanted`; tell the user if that is fewer."""
    from stunet.plans.resolve import resolve
    from stunet.preprocessing.worker import fitting_workers

    configuration = resolve(plans, name)
    path = workspace.preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    if not path.is_file():  # the plans were copied here, so the size of the cases is unknown
        return 1
    fingerprint = read(path, FINGERPRINT)
    schemes = configuration["normalization_schemes"]  # one per channel
    workers = fitting_workers(wanted, fingerprint, configuration["spacing"], len(schemes))
    if workers < wanted:
        console.note(f"{workers} of {wanted} processes at a time, for the memory")
    return workers


def _summary(plans: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns = ["configuration", "spacing mm", "patch", "batch", "stages", "halvings", "GPU memory GB"]
    rows = []
    for name, configuration in sorted(plans["configurations"].items()):
        if "architecture" not in configuration:
            continue
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        halvings = [sum(s > 1 for s in axis) for axis in zip(*strides, strict=True)]
        memory = configuration.get("stunet", {})  # a configuration that somebody added has none
        memory_gb = memory.get("measured_gb", memory.get("memory_gb"))
        source = "measured" if "measured_gb" in memory else "estimated"
        rows.append([
            name,
            " ".join(f"{pitch:.3g}" for pitch in configuration["spacing"]),
            "x".join(map(str, configuration["patch_size"])),
            str(configuration["batch_size"]),
            str(len(strides)),
            " ".join(map(str, halvings)),
            "-" if memory_gb is None else f"{memory_gb:.1f} {source}",
        ])  # fmt: skip
    return columns, rows


def _warnings(plans: dict[str, Any]) -> list[str]:
    found = []
    counts = plans["stunet"].get("orientations", {})
    if len(counts) > 1:
        shown = ", ".join(f"{count} {code}" for code, count in counts.items())
        turned = sum(counts.values()) - counts.get(plans["stunet"]["orientation"], 0)
        found.append(
            f"the axes of the images run in {len(counts)} ways ({shown}): {turned} are turned to "
            f"{plans['stunet']['orientation']} in preprocessing, as every image is in prediction"
        )
    fixed = [axis for axis in range(3) if axis not in plans["stunet"]["mirror_axes"]]
    if fixed:
        found.append(
            f"left and right classes: axis {', '.join(map(str, fixed))} is not mirrored, in training and at test time"
        )
    return found


def _cores() -> int:
    return os.cpu_count() or 1
