"""Plan a dataset: nnU-Net's planner decides spacing and normalisation, ours patch, batch and strides.

Spacing, normalisation and data identifier do not depend on the network, so that one preprocessed dataset serves all
networks and sizes (also 3d_lowres: its spacing follows from a reference patch of 128^3 voxels). Read next: fit.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as host
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from stunet import __version__
from stunet.datasets import find_reader
from stunet.files import write_json
from stunet.kinds import has_classes
from stunet.labels.names import sides
from stunet.nnunet import patched, write_atomically
from stunet.orientation import REORIENTED, REORIENTS, left_right_axis
from stunet.plans import fit, topology
from stunet.plans.blueprints import Blueprint, blueprints, of_size
from stunet.plans.contained import largest_contained, resampled_shapes
from stunet.plans.derive import Measure, fit_configurations, target_of
from stunet.plans.files import hash_of_fingerprint, read_plan
from stunet.plans.fingerprint import ORIENTATIONS, nnunets_listing, orientations, target_orientation
from stunet.plans.plan import Plan
from stunet.plans.spacing import check_spacing
from stunet.sizes import DEFAULT

write_atomically(host)
BASE_NAME = "STUNetPlans"
NNUNETS_CONFIGURATIONS = {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}  # others in a plans file are a user's
NORMALIZATION_TAGS = {"ZScoreNormalization": "_z", "CTNormalization": "_ct"}  # short: folder names are limited
MEDIAN, NATIVE = "median", "native"  # spacings that are those of the images; both are tags in the plans' name
REFERENCE_PATCH = {3: 128**3, 2: 512**2}  # voxels; only used to decide whether and where 3d_lowres is needed


class STUNetPlanner(ExperimentPlanner):
    """Plans STU-Net, or one of nnU-Net's networks, for a dataset whose fingerprint has been extracted.

    Args:
        dataset_name_or_id: As in nnU-Net.
        gpu_memory_target_in_gb: GPU memory that a training step may take; default by network.
        preprocessor_name: nnU-Net's preprocessor class.
        plans_name: Default `STUNetPlans_<tag>`, where the tag of STU-Net is its size.
        overwrite_target_spacing: mm, in the order of the images' arrays.
        suppress_transpose: Keep the order of axes.
        size: Key of stunet.sizes.SIZES.
        network: Another network, or its name (blueprints.py); None: STU-Net.
        stages: Number of stages; None takes what the patch supports, for STU-Net 4 to 7.
        checkpointing: Recompute activations in the backward pass: less memory, more time.
        normalization: nnU-Net's class for all channels, without a mask; None: by the channels' names.
        spacing: MEDIAN: that of the images, per axis; NATIVE: images are not resampled, and the plan's spacing is the
            median; None: `overwrite_target_spacing`, or nnU-Net's rule.
        measure: Runs one real training step and returns its peak GiB (`--probe`); None trusts the estimate.
    """

    dataset_fingerprint: Any
    overwrite_target_spacing: Any

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        size: str = DEFAULT,
        network: str | Blueprint | None = None,
        stages: int | None = topology.DEFAULT_STAGES,
        checkpointing: bool = False,
        normalization: str | None = None,
        spacing: str | None = None,
        measure: Measure | None = None,
    ) -> None:
        named = blueprints()[network] if isinstance(network, str) else network
        self.blueprint = named or of_size(size)
        self.memory_gb = gpu_memory_target_in_gb or self.blueprint.target_gb
        spacing_tag = (
            ""
            if overwrite_target_spacing is None
            else "_" + "x".join(f"{s:g}" for s in overwrite_target_spacing) + "mm"
        )
        self.kept_spacing = spacing
        spacing_tag += f"_{spacing}" if spacing else ""
        tag = spacing_tag + NORMALIZATION_TAGS.get(normalization or "", "")
        self.checkpointing, self.measure = checkpointing, measure
        self.stages, self.normalization = stages, normalization
        # The network is not in it, but a spacing or normalization of one's own is: these need other data.
        self.data_prefix = plans_name or BASE_NAME + tag
        # Of our listing: without hidden files, and also of images without labels.
        with patched(host, get_filenames_of_train_images_and_targets=nnunets_listing):
            super().__init__(
                dataset_name_or_id,
                self.memory_gb,
                preprocessor_name,
                plans_name or f"{BASE_NAME}_{self.blueprint.tag}{tag}",
                overwrite_target_spacing,
                suppress_transpose,
            )
        self.fingerprint = self.dataset_fingerprint

    def determine_reader_writer(self) -> type:
        """Return nnU-Net's reader, without the tracebacks of the readers that it tries."""
        return find_reader(self.dataset_json, Path(next(iter(self.dataset.values()))["images"][0]))

    def plan_experiment(self) -> dict:
        """Return nnU-Net's plan, after checking that the target spacing fits the images.

        Raises:
            DataError: The target spacing does not fit.
        """
        found = self.dataset_fingerprint
        target, chosen = self.determine_fullres_target_spacing(), self.overwrite_target_spacing is not None
        if self.kept_spacing == NATIVE:
            self.lowres_creation_threshold = 0  # there is no 3d_lowres of images that are not resampled
            # The median of the shapes as they are, which nnU-Net computes at the target spacing.
            self.dataset_fingerprint = {**found, "spacings": [list(target)] * len(found["spacings"])}
        else:
            check_spacing(target, found["spacings"], found["shapes_after_crop"], list(self.dataset), chosen)
        return super().plan_experiment()

    def determine_fullres_target_spacing(self) -> Any:
        """Return nnU-Net's choice, or the median of the images along each axis."""
        if self.kept_spacing is None:
            return super().determine_fullres_target_spacing()
        return np.median(np.vstack(self.dataset_fingerprint["spacings"]), axis=0)

    def determine_resampling(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's functions for images and labels with their arguments."""
        if self.kept_spacing == NATIVE:
            return no_resampling_hack, {}, no_resampling_hack, {}
        return super().determine_resampling(*args, **kwargs)

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's function for probabilities with its arguments."""
        if self.kept_spacing == NATIVE:
            return no_resampling_hack, {}
        return super().determine_segmentation_softmax_export_fn(*args, **kwargs)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the folder name of the preprocessed cases: without the network, because they do not depend on it."""
        return f"{self.data_prefix}_{configuration_name}"

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Return nnU-Net's schemes by the channels' names, unless another scheme was requested."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        if self.normalization is None:
            return schemes, masks
        return [self.normalization] * len(schemes), [False] * len(schemes)

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Return nnU-Net's order of axes, as plain integers."""
        forward, backward = super().determine_transpose()
        return [int(a) for a in forward], [int(a) for a in backward]

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: dict
    ) -> dict:
        """Return nnU-Net's configuration with our network and a reference patch; save_plans() fits the rest."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        shape = [max(1, round(float(n))) for n in median_shape]
        plan["patch_size"] = fit.initial_patch(list(spacing), shape, REFERENCE_PATCH[len(spacing)])
        # A copy: nnU-Net keeps modifying its own array while it searches for 3d_lowres.
        plan["spacing"] = np.array(spacing)
        # The strides only have the right form: save_plans() fits the real ones.
        arch_kwargs = self.blueprint.arguments(len(spacing))
        if self.checkpointing:
            arch_kwargs["checkpointing"] = True
        architecture = self.blueprint.architecture
        plan["architecture"] = {
            "network_class_name": architecture.class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": [key for key in architecture.imports if key in arch_kwargs],
        }
        return plan

    def determine_orientation(self, kind: str, found: Mapping[str, int]) -> str | None:
        """Return what the images are turned to; see target_orientation()."""
        return target_orientation(kind, found)

    def described(self, plan: Plan) -> Plan:
        """Return the plan with all but what is fitted to the memory."""
        return plan

    def fitted(self, plan: Plan) -> Plan:
        """Return the plan with patch, batch and strides."""
        return fit_configurations(plan, self.dataset_json, target_of(plan), self.measure)

    @staticmethod
    def static_estimate_VRAM_usage(*args: Any, **kwargs: Any) -> float:
        """Return a constant, so nnU-Net's own loop has nothing to shrink: fit.py decides with this network's model."""
        return 1.0

    def save_plans(self, plans: dict) -> None:
        """Fit all configurations, add the `stunet` block, write the plan; the user's own configurations are kept."""
        recursive_fix_for_json_export(plans)
        kind, fingerprint = Plan(plans).reader, self.fingerprint
        found = fingerprint.get(ORIENTATIONS)
        # A fingerprint that nnU-Net or an earlier version extracted does not have them.
        found = orientations(self.dataset_name)[1] if found is None else found
        orientation = self.determine_orientation(kind, found)
        if orientation != REORIENTED:
            plans["image_reader_writer"] = kind.removesuffix(REORIENTS)  # which would turn them to that one
        plan = Plan(plans).with_ours(
            version=__version__,
            size=self.blueprint.size,
            network=None if self.blueprint.size else self.blueprint.name,
            memory_gb=self.memory_gb,
            stages=self.stages or "auto",
            mirror_axes=mirror_axes(self.dataset_json["labels"], Plan(plans).transpose_forward, orientation),
            fingerprint=hash_of_fingerprint(fingerprint),
            plan={},
            train={},
            orientation=orientation,
            orientations=found if orientation else None,
        )
        plan = self.described(plan)
        if not has_classes(self.dataset_json):
            plan = plan.with_ours(contained_shapes=contained_shapes(plan, self.dataset_fingerprint))
        plan = self.fitted(plan)
        path = Path(nnUNet_preprocessed) / self.dataset_name / f"{self.plans_identifier}.json"
        if path.is_file():
            before = read_plan(path, "correct the file, or remove it: it is planned again")
            # After the fit, which would replace the patch and batch that the user chose. nnU-Net keeps them as well.
            for name in before.configurations:
                if name not in NNUNETS_CONFIGURATIONS:
                    plan = plan.with_configuration(name, **before.own_values(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan.to_json())
        plans |= plan.content  # nnU-Net returns this dictionary from plan_experiment()


def mirror_axes(labels: Mapping[str, Any], transposition: Sequence[int], orientation: str | None) -> list[int]:
    """Return the array axes (after transposition) that may be mirrored in training and at test time.

    If there are left or right classes, the left-right axis is not among them: mirroring would swap the sides of the
    image but not those of the labels.
    """
    if not sides(labels):
        return [0, 1, 2]
    side = list(transposition).index(left_right_axis(orientation))
    return [axis for axis in range(3) if axis != side]


def contained_shapes(plan: Plan, fingerprint: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return, for each configuration with a network, the shape that most scans contain as the network sees them."""
    found = {}
    for name in plan.configurations_with_network:
        planned = plan.configuration(name)
        shapes = resampled_shapes(fingerprint, planned.spacing, plan.transpose_forward, planned.resamples)
        found[name] = largest_contained(shapes)
    return found
