"""Plan a dataset for pre-trained weights: the network gets images as the weights know them.

Spacing, order of axes, orientation and normalisation are those that the weights were trained with, for CT with the
intensities of their training, in planning, preprocessing and prediction alike; so is the network. Patch and batch are
fitted: the patch of the weights, if a training step with it fits into the memory and the images are not smaller. Such a
plan has one configuration, with as many axes as the weights. known_input.py has what they know; like.py plans as
another dataset was planned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stunet.errors import DataError, OutOfMemoryError, WeightsError
from stunet.files import sha256_of_json
from stunet.plans import topology
from stunet.plans.blueprints import DEFAULT_GB
from stunet.plans.derive import Measure, fit_configurations, target_of, with_batch_for, with_network
from stunet.plans.fingerprint import ORIENTATIONS, target_orientation, turned
from stunet.plans.known_input import CT, KnownInput, Normalization, normalize_as
from stunet.plans.plan import PLANNER, Plan
from stunet.plans.planner import BASE_NAME, NATIVE, STUNetPlanner


class PretrainedPlanner(STUNetPlanner):
    """Plans the network of pre-trained weights for a dataset whose fingerprint has been extracted.

    Args:
        dataset: Full name.
        known: What the weights know.
        spacing: In mm, in the order of the images' arrays, or one of the planner's MEDIAN and NATIVE; None: that of the
            weights.
        memory_gb: GPU memory in GiB that a training step may take; None: the network's default.
        preprocessor: nnU-Net's preprocessor class.
        name: Of the plans; None: one with the name of the weights.
        checkpointing: As for STUNetPlanner.
        measure: The same.
        options: Those of the command, for messages of later commands.

    Raises:
        WeightsError: Nothing says at which spacing the weights were trained, and no other is given.
    """

    def __init__(
        self,
        dataset: str,
        known: KnownInput,
        *,
        spacing: Sequence[float] | str | None = None,
        memory_gb: float | None = None,
        preprocessor: str = "DefaultPreprocessor",
        name: str | None = None,
        checkpointing: bool = False,
        measure: Measure | None = None,
        options: str | None = None,
    ) -> None:
        if spacing is None and not known.resamples:
            spacing = NATIVE
        if spacing is None and known.spacing is None:
            raise WeightsError(
                f"nothing says at which spacing {known.name} was trained",
                "--spacing dataset or 1mm; or the plans.json or adaptation_plan.json of its training beside the file",
            )
        # Of another spacing, another plan.
        tag = f"_{spacing}" if isinstance(spacing, str) and known.resamples else ""
        tag = f"_{'x'.join(f'{pitch:g}' for pitch in spacing)}mm" if spacing and not isinstance(spacing, str) else tag
        network = known.network
        stages = None if network.architecture.depth_by_patch or network.found is None else network.found.stages
        super().__init__(
            dataset,
            memory_gb or network.target_gb or DEFAULT_GB[network.name],
            preprocessor,
            name or f"{BASE_NAME}_{network.tag}{tag}_like-{known.name}",
            network=network,
            stages=stages,
            checkpointing=checkpointing,
            spacing=spacing if isinstance(spacing, str) else None,
            measure=measure,
        )
        if all(shape[0] == 1 for shape in self.dataset_fingerprint["shapes_after_crop"]):
            # Flat images are their own slices, whichever way the weights' volumes were cut.
            known = replace(known, transposition=(0, 1, 2), orientation=None)
        self.known, self.own_name, self.options = known, name, options
        self.lowres_creation_threshold = 0  # the weights know one resolution
        kind = self.determine_reader_writer().__name__
        own = target_orientation(kind, self.dataset_fingerprint.get(ORIENTATIONS) or {})
        self.dataset_fingerprint, order = turned(self.dataset_fingerprint, own, known.orientation)
        if isinstance(spacing, str):
            return
        if spacing is not None:
            target = [spacing[axis] for axis in order]
        else:
            # Of 2D weights, slices keep their distance.
            target = np.median(np.vstack(self.dataset_fingerprint["spacings"]), axis=0).tolist()
            for axis, pitch in zip(known.transposition[-known.ndim :], known.spacing or (), strict=True):
                target[axis] = pitch
        self.overwrite_target_spacing = list(map(float, target))

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Return the weights' order of axes."""
        forward = list(self.known.transposition)
        return forward, [forward.index(axis) for axis in range(3)]

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Return the weights' schemes; see normalize_as()."""
        found = self.normalized()
        return found.schemes, found.masks

    def normalized(self) -> Normalization:
        """Return how each channel is normalised, and what to warn of."""
        names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        own = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return normalize_as(self.known, list(map(str, names.values())), *own)

    def changes(self) -> list[str]:
        """Return, in sentences, what images the network gets, and where the dataset's own plan has others."""
        target, own = self.determine_fullres_target_spacing(), self.own_spacing()
        order = list(self.known.transposition)
        here, there = (
            [f"{pitch:.3g}" for pitch in np.array(each)[order][-self.known.ndim :]] for each in (target, own)
        )
        schemes = self.normalized().schemes
        others = STUNetPlanner.determine_normalization_scheme_and_whether_mask_is_used_for_norm(self)[0]
        kept = self.kept_spacing == NATIVE
        pairs = [
            ("spacing", "that of each image" if kept else f"{' x '.join(here)} mm", f"{' x '.join(there)} mm"),
            ("normalisation", ", ".join(schemes), ", ".join(others)),
        ]
        told = [f"{what} {one}" + (f" (by itself {other})" if one != other else "") for what, one, other in pairs]
        of = [f"the intensities of {self.known.name}"] if self.normalized().intensities else []
        turned_to = [f"turned to {self.known.orientation}"] if self.known.orientation else []
        return [f"as {self.known.name} knows images: {', '.join([*told, *of, *turned_to])}"]

    def own_spacing(self) -> Any:
        """Return nnU-Net's choice for the dataset."""
        chosen: Any = self.overwrite_target_spacing
        self.overwrite_target_spacing = None
        try:
            return super(STUNetPlanner, self).determine_fullres_target_spacing()
        finally:
            self.overwrite_target_spacing = chosen

    def determine_orientation(self, kind: str, found: Mapping[str, int]) -> str | None:
        """Return what the images are turned to, that of the weights where theirs run otherwise."""
        return self.known.orientation or super().determine_orientation(kind, found)

    def described(self, plan: Plan) -> Plan:
        """Return the plan with the one configuration that the weights are for, their intensities and their network.

        Raises:
            DataError: The dataset has no such configuration.
        """
        name = {3: "3d_fullres", 2: "2d"}[self.known.ndim]
        if name not in plan.configurations:
            what = f"{self.known.name} is for volumes, and the images of {plan.dataset_name} are 2D"
            raise DataError(what, "--spacing dataset, and weights of a 2D network")
        intensities = {**(plan.intensities or {}), **self.normalized().intensities}
        plan = plan.with_values(
            configurations={name: {**plan.own_values(name), "batch_dice": name == "2d"}},
            experiment_planner_used=PLANNER,
            foreground_intensity_properties_per_channel=intensities,
        )
        plan = with_network(super().described(plan).with_ours(planned_with=self.options), self.blueprint)
        if self.checkpointing:
            plan = plan.with_network(name, checkpointing=True)
        if self.own_name is None:
            plan = plan.with_configuration(name, data_identifier=f"{_data_name(plan, name)}_{name}")
        return plan

    def fitted(self, plan: Plan) -> Plan:
        """Return the plan with patch and batch: the patch of the weights if it fits."""
        plan = fit_configurations(plan, self.dataset_json, target_of(plan), self.measure, keeps=True)
        # What a probe has measured holds for the patch that was fitted.
        return plan if self.measure else self._with_known_patch(plan, plan.configurations[0])

    def _with_known_patch(self, plan: Plan, name: str) -> Plan:
        patch, planned = list(self.known.patch or ()), plan.configuration(name)
        if len(patch) != self.known.ndim:
            return plan
        strides = planned.strides if self.blueprint.architecture.depth_by_patch else self.known.strides
        strides = strides or topology.strides_for(patch, planned.spacing, plan.stages)
        steps = topology.divisor(strides)
        # Along an axis that is shorter than the patch, the network would learn from padding.
        shape = plan.contained_shapes.get(name)
        image = shape or [-(-round(n) // step) * step for n, step in zip(planned.median_shape, steps, strict=True)]
        if patch == steps or any(n % step or n > size for n, step, size in zip(patch, steps, image, strict=True)):
            return plan
        try:
            kept = plan.with_configuration(name, patch_size=patch).with_network(name, strides=strides)
            return with_batch_for(kept, {**self.dataset_json, "numTraining": len(self.fingerprint["spacings"])})
        except OutOfMemoryError:
            return plan


def _data_name(plan: Plan, name: str) -> str:
    """Return a name for the data of a configuration that is the same for all weights that know the same images."""
    planned = plan.configuration(name)
    schemes, masks = planned.normalization, planned.get("use_mask_for_norm")
    ct = [(plan.intensities or {}).get(str(i)) if scheme == CT else None for i, scheme in enumerate(schemes)]
    seen = [planned.spacing, planned.resamples, schemes, masks, ct, plan.transpose_forward, plan.orientation]
    spacing = "x".join(f"{pitch:.3g}" for pitch in planned.spacing) + "mm" if planned.resamples else NATIVE
    return f"{BASE_NAME}_{spacing}_{sha256_of_json(seen)[:6]}"
