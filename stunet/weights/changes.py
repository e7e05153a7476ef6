"""Tell in what a training differs from the one that made the weights which it goes on with: a table for the report."""

import math
from collections.abc import Sequence
from typing import Any

from stunet.plans.plan import Plan
from stunet.weights.reading import Weights

LONGEST = 48  # letters of a value
# By nnU-Net's name for it in a configuration, and in the arguments of its network.
_VALUES = {
    "spacing": "spacing in mm",
    "normalization_schemes": "normalisation",
    "patch_size": "patch",
    "batch_size": "batch",
    "batch_dice": "Dice of the whole batch",
}
_OF_NETWORK = {"n_stages": "stages", "strides": "strides", "kernel_sizes": "kernels"}

Change = tuple[str, str, str]


def changes(weights: Weights, plan: Plan, configuration: str, classes: Sequence[str]) -> tuple[Change, ...]:
    """Return what is different, as it was and as it is now; nothing if the plan of the weights is not known.

    Args:
        weights: What the training starts from.
        plan: Its plan.
        configuration: Key of the plan's configurations.
        classes: Names of the rows of its heads.
    """
    if weights.plan is None or weights.configuration is None or weights.pretext:
        return ()
    before, now = weights.plan.configuration(weights.configuration), plan.configuration(configuration)
    pairs: list[tuple[str, Any, Any]] = [(title, before.get(key), now.get(key)) for key, title in _VALUES.items()]
    there, here = before.network_arguments, now.network_arguments
    pairs += [(title, there.get(key), here.get(key)) for key, title in _OF_NETWORK.items()]
    pairs.append(("order of axes", weights.plan.get("transpose_forward"), plan.transpose_forward))
    pairs.append(("orientation", weights.orientation, plan.orientation))
    if weights.mirror_axes is not None:
        first = 3 - len(now.patch_size)
        axes = {"none": [], "all": [0, 1, 2]}.get(plan.train.mirror, plan.mirror_axes)
        allowed = [axis - first for axis in axes if axis >= first]
        pairs.append(("mirrored axes at test time", sorted(weights.mirror_axes), allowed))
    pairs.append(("classes", weights.classes, list(classes)))
    return tuple(
        (title, _text(one), _text(two)) for title, one, two in pairs if one is not None and not _same(one, two)
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, numbers up to what plans round."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-3)
    return one == other


def _text(value: Any) -> str:
    """Return a value of a plan in few letters."""
    if isinstance(value, list | tuple):
        parts = ["x".join(map(_text, each)) if isinstance(each, list | tuple) else _text(each) for each in value]
        text = " ".join(parts) or "none"
    else:
        text = f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
