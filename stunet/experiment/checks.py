"""Check, before the first arm trains, that its plans and weights exist and that finished arms fit the experiment."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from stunet import workspace
from stunet.errors import DataError
from stunet.experiment.arms import Arm, Experiment
from stunet.experiment.runs import DONE, Record
from stunet.folds import FILE as SPLITS
from stunet.folds import MADE, read_folds
from stunet.models import registry, store
from stunet.models.entry import NETWORKS
from stunet.plans.blueprints import NAMES
from stunet.plans.files import plan_path, read_dataset_plan
from stunet.plans.plan import Plan
from stunet.runs.listener import Listener


def check_experiment(experiment: Experiment, weights: Mapping[str, Sequence[str]], listener: Listener) -> None:
    """Check that everything the arms need exists; download nothing."""
    from stunet.plans.check import check_plan
    from stunet.runs.plan_choice import choose_trainer
    from stunet.runs.readiness import check_data

    dataset = workspace.dataset_name(experiment.dataset)
    plan = read_dataset_plan(plan_path(dataset, experiment.plans))
    planned = check_plan(plan, experiment.configuration)
    splits = workspace.preprocessed_dataset(dataset) / SPLITS
    # nnU-Net only makes its folds when the first of them is trained.
    folds = len(read_folds(splits)) if splits.is_file() else MADE
    if experiment.fold >= folds:
        what = f"fold {experiment.fold} is asked for, but {dataset} has {folds}"
        raise DataError(what, f"fold = N, from 0 to {folds - 1}")
    trainer = choose_trainer(dataset, plan, None, listener)
    for warning in check_data(dataset, plan, experiment.configuration, experiment.fold, trainer):
        listener.warn(warning)
    _check_weights(experiment, weights, listener, plan, str(_named(plan.size, planned.network_class)))


def check_done(todo: Mapping[Arm, Sequence[str]], record: Record, only_warn: bool, listener: Listener) -> None:
    """Raise DataError, or warn, if a finished arm was made from other cases or data than there are now."""
    from stunet.provenance import check_result

    for arm, words in todo.items():
        # The summary is FOLD/validation/summary.json; check_result() takes the folder of the fold.
        if record.state(words) != DONE or not (reasons := check_result(record.summary(words).parents[1])):
            continue
        what = f"the arm {arm.name} is done, but {reasons[0]}"
        if not only_warn:
            raise DataError(what, f"train it again: {shlex.join([*words, '--overwrite'])}, or another folder with -o")
        listener.warn(what)


def _check_weights(
    experiment: Experiment, weights: Mapping[str, Sequence[str]], listener: Listener, plan: Plan, planned: str
) -> None:
    """Check that all weights are known, distinct, and of the requested size.

    Warn if training from scratch is compared with weights of another network than `planned`, or another size.
    """
    found = {
        title: dict(_known(text, plan, experiment.configuration) for text in texts)
        for title, texts in weights.items()
        if texts
    }
    for (one, known), (other, same) in combinations(found.items(), 2):
        if known.keys() == same.keys():
            raise DataError(f"{one!r} and {other!r} are the same weights", "leave one of them out")
    for title, known in found.items():
        if len(known) < len(weights[title]):
            raise DataError(f"{title!r} names the same weights twice", "other weights for each encoder")
        if len(known) > 1:
            _check_encoders(known)
    networks = [(title, network) for title, known in found.items() for network in known.values()]
    asked = f"size {experiment.size}" if experiment.size else None
    unlike = {title: network for title, network in networks if network not in (None, asked or planned)}
    if asked and unlike:
        title, network = unlike.popitem()
        what = f"{asked} is asked for, but the weights {title!r} are of {network}"
        raise DataError(what, "leave the size out, or these weights")
    if unlike and () in experiment.weights.values():
        others = ", ".join(f"{title} of {network}" for title, network in unlike.items())
        listener.warn(f"training from scratch is of {planned}, but {others}: the difference mixes network and weights")


def _known(text: str, plan: Plan, configuration: str) -> tuple[str, str | None]:
    """Return what uniquely identifies these weights, and their network as _named() calls it; None if unknown.

    Networks of one name may differ in width: of weights on this machine it is said if the plan takes theirs for that.
    """
    entry = registry.look_up(text)
    if entry and not store.find_installed(text):
        return entry.name, _named(entry.size, NETWORKS[entry.network])
    from stunet.trainers.finetune.start import Start, other_network

    path = store.find_model(text, offline=True)
    start = Start(path)
    network = start.weights.network
    known = _named(network.size, network.architecture.class_name)
    if known == _named(plan.size, plan.configuration(configuration).network_class) and not network.size:
        known = f"{known}, but with {network}" if other_network(start, plan, configuration) else known
    return str(path.resolve()), known


def _named(size: str | None, network_class: str | None) -> str | None:
    """Return a network's size or, without one, its name."""
    known = NAMES.get(network_class or "")
    return f"size {size}" if size else f"network {known}" if known else None


def _check_encoders(places: Iterable[str]) -> None:
    """Check that weights can be those of the encoders of one network, as far as they are on this machine."""
    from stunet.trainers.finetune.joint import JointStart
    from stunet.trainers.finetune.start import Start

    JointStart([Start(path) for path in map(Path, places) if path.is_absolute()])
