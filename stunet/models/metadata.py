"""Check that a model's plans.json and dataset.json hold all that prediction needs, and nothing that it cannot do.

nnU-Net trusts both files, and models come from anywhere: an error in them shows up late, or as wrong labels. folder.py
compares the tensors with them; plans/check.py is equally strict with the plans that we make.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, WeightsError
from stunet.kinds import DATASET, label_values
from stunet.labels.names import head_classes
from stunet.plans.grid import RESAMPLED, problems
from stunet.plans.plan import Configuration, Plan
from stunet.plans.schema import PLANS
from stunet.schema import check
from stunet.weights.v2 import NORMALIZATIONS, READERS, RESAMPLINGS

if TYPE_CHECKING:
    from stunet.weights.reading import Weights


def check_metadata(weights: "Weights") -> None:
    """Check that weights with plans have all that prediction needs; read no tensor.

    Raises:
        WeightsError: Something is missing or wrong; the message names the first.
    """
    plan, dataset = weights.plan or Plan({}), weights.dataset or {}
    hint = "use the plans.json and dataset.json of the training that made it"
    check(plan.content, PLANS, weights.path, hint, WeightsError)
    check(dataset, DATASET, weights.path, hint, WeightsError)
    planned = plan.configuration(str(weights.configuration))
    try:
        problem = next(_problems(weights, plan, planned, dataset), None)
    except DataError as error:
        problem = error.message
    if problem:
        raise WeightsError(f"{str(weights.path)!r}: {problem}", hint)


def check_input(weights: "Weights") -> None:
    """Check that weights with plans say how images become the network's input; read no tensor.

    Raises:
        WeightsError: Something is missing or wrong; the message names the first.
    """
    plan, hint = weights.plan or Plan({}), "use the plans.json of the training that made it"
    check(plan.content, PLANS, weights.path, hint, WeightsError)
    try:
        planned = plan.configuration(str(weights.configuration))
        wrong = problems(plan, planned, weights.strides or [], weights.network.ndim)
        problem = next(chain(wrong, _wrong_input(weights, plan, planned)), None)
    except DataError as error:
        problem = error.message
    if problem:
        raise WeightsError(f"{str(weights.path)!r}: {problem}", hint)


def _problems(weights: "Weights", plan: Plan, planned: Configuration, dataset: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong; only the first is reliable, because later checks assume that earlier ones passed."""
    yield from problems(plan, planned, weights.strides or [], weights.network.ndim)
    yield from _wrong_classes(weights, planned, dataset)
    yield from _wrong_input(weights, plan, planned)
    ndim, axes = weights.network.ndim, weights.mirror_axes or ()
    if len({*axes}) != len(axes) or not {*axes} <= {*range(ndim)}:
        yield f"mirror axes {axes} must be different, from 0 to {ndim - 1}"


def _wrong_input(weights: "Weights", plan: Plan, planned: Configuration) -> Iterator[str]:
    schemes, named = planned.normalization, len(weights.channels or ())
    if not {*schemes} <= {*NORMALIZATIONS}:
        yield f"normalization_schemes is {schemes!r}; known: {', '.join(NORMALIZATIONS)}"
    if len(schemes) != named:
        yield f"normalization_schemes is {schemes!r}, for {named} channel(s)"
    # nnU-Net looks these names up in its own package: others would fail there, or need code of someone else.
    names = {
        "image_reader_writer": (plan.reader, READERS),
        "label_manager": (plan.label_manager, ("LabelManager",)),
        "preprocessor_name": (planned.preprocessor, ("DefaultPreprocessor",)),
        **{f"resampling_fn_{what}": (planned.resampling(what), RESAMPLINGS) for what in RESAMPLED},
    }
    for key, (name, known) in names.items():
        if name not in known:
            yield f"{key} is {name!r}, which is not one of {', '.join(known)}"


def _wrong_classes(weights: "Weights", planned: Configuration, dataset: Mapping[str, Any]) -> Iterator[str]:
    values = label_values(dataset["labels"], dataset.get("regions_class_order"))
    rows = head_classes(dataset["labels"])
    labels = len(values) - ("ignore" in dataset["labels"])
    if "background" in rows and len(rows) != labels:
        yield f"{len(rows)} classes share {labels} labels in dataset.json"
    if len(rows) != weights.network.classes:
        yield f"the head has {weights.network.classes} rows, and {len(rows)} classes are named"
    # nnU-Net v1 called them modality.
    numbered = dataset.get("channel_names") or dataset.get("modality") or {}
    named, channels = len(numbered), weights.network.channels
    # A cascade also takes one channel for each label of the previous stage but the background.
    if named + (labels - 1 if planned.previous_stage else 0) != channels:
        yield f"the network takes {channels} channel(s), and {named} are named"
