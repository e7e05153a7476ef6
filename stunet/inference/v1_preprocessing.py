"""Preprocess as nnU-Net v1 did: it resampled first and normalised afterwards; v2 does it the other way round.

This is for weights trained with v1 (`stunet_predict --v1_preprocessing`). The other differences between v1 and v2 are
in docs/pretrained.md.
"""

from typing import Any

import numpy as np

from stunet.preprocessing.case import Preprocessor


class V1Preprocessor(Preprocessor):
    """nnU-Net v2's steps in v1's order: crop, resample, normalise (nnunet 1.7.1, GenericPreprocessor)."""

    def run_case_npy(
        self, data: np.ndarray, seg: np.ndarray | None, properties: dict, plans: Any, configuration: Any, dataset: Any
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Return image (C, D, H, W), segmentation (1, D, H, W) and properties, as in v2; may overwrite the inputs."""
        data, seg, properties = super().run_case_npy(data, seg, properties, plans, configuration, dataset)
        intensities = plans.foreground_intensity_properties_per_channel
        data = super()._normalize(data, seg, configuration, intensities)
        for channel, masked in zip(data, configuration.use_mask_for_norm, strict=True):
            if masked:
                channel[seg[0] < 0] = 0  # it was 0, as it still is in v2 at this point, but resampling has changed it
        return data, seg, properties

    def _normalize(self, data: np.ndarray, seg: np.ndarray, configuration: Any, intensities: dict) -> np.ndarray:
        """Do nothing: nnU-Net calls this before it resamples."""
        return data
