"""Prepare images for a network: read, check, turn to the orientation of the training images, preprocess as planned.

predictor.py segments what comes out, features/model.py computes features of it.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from stunet.inference.cases import InputCase, drop_channel_axis
from stunet.inference.engine import memory
from stunet.inference.inputs import load
from stunet.inference.model import ModelFolder
from stunet.inference.orientation import choose_orientation
from stunet.inference.reading import InputImage, check_grid, naming_files, read, warn_of_units
from stunet.inference.v1_preprocessing import V1Preprocessor
from stunet.nifti_header import header_has_orientation
from stunet.orientation import orientation_of
from stunet.preprocessing.case import preprocessor_of

log = logging.getLogger("stunet")


class NetworkInput(NamedTuple):
    """A preprocessed case: image (C, D, H, W) in float32, and the properties needed to return to its file's grid."""

    image_CDHW: torch.Tensor
    properties: dict[str, Any]


class Preparation:
    """What a model's plans say about its input. May be shared between threads.

    Args:
        model: The model.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        orientation: That of the training images, such as LPS, if the model does not state it.
        v1_preprocessing: Resample before normalising, as nnU-Net v1 did.
        verbose: Let nnU-Net's preprocessing print what it does.

    Raises:
        UsageError: The orientation is invalid or contradicts the model.
    """

    def __init__(
        self,
        model: ModelFolder,
        plans: Any,
        configuration: Any,
        orientation: str | None = None,
        v1_preprocessing: bool = False,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self._plans, self._configuration = plans, configuration
        self._v1, self._verbose = v1_preprocessing, verbose
        self.orientation, self.orientation_source = choose_orientation(model, orientation)
        self._seen_orientations: set[str] = set()  # of images, if nothing states the model's

    def load(
        self, image: Any, spacing: Sequence[float] | None = None, affine: Any = None, series: str | None = None
    ) -> InputImage:
        """Return any kind of image as the model takes it; see inputs.load()."""
        return load(image, self.model, self.orientation, spacing, affine, series)

    def read(self, case: InputCase, kind: str | None = None) -> InputImage:
        """Read a case; see reading.read()."""
        return read(case, self.model, self.orientation, kind)

    def preprocess(self, raw: InputImage) -> NetworkInput:
        """Preprocess a case; its array may be overwritten.

        Raises:
            DataError: The image cannot be preprocessed, or the previous stage has a different shape.
        """
        self._warn_of_unknown_orientation(raw)
        shape = self.network_shape(raw.image_CDHW.shape[1:], raw.properties["spacing"])
        check_grid(raw, [shape[axis] for axis in self._plans.transpose_backward])
        warn_of_units(raw, self._configuration.normalization_schemes, self.model.plan)
        if self._v1:
            preprocessor: Any = V1Preprocessor(self._verbose)
        else:
            preprocessor = preprocessor_of(self._configuration, self._verbose, needs_mask=False)
        # The properties are copied because nnU-Net adds to them.
        with naming_files(raw.files):
            image, previous, properties = preprocessor.run_case_npy(
                raw.image_CDHW, raw.previous, dict(raw.properties), self._plans, self._configuration, self.model.dataset
            )
            drop_channel_axis(properties)
        # A cascade also sees the previous stage's labels, one channel per class, as in training.
        if raw.previous is not None:
            labels = self._plans.get_label_manager(self.model.dataset).foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(previous[0], labels, image.dtype)))
        return NetworkInput(
            torch.from_numpy(image).to(torch.float32, memory_format=torch.contiguous_format), properties
        )

    def network_shape(self, shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
        """Return the shape of an uncropped image on the network's grid, in the plan's order of axes."""
        forward = self._plans.transpose_forward
        return memory.network_shape([shape[i] for i in forward], [spacing[i] for i in forward], self._configuration)

    def _warn_of_unknown_orientation(self, raw: InputImage) -> None:
        """Warn the user if the orientation of the training images is unknown, but the image states its own."""
        written = raw.properties.get("nifti")
        code = None if written and not header_has_orientation(written) else orientation_of(raw.properties)
        # Once per orientation, not once per image.
        if self.orientation is None and code is not None and code not in self._seen_orientations:
            others = " and ".join(sorted(self._seen_orientations))
            self._seen_orientations.add(code)
            what = f"the axes of {raw.files} run {code}" + (f", those of others {others}" if others else "")
            log.warning(
                "%s; nothing says how those of the training images ran, and if they ran otherwise, labels are wrong: "
                "state it with --orientation CODE (in Python: Options.orientation)",
                what,
            )
