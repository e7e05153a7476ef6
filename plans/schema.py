"""What a plans file may hold: the types and ranges of single values, in plans of ours and of other programs.

What values mean in combination is checked in check.py, for our plans, and in models/metadata.py, for those of models.
"""

from typing import Any

from stunet.kinds import INTENSITIES, ORIENTATIONS, PITCH, orientation
from stunet.names import name
from stunet.plans import settings
from stunet.plans.plan import INFLATIONS, TRANSFERS
from stunet.schema import (
    Check,
    anything,
    boolean,
    dict_of,
    either,
    expected,
    integer,
    list_of,
    number,
    one_of,
    optional,
    table,
    text,
)  # fmt: skip

_AXES = list_of(integer(0, 2), least=3, most=3)
_STRIDES = list_of(list_of(integer(1, 64), least=2, most=3), least=2, most=20)


def _value(kind: settings.Value) -> Check:
    """Return a check for a value of --set, in its type."""

    def found(value: Any, where: str) -> None:
        # --set takes 2.0 for an integer and converts it; a file holds the converted value.
        if not settings.is_valid(kind, value) or (kind.type is int and type(value) is not int):
            raise expected(value, where, f"a valid {kind.type.__name__}, such as {kind.example}")

    return found


_CONFIGURATION = table(
    {},
    {
        "inherits_from": optional(text),
        "data_identifier": name,
        "preprocessor_name": text,
        "batch_size": integer(1, 1_000_000),
        "batch_dice": boolean,
        "patch_size": list_of(integer(1, 100_000), least=2, most=3),
        "median_image_size_in_voxels": list_of(number(above=0), least=2, most=3),
        "spacing": list_of(PITCH, least=2, most=3),
        "normalization_schemes": list_of(text, least=1),
        "use_mask_for_norm": list_of(boolean, least=1),
        **{f"resampling_fn_{what}": text for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": dict_of(anything) for what in ("data", "seg", "probabilities")},
        "architecture": table(
            {"network_class_name": text, "arch_kwargs": dict_of(anything)}, {"_kw_requires_import": list_of(text)}, True
        ),
        "pool_op_kernel_sizes": _STRIDES,  # in plans of nnU-Net 2.2 and earlier
        "previous_stage": optional(name),
        "next_stage": optional(either("a name or a list of names", name, list_of(name))),
        "stunet": table({}, {"memory_gb": number(0), "measured_gb": number(0), "correction": number(0)}, True),
    },
    others=True,
)
_WEIGHTS = table(
    {"name": name, "sha256": text, "head": one_of("slice", "reset", "reuse")},
    {
        "classes": list_of(text, least=1),
        "pretext": name,
        "transfer": one_of(*TRANSFERS),
        "inflate": one_of(*INFLATIONS),
    },
)
_TARGET = {
    "memory_gb": number(above=0, most=10_000),
    "stages": either("a number from 2 to 9 or 'auto'", integer(2, 9), one_of("auto")),
}
_BLOCK = table(
    {},
    {
        "version": text,
        "size": optional(text),
        "network": name,
        **_TARGET,
        "mirror_axes": list_of(integer(0, 2), most=3),
        "plan": table({}, {key: _value(kind) for key, kind in settings.PLAN.items()} | _TARGET),
        "train": table({}, {key: _value(kind) for key, kind in settings.TRAIN.items()}),
        "derived_from": name,
        "finetune": text,
        "pretext": text,
        "like": text,
        "planned_with": text,
        "datasets": list_of(name, least=1),
        "contained_shapes": dict_of(list_of(integer(1, 100_000), least=2, most=3), key=name),
        "weights": either("a table, or a list of tables", _WEIGHTS, list_of(_WEIGHTS, least=2)),
        "fingerprint": text,
        "orientation": orientation,
        "orientations": ORIENTATIONS,
    },
)
PLANS = table(
    {"configurations": dict_of(_CONFIGURATION, key=name, least=1)},
    {
        "dataset_name": name,
        "plans_name": name,
        "original_median_spacing_after_transp": list_of(number(above=0), least=2, most=3),
        "original_median_shape_after_transp": list_of(number(above=0), least=2, most=3),
        "image_reader_writer": text,
        "label_manager": text,
        "experiment_planner_used": text,
        "transpose_forward": _AXES,
        "transpose_backward": _AXES,
        "foreground_intensity_properties_per_channel": INTENSITIES,
        "foreground_intensity_properties_by_modality": INTENSITIES,
        "continue_training": boolean,
        "stunet": _BLOCK,
    },
    others=True,
)
