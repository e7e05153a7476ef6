"""Choose the plans and the trainer of a training or pre-training, and the weights from which it starts.

Options that change a plan derive another one, whose name tells what differs; it is written when training begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stunet import presets, workspace
from stunet.errors import DataError, UsageError, WeightsError, first_few
from stunet.kinds import read_dataset_json
from stunet.labels.annotations import Annotations, describe_trained_model, load_annotations
from stunet.plans.blueprints import Blueprint, blueprints
from stunet.plans.files import list_planned, plan_path, read_dataset_plan, read_plan
from stunet.plans.plan import ENCODER_ALONE, Plan, StartingWeights
from stunet.runs.fetching import fetch_model
from stunet.runs.listener import Listener
from stunet.trainers.lookup import check_trainer, needed_trainer

if TYPE_CHECKING:
    from stunet.runs.pretraining import PretrainingRequest
    from stunet.runs.training import TrainingRequest
    from stunet.trainers.finetune.joint import JointStart
    from stunet.trainers.finetune.start import Start


@dataclass(frozen=True)
class Choice:
    """The plan, whether it was just derived and is not on disk yet, and the weights to start from."""

    plan: Plan
    new: bool
    start: "Start | JointStart | None"


def choose_plans(dataset: str, request: "TrainingRequest", listener: Listener) -> Choice:
    """Return the plans that a request means.

    Raises:
        UsageError: Options contradict each other or the weights.
        DataError: There are no plans, or different ones with the same name.
        WeightsError: The weights cannot be read, or the plans start from weights that are not given.
    """
    from stunet.trainers.finetune import strategies

    if request.finetune:
        strategies.find(request.finetune)
    preset = presets.load(request.preset) if request.preset else None
    path = plan_path(dataset, request.plans or (_fitting(dataset, preset) if preset else None))
    plan = read_dataset_plan(path)
    dataset_json = read_dataset_json(path.parent / "dataset.json")
    options, overrides = _requested(dataset, request, plan, preset, listener)
    stages, size = options["stages"], options["size"]
    # The default trainer takes every case as completely annotated.
    annotations = None if request.trainer == workspace.TRAINER else load_annotations(path.parent)
    start = None
    if request.sources:
        start = _given(request, listener)
        options |= _from_weights(start, request, plan, (dataset_json, annotations), size, listener)
    elif request.finetune:
        options["finetune"] = request.finetune
    if options.get("finetune") and not stages:
        options["stages"] = _kept_stages(options["finetune"], plan, request.configuration, options["network"])
    if not (any(options.values()) or overrides or request.name):
        return Choice(plan, False, _start_of(plan, request, listener))
    plan.configuration(request.configuration)  # raises if there is none of this name
    from stunet.plans.derive import derive

    weights = options.get("weights") or plan.weights
    classes = weights[0].classes if len(weights) == 1 else None
    trainer = request.trainer or needed_trainer(path.parent, classes)
    derived = derive(
        plan, describe_trained_model(dataset, classes, trainer), overrides=overrides, name=request.name, **options
    )
    if (network := options.get("network")) and network.found:
        listener.note(f"{derived.name} is for a {network.architecture.title}, as the weights are: {network.found}")
    chosen, new = _as_on_disk(derived, path)
    return Choice(chosen, new, start or _start_of(chosen, request, listener))


def choose_pretraining_plans(dataset: str, request: "PretrainingRequest", listener: Listener) -> Choice:
    """Return the plans that a request for pre-training means, which name the method, the datasets and the weights.

    Raises:
        UsageError: Options contradict each other or the weights, or there is no such method.
        DataError: There are no plans, or different ones with the same name.
        WeightsError: The weights cannot be read, or the plans start from weights that are not given.
    """
    from stunet.plans import settings
    from stunet.trainers.pretexts import methods

    if request.method:
        methods.find(request.method)
    preset = presets.load(request.preset) if request.preset else None
    given, model = request.plans or (_fitting(dataset, preset) if preset else None), None
    if request.like is not None:
        given, model = _named_like(dataset, request.like, request, listener)
    path = plan_path(dataset, given)
    plan = read_dataset_plan(path)
    options, overrides = _requested(dataset, request, plan, preset, listener)
    if request.augment:
        overrides["augment"] = settings.check_value("augment", request.augment)
    plan.configuration(request.configuration)  # raises if there is none of this name
    if plan.finetune or (plan.weights and not plan.pretext):
        raise UsageError(f"plans {plan.name!r} are those of a fine-tuning", f"-p {plan.root}")
    from stunet.plans.derive import derive

    name = request.method or plan.pretext or methods.DEFAULT
    more = [workspace.dataset_name(each) for each in request.datasets[1:]] or None
    description = read_dataset_json(path.parent / "dataset.json")
    demand = methods.demand_of(name, overrides.get("augment", plan.train.augment))
    start = _given(request, listener) if request.sources else None
    if start is not None:
        options |= _from_weights_of_one(cast("Start", start), request, plan, options["size"], listener)
    if model:
        options["like"] = f"{workspace.dataset_number(model.dataset_name)}:{model.name}"
    derived = derive(
        plan,
        description,
        **options,
        overrides=overrides,
        pretext=name,
        demand=demand,
        datasets=more,
        name=request.name,
    )
    if model and _network_input(derived, request.configuration) != _network_input(model, request.configuration):
        what = f"--like {request.like} keeps the patch and strides of {model.name}, and other options change them"
        raise UsageError(what, "no --set patch_size or --stages, or no --like")
    chosen, new = _as_on_disk(derived, path)
    return Choice(chosen, new, start or _start_of(chosen, request, listener))


def model_plan(like: int | str) -> tuple[str, Plan]:
    """Return the plan that another one is like, `3`, `Dataset003_Liver` or `3:PLANS`, and the name of its dataset."""
    given, _, name = str(like).partition(":")
    dataset = workspace.dataset_name(given)
    return dataset, read_dataset_plan(plan_path(dataset, name or None))


def _network_input(plan: Plan, configuration: str) -> tuple[list[int], Any]:
    """Return the patch and the strides of a configuration."""
    planned = plan.configuration(configuration)
    return planned.patch_size, planned.strides


def _named_like(dataset: str, like: int | str, request: "PretrainingRequest", listener: Listener) -> tuple[str, Plan]:
    """Return the name of the dataset's plan that has the input and the patch of another dataset's, and that plan.

    Raises:
        UsageError: Plans are named as well.
        DataError: There is none, or the channels have another order.
    """
    from stunet.preprocessing.like import channel_warning, input_differences

    if request.plans:
        raise UsageError("-p and --like both choose plans", "one of them")
    (other, model), name = model_plan(like), request.configuration
    described = [
        (each, read_dataset_json(workspace.preprocessed_dataset(each) / "dataset.json")) for each in (dataset, other)
    ]
    if warning := channel_warning(*described[0], *described[1]):
        listener.warn(warning)
    wanted = _network_input(model, name)
    for each in list_planned(dataset):
        plan = read_plan(plan_path(dataset, each))
        same = name in plan.configurations and _network_input(plan, name) == wanted
        if same and not input_differences(model, plan, name):
            return each, model
    number = workspace.dataset_number(dataset)
    what = f"no plans of {dataset} have the input and patch of {model.name} of {model.dataset_name}"
    raise DataError(what, f"stunet_plan_and_preprocess -d {number} --like {like} -c {name}")


def _requested(
    dataset: str,
    request: "TrainingRequest | PretrainingRequest",
    plan: Plan,
    preset: presets.Preset | None,
    listener: Listener,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return size, network, memory and stages that a request and its preset ask for, and the values that they set."""
    from stunet.plans import settings

    size, memory_gb, stages = request.size, request.gpu_memory_target, settings.parse_stages(request.stages)
    overrides = {key: settings.check_value(key, value) for key, value in request.set.items()}
    if preset:
        if unlike := preset.unlike(plan):
            number = workspace.dataset_number(dataset)
            raise DataError(
                f"plans {plan.name!r} have {unlike} as of preset {request.preset!r}",
                f"stunet_plan_and_preprocess -d {number} --preset {request.preset}, and -p with its plans",
            )
        if preset.note:
            listener.note(f"{request.preset}: {preset.note}")
        size, memory_gb, stages = preset.complete(size, memory_gb, stages)
        # Every flag takes precedence over the preset.
        overrides = {**preset.set, **overrides}
    network = blueprints()[request.network] if request.network else None
    if network and network.size and plan.size:  # the same network in a size, which has an option of its own
        size, network = network.size, None
    elif network and plan.network == network.name:
        network = None  # it is the plan's
    return {"size": size, "network": network, "memory_gb": memory_gb, "stages": stages}, overrides


