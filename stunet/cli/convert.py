"""stunet_convert: convert other formats to nnU-Net's raw format. Read next: datasets/conversion.py, which runs it."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console, workspace
from stunet.cli import live
from stunet.cli.common import add_cluster_flag, add_part_flags, new_parser, parts, run
from stunet.cluster import Shared, check_cluster, workers_on
from stunet.errors import UsageError
from stunet.parts import Part, unfinished

if TYPE_CHECKING:
    from stunet.datasets.conversion import Conversion

EXAMPLES = """examples:
  stunet_convert msd -i Task04_Hippocampus
  stunet_convert totalsegmentator -i Totalsegmentator_dataset_v201 -d 101 --name TotalSegmentator
  stunet_convert totalsegmentator -i Totalsegmentator_dataset_v201 -d 102 --name Organs --classes organs -np 8
  stunet_convert pairs -i ct -l masks -d 103 --name Liver --channels CT --labels liver tumour --label_suffix _seg
  stunet_convert bids -i ds000001 -d 104 --name Brain --channels T1w FLAIR --labels labels.txt
without labels, for stunet_pretrain:
  stunet_convert images -i scans dicom -d 50 --name Unlabelled --skip_bad
  stunet_convert nnssl -i pretrain_data.json -d 51 --name OpenMind --modalities T1w
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser, with one sub-command per format."""
    parser = new_parser("stunet_convert", "Convert a dataset into nnU-Net's raw format.", EXAMPLES)
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    msd = _format(formats, "msd", "a task of the Medical Segmentation Decathlon", named=False)
    msd.set_defaults(command=_convert_msd)
    _add_totalsegmentator(formats)
    _add_pairs(formats)
    _add_bids(formats)
    _add_images(formats)
    _add_nnssl(formats)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(build_parser(), lambda args: args.command(args), argv)


def _format(
    formats: "argparse._SubParsersAction", name: str, text: str, named: bool = True, several: bool = False
) -> argparse.ArgumentParser:
    """Add a format's parser, with the options of all formats.

    Args:
        formats: What parsers are added to.
        name: Of the format.
        text: What it converts.
        named: Whether its data define no number and name.
        several: Whether it takes several folders.
    """
    parser = formats.add_parser(name, help=text, description=f"Convert {text}.", allow_abbrev=False)
    default = "" if named else " (default: the task's)"
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "-i", dest="source", type=Path, required=True, metavar="FOLDER", help="where the data are", **many
    )
    parser.add_argument(
        "-d", dest="dataset_id", type=int, required=named, metavar="ID", help=f"number of the dataset{default}"
    )
    parser.add_argument("--name", required=named, help=f"name of the dataset{default}")
    parser.add_argument(
        "-o", dest="raw", type=Path, metavar="FOLDER", help="where DatasetXXX_Name goes (default: nnUNet_raw)"
    )
    parser.add_argument("-np", type=int, metavar="N", help="processes (default: one per core, at most 8)")
    if named:
        add_part_flags(parser)
        add_cluster_flag(parser)
        parser.add_argument(
            "--variable",
            metavar="NAME",
            help="refer to images as $NAME/..., for data that lie elsewhere on other machines (default: absolute path)",
        )
        parser.add_argument(
            "--remove_missing",
            action="store_true",
            help="remove what an earlier run wrote for cases whose sources are gone now (default: an error)",
        )
    for flag, help_ in (
        ("--verbose", "also show what the libraries print"),
        ("--debug", "show the traceback of an error"),
    ):
        # SUPPRESS, because a default of the sub-command would replace the same flag before the format.
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=help_)
    return parser


def _add_totalsegmentator(formats: "argparse._SubParsersAction") -> None:
    parser = _format(formats, "totalsegmentator", "the TotalSegmentator data set: v1, v2 or MRI")
    parser.add_argument(
        "--classes",
        metavar="LIST|FILE",
        help="total (v2), total_v1, total_mr; a part: organs, vertebrae, cardiac, muscles, ribs; or a text file with a "
        "name per line (default: all)",
    )
    parser.add_argument(
        "--order",
        choices=["stunet", "official"],
        help="of the labels: alphabetical as in STU-Net's weights (default for v1) or official (for v2 and MRI)",
    )
    parser.add_argument(
        "--overlap",
        choices=["last", "first", "smallest", "ignore"],
        default="last",
        help="who gets a voxel of several masks: the last (default) or first in the official order, the smallest of "
        "the case, or nobody: nnU-Net's ignore label",
    )
    parser.add_argument(
        "--missing",
        choices=["error", "unannotated"],
        default="error",
        help="a mask that is not there is an error (default), or its class is not annotated in this case",
    )
    parser.add_argument(
        "--absent", choices=["error", "skip"], default="error", help="subjects of meta.csv without a folder"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="SUBJECT", help="subjects to leave out")
    parser.add_argument(
        "--spacing",
        type=float,
        metavar="MM",
        help="resample to this spacing and write images, too (default: refer to them)",
    )
    parser.set_defaults(command=_convert_totalsegmentator)


def _add_pairs(formats: "argparse._SubParsersAction") -> None:
    parser = _format(formats, "pairs", "a folder of images and one of label maps, matched by name")
    parser.add_argument(
        "-l",
        dest="label_folder",
        type=Path,
        metavar="FOLDER",
        help="where the label maps are (default: with the images)",
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        required=True,
        metavar="NAME[=SUFFIX]",
        help="channels, and how names of their files end: CT, or T1=_t1 FLAIR=_flair",
    )
    parser.add_argument(
        "--label_suffix",
        default="",
        metavar="SUFFIX",
        help="how names of label maps end, such as _seg (default: as images)",
    )
    _add_labels(parser, required=True)
    parser.set_defaults(command=_convert_pairs)


def _add_bids(formats: "argparse._SubParsersAction") -> None:
    parser = _format(formats, "bids", "a BIDS folder with label maps under derivatives")
    parser.add_argument(
        "--channels",
        nargs="+",
        required=True,
        metavar="[NAME=]SUFFIX",
        help="how names of images end, one per channel: T1w, CE=ce-GAD_T1w",
    )
    parser.add_argument(
        "--label", default="dseg", metavar="SUFFIX", help="of label maps (default dseg): desc-manual_dseg"
    )
    parser.add_argument("--derivatives", metavar="NAME", help="folder under derivatives, where there are several")
    _add_labels(parser, required=False)
    parser.set_defaults(command=_convert_bids)


def _add_images(formats: "argparse._SubParsersAction") -> None:
    parser = _format(formats, "images", "images without labels, in folders of any layout", several=True)
    parser.add_argument(
        "--channels",
        nargs="+",
        metavar="NAME[=SUFFIX]",
        help="channels, and how names of their files end: CT, or T1=_t1 FLAIR=_flair (default: one channel, named by "
        "DICOM or BIDS)",
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER|SUFFIX",
        help="masks, above 0 where losses do not count, such as removed faces: a folder with files named as the "
        "images, or how names of masks beside them end, such as _facemask",
    )
    parser.add_argument(
        "--rois",
        metavar="FOLDER|SUFFIX",
        help="masks, above 0 where losses count, such as of the body; found as those of --masks",
    )
    _add_skip_bad(parser)
    parser.set_defaults(command=_convert_images)


def _add_nnssl(formats: "argparse._SubParsersAction") -> None:
    parser = _format(formats, "nnssl", "the images that nnssl's pretrain_data.json lists")
    parser.add_argument(
        "--modalities", nargs="+", default=[], metavar="NAME", help="take images of these only (default: all)"
    )
    parser.add_argument(
        "--masks",
        choices=["both", "anonymization", "anatomy", "none"],
        default="both",
        help="which masks losses respect: what was anonymised does not count, what is not anatomy neither "
        "(default: both)",
    )
    parser.add_argument(
        "--channels", metavar="NAME", help="name of the channel (default: the modality, if there is only one)"
    )
    _add_skip_bad(parser)
    parser.set_defaults(command=_convert_nnssl)


def _add_skip_bad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out scans that are broken, constant, flat or of another number of channels (default: an error)",
    )


def _add_labels(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--labels",
        nargs="+",
        required=required,
        metavar="NAME|FILE",
        help="classes of the values 1, 2, ...; or a file: names, ITK-SNAP's list, .csv or .tsv with index and name, "
        ".json, .toml" + ("" if required else " (default: the dseg.tsv of the derivatives)"),
    )
    parser.add_argument(
        "--unmatched", choices=["error", "skip"], default="error", help="images without labels, labels without images"
    )


def _convert_msd(args: argparse.Namespace) -> None:
    from stunet.datasets.msd import convert_msd, msd_images

    raw = _raw(args)
    with live.Progress("convert", len(msd_images(args.source))) as progress:
        target = convert_msd(args.source, raw, args.dataset_id, args.name, progress.step, _workers(args))
    _next(target)


def _convert_totalsegmentator(args: argparse.Namespace) -> None:
    from stunet.datasets.totalsegmentator import Options, prepare_totalsegmentator

    if args.spacing is not None and not args.spacing > 0:
        raise UsageError(f"--spacing {args.spacing:g}: mm must be positive", "--spacing 3")
    options = Options(
        classes=args.classes,
        order=args.order,
        overlap=args.overlap,
        missing=args.missing,
        absent=args.absent,
        skip=tuple(args.skip),
        spacing_mm=args.spacing,
        variable=_variable(args),
    )
    _run(prepare_totalsegmentator(args.source, _raw(args), args.dataset_id, args.name, options), args)


def _convert_pairs(args: argparse.Namespace) -> None:
    from stunet.datasets.label_lists import read_labels
    from stunet.datasets.pairs import prepare_pairs

    channels = _channels(args.channels)
    where = (args.source, args.label_folder or args.source, _raw(args), args.dataset_id, args.name)
    names = read_labels(args.labels)
    _run(prepare_pairs(*where, channels, names, args.label_suffix, args.unmatched, _variable(args)), args)


def _convert_bids(args: argparse.Namespace) -> None:
    from stunet.datasets.bids import prepare_bids
    from stunet.datasets.label_lists import read_labels

    channels = {name: suffix or name for name, suffix in _channels(args.channels).items()}
    names = read_labels(args.labels) if args.labels else None
    where = (args.source, _raw(args), args.dataset_id, args.name)
    chosen = prepare_bids(
        *where, channels, args.label, args.derivatives, names, args.unmatched, variable=_variable(args)
    )
    _run(chosen, args)


def _convert_images(args: argparse.Namespace) -> None:
    from stunet.datasets.unlabelled import prepare_images

    where = (args.source, _raw(args), args.dataset_id, args.name)
    channels = _channels(args.channels) if args.channels else None
    if args.variable and len(args.source) == 1:
        _check_variable(args.variable, args.source[0])
    _run(prepare_images(*where, channels, args.masks, args.rois, args.skip_bad, args.variable), args)


def _convert_nnssl(args: argparse.Namespace) -> None:
    from stunet.datasets.nnssl import prepare_nnssl

    if args.variable:
        what = f"--variable {args.variable}: nnssl's file says itself which variables its paths begin with"
        raise UsageError(what, "leave it out")
    where = (args.source, _raw(args), args.dataset_id, args.name)
    _run(prepare_nnssl(*where, args.modalities, args.masks, args.channels, args.skip_bad), args)


def _channels(texts: Sequence[str]) -> dict[str, str]:
    """Return the text after the = by channel name, or an empty text."""
    channels: dict[str, str] = {}
    for text in texts:
        name, _, suffix = text.partition("=")
        if name in channels:
            raise UsageError(f"--channels names {name!r} twice", "a name for each channel")
        channels[name] = suffix
    return channels


def _run(conversion: "Conversion", args: argparse.Namespace) -> None:
    asked = parts(args)
    part = Part(asked.get("part_id", 0), asked["num_parts"])
    conversion = replace(conversion, remove_missing=args.remove_missing, part=part)
    processes = _workers(args)
    check_cluster(args.cluster)
    if args.merge:
        warnings = conversion.merge(part.count)
    else:
        warnings, missing = _convert_pending(conversion, processes, args.cluster)
        if missing:
            console.note(unfinished(part, missing))
            return
    for warning in warnings:
        console.warn(warning)
    if not conversion.labelled:
        from stunet.datasets.scan_names import describe_subjects

        said, doubt = describe_subjects([source.subject for source in conversion.sources])
        console.note(said)
        if doubt:
            console.warn(doubt)
    _next(conversion.target)


def _workers(args: argparse.Namespace) -> int:
    workers: int | None = args.np
    if workers is not None and workers < 1:
        raise UsageError(f"-np {workers} must be 1 or more", "-np 1")
    return workers or min(8, os.cpu_count() or 1)


def _convert_pending(conversion: "Conversion", processes: int, cluster: str | None) -> tuple[list[str], str]:
    """Convert what is not there yet; return warnings, and the parts that are missing, in words."""
    pending, own = conversion.pending(), conversion.part.take(conversion.sources)
    if finished := len(own) - len(pending):
        console.note(f"{finished} of {len(own)} cases are there already")
    folder = conversion.target.parent
    folder.mkdir(parents=True, exist_ok=True)
    shared = Shared([image for source in pending[:1] for image in source.images], [folder])
    with (
        workers_on(cluster if pending else None, processes, shared, console.note, console.warn) as workers,
        live.Progress("convert", len(pending)) as progress,
    ):
        if conversion.part.is_whole:
            return conversion.run(pending, workers, progress.step), ""
        return conversion.run_part(pending, workers, progress.step)


def _raw(args: argparse.Namespace) -> Path:
    return args.raw or workspace.folder("nnUNet_raw", for_writing=True)


def _variable(args: argparse.Namespace) -> str | None:
    """Return the variable of --variable, which must be the folder of the data, or paths would lead nowhere."""
    name: str | None = args.variable
    if name:
        _check_variable(name, args.source)
    return name


def _check_variable(name: str, source: Path) -> None:
    if Path(os.environ.get(name, "")).resolve() != source.resolve():
        raise UsageError(
            f"--variable {name}: {name} is {os.environ.get(name)!r}, not {str(source)!r}",
            f"export {name}={source.resolve()}",
        )


def _next(target: Path) -> None:
    console.result(str(target))
    console.note(f"next: stunet_plan_and_preprocess -d {workspace.dataset_number(target.name)}")
