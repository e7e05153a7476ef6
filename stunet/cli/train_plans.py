"""Choose the plans and the trainer of stunet_train, and the weights from which it starts.

Options that change a plan derive another one, whose name tells what differs; it is written when training begins.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import console, presets, workspace
from stunet.cli.models import ShownDownload
from stunet.errors import DataError, UsageError, WeightsError, first_few
from stunet.files import json_differences
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import Annotations, describe_trained_model, load_annotations
from stunet.models import store
from stunet.plans.files import list_planned, plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.plans.resolve import resolve
from stunet.trainers.lookup import check_trainer, needed_trainer

if TYPE_CHECKING:
    from stunet.trainers.finetune.start import Start


@dataclass(frozen=True)
class Chosen:
    """The plans, whether they were just derived and are not on disk yet, and the weights to start from."""

    plans: dict[str, Any]
    new: bool
    start: "Start | None"


def choose_plans(dataset: str, args: argparse.Namespace) -> Chosen:
    """Return the plans that the command line means.

    Raises:
        UsageError: Options contradict each other or the weights.
        DataError: There are no plans, or different ones with the same name.
        WeightsError: The weights cannot be read, or the plans start from weights that are not given.
    """
    from stunet.plans import settings
    from stunet.trainers.finetune import strategies

    if args.finetune:
        strategies.find(args.finetune)
    preset = presets.load(args.preset) if args.preset else None
    path = plan_path(dataset, args.p or (_fitting(dataset, preset) if preset else None))
    plans = read_plan(path).to_json()
    dataset_json = read_dataset_json(path.parent / "dataset.json")
    options = {"size": args.size, "memory_gb": args.gpu_memory_target, "stages": settings.parse_stages(args.stages)}
    overrides = settings.parse(args.set)
    if preset:
        if unlike := preset.unlike(Plan(plans)):
            raise DataError(
                f"plans {plans['plans_name']!r} have {unlike} as of preset {args.preset!r}",
                f"stunet_plan_and_preprocess -d {int(dataset[7:10])} --preset {args.preset}, and -p with its plans",
            )
        if preset.note:
            console.note(f"{args.preset}: {preset.note}")
        options = dict(zip(options, preset.complete(*options.values()), strict=True))
        overrides = {**preset.set, **overrides}
    annotations = None if args.tr == workspace.TRAINER else load_annotations(path.parent)
    start = None
    if text := args.pretrained or args.pretrained_weights:
        start = _given(text, args)
        options |= _from_weights(start, args, plans["stunet"], (dataset_json, annotations), options["size"])
    elif args.finetune:
        options["finetune"] = args.finetune
    if options.get("finetune") and not options["stages"]:
        options["stages"] = _kept_stages(options["finetune"], plans)
    if not (any(options.values()) or overrides):
        return Chosen(plans, False, _start_of(plans, args))
    if args.c or args.configuration:
        resolve(plans, args.c or args.configuration)
    from stunet.plans.derive import derive

    plan = Plan(plans)
    classes = options["weights"].classes if options.get("weights") else plan.reused_classes
    trainer = args.tr or needed_trainer(path.parent, classes)
    derived = derive(plan, describe_trained_model(dataset, classes, trainer), overrides=overrides, **options).to_json()
    existing = path.with_name(f"{derived['plans_name']}.json")
    if not existing.is_file():
        return Chosen(derived, True, start or _start_of(derived, args))
    on_disk = read_plan(existing).to_json()
    changed = json_differences(_comparable(on_disk, derived), _comparable(derived, on_disk), "plans")
    if changed:
        raise DataError(
            f"plans {derived['plans_name']!r} exist and differ from what would be derived ({first_few(changed)})",
            f"-p {derived['plans_name']} to use them, or delete {existing}",
        )
    return Chosen(on_disk, False, start or _start_of(on_disk, args))


def _fitting(dataset: str, preset: presets.Preset) -> str | None:
    """Return the only plans of the dataset that were planned as a preset wants; None if there are none or several."""
    fitting = []
    for name in list_planned(dataset):
        plans = read_plan(plan_path(dataset, name)).to_json()
        fitting += [] if preset.unlike(Plan(plans)) else [name]
    return fitting[0] if len(fitting) == 1 else None


def choose_trainer(dataset: str, plans: dict[str, Any], given: str | None) -> str:
    """Return the trainer class: the one that is named, or the one that the data need.

    Tell the user if the data need another trainer than the default one.

    Raises:
        UsageError: There is no such trainer, or it cannot train on a part of the network's classes.
    """
    folder = workspace.preprocessed_dataset(dataset)
    needed = needed_trainer(folder, Plan(plans).reused_classes)
    if given is None:
        if needed != workspace.TRAINER:
            whole = "classes" in plans["stunet"].get("weights", {})
            why = "the head has more classes than the dataset" if whole else "cases annotate different classes"
            console.note(f"{needed}, because {why}")
        return needed
    check_trainer(given)
    if given == workspace.TRAINER and "classes" in plans["stunet"].get("weights", {}):
        raise UsageError(f"--head reuse trains on a part of the classes, and {given} on all", f"-tr {needed}")
    if given == workspace.TRAINER != needed:
        console.warn(f"-tr {given} takes what a case does not annotate for background; without it: {needed}")
    return given


def _from_weights(
    start: "Start",
    args: argparse.Namespace,
    base: Mapping[str, Any],
    data: tuple[Mapping[str, Any], Annotations | None],
    size: str | None,
) -> dict[str, Any]:
    """Return what of the plan follows from the weights: size, strategy and name.

    If the base plan has the same weights and head, its entry is kept.
    """
    from stunet.trainers.finetune import strategies
    from stunet.trainers.finetune.start import choose_heads, plan_entry

    before = Plan({"stunet": base}).weights
    head = "reset" if args.pretrained_weights else args.head or (before.head if before else None)
    heads = choose_heads(start, head, *data)
    named = plan_entry(start, heads, is_file=Path(args.pretrained or args.pretrained_weights).exists())
    if before and (before.sha256, before.head) == (start.sha256, heads.mode):
        named = before
    theirs = start.weights.architecture.size
    if size not in (None, theirs):
        raise UsageError(
            f"size {size} is asked for, but the weights {named.name!r} are of size {theirs}",
            f"leave the size out, or find weights of size {size}: stunet_models list",
        )
    if args.head:
        for text in heads.warnings:
            console.warn(text)
    finetune = args.finetune or base.get("finetune") or strategies.DEFAULT
    return {
        "size": theirs,
        "weights": named,
        "finetune": None if args.pretrained_weights else finetune,
    }


def _kept_stages(name: str, plans: Mapping[str, Any]) -> int | None:
    """Return how many of a plan's stages a strategy keeps; None for all."""
    from stunet.trainers.finetune import strategies

    strategy = strategies.find(name)
    if strategy.depth == 1 or plans["stunet"].get("finetune") == name:
        return None
    networks = [each["architecture"] for each in plans["configurations"].values() if "architecture" in each]
    return strategies.kept_stages(strategy, max(len(each["arch_kwargs"]["strides"]) for each in networks))