def _as_on_disk(derived: Plan, path: Path) -> tuple[Plan, bool]:
    """Return a derived plan as it is on disk beside the one at `path`, or as it is and True if it is new.

    The name of a plan says what was set, so the same request finds the plans of an earlier training.
    """
    from stunet.plans.check import plan_differences

    existing = path.with_name(f"{derived.name}.json")
    if not existing.is_file():
        return derived, True
    on_disk = read_plan(existing)
    if changed := plan_differences(on_disk, derived):
        raise DataError(
            f"plans {derived.name!r} exist and differ from what would be derived ({first_few(changed)})",
            f"-p {derived.name} to use them, or delete {existing}",
        )
    return on_disk, False


def _fitting(dataset: str, preset: presets.Preset) -> str | None:
    """Return the only plans of the dataset that were planned as a preset wants; None if there are none or several."""
    fitting = []
    for name in list_planned(dataset):
        fitting += [] if preset.unlike(read_plan(plan_path(dataset, name))) else [name]
    return fitting[0] if len(fitting) == 1 else None


def choose_trainer(dataset: str, plan: Plan, given: str | None, listener: Listener) -> str:
    """Return the trainer class: the one that is named, or the one that the data need.

    The listener is told if the data need another trainer than the default one.

    Raises:
        UsageError: There is no such trainer, or it cannot train on a part of the network's classes.
    """
    folder = workspace.preprocessed_dataset(dataset)
    needed = needed_trainer(folder, plan.reused_classes)
    if given is None:
        if needed != workspace.TRAINER:
            more = "the head has more classes than the dataset"
            why = more if plan.reused_classes else "cases annotate different classes"
            listener.note(f"{needed}, because {why}")
        return needed
    check_trainer(given)
    if given == workspace.TRAINER and plan.reused_classes:
        raise UsageError(f"--head reuse trains on a part of the classes, and {given} on all", f"-tr {needed}")
    if given == workspace.TRAINER != needed:
        listener.warn(f"-tr {given} takes what a case does not annotate for background; without it: {needed}")
    return given


