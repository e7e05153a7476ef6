"""How did nnU-Net v1 preprocess? It resampled first and normalised then; v2 does it the other way round.

For weights that were trained under v1 (`stunet_predict --v1_preprocessing`). What else differs between v1 and v2 is in
docs/pretrained.md.
"""

from typing import Any

import numpy as np

from stunet.preprocessor import Preprocessor


class V1Preprocessor(Preprocessor):
    """nnU-Net v2's steps in v1's order: crop, resample, normalise (nnunet 1.7.1, GenericPreprocessor)."""

    def run_case_npy(
        self, data: np.ndarray, seg: np.ndarray | None, properties: dict, plans: Any, configuration: Any, dataset: Any
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """As in v2: image (C, D, H, W), segmentation (1, D, H, W) and properties; uses up what it is given."""
        data, seg, properties = super().run_case_npy(data, seg, properties, plans, configuration, dataset)
        intensities = plans.foreground_intensity_properties_per_channel
        data = super()._normalize(data, seg, configuration, intensities)
        for channel, masked in zip(data, configuration.use_mask_for_norm, strict=True):
            if masked:
                channel[seg[0] < 0] = 0  # in v2 it was 0 before, and resampling has changed that
        return data, seg, properties

    def _normalize(self, data: np.ndarray, seg: np.ndarray, configuration: Any, intensities: dict) -> np.ndarray:
        """Nothing yet: nnU-Net calls this before it resamples."""
        return data