def _given(text: str, args: argparse.Namespace) -> "Start":
    """Return the weights that a command names.

    A training that is continued or validated does not need them, so its error suggests leaving them out.
    """
    try:
        return _find(text, args.dry_run)
    except WeightsError as error:
        if args.resume or args.val:
            hint = "-p with the name of the training's plans instead of --pretrained: its checkpoints have all it needs"
            raise WeightsError(error.message, hint) from None
        raise


def _start_of(plans: Mapping[str, Any], args: argparse.Namespace) -> "Start | None":
    """Return the weights that plans start from if the command names none, found by name; None if no longer needed."""
    block = plans["stunet"].get("weights")
    if block is None or args.resume or args.val:
        return None
    try:
        return _find(block["name"], args.dry_run)
    except WeightsError:
        raise WeightsError(
            f"plans {plans['plans_name']!r} start from the weights {block['name']!r}, which are not given",
            "add --pretrained with their file",
        ) from None


def _find(text: str, dry_run: bool) -> "Start":
    """Return the model that the text names, downloaded if needed, but not by a dry run."""
    with ShownDownload(text) as shown:
        path = store.find_model(text, offline=dry_run, on_bytes=shown)
    from stunet.trainers.finetune.start import Start  # imports torch, which a wrong name must not wait for

    return Start(path)


def _comparable(plans: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return plans without entries that decide nothing, or that `other`, of an earlier version, does not record."""
    left = {"derived_from", "version", "fingerprint", *({"orientation", "orientations"} - other["stunet"].keys())}
    return {**plans, "stunet": {key: value for key, value in plans["stunet"].items() if key not in left}}
