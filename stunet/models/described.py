"""Do the plans.json and dataset.json of a model say all that prediction needs, and nothing that it cannot do?

nnU-Net believes both files, and models come from anywhere: what is wrong there shows late, or as other labels.
folder.py compares the tensors with what they say; plans/check.py is as strict with the plans that we make.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stunet.classes import head_classes
from stunet.datasets import label_values
from stunet.errors import DataError, WeightsError
from stunet.weights.v2 import NORMALIZATIONS, READERS, RESAMPLINGS

if TYPE_CHECKING:
    from stunet.weights.reading import Weights

_PLANS = (
    "dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward", "label_manager",
)  # fmt: skip
_RESAMPLED = ("data", "seg", "probabilities")
_CONFIGURATION = (
    "preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture",
    *(f"resampling_fn_{what}{kwargs}" for what in _RESAMPLED for kwargs in ("", "_kwargs")),
)  # fmt: skip
_CLIPPING = ("mean", "std", "percentile_00_5", "percentile_99_5")  # of CTNormalization


def check_described(weights: "Weights") -> None:
    """Sees that weights with plans have all that prediction needs; reads no tensor.

    Raises:
        WeightsError: The first thing that is missing or wrong.
    """
    plans, dataset = weights.plans or {}, weights.dataset or {}
    planned = plans["configurations"][weights.configuration]
    try:
        problem = next(_problems(weights, plans, planned, dataset), None)
    except DataError as error:
        problem = error.message
    if problem:
        raise WeightsError(
            f"{str(weights.path)!r}: {problem}", "use the plans.json and dataset.json of the training that made it"
        )


def _problems(
    weights: "Weights", plans: Mapping[str, Any], planned: Mapping[str, Any], dataset: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong; only the first is meant, for the later ones rely on what was found right before."""
    for content, keys in ((plans, _PLANS), (planned, _CONFIGURATION), (dataset, ("labels", "file_ending"))):
        if missing := [key for key in keys if key not in content]:
            yield f"its plans or dataset lack {', '.join(missing)}"
    yield from _wrong_classes(weights, planned, dataset)
    yield from _wrong_grid(weights, plans, planned)
    yield from _wrong_intensities(weights, plans, planned)
    names = {
        "image_reader_writer": (plans["image_reader_writer"], READERS),
        "label_manager": (plans["label_manager"], ("LabelManager",)),
        "preprocessor_name": (planned["preprocessor_name"], ("DefaultPreprocessor",)),
        **{f"resampling_fn_{what}": (planned[f"resampling_fn_{what}"], RESAMPLINGS) for what in _RESAMPLED},
    }
    for key, (name, known) in names.items():
        if name not in known:
            yield f"{key} is {name!r}, which is not one of {', '.join(known)}"


def _wrong_classes(weights: "Weights", planned: Mapping[str, Any], dataset: Mapping[str, Any]) -> Iterator[str]:
    values = label_values(dataset["labels"], dataset.get("regions_class_order"))
    rows = head_classes(dataset["labels"])
    labels = len(values) - ("ignore" in dataset["labels"])
    if "background" in rows and len(rows) != labels:
        yield f"{len(rows)} classes share {labels} labels in dataset.json"
    if len(rows) != weights.architecture.classes:
        yield f"the head has {weights.architecture.classes} rows, and {len(rows)} classes are named"
    numbered = dataset.get("channel_names") or dataset.get("modality") or {}
    if {*numbered} != {str(i) for i in range(len(numbered))}:
        yield f"channel_names is {numbered!r}, whose keys are not the numbers from 0"
    named, channels = len(numbered), weights.architecture.channels
    if named + (labels - 1 if planned.get("previous_stage") else 0) != channels:
        yield f"the network takes {channels} channel(s), and {named} are named"
    ending = dataset["file_ending"]
    if not isinstance(ending, str) or not ending.startswith(".") or "/" in ending:
        yield f"file_ending is {ending!r} in dataset.json"


def _wrong_grid(weights: "Weights", plans: Mapping[str, Any], planned: Mapping[str, Any]) -> Iterator[str]:
    ndim, strides = weights.architecture.ndim, weights.strides or []
    if not all(_numbers(stride, ndim, whole=True) for stride in strides) or {*strides[0]} != {1}:
        yield f"strides {strides} must be positive, and begin with {[1] * ndim}"
    if not _numbers(planned["spacing"], ndim):
        yield f"spacing {planned['spacing']!r} must be {ndim} positive numbers"
    patch, steps = planned["patch_size"], [math.prod(axis) for axis in zip(*strides, strict=True)]
    if not _numbers(patch, ndim, whole=True) or any(n % step for n, step in zip(patch, steps, strict=True)):
        yield f"patch_size {patch!r} must be {ndim} multiples of {steps}, the product of the strides"
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    order = [*forward] if isinstance(forward, list | tuple) else []
    if {*map(repr, order)} != {"0", "1", "2"} or backward != [order.index(axis) for axis in range(3)]:
        yield f"transpose_forward {forward!r} and transpose_backward {backward!r} are no order of axes and its inverse"
    axes = weights.mirror_axes or ()
    if len({*axes}) != len(axes) or not {*axes} <= {*range(ndim)}:
        yield f"mirror axes {axes} must be different, from 0 to {ndim - 1}"


def _wrong_intensities(weights: "Weights", plans: Mapping[str, Any], planned: Mapping[str, Any]) -> Iterator[str]:
    schemes, named = planned["normalization_schemes"], len(weights.channels or ())
    if not isinstance(schemes, list) or not {*map(str, schemes)} <= {*NORMALIZATIONS}:
        yield f"normalization_schemes is {schemes!r}; known: {', '.join(NORMALIZATIONS)}"
    for key in ("normalization_schemes", "use_mask_for_norm"):
        if not isinstance(planned[key], list) or len(planned[key]) != named:
            yield f"{key} is {planned[key]!r}, for {named} channel(s)"
    key = "foreground_intensity_properties_per_channel"
    known = plans.get(key, plans.get("foreground_intensity_properties_by_modality"))  # as early versions called it
    if not isinstance(known, dict):
        yield f"{key} is {known!r}"
    for channel in (str(i) for i, scheme in enumerate(schemes) if scheme == "CTNormalization"):
        of_channel = known.get(channel)
        values = [of_channel.get(key) for key in _CLIPPING] if isinstance(of_channel, dict) else []
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values) or not values:
            yield f"CTNormalization of channel {channel} needs the intensities' {', '.join(_CLIPPING)} in the plans"


def _numbers(values: Any, count: int, whole: bool = False) -> bool:
    """Whether these are `count` positive and finite numbers."""
    kinds = (int,) if whole else (int, float)
    listed = isinstance(values, list | tuple) and len(values) == count
    return listed and all(type(value) in kinds and 0 < value < math.inf for value in values)
