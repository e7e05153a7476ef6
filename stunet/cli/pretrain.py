"""stunet_pretrain: pre-train a network on images without labels. runs/pretraining.py does the work."""

import argparse
from collections.abc import Sequence

from stunet import console, presets
from stunet.cli import common
from stunet.cli.shown import Shown
from stunet.plans import settings
from stunet.plans.blueprints import blueprints
from stunet.plans.plan import INFLATIONS, TRANSFERS
from stunet.runs.pretraining import PretrainingRequest, pretrain
from stunet.sizes import SIZES
from stunet.trainers.pretexts.methods import DEFAULT, METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser(
        "stunet_pretrain",
        "Pre-trains the network of a plan on its images; their labels, if any, are ignored.",
        "examples: stunet_pretrain -d 50 --method mae\n"
        "          stunet_pretrain -d 50 51 3 --method simclr --size L --set num_epochs=250\n"
        "          stunet_pretrain -d 50 --method simclr --pretrained STU-Net-B\n"
        "          stunet_train 3 3d_fullres 0 --pretrained RESULT",
    )
    parser.add_argument(
        "-d", nargs="+", metavar="ID", help="datasets: numbers or names; the first one's plans are used"
    )
    parser.add_argument("--method", metavar="METHOD", help=f"what is learnt (default {DEFAULT}); --list shows all")
    parser.add_argument("--list", action="store_true", help="list the methods and end")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default 3d_fullres")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: those of the dataset)")
    parser.add_argument("--name", metavar="NAME", help="of the run, in place of what was set: plans PLANS-NAME")
    parser.add_argument(
        "--like",
        metavar="ID[:PLANS]",
        help="plans with the input and patch of another dataset's, for fine-tuning on it",
    )
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
        "--pretrained", metavar="NAME|FILE|DIR", help="weights to start from (default: a random network)"
    )
    parser.add_argument(
        "--transfer",
        choices=TRANSFERS,
        help="what of the weights is taken, the encoder alone or all (default: all, or what their pre-training says)",
    )
    parser.add_argument(
        "--inflate", choices=INFLATIONS, help="make 2D weights 3D: the kernel in the middle slice, or in all of them"
    )
    parser.add_argument(
        "--augment", choices=settings.AUGMENT, help="how strongly images are changed (default standard)"
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out scans that are broken, constant or smaller than the patch",
    )
    common.add_licence_flag(parser)
    common.add_log_flag(parser)
    parser.add_argument("--dry_run", action="store_true", help="show what would be trained; write nothing")
    parser.add_argument("--overwrite", action="store_true", help="start from scratch although this was trained before")
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
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    if args.list:
        return _list()
    pretrain(_request(args), Shown())


def _request(args: argparse.Namespace) -> PretrainingRequest:
    return PretrainingRequest(
        dataset=args.d or [],
        method=args.method,
        configuration=args.c,
        plans=args.p,
        like=args.like,
        name=args.name,
        size=args.size,
        network=args.network,
        stages=args.stages,
        gpu_memory_target=args.gpu_memory_target,
        preset=args.preset,
        set=settings.parse(args.set),
        pretrained=args.pretrained,
        transfer=args.transfer,
        inflate=args.inflate,
        augment=args.augment,
        skip_bad=args.skip_bad,
        num_gpus=args.num_gpus,
        fsdp=args.fsdp,
        device=args.device,
        resume=args.resume,
        disable_checkpointing=args.disable_checkpointing,
        overwrite=args.overwrite,
        accept_licence=args.accept_licence,
        log=args.log,
        dry_run=args.dry_run,
    )


def _list() -> None:
    for name, method in METHODS.items():
        console.result(f"{name:16}{method.family:14}{method.title}; transfers {method.transfers}")


# For torchrun ... -m stunet.cli.pretrain (docs/scaling.md).
if __name__ == "__main__":
    raise SystemExit(main())
