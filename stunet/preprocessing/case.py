"""Preprocess a case for the network: nnU-Net's steps, in the memory of about two copies of the image.

Transpose, crop to the nonzero region, normalise, resample, and list the locations of each class. All of it is done by
nnU-Net's own functions except resampling, which is in resampling.py. Training (worker.py) and prediction
(inference/) use this.

More than two copies are only needed where nnU-Net lists locations: at the peak 85 bytes per voxel of a class and, if
the dataset has an ignore label, per annotated voxel including background.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.cropping.cropping import bounding_box_to_slice, crop_to_nonzero, get_bbox_from_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.errors import DataError
from stunet.images import Reader
from stunet.plans.plan import Plan
from stunet.resampling import resample_image, resample_labels

# The defaults of resample_data_or_seg_to_shape, for what the plans do not specify.
DEFAULTS = {
    "is_seg": False,
    "order": 3,
    "order_z": 0,
    "force_separate_z": False,
    "separate_z_anisotropy_threshold": ANISO_THRESHOLD,
}
# The maximum number of voxels listed per class, for drawing patches: the first of those that nnU-Net lists. It lists
# 10,000, or 1 % of the class if that is more, in int64, and loads all classes whenever it draws a case.
PLACES = 2000
LARGEST_INT16 = 2**14  # a patch may extend beyond the image, and nnU-Net's loader adds its size to a location
ORDERS = {"data": (0, 1, 3), "seg": (1,)}  # the ones that resampling.py supports
log = logging.getLogger("stunet")


def preprocessor_of(
    configuration: Any, verbose: bool = False, needs_mask: bool = True, labelled: bool = True
) -> DefaultPreprocessor:
    """Return the preprocessor that a configuration names: ours if that is nnU-Net's default.

    Args:
        configuration: nnU-Net's ConfigurationManager.
        verbose: Report what happens to a case.
        needs_mask: Whether a case without labels needs what nnU-Net makes for it, the mask of the nonzero region.
        labelled: Whether the training cases have labels.

    Raises:
        DataError: It is another one, and the cases have no labels.
    """
    if configuration.preprocessor_name == DefaultPreprocessor.__name__:
        return Preprocessor(verbose, needs_mask) if labelled else WithoutLabels(verbose)
    if not labelled:
        what = f"the preprocessor {configuration.preprocessor_name!r} of the plans needs labels"
        raise DataError(what, f"plan with -preprocessor_name {DefaultPreprocessor.__name__}")
    return configuration.preprocessor_class(verbose=verbose)


class Plans(PlansManager):
    """nnU-Net's plans manager, with a reader that turns images to the recorded orientation."""

    @property
    def image_reader_writer_class(self) -> Any:
        """Called by nnU-Net's preprocessors, and ours, to make a reader."""
        plan = Plan(self.plans)
        return partial(Reader, plan.reader, plan.orientation)


