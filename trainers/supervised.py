"""Supervised training, from scratch or from given weights: what differs from nnU-Net's own procedure."""

from typing import Any

from stunet.trainers.finetuned import FineTunedTrainer


class STUNetTrainer(FineTunedTrainer):
    """Trains an STU-Net on completely labelled data.

    Deep supervision follows the plan's strides for any number of stages. Mirroring, in training and at test time, keeps
    to the axes that the plan allows (with left and right classes the left-right axis is not among them).
    """

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """nnU-Net's augmentation settings with the plan's mirror axes (3D array axes; a 2D patch has axes 1 and 2)."""
        rotation, dummy_2d, initial_patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        first = 3 - len(self.configuration_manager.patch_size)
        allowed = {"none": [], "all": [0, 1, 2]}.get(self.mirror, self.plans_manager.plans["stunet"]["mirror_axes"])
        axes = tuple(axis - first for axis in allowed if axis >= first)
        self.inference_allowed_mirroring_axes = axes or None  # nnU-Net's predictor refuses an empty tuple
        return rotation, dummy_2d, initial_patch, axes
