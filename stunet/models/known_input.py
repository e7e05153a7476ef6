"""Find out what pre-trained weights know of their images: from their plan, or from the registry where they have none.

The plan is that of a model folder, of a checkpoint, or nnssl's adaptation plan. plans/pretrained.py plans by it.
"""

import re
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from stunet.errors import WeightsError
from stunet.kinds import INTENSITIES, PITCH
from stunet.kinds import orientation as orientation_check
from stunet.models import registry
from stunet.plans.known_input import KnownInput
from stunet.plans.plan import Plan
from stunet.schema import boolean, check, integer, list_of, one_of, optional, table
from stunet.sizes import SIZES
from stunet.weights.v2 import NORMALIZATIONS

if TYPE_CHECKING:
    from stunet.weights.reading import Weights

NOT_RESAMPLED = "no_resampling_hack"  # nnU-Net's function for plans that keep the spacing of each image


def known_input(weights: "Weights", name: str, orientation: str | None) -> KnownInput:
    """Return what weights know of the images that they were trained with.

    Args:
        weights: From read_weights().
        name: What they are called in plans.
        orientation: Of the images that are to be planned. They are turned only if the weights know the patient from
            another side, or mirrored: whoever trained with mirroring knows both.

    Raises:
        WeightsError: They are of an STU-Net of no size that is known here, or of one with several encoders.
    """
    from stunet.weights.blueprint import blueprint_of
    from stunet.weights.differences import axes_warnings

    found = weights.network
    if ("size" in found.architecture.required and not found.size) or found.arguments.get("encoders", 1) > 1:
        what = "has several encoders" if found.size else f"is of no size that stunet knows ({', '.join(SIZES)})"
        raise WeightsError(f"the network in {str(weights.path)!r} {what}", "--spacing dataset")
    entry = registry.look_up(weights.entry) if weights.entry else None
    if entry and weights.orientation is None:
        weights = replace(weights, recorded_orientation=entry.orientation)
    planned = weights.plan.configuration(weights.configuration) if weights.plan and weights.configuration else None

    def told(key: str, of_entry: str) -> Any:
        value = planned.get(key) if planned else None
        return value if value is not None else getattr(entry, of_entry, None)

    plan, strides = weights.plan or Plan({}), weights.strides or getattr(entry, "strides", None)
    order = plan.get("transpose_forward") or [0, 1, 2]
    # Both are nnssl's ways to say it; the first is nnU-Net's, too.
    native = [told("resampling_fn_data", "") == NOT_RESAMPLED, told("spacing_style", "") == "noresample"]
    known = KnownInput(
        # "_" separates the parts of a plan's name, and nnU-Net splits names at two of them.
        name=re.sub(r"_+", "-", name),
        network=blueprint_of(weights),
        spacing=told("spacing", "spacing"),
        resamples=not any(native),
        normalization=told("normalization_schemes", "normalization"),
        masks=planned.get("use_mask_for_norm") if planned else None,
        intensities=plan.intensities,
        channels=weights.channels or getattr(entry, "channels", None),
        transposition=tuple(order) if isinstance(order, list | tuple) else order,
        orientation=weights.orientation if orientation and axes_warnings(weights, order, orientation) else None,
        patch=told("patch_size", "patch_size"),
        strides=[list(stride) for stride in strides] if strides else None,
    )
    _check(known, weights)
    return known


def _check(known: KnownInput, weights: "Weights") -> None:
    """Reject what no training can have had: a checkpoint's plans are whatever its author wrote.

    Raises:
        WeightsError: The first such value.
    """
    axes = list_of(PITCH, known.ndim, known.ndim, f"{known.ndim} numbers in mm")
    kinds = table(
        {},
        {
            "spacing": optional(axes),
            "normalization": optional(list_of(one_of(*NORMALIZATIONS), least=1)),
            "masks": optional(list_of(boolean, least=1)),
            "intensities": optional(INTENSITIES),
            "patch": optional(list_of(integer(1, 100_000), least=known.ndim, most=known.ndim)),
            "transposition": one_of(*permutations(range(3))),
            "orientation": optional(orientation_check),
        },
    )
    values = {key: getattr(known, key) for key in ("spacing", "normalization", "masks", "intensities", "patch")}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    given = {**plain, "transposition": known.transposition, "orientation": known.orientation}
    check(given, kinds, f"the plan of {str(weights.path)!r}", "--spacing dataset", WeightsError)
