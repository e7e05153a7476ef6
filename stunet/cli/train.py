"""stunet_train: train an STU-Net on a planned dataset, and validate it."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stunet import console, nnunet, presets, workspace
from stunet.cli import common
from stunet.cli.train_plans import Chosen, choose_plans, choose_trainer
from stunet.cli.train_run import train
from stunet.errors import UsageError
from stunet.files import write_json
from stunet.labels.annotations import describe_trained_model
from stunet.plans.files import list_plans
from stunet.plans.plan import Plan
from stunet.sizes import SIZES
from stunet.trainers.lookup import check_trainer

if TYPE_CHECKING:
    from stunet.runs.launch import Run
    from stunet.weights.report import TransferReport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_train",
        "Trains an STU-Net on a planned dataset (all of nnUNetv2_train's flags), then validates it.",
        "examples: stunet_train 3 3d_fullres 0\n"
        "          stunet_train -d 3 -c 3d_fullres -f all --size L --set num_epochs=250",
    )
    parser.add_argument("dataset", nargs="?", help="number or name; may be left out where only one dataset is planned")
    parser.add_argument("configuration", nargs="?", help="2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres")
    parser.add_argument("fold", nargs="?", help="0 to 4, or 'all'")
    parser.add_argument("-d", dest="d", metavar="ID", help="the dataset, as an option")
    parser.add_argument(
        "-c", dest="c", metavar="CONFIGURATION", help="the configuration, as an option (default 3d_fullres)"
    )
    parser.add_argument("-f", dest="f", metavar="FOLD", help="the fold, as an option (default 0)")
    parser.add_argument(
        "-tr",
        metavar="TRAINER",
        help="trainer class (default STUNetTrainer; STUNetPartialTrainer where cases annotate different classes)",
    )
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: those of the dataset)")
    parser.add_argument("--size", choices=list(SIZES), help="network size; other plans are derived as needed")
    parser.add_argument("--stages", metavar="N|auto", help="number of stages; other plans are derived")
    parser.add_argument("-gpu_memory_target", type=float, metavar="GB", help="other plans are derived for this memory")
    parser.add_argument(
        "--preset",
        metavar="NAME|FILE",
        help=f"size, memory and values from: {', '.join(presets.names())}, or a .toml file",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="values of the run, e.g. num_epochs=250 batch_size=4; kept in the plans and their name",
    )
    parser.add_argument(
        "--pretrained", metavar="NAME|FILE|DIR", help="weights to start from: a model of stunet_models list, or a file"
    )
    parser.add_argument(
        "--finetune", metavar="STRATEGY", help="how to fine-tune (default with --pretrained: ramp); --list shows all"
    )
    parser.add_argument(
        "--head",
        choices=["reuse", "slice", "reset"],
        help="the pre-trained head: all of it, its rows of the same classes, or none (default: slice if any)",
    )
    parser.add_argument("--list", action="store_true", help="list the fine-tuning strategies and end")
    parser.add_argument("--dry_run", action="store_true", help="show what would be trained; write nothing")
    parser.add_argument("--overwrite", action="store_true", help="start anew although this fold was trained before")
    parser.add_argument(
        "-pretrained_weights", metavar="FILE", help="as in nnU-Net: --pretrained with its schedule and a new head"
    )
    parser.add_argument(
        "-num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of this machine (processes with -device cpu); torchrun, also on several machines, counts its own",
    )
    parser.add_argument(
        "--fsdp", action="store_true", help="the processes deal out the network (FSDP2) instead of copying it (DDP)"
    )
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--npz", action="store_true", help="also save the validation's probabilities")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="validate only")
    parser.add_argument(
        "--val_best", action="store_true", help="validate with checkpoint_best instead of checkpoint_final"
    )
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    if args.list:
        return _list()
    _check(args)
    train(args, lambda again: _prepared(args, again))


def _prepared(args: argparse.Namespace, again: bool) -> "Run | None":
    """Return the run that the command line means, after checking that it can start; None if there is nothing to train.

    Args:
        again: Whether torchrun has restarted the command; it then continues, whatever its options are.
    """
    for variable in ("nnUNet_results", "nnUNet_preprocessed"):
        workspace.folder(variable)
    dataset, configuration, fold = _positions(args)
    chosen = choose_plans(dataset, args)
    plans = chosen.plans

    from stunet.plans.check import check_plan
    from stunet.runs.launch import continued, starting_point
    from stunet.runs.readiness import check_data

    resolved = dict(check_plan(Plan(plans), configuration).content)
    nnunet.check_nnunet()
    nnunet.limit_processes()
    args.tr = choose_trainer(dataset, plans, args.tr)
    for warning in check_data(dataset, Plan(plans), configuration, fold, args.tr):
        console.warn(warning)
    _check_shares(resolved["batch_size"], args.num_gpus, plans["stunet"]["train"].get("accumulation", 1))
    from stunet.runs.room import check_room

    run = _run(dataset, chosen, configuration, fold, args)
    if run.fsdp:
        _check_fsdp(run)
    if again:
        run = continued(run)
        console.note(f"started anew; {'the latest checkpoint is continued' if run.resume else 'from the beginning'}")
    else:  # raises if a training would be overwritten unasked
        starting_point(replace(run, overwrite=args.overwrite or args.dry_run))
    check_room(run, resolved)
    _describe(run, resolved)
    report = _judged(run)
    if args.dry_run:
        if report is not None:
            console.TrainingProgress().loaded(report)
        return None
    if chosen.new:
        with workspace.planning(dataset, wait=console.note):
            write_json(workspace.preprocessed_dataset(dataset) / f"{plans['plans_name']}.json", plans)
    return run


def _check_fsdp(run: "Run") -> None:
    from stunet.trainers.finetune import strategies

    block = run.plans["stunet"]
    if run.processes == 1:
        raise UsageError("--fsdp deals out the network to several processes, and there is one", "-num_gpus 2, torchrun")
    if run.device == "cuda" and "precision" not in block["train"]:
        raise UsageError("--fsdp cannot scale the loss, as half precision needs it", "--set precision=bf16")
    if "finetune" in block and not strategies.trains_all(strategies.find(block["finetune"])):
        raise UsageError(f"--fsdp cannot freeze parts as {block['finetune']!r} does", "leave it out")


def _check_shares(batch_size: int, processes: int, accumulation: int) -> None:
    if batch_size >= processes * accumulation:
        return
    parts = f" and {accumulation} parts of each one's share" if accumulation > 1 else ""
    raise UsageError(
        f"a batch of {batch_size} cannot be shared by {processes} processes{parts}",
        f"--set batch_size={processes * accumulation}, or less of them",
    )


def _check(args: argparse.Namespace) -> None:
    if args.resume + args.val + args.overwrite > 1:
        raise UsageError("--c, --val and --overwrite exclude each other", "one of them")
    if args.val_best and args.disable_checkpointing:
        raise UsageError("--val_best needs the checkpoints that --disable_checkpointing leaves out", "one of them")
    if args.pretrained_weights and (args.pretrained or args.finetune or args.head):
        raise UsageError(
            "-pretrained_weights is nnU-Net's way to start; --pretrained, --finetune and --head are ours", "one of them"
        )
    if args.head and not args.pretrained:
        raise UsageError("--head says what becomes of pre-trained rows, and there are none", "add --pretrained")
    if args.tr:
        check_trainer(args.tr)
    if args.num_gpus < 1:
        raise UsageError(f"-num_gpus {args.num_gpus} must be 1 or more", "-num_gpus 1")


def _list() -> None:
    from stunet.trainers.finetune.strategies import STRATEGIES

    for name, strategy in STRATEGIES.items():
        console.result(f"{name:16}{strategy.title}")


def _positions(args: argparse.Namespace) -> tuple[str, str, int | str]:
    """Return dataset, configuration and fold from the positional arguments or the options."""
    given = {
        "dataset": (args.dataset, args.d),
        "configuration": (args.configuration, args.c),
        "fold": (args.fold, args.f),
    }
    for name, (position, option) in given.items():
        if position is not None and option is not None:
            raise UsageError(f"the {name} is given twice: {position!r} and -{name[0]} {option!r}", "one of them")
    dataset, configuration, fold = (position if position is not None else option for position, option in given.values())
    if fold is not None and fold != "all" and not (fold.isascii() and fold.isdecimal()):
        raise UsageError(f"fold {fold!r} is neither a number nor 'all'", "stunet_train 3 3d_fullres 0")
    return _dataset(dataset), configuration or "3d_fullres", "all" if fold == "all" else int(fold or 0)


def _dataset(given: str | None) -> str:
    if given is not None:
        return workspace.dataset_name(given)
    planned = [
        p.name for p in sorted(workspace.folder("nnUNet_preprocessed").glob(workspace.DATASETS)) if list_plans(p.name)
    ]
    if len(planned) == 1:
        return planned[0]
    known = f"planned: {', '.join(planned)}" if planned else "none is planned"
    raise UsageError(
        f"which dataset? {known}", "stunet_train 3 3d_fullres 0" if planned else "stunet_plan_and_preprocess -d 3"
    )


def _run(dataset: str, chosen: Chosen, configuration: str, fold: int | str, args: argparse.Namespace) -> "Run":
    from stunet.runs.launch import Run

    return Run(
        dataset=dataset,
        plans=chosen.plans,
        configuration=configuration,
        fold=fold,
        trainer=args.tr,
        device=common.device(args.device),
        processes=args.num_gpus,
        resume=args.resume,
        only_validate=args.val,
        validate_best=args.val_best,
        probabilities=args.npz,
        disable_checkpointing=args.disable_checkpointing,
        start=chosen.start,
        overwrite=args.overwrite,
        fsdp=args.fsdp,
    )


def _describe(run: "Run", resolved: dict[str, Any]) -> None:
    from stunet.plans.derive import describe
    from stunet.plans.memory import estimate, parameters
    from stunet.trainers.finetune import strategies

    dataset_json = describe_trained_model(run.dataset, Plan(run.plans).reused_classes, run.trainer)
    network = describe(Plan(run.plans), run.configuration, dataset_json)
    strides = resolved["architecture"]["arch_kwargs"]["strides"]
    patch = "x".join(map(str, resolved["patch_size"]))
    millions = parameters(network, strides) / 1e6
    parts = run.processes * run.plans["stunet"]["train"].get("accumulation", 1)
    batch, part = resolved["batch_size"], -(-resolved["batch_size"] // parts)
    shared = f" in {parts} parts of {part} ({run.processes} processes)" if parts > 1 else ""
    console.note(
        f"{run.dataset}  {run.configuration}  fold {run.fold}  {run.plans['plans_name']}\n"
        f"STU-Net-{network.size}, {millions:.1f} M parameters, {len(strides)} stages, "
        f"patch {patch}, batch {batch}{shared}, "
        f"about {estimate(network, resolved['patch_size'], part, strides):.1f} GB of GPU memory; "
        f"device {run.device}\nresults: {run.folder}"
    )
    block = run.plans["stunet"]
    if "finetune" in block:
        strategy = strategies.find(block["finetune"])
        peak = block["train"].get("initial_lr", strategy.lr if "weights" in block else strategy.scratch_lr)
        epochs = block["train"].get("num_epochs", 1000)
        scratch = "" if "weights" in block else " (its schedule, without weights)"
        console.note(f"{block['finetune']}: {strategy.title}{scratch}")
        for line in strategies.describe(strategy, epochs, peak, "weights" in block):
            console.note(f"  {line}")
        if not strategies.has_ramps(strategy, epochs):
            console.warn(
                f"{epochs} epochs are too few for the ramp of {block['finetune']!r}: it lasts one epoch or none"
            )


def _judged(run: "Run") -> "TransferReport | None":
    """Return what will become of pre-trained weights, before anything is written; None without weights."""
    if run.start is None:
        return None
    from stunet.trainers.finetune.start import preview

    dataset_json = describe_trained_model(run.dataset, Plan(run.plans).reused_classes, run.trainer)
    return preview(run.start, Plan(run.plans), run.configuration, dataset_json)


if __name__ == "__main__":
    raise SystemExit(main())