class Preprocessor(DefaultPreprocessor):
    """nnU-Net's default preprocessor: equal labels, and images equal up to rounding in float32.

    Properties are equal except for the locations of large classes, of which fewer are listed.
    """

    def __init__(self, verbose: bool = True, needs_mask: bool = True) -> None:
        super().__init__(verbose)
        self.needs_mask = needs_mask

    def run_case(
        self, image_files: list[str], seg_file: str | None, plans: Any, configuration: Any, dataset: dict
    ) -> tuple[np.ndarray, Any, dict]:
        """Run as in nnU-Net; the labels are read first, and kept in as few bytes as they need."""
        image, labels, properties = self._read(image_files, seg_file, plans)
        return self.run_case_npy(image, labels, properties, plans, configuration, dataset)

    def _read(
        self, image_files: list[str], seg_file: str | None, plans: Any
    ) -> tuple[np.ndarray, np.ndarray | None, dict]:
        """Return the image (C, D, H, W), its labels or mask (1, D, H, W), and the reader's properties."""
        reader = plans.image_reader_writer_class()
        like = {"like": image_files[0]} if isinstance(reader, Reader) else {}  # nnU-Net's readers do not accept this
        labels = None if seg_file is None else _smallest(reader.read_seg(seg_file, **like)[0])
        image, properties = reader.read_images(image_files)
        return image, labels, properties

    def run_case_npy(
        self, data: np.ndarray, seg: np.ndarray | None, properties: dict, plans: Any, configuration: Any, dataset: dict
    ) -> tuple[np.ndarray, Any, dict]:
        """Run as in nnU-Net, but consume the input: `data` and `seg` are overwritten.

        Args:
            data: Image (C, D, H, W), as read.
            seg: Labels (1, D, H, W), or a cascade's previous result, or None.
            properties: From the reader: `spacing` in mm, array order; nnU-Net's own entries are added.
            plans: nnU-Net's PlansManager.
            configuration: nnU-Net's ConfigurationManager.
            dataset: dataset.json.

        Returns:
            Image (C, D, H, W) in float32; labels (1, D, H, W) in int8 or int16 with -1 outside, None without `seg`
            unless `needs_mask`; properties.

        Raises:
            ValueError: Image and labels differ in shape, labels have several channels, or nothing is left at the
                spacing of the plans.
        """
        if seg is not None and seg.shape[1:] != data.shape[1:]:
            raise ValueError(f"Shape mismatch: the image has {data.shape[1:]} voxels, its labels {seg.shape[1:]}")
        if seg is not None and len(seg) != 1:
            raise ValueError(f"the label map has {len(seg)} channels, not one")
        axes = (0, *(axis + 1 for axis in plans.transpose_forward))
        image = data.astype(np.float32, copy=False).transpose(axes)
        given = None if seg is None else _smallest(seg).transpose(axes)
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        properties["shape_before_cropping"] = image.shape[1:]
        wants_labels = given is not None or self.needs_mask
        if wants_labels or any(configuration.use_mask_for_norm):
            image, labels, box = crop_to_nonzero(image, given)
        else:
            image, labels, box = _crop_without_mask(image)
        properties["bbox_used_for_cropping"] = box
        old_shape = properties["shape_after_cropping_and_before_resampling"] = image.shape[1:]
        target = [*spacing[: 3 - len(configuration.spacing)], *configuration.spacing]  # 2D plans keep the slices
        if configuration.configuration["resampling_fn_data"] == no_resampling_hack.__name__:
            target = spacing
        grids = (compute_new_shape(old_shape, spacing, target).tolist(), spacing, target)
        if 0 in grids[0]:
            raise ValueError(f"nothing is left of {old_shape} voxels of {spacing} mm at a spacing of {target} mm")
        # Before resampling, as in nnU-Net: a resampled mask of the nonzero region no longer fits the image exactly.
        image = self._normalize(image, labels, configuration, plans.foreground_intensity_properties_per_channel)
        self._leave_out(labels, axes, box)  # after normalisation, which does not touch what is left out
        labels = _resample(labels, "seg", configuration, *grids) if wants_labels else None
        image = _resample(image, "data", configuration, *grids)
        if self.verbose:
            log.info("shape %s, spacing %s: shape %s, spacing %s", old_shape, spacing, image.shape[1:], target)
        if given is not None and labels is not None:
            wanted = _sampled_classes(plans.get_label_manager(dataset))
            properties["class_locations"] = places_of(labels, wanted)
            labels = self.modify_seg_fn(labels, plans, dataset, configuration)
        if labels is not None:
            labels = labels.astype(np.int16 if labels.max() > 127 else np.int8, copy=False)
        return image, labels, properties

    def _leave_out(self, labels_1DHW: np.ndarray, axes: Sequence[int], box: list[list[int]]) -> None:
        """Set labels to -1 where losses must not count; of a case with labels, nowhere."""


