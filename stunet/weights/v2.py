"""Make nnU-Net v2's plans.json and dataset.json for weights that were trained without them.

The files are complete, with one 3D configuration, and any part of nnU-Net v2 accepts them. v1.py and models/registry.py
fill them in. This module does not import torch.
"""

from collections.abc import Sequence
from typing import Any

from stunet import __version__
from stunet.architectures.stunet import STUNET
from stunet.plans.plan import Plan

# The classes of nnU-Net 2.8.1 that plans.json may name.
NORMALIZATIONS = (
    "CTNormalization", "NoNormalization", "RGBTo01Normalization", "RescaleTo01Normalization", "ZScoreNormalization",
)  # fmt: skip
READERS = (
    "NaturalImage2DIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIO", "SimpleITKIOWithReorient", "Tiff3DIO",
)  # fmt: skip
RESAMPLINGS = (
    "no_resampling_hack", "resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple",
)  # fmt: skip
_RESAMPLING = "resample_data_or_seg_to_shape"


def make_plan(
    dataset_name: str,
    configuration: str,
    size: str | None,
    *,
    strides: Sequence[Sequence[int]],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    median_shape: Sequence[int],
    normalization: Sequence[str],
    mirror_axes: Sequence[int],
    orientation: str | None = None,
) -> Plan:
    """Return a plan: no transposition, nnU-Net's default preprocessing, and the given values.

    Args:
        dataset_name: The dataset that the weights were trained on.
        configuration: Name of the only configuration.
        size: Key of stunet.sizes.SIZES, or None if unknown.
        strides: One per stage, the first all ones.
        spacing: In mm, array order.
        patch_size: In voxels.
        median_shape: Median shape of the images at that spacing, in voxels; nnU-Net reads it only for planning.
        normalization: nnU-Net's scheme per channel.
        mirror_axes: Axes that training mirrored.
        orientation: Orientation of the training images; None if unknown.
    """
    common = {"order_z": 0, "force_separate_z": None}
    return Plan({
        "dataset_name": dataset_name,
        "plans_name": "STUNetPlans" if size is None else f"STUNetPlans_{size}",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(median_shape),
        "image_reader_writer": "SimpleITKIO",  # nnU-Net v1's reader; the order of axes is the same
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "STUNetPlanner",
        "label_manager": "LabelManager",
        # nnU-Net looks each channel up, also where its scheme needs no values.
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(len(normalization))},
        "stunet": {
            "version": __version__, "size": size, "stages": len(strides), "mirror_axes": list(mirror_axes), "plan": {},
            "train": {}, **({"orientation": orientation} if orientation else {}),
        },
        "configurations": {
            configuration: {
                "data_identifier": f"STUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "batch_dice": False,
                "patch_size": list(patch_size),
                "median_image_size_in_voxels": list(median_shape),
                "spacing": list(spacing),
                "normalization_schemes": list(normalization),
                "use_mask_for_norm": [False] * len(normalization),
                "resampling_fn_data": _RESAMPLING,
                "resampling_fn_seg": _RESAMPLING,
                "resampling_fn_probabilities": _RESAMPLING,
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **common},
                "architecture": {
                    "network_class_name": STUNET.class_name,
                    "arch_kwargs": {"size": size, "strides": [list(stride) for stride in strides]},
                    "_kw_requires_import": [],
                },
            }
        },
    })  # fmt: skip


def make_dataset(name: str, channels: Sequence[str], classes: Sequence[str], cases: int = 0) -> dict[str, Any]:
    """Return a dataset.json; `classes` are in the order of the head, background first."""
    return {
        "name": name,
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {label: i for i, label in enumerate(classes)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
