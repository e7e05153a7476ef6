"""stunet_train: train a network on a planned dataset, and validate it. runs/training.py does the work."""

import argparse
from collections.abc import Sequence

from stunet import console, presets
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.errors import UsageError
from stunet.plans import settings
from stunet.plans.blueprints import blueprints
from stunet.plans.plan import INFLATIONS, TRANSFERS
from stunet.runs.overview import last_stopped
from stunet.runs.training import HEAD_MODES, TrainingRequest, train
from stunet.sizes import SIZES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_train",
        "Trains the network of a plan on its dataset (all of nnUNetv2_train's flags), then validates it.",
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
    parser.add_argument("--size", choices=list(SIZES), help="size of STU-Net; other plans are derived as needed")
    parser.add_argument("--network", choices=list(blueprints()), help="the network; other plans are derived as needed")
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
        "--pretrained",
        action="append",
        metavar="NAME|FILE|DIR",
        help="weights to start from: a model of stunet_models list, or a file; several times: one encoder for each",
    )
    parser.add_argument(
        "--finetune", metavar="STRATEGY", help="how to fine-tune (default with --pretrained: ramp); --list shows all"
    )
    parser.add_argument(
        "--head",
        choices=HEAD_MODES,
        help="the pre-trained head: all of it, its rows of the same classes, or none (default: slice if any)",
    )
    parser.add_argument(
        "--transfer",
        choices=TRANSFERS,
        help="what of the weights is taken, the encoder alone or all (default: all, or what their pre-training says)",
    )
    parser.add_argument(
        "--inflate", choices=INFLATIONS, help="make 2D weights 3D: the kernel in the middle slice, or in all of them"
    )
    parser.add_argument("--list", action="store_true", help="list the fine-tuning strategies and end")
    common.add_licence_flag(parser)
    common.add_log_flag(parser)
    parser.add_argument("--dry_run", action="store_true", help="show what would be trained; write nothing")
    parser.add_argument(
        "--overwrite", action="store_true", help="start from scratch although this fold was trained before"
    )
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
        "--fsdp", action="store_true", help="the processes shard the network (FSDP2) instead of replicating it (DDP)"
    )
    parser.add_argument("-device", choices=["cuda", "cpu", "mps"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--npz", action="store_true", help="also save the validation's probabilities")
    parser.add_argument("--name", metavar="NAME", help="of the run, in place of what was set: plans PLANS-NAME")
    parser.add_argument("--last", action="store_true", help="continue the training that was stopped last")
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
    if args.last:
        _name_last(args)
    train(_request(args), Shown())


def _name_last(args: argparse.Namespace) -> None:
    """Put the names of the training that was stopped last where the user's would be."""
    if any((args.dataset, args.d, args.c, args.f, args.p, args.tr, args.name, args.overwrite)):
        what = "--last names the training, with its dataset, configuration, fold, -p and -tr"
        raise UsageError(what, "leave these, --name and --overwrite out")
    fold = last_stopped()
    console.note(f"the training that was stopped last: {fold.name}")
    args.d, args.tr, args.p, args.c = fold.dataset, fold.trainer, fold.plans, fold.configuration
    args.f, args.resume = str(fold.fold), True


def _request(args: argparse.Namespace) -> TrainingRequest:
    dataset, configuration, fold = _positions(args)
    return TrainingRequest(
        dataset=dataset,
        configuration=configuration,
        fold=fold,
        trainer=args.tr,
        plans=args.p,
        name=args.name,
        size=args.size,
        network=args.network,
        stages=args.stages,
        gpu_memory_target=args.gpu_memory_target,
        preset=args.preset,
        set=settings.parse(args.set),
        pretrained=args.pretrained,
        finetune=args.finetune,
        head=args.head,
        transfer=args.transfer,
        inflate=args.inflate,
        pretrained_weights=args.pretrained_weights,
        num_gpus=args.num_gpus,
        fsdp=args.fsdp,
        device=args.device,
        npz=args.npz,
        resume=args.resume,
        val=args.val,
        val_best=args.val_best,
        disable_checkpointing=args.disable_checkpointing,
        overwrite=args.overwrite,
        accept_licence=args.accept_licence,
        log=args.log,
        dry_run=args.dry_run,
    )


def _positions(args: argparse.Namespace) -> tuple[str | None, str, int | str]:
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
    return dataset, configuration or "3d_fullres", "all" if fold == "all" else int(fold or 0)


def _list() -> None:
    from stunet.trainers.finetune.strategies import STRATEGIES

    for name, strategy in STRATEGIES.items():
        console.result(f"{name:16}{strategy.title}")


# For torchrun ... -m stunet.cli.train (docs/scaling.md).
if __name__ == "__main__":
    raise SystemExit(main())
