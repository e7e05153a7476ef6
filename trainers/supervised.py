"""Supervised training, from scratch or from given weights: what differs from nnU-Net's own procedure."""

from collections.abc import Callable
from functools import partial
from typing import Any

from stunet.errors import DataError
from stunet.labels.annotations import Annotations, complete_annotations, mirrored_values
from stunet.labels.names import Sides, head_classes, sides
from stunet.trainers.data.mirroring import MirrorSides
from stunet.trainers.trainer import BaseTrainer

PLAN_AGAIN = "plan the dataset again (stunet_plan_and_preprocess), or --set mirror=none"


class STUNetTrainer(BaseTrainer):
    """Trains a network on completely labelled data.

    Deep supervision follows the plan's strides for any number of stages. The plan's value `mirror` determines which
    axes are mirrored, and with that what a checkpoint allows at test time:

        auto    those that the planner found safe: with left and right classes, not the left-right axis
        none    none
        swap    all, and left and right classes change sides with the image; at test time as with auto
        all     all, as in nnU-Net

    With the plan's value `augment`, patches are changed as nnU-Net does ("standard"), or are the preprocessed data as
    they are ("none", as in nnUNetTrainerNoDA), and nothing is mirrored.
    """

    mirror: str
    augment: str

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """Return nnU-Net's augmentation settings with the plan's mirror axes (3D array axes; a 2D patch has 1, 2)."""
        rotation, dummy_2d, initial_patch, every = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        first = 3 - len(self.configuration_manager.patch_size)
        safe = tuple(axis - first for axis in self.plan.mirror_axes if axis >= first)
        training = {"auto": safe, "none": (), "swap": every, "all": every}[self.mirrored]
        inference = {"auto": safe, "none": (), "swap": safe, "all": every}[self.mirrored]
        self.inference_allowed_mirroring_axes = inference or None  # nnU-Net's predictor refuses an empty tuple
        if self.augment == "none":
            initial_patch = self.configuration_manager.patch_size  # nothing is rotated into the patch
        return rotation, dummy_2d, initial_patch, tuple(training)

    @property
    def mirrored(self) -> str:
        """The value of `mirror` that counts."""
        return "none" if self.augment == "none" else self.mirror

    def class_names(self) -> list[str]:
        """Return the names of what count() counts, in its order."""
        return [name for name in head_classes(self.dataset_json["labels"]) if name != "background"]

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the augmentation as in every training; without, what prepares labels, as for validation patches."""
        if self.augment != "none":
            return super().get_training_transforms(*args, **kwargs)
        _patch, _rotation, scales, *_ = args
        # The mask restores zeros outside of the image, which only an augmentation changes.
        return self.get_validation_transforms(scales, **{k: v for k, v in kwargs.items() if k != "use_mask_for_norm"})

    def replaced_transforms(self) -> dict[str, Callable[..., Any]]:
        """Replace as in every training; with mirror=swap, labels change sides where an image is mirrored."""
        replaced = super().replaced_transforms()
        return (
            {**replaced, "MirrorTransform": self._swapping_mirror()}
            if self.mirror == "swap" and self.sides()
            else replaced
        )

    def _swapping_mirror(self) -> Callable[..., MirrorSides]:
        """Return a transform to be constructed with nnU-Net's arguments.

        Raises:
            DataError: The dataset has regions, the plan does not state which axis is left-right, or the images differ
                in it, or a class or a case lacks its counterpart.
        """
        fixed = {0, 1, 2} - set(self.plan.mirror_axes)
        if not fixed:
            raise DataError(f"mirror=swap: {self._unsafe_mirroring()}", PLAN_AGAIN)
        if len(fixed) > 1:
            raise DataError("mirror=swap: the left-right axis is not the same in all images", "--set mirror=auto")
        first = 3 - len(self.configuration_manager.patch_size)
        space = self.label_space()
        if self.is_cascaded and space.numbers:  # the previous stage's labels have the head's values, the targets others
            raise DataError("mirror=swap: not for a cascade whose whole head is reused", "--set mirror=auto")
        return partial(MirrorSides, sides={axis - first for axis in fixed}, values=mirrored_values(space))

    def on_train_start(self) -> None:
        """Warn about a plan that mirrors left and right classes, from before their names were recognized."""
        super().on_train_start()
        safe = set(self.plan.mirror_axes)
        if self.mirrored == "auto" and safe == {0, 1, 2} and self.sides() and self.local_rank == 0:
            self.listener.warning(f"{self._unsafe_mirroring()}; {PLAN_AGAIN}")

    def sides(self) -> Sides:
        """Return which labels of the dataset are left and right."""
        return sides(self.dataset_json["labels"])

    def _unsafe_mirroring(self) -> str:
        """Describe what is wrong with a plan that mirrors all axes, for messages."""
        found = self.sides()
        names = " and ".join(map(repr, found.pairs[0] if found.pairs else found.others[:1]))
        return f"the plan mirrors all axes, although {names} would change sides with the image"

    def label_space(self) -> Annotations:
        """Return which labels there are, and which cases annotate them."""
        return complete_annotations(self.dataset_json, ())
