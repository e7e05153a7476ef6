"""stunet_models: list, get, check and pass on pre-trained models. models/store.py does the work.

`list`, `info` and --help work without torch.
"""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stunet import console
from stunet.cli import live
from stunet.cli.common import add_licence_flag, new_parser, raise_last, run
from stunet.cli.shown import Shown
from stunet.errors import StunetError, UsageError, WeightsError
from stunet.machine import GB
from stunet.models import registry, store
from stunet.models.entry import Entry
from stunet.models.installing import import_models
from stunet.models.licences import is_accepted
from stunet.runs.devices import choose_device
from stunet.runs.fetching import shown_download
from stunet.sizes import SIZES
from stunet.workspace import dataset_name

EXAMPLES = """examples:
  stunet_models list
  stunet_models download STU-Net-B
  stunet_models download TotalSegmentator-total
  stunet_models import base_ep4k.model
  stunet_models import model_final_checkpoint.model --name STU-Net-B.abdomenatlas
  stunet_models import ~/.totalsegmentator/nnunet/results
  stunet_models export STU-Net-B -o stunet_b.safetensors --half
  stunet_models export STU-Net-B -o stunet_b.zip --format nnunet
  stunet_models export nnUNetTrainer__nnUNetResEncUNetLPlans__3d_fullres -o e.pth --format nnssl
  stunet_models export STUNetTrainer__STUNetPlans_B-lora__3d_fullres/fold_0/checkpoint_final.pth -o adapter --peft
  stunet_models bn-recollect nnUNetTrainerBN__nnUNetPlans__3d_fullres -d 3
"""
FORMATS = ("nnunet", "nnssl", "onnx")  # of models/exporting.py, which imports torch
SCHEMES = {
    "ZScoreNormalization": "z-score of each image",
    "CTNormalization": "clipped and scaled by the training data's intensities",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "scaled to 0 to 1",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser, with one sub-command per verb."""
    parser = new_parser("stunet_models", "Pre-trained models: list, get, check and pass on.", EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help_text: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        sub.set_defaults(command=command)
        for flag, text in (("--verbose", "also show what the libraries print"), ("--debug", "show tracebacks")):
            # SUPPRESS, because a default of the sub-command would replace the same flag before the verb.
            sub.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return sub

    listing = verb("list", "all models of the registry and of the store", _list)
    about = verb("info", "everything that is known of a model", _info)
    about.add_argument("name", metavar="NAME", help="such as STU-Net-B, short for STU-Net-B.totalseg")
    for sub in (listing, about):
        sub.add_argument("--json", action="store_true", help="one JSON document")
    get = verb("download", "download models and make them nnU-Net v2 model folders", _download)
    get.add_argument("names", nargs="+", metavar="NAME", help="one model, or all parts of TotalSegmentator-total")
    get.add_argument("--keep", action="store_true", help="keep the published file in the model's folder as well")
    get.add_argument("--offline", action="store_true", help="download nothing: say what is missing")
    add_licence_flag(get)
    take = verb("import", "install weights that are here already", _import)
    take.add_argument(
        "file", type=Path, metavar="PATH", help="a file of nnU-Net v1, v2, nnssl or ours, a folder of them, or a zip"
    )
    take.add_argument("--name", help="of the model (default: the entry that it is recognised as)")
    take.add_argument("--pkl", type=Path, metavar="FILE", help="nnU-Net v1's .model.pkl (default: that beside FILE)")
    take.add_argument("--dataset", type=Path, metavar="FILE", help="the training's dataset.json, for names of classes")
    give = verb("export", "write a model as one file, as a model folder of nnU-Net v2, or for nnssl", _export)
    give.add_argument("name", metavar="NAME|PATH")
    give.add_argument(
        "-o", required=True, type=Path, metavar="OUT", help="OUT.safetensors, OUT.zip, a folder, OUT.pth, OUT.onnx"
    )
    give.add_argument(
        "--format", choices=FORMATS, help="nnunet: a folder or zip that stock nnU-Net runs (the default of these two); "
        "nnssl: a file for nnU-Net's and nnssl's fine-tuning; onnx: the network alone, for OpenVINO (stunet[onnx])",
    )  # fmt: skip
    add_licence_flag(give)
    form = give.add_mutually_exclusive_group()
    form.add_argument("--half", action="store_true", help="float16: half the size")
    form.add_argument("--peft", action="store_true", help="a folder for peft: what --finetune lora learned, alone")
    test = verb("check", "read every byte of a model, and say whether all fits together", _check)
    test.add_argument("name", metavar="NAME|PATH")
    again = verb("bn-recollect", "count the running statistics of a BatchNorm network again, on other data", _recollect)
    again.add_argument("name", metavar="MODEL", help="a model folder of nnU-Net v2, which stays as it is")
    again.add_argument("-d", required=True, metavar="DATASET", help="preprocessed as the model's plans say")
    again.add_argument("-c", metavar="CONFIGURATION", help="of the dataset's plans (default: named as the model's)")
    again.add_argument("-o", type=Path, metavar="OUT", help="the new model folder (default: MODEL-bn-DATASET)")
    again.add_argument("--batches", type=int, default=100, metavar="N", help="of unaugmented patches (default: 100)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(build_parser(), lambda args: args.command(args), argv)


def _list(args: argparse.Namespace) -> None:
    there = {model.name: model for model in store.installed()}
    entries = {entry.name: entry for entry in registry.entries()}
    if args.json:
        own = [{"name": name, "installed": str(there[name].folder)} for name in there if name not in entries]
        console.result_json([_document(entry) for entry in entries.values()] + own)
        return
    rows = [
        (
            entry.name,
            entry.network,
            "-" if entry.pretext else _text(entry.num_classes),
            "predict" if entry.num_classes and not entry.pretext else "fine-tune",
            _size(entry),
            _text(entry.licence),
            "yes" if entry.name in there else "no" if entry.sources else "no, by hand",
            entry.title,
        )
        for entry in entries.values()
    ]
    rows += [(name, *["-"] * 5, "yes", there[name].record.get("source", "")) for name in there if name not in entries]
    width = max(len(row[-1]) for row in rows)
    head = ("model", "network", "classes", "use", "download", "licence", "installed", "trained on".ljust(width))
    console.table(head, [(*row[:-1], row[-1].ljust(width)) for row in rows])
    console.note(f"installed models are in {str(registry.store())!r}")


def _info(args: argparse.Namespace) -> None:
    there = store.find_installed(args.name)
    try:
        entry = registry.find(args.name)
    except WeightsError:
        if there is None:
            raise
        document = {"name": there.name, "installed": str(there.folder), **there.record}
    else:
        document = _document(entry) if args.json else _words(entry)
    if args.json:
        console.result_json(document)
        return
    width = max(map(len, document)) + 2
    for key, value in document.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        lines = textwrap.wrap(text, 118 - width, break_long_words=False, break_on_hyphens=False) or [""]
        console.result("\n".join([key.ljust(width) + lines[0], *(" " * width + line for line in lines[1:])]))


def _download(args: argparse.Namespace) -> None:
    problems = []
    # All names are looked up before the first download, which may take long.
    for entry in [entry for name in args.names for entry in registry.parts_of(name) or [registry.find(name)]]:
        try:
            if args.offline:
                console.result(str(store.find_model(entry.name, offline=True)))
                continue
            with shown_download(entry.name, Shown()) as on_bytes:
                model = store.download(entry, args.keep, on_bytes, accept_licence=args.accept_licence)
        except StunetError as error:
            problems.append(error)
            continue
        console.result(str(model.folder))
        _next(model)
    raise_last(problems, "stunet_models")


def _import(args: argparse.Namespace) -> None:
    if (args.pkl or args.dataset) and args.file.is_dir():
        raise UsageError("--pkl and --dataset belong to a file of weights, not to a folder", "leave them out")
    for model in import_models(args.file, args.name, args.pkl, args.dataset):
        known = model.record.get("entry") == model.name
        console.note(
            f"{args.file} is {model.name}" if known else f"installed as {model.name}, which the registry lacks"
        )
        console.result(str(model.folder))
        _next(model)


def _export(args: argparse.Namespace) -> None:
    if args.peft and args.format:
        raise UsageError("--peft is a form of its own", "leave --format out")
    # Published models have no adapters.
    source = store.find_model(args.name, offline=args.peft, accept_licence=args.accept_licence)
    if args.peft:
        from stunet.trainers.finetune.peft_export import export_adapter

        export_adapter(source, args.o)
        notes = []
    else:
        from stunet.models.exporting import export

        notes = export(source, args.o, args.half, args.format)
    console.result(str(args.o))
    for note in notes:
        console.note(note)


def _check(args: argparse.Namespace) -> None:
    source = store.find_model(args.name, offline=True)
    from stunet.models.folder import check

    for line in check(source):
        console.result(line)


def _recollect(args: argparse.Namespace) -> None:
    if args.batches < 1:
        raise UsageError(f"--batches {args.batches}: one is the least", "--batches 100")
    source, dataset = store.find_model(args.name, offline=True), dataset_name(args.d)
    from stunet.inference.recollect import open_batch_norm, recollect

    model = open_batch_norm(source)
    if model is None:
        console.note(f"nothing to do: {args.name} has no BatchNorm, so no statistics of its training data in it")
        return
    with live.Progress("statistics", args.batches * len(model.checkpoints)) as progress:
        folder = recollect(
            model, dataset, configuration=args.c, target=args.o, batches=args.batches, device=choose_device(None),
            on_batch=progress.step,
        )  # fmt: skip
    console.result(str(folder))


def _next(model: store.Installed) -> None:
    if model.path == model.folder:
        console.note(
            f"next: stunet_predict --model {model.name} -i IN -o OUT, or stunet_train --pretrained {model.name}"
        )
    else:
        console.note(f"next: stunet_train --pretrained {model.name}; it has no plans or no head, so it cannot predict")


def _document(entry: Entry) -> dict[str, Any]:
    there = store.find_installed(entry.name)
    return {
        **asdict(entry),
        "size": entry.size,
        "parameters_million": _millions(entry),
        "missing": entry.missing,
        "non_commercial": entry.non_commercial,
        "recorded_sha256": store.recorded_sha256(entry),
        "installed": str(there.folder) if there else None,
    }


def _millions(entry: Entry) -> float | None:
    """Return how many million parameters an STU-Net has with TotalSegmentator's 105 classes, as its authors count."""
    return round(SIZES[entry.size].parameters() / 1e6, 1) if entry.size else None


def _words(entry: Entry) -> dict[str, Any]:
    """Return what is known of an entry, in words."""
    there = store.find_installed(entry.name)
    recorded = store.recorded_sha256(entry)
    sha256 = f"{entry.sha256} (published)" if entry.sha256 else "not published: recorded at the first download"
    if recorded and not entry.sha256:
        sha256 = f"{recorded} (recorded at the first download)"
    axes = entry.mirror_axes
    return {
        "name": entry.name,
        "title": entry.title,
        "network": f"STU-Net-{entry.size}, {_millions(entry):.1f} M parameters" if entry.size else entry.network,
        "trained on": entry.data,
        "trained by": f"{entry.pretext}, without labels" if entry.pretext else "labels",
        "epochs": _text(entry.epochs),
        "note": entry.note or "-",
        "modality": entry.modality,
        "channels": entry.channels or f"{_text(entry.num_channels)}, names unknown",
        "spacing": _text(entry.spacing and f"{_by(entry.spacing)} mm"),
        "normalisation": _text(entry.normalization and [SCHEMES.get(name, name) for name in entry.normalization]),
        "patch": _text(entry.patch_size and _by(entry.patch_size)),
        "strides": _text(entry.strides and [_by(stride) for stride in entry.strides]),
        "mirror axes": _text(axes if axes is None else axes or "none"),
        "classes": "none" if entry.pretext else entry.classes or f"{_text(entry.num_classes)}, names unknown",
        "one part of": entry.whole or "-",
        "licence": _licence(entry),
        "citation": _text(entry.citation),
        "file": _text(entry.filename),
        "download": _size(entry),
        "sha256": sha256,
        "sources": entry.sources or "none that a program can use",
        "pages": entry.pages or "-",
        "installed": there.folder if there else "no",
    }


def _licence(entry: Entry) -> str:
    if not entry.non_commercial:
        return _text(entry.licence)
    return f"{entry.licence}: not for commercial use; {'accepted' if is_accepted(entry) else 'not yet accepted'}"


def _size(entry: Entry) -> str:
    size = entry.bytes or entry.about_bytes
    return "unknown" if size is None else f"{size / GB:.2f} GB" if size >= GB else f"{size / 1e6:.0f} MB"


def _text(value: Any) -> Any:
    return "unknown" if value is None else value if isinstance(value, list | tuple) else str(value)


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
