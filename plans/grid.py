"""Check that patch, spacing, strides, axes and channels of a configuration are consistent, for any plans, ours or not.

The types and ranges of single values are in schema.PLANS; check.py and models/metadata.py add their own checks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stunet.plans.plan import Configuration, Plan

RESAMPLED = ("data", "seg", "probabilities")
# The keys that nnU-Net reads from every plan and every configuration.
PLAN_KEYS = (
    "dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward", "label_manager",
)  # fmt: skip
CONFIGURATION_KEYS = (
    "preprocessor_name", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture",
    *(f"resampling_fn_{what}{kwargs}" for what in RESAMPLED for kwargs in ("", "_kwargs")),
)  # fmt: skip
_CLIPPING = ("mean", "std", "percentile_00_5", "percentile_99_5")  # used by CTNormalization


def problems(
    plan: Plan, configuration: Configuration, strides: Sequence[Sequence[int]], ndim: int | None = None
) -> Iterator[str]:
    """Yield what is inconsistent; use only the first, because later checks rely on earlier ones having passed.

    Args:
        plan: A plan whose document matches schema.PLANS.
        configuration: One of its configurations.
        strides: Strides of its network.
        ndim: Number of axes of its network; None: as many as the patch has.
    """
    plans, planned = plan.content, configuration.content
    for content, keys in ((plans, PLAN_KEYS), (planned, CONFIGURATION_KEYS)):
        if missing := [key for key in keys if key not in content]:
            yield f"missing {', '.join(map(repr, missing))}"
    patch, spacing = planned["patch_size"], planned["spacing"]
    ndim = len(patch) if ndim is None else ndim
    for key, value in (("patch_size", patch), ("spacing", spacing)):
        if len(value) != ndim:
            yield f"{key} {value} must be {ndim} numbers"
    fits = isinstance(strides, list | tuple) and len(strides) >= 2 and all(_is_stride(one, ndim) for one in strides)
    if not fits:
        yield f"strides {strides} must be two or more entries of {ndim} positive integers"
    if {*strides[0]} != {1}:
        yield f"strides must begin with {[1] * ndim}, not {strides[0]}"
    steps = [math.prod(axis) for axis in zip(*strides, strict=True)]
    if any(n % step for n, step in zip(patch, steps, strict=True)):
        yield f"patch_size {patch} must be multiples of {steps}, the product of the strides"
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    if sorted(forward) != [0, 1, 2] or list(backward) != [forward.index(axis) for axis in range(3)]:
        yield f"transpose_forward {forward} and transpose_backward {backward} are not an order of axes and its inverse"
    yield from _wrong_channels(plans, planned)


def _wrong_channels(plans: Mapping[str, Any], planned: Mapping[str, Any]) -> Iterator[str]:
    schemes, masks = planned["normalization_schemes"], planned["use_mask_for_norm"]
    if len(schemes) != len(masks):
        yield f"normalization_schemes {schemes} and use_mask_for_norm {masks} are for different numbers of channels"
    key = "foreground_intensity_properties_per_channel"
    known = plans.get(key, plans.get("foreground_intensity_properties_by_modality"))  # the name in early versions
    if known is None:
        yield f"missing {key!r}"
    for channel in (str(i) for i, scheme in enumerate(schemes) if scheme == "CTNormalization"):
        found = [known.get(channel, {}).get(name) for name in _CLIPPING]
        if not all(value is not None and math.isfinite(value) for value in found):
            yield f"CTNormalization of channel {channel} needs the intensities' {', '.join(_CLIPPING)} in the plans"


def _is_stride(stride: Any, ndim: int) -> bool:
    listed = isinstance(stride, list | tuple) and len(stride) == ndim
    return listed and all(type(step) is int and 1 <= step <= 64 for step in stride)