class WithoutLabels(Preprocessor):
    """The preprocessor of training cases without labels: 0 where losses count, -1 elsewhere.

    Elsewhere is outside of the nonzero region, as in nnU-Net, and what the case's mask leaves out. There are no
    classes, so no locations of any are listed.
    """

    def run_case(
        self, image_files: list[str], seg_file: str | None, plans: Any, configuration: Any, dataset: dict
    ) -> tuple[np.ndarray, Any, dict]:
        """Run as for a case with labels; `seg_file` is the mask, or None."""
        image, self._excluded, properties = self._read(image_files, seg_file, plans)
        if self._excluded is not None and self._excluded.shape != (1, *image.shape[1:]):
            what = f"the image has {image.shape[1:]} voxels, its mask {self._excluded.shape}"
            raise ValueError(f"Shape mismatch: {what}")
        image, labels, properties = self.run_case_npy(image, None, properties, plans, configuration, dataset)
        return image, labels, {**properties, "class_locations": {}}

    def _leave_out(self, labels_1DHW: np.ndarray, axes: Sequence[int], box: list[list[int]]) -> None:
        if self._excluded is not None:
            labels_1DHW[self._excluded.transpose(axes)[:, *bounding_box_to_slice(box)] > 0] = -1


def places_of(labels_1DHW: np.ndarray, classes: Sequence[Any]) -> dict[Any, np.ndarray]:
    """Return locations of each class or region: some of its voxels (N, 4), with a leading 0 for the channel.

    A region with -1, which with an ignore label is everything annotated, keeps as many as nnU-Net lists: patches
    without a class are drawn around them, and 2000 would be few of many million. Each takes 8 bytes of the case's
    pickle.
    """
    annotated = any(isinstance(key, list | tuple) and -1 in key for key in classes)
    fewer = {} if annotated else {"min_percent_coverage": 0}  # a class's first ones are the same either way
    found = DefaultPreprocessor._sample_foreground_locations(labels_1DHW, classes, **fewer)
    kind = np.int16 if max(labels_1DHW.shape) < LARGEST_INT16 else np.int32
    return {
        key: np.array(places if isinstance(key, tuple) and -1 in key else places[:PLACES], kind)
        for key, places in found.items()
    }


def _smallest(labels: np.ndarray) -> np.ndarray:
    """Convert labels, which nnU-Net reads as float32, to the smallest of int8, int16 and int32 that holds them all."""
    low, high = labels.min(), labels.max()
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            small = labels.astype(kind)
            return small if np.array_equal(small, labels) else labels
    return labels


def _crop_without_mask(image_CDHW: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Crop to the same box as crop_to_nonzero, which also fills holes in its mask: 5 bytes per voxel instead of one."""
    box = get_bbox_from_mask(image_CDHW.any(axis=0))
    image_CDHW = image_CDHW[:, *bounding_box_to_slice(box)]
    return image_CDHW, np.broadcast_to(np.int8(0), (1, *image_CDHW.shape[1:])), box


def _resample(
    array: np.ndarray, kind: str, configuration: Any, shape: Sequence[int], spacing: list[float], target: list[float]
) -> np.ndarray:
    """Resample "data" or "seg" as the plans specify; what resampling.py does not support is left to nnU-Net."""
    plan = configuration.configuration
    options = {**DEFAULTS, **plan[f"resampling_fn_{kind}_kwargs"]}
    known = (
        plan[f"resampling_fn_{kind}"] == resample_data_or_seg_to_shape.__name__
        and options.keys() == DEFAULTS.keys()
        and options["is_seg"] == (kind == "seg")
        and options["order"] in ORDERS[kind]
        and options["order_z"] == 0
    )
    if not known:
        return getattr(configuration, f"resampling_fn_{kind}")(array, shape, spacing, target)
    threshold = options["separate_z_anisotropy_threshold"]
    _, axis = determine_do_sep_z_and_axis(options["force_separate_z"], spacing, target, threshold)
    if kind == "seg":
        return resample_labels(array, shape, axis)
    return resample_image(array, shape, axis, options["order"])


def _sampled_classes(labels: Any) -> list[Any]:
    """Return the classes or regions whose locations nnU-Net lists; with an ignore label, also everything annotated."""
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return [*classes, [-1, *labels.all_labels]] if labels.has_ignore_label else list(classes)
