"""Plan a dataset like another one's plan: the same input to the same network, so that weights fit.

Spacing, transposition, orientation, normalisation and its intensities, patch and strides are those of the other plan.
Mirroring follows from the labels, and the batch is fitted: to the memory of training on them, or without labels to that
of pre-training. preprocessing/like.py compares plans by what they do to images.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stunet import __version__
from stunet.errors import DataError, OutOfMemoryError, UsageError
from stunet.kinds import has_classes
from stunet.orientation import REORIENTED, REORIENTS
from stunet.plans.contained import SHARE, largest_contained, resampled_shapes
from stunet.plans.demand import Demand
from stunet.plans.derive import NAME_LENGTH, with_batch_for
from stunet.plans.files import hash_of_fingerprint
from stunet.plans.fingerprint import ORIENTATIONS, target_orientation, turned
from stunet.plans.plan import Plan
from stunet.plans.planner import mirror_axes
from stunet.workspace import dataset_number


def plan_like(
    model: Plan, dataset: str, description: Mapping[str, Any], reader: str, found: Mapping[str, Any]
) -> tuple[Plan, list[str]]:
    """Return the plan, and warnings.

    Args:
        model: The plan that is followed, with the orientation of its images.
        dataset: Full name of the dataset to plan.
        description: Its dataset.json.
        reader: Name of nnU-Net's class that reads its images.
        found: Its fingerprint.

    Raises:
        UsageError: It has another number of channels.
        DataError: The plan was not made by stunet.
        OutOfMemoryError: Not even the smallest batch of a pre-training fits.
    """
    names = [name for name in model.configurations if not model.configuration(name).previous_stage]
    names = [name for name in names if not model.lineage(name)[1:]]
    if not model.is_ours:
        raise DataError(f"plans {model.name!r} were not made by stunet", f"stunet_plan_and_preprocess -d {dataset}")
    channels = len(description.get("channel_names") or description["modality"])
    theirs = len(model.configuration(names[0]).normalization)
    if channels != theirs:
        what = f"{dataset} has {channels} channels, and {model.name} of {model.dataset_name} is for {theirs}"
        raise UsageError(what, "a dataset with the same channels, or no --like")
    # Of pictures nobody knows it; then at least all images of the dataset are alike.
    own = target_orientation(reader, found.get(ORIENTATIONS) or {})
    orientation = model.orientation or own
    if orientation != REORIENTED:
        reader = reader.removesuffix(REORIENTS)  # which would turn them to that one
    number = dataset_number(model.dataset_name)
    seen, _ = turned(found, own, orientation)
    spacings = np.array(seen["spacings"], float)[:, list(model.transpose_forward)]
    plan = model.with_values(
        dataset_name=dataset,
        original_median_spacing_after_transp=np.median(spacings, axis=0).tolist(),
        plans_name=name_like(model.name, number),
        image_reader_writer=reader,
        configurations={name: model.own_values(name) for name in names},
    )
    plan = plan.with_ours(
        version=__version__,
        fingerprint=hash_of_fingerprint(found),
        mirror_axes=mirror_axes(description["labels"], model.transpose_forward, orientation),
        plan={},
        train={},
        orientation=orientation,
        orientations=found.get(ORIENTATIONS) if orientation else None,
        like=f"{number}:{model.name}",
        **dict.fromkeys(
            ("derived_from", "finetune", "weights", "pretext", "datasets", "contained_shapes", "planned_with")
        ),
    )
    contained, warnings = {}, []
    for name in names:
        planned = plan.configuration(name)
        shapes = resampled_shapes(seen, planned.spacing, plan.transpose_forward, planned.resamples)
        contained[name] = largest_contained(shapes)
        plan = plan.with_configuration(
            name,
            data_identifier=f"{_base(planned.data_identifier, name)}_like{number}_{name}",
            median_image_size_in_voxels=np.median(shapes, axis=0).tolist(),
        )
        share = float((np.array(shapes) >= planned.patch_size).all(axis=1).mean())
        if share < SHARE:
            patch = " x ".join(map(str, planned.patch_size))
            warnings.append(
                f"{name}: {math.floor(100 * share)} % of the scans contain the patch of {patch}, which is that of "
                f"{model.name}"
            )
    counted = {**description, "numTraining": len(found["spacings"])}
    if not has_classes(description):
        return with_batch_for(plan.with_ours(contained_shapes=contained), counted, Demand()), warnings
    try:
        return with_batch_for(plan, counted), warnings
    except OutOfMemoryError as error:  # a pre-training may be all that is wanted
        warnings.append(f"{error.message}: only the batch of a pre-training is fitted to it")
        return with_batch_for(plan, counted, Demand()), warnings


def name_like(followed: str, number: int) -> str:
    """Return the name of a plan that follows another dataset's: another name for each of that dataset's plans.

    What a derived plan's name says in addition stays behind that of the planned one: STUNetPlans_B_like3-ramp.
    """
    base, dash, more = followed.partition("-")
    name = f"{base}_like{number}{dash}{more}"
    return name if len(name) <= NAME_LENGTH else f"{base}_like{number}-{hashlib.sha1(more.encode()).hexdigest()[:8]}"


def _base(identifier: str, configuration: str) -> str:
    """Return the part of a data folder's name that says how images were preprocessed."""
    return identifier.removesuffix(f"_{configuration}")