def _from_weights(
    start: "Start | JointStart",
    request: "TrainingRequest",
    base: Plan,
    data: tuple[Mapping[str, Any], Annotations | None],
    size: str | None,
    listener: Listener,
) -> dict[str, Any]:
    """Return what of the plan follows from the weights: size, encoders, strategy and name.

    If the base plan has the same weights and head, its entry is kept.
    """
    from stunet.trainers.finetune import strategies
    from stunet.trainers.finetune.joint import JointStart

    if isinstance(start, JointStart):
        network, encoders = start.starts[0].weights.network, len(start.starts)
        named = _entries_of_several(start, request, base.weights, data)
    else:
        network = start.weights.network
        encoders = network.arguments.get("encoders", 1)
        head = "reset" if request.pretrained_weights else request.head
        named = (_entry(start, request, head, base.weights, data, listener),)
    _check_size(size, network.size, named)
    finetune = request.finetune or base.finetune or strategies.DEFAULT
    return {
        **_network_of(start, base, request.configuration),
        "encoders": encoders,
        "weights": named,
        "finetune": None if request.pretrained_weights else finetune,
    }


def _network_of(start: "Start | JointStart", base: Plan, configuration: str) -> dict[str, Any]:
    """Return the size of the weights, or their network if the plan's is another one that they do not fit."""
    from stunet.trainers.finetune.joint import JointStart
    from stunet.trainers.finetune.start import other_network

    one = start.starts[0] if isinstance(start, JointStart) else start
    if other := other_network(one, base, configuration):
        return {"network": other}
    return {"size": one.weights.network.size}


def _from_weights_of_one(
    start: "Start", request: "PretrainingRequest", base: Plan, size: str | None, listener: Listener
) -> dict[str, Any]:
    """Return what of a pre-training's plan follows from weights: size and name. Its heads are new in any case."""
    named = (_entry(start, request, None, base.weights, (None, None), listener),)
    _check_size(size, start.weights.network.size, named)
    return {**_network_of(start, base, request.configuration), "weights": named}


def _check_size(asked: str | None, theirs: str | None, named: Sequence[StartingWeights]) -> None:
    if asked in (None, theirs):
        return
    names = " and ".join(repr(each.name) for each in named)
    of = f"of size {theirs}" if theirs else "of a network without sizes"
    raise UsageError(
        f"size {asked} is asked for, but the weights {names} are {of}",
        f"leave the size out, or find weights of size {asked}: stunet_models list",
    )


def _entry(
    start: "Start",
    request: "TrainingRequest | PretrainingRequest",
    asked: str | None,
    base: Sequence[StartingWeights],
    data: tuple[Mapping[str, Any] | None, Annotations | None],
    listener: Listener,
) -> StartingWeights:
    """Return what a plan holds about the weights; warn of a head that cannot be what was asked for."""
    from stunet.trainers.finetune.start import choose_heads, plan_entry

    before = base[0] if len(base) == 1 else None
    head = asked or (before.head if before else None)
    transfer, inflate = request.transfer, request.inflate
    if before and before.sha256 == start.sha256:
        transfer, inflate = transfer or before.taken, inflate or before.inflate
    if (transfer or start.weights.transfers) == ENCODER_ALONE and not asked:
        head = None  # that of the base plan is not transferred
    heads = choose_heads(start, head, *data, transfer)
    named = plan_entry(start, heads, is_file=Path(request.sources[0]).exists(), transfer=transfer, inflate=inflate)
    if asked:
        for text in heads.warnings:
            listener.warn(text)
    # Compared by hash: the same file may have another name now, and the plans would get another one with it.
    compared = ("sha256", "head", "taken", "inflate")
    return before if before and all(getattr(before, key) == getattr(named, key) for key in compared) else named


def _entries_of_several(
    start: "JointStart",
    request: "TrainingRequest",
    base: Sequence[StartingWeights],
    data: tuple[Mapping[str, Any], Annotations | None],
) -> tuple[StartingWeights, ...]:
    same = [each.sha256 for each in base] == [each.sha256 for each in start.starts]
    inflate = request.inflate or (base[0].inflate if same else None)
    named = start.plan_entries([Path(text).exists() for text in request.sources], *data, inflate)
    # As for one, named as before.
    unchanged = same and all(replace(before, name=now.name) == now for before, now in zip(base, named, strict=True))
    return tuple(base) if unchanged else named


def _kept_stages(name: str, plan: Plan, configuration: str, network: Blueprint | None) -> int | None:
    """Return how many of a configuration's stages, or of another network's from weights, a strategy keeps; None: all.

    Raises:
        UsageError: The network is another one, whose number of stages is not known yet.
    """
    from stunet.trainers.finetune import strategies

    strategy, found = strategies.find(name), network and network.found
    # Plans of the same strategy have been cut already; a second time they would lose further stages.
    if strategy.depth == 1 or (plan.finetune == name and not network):
        return None
    if network and not found and network.stages == "auto":
        raise UsageError(
            f"{name!r} leaves stages out, and how many --network {network.name} has is not planned yet",
            f"--stages with their number, or -p with plans of the network: stunet_plan_and_preprocess {network.option}",
        )
    stages = len(plan.configuration(configuration).strides)
    return strategies.kept_stages(strategy, found.stages if found else int(network.stages) if network else stages)


def _given(request: "TrainingRequest | PretrainingRequest", listener: Listener) -> "Start | JointStart":
    """Return the weights that a request names.

    A training that is continued or validated does not need them, so its error suggests leaving them out.
    """
    try:
        return _find(request.sources, request, listener)
    except WeightsError as error:
        if not request.needs_weights:
            hint = "-p with the name of the training's plans instead of --pretrained: its checkpoints have all it needs"
            raise WeightsError(error.message, hint) from None
        raise


def _start_of(
    plan: Plan, request: "TrainingRequest | PretrainingRequest", listener: Listener
) -> "Start | JointStart | None":
    """Return the weights that a plan starts from if the request names none, found by name; None if not needed."""
    if not plan.weights or not request.needs_weights:
        return None
    try:
        return _find([each.name for each in plan.weights], request, listener)
    except WeightsError:
        names = " and ".join(repr(each.name) for each in plan.weights)
        raise WeightsError(
            f"plans {plan.name!r} start from the weights {names}, which are not given",
            "add --pretrained with their file" if len(plan.weights) == 1 else "add --pretrained for each of them",
        ) from None


def _find(
    texts: Sequence[str], request: "TrainingRequest | PretrainingRequest", listener: Listener
) -> "Start | JointStart":
    # A dry run downloads nothing.
    paths = [fetch_model(text, listener, request.dry_run, request.accept_licence) for text in texts]
    # These import torch, which a wrong name must not wait for.
    from stunet.trainers.finetune.joint import JointStart
    from stunet.trainers.finetune.start import Start

    starts = [Start(path) for path in paths]
    return starts[0] if len(starts) == 1 else JointStart(starts)
