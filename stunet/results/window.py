"""Choose the intensities that are shown as black and as white; previews and the viewer use the same."""

import numpy as np

SOFT_TISSUE, LUNG = (-160.0, 240.0), (-1350.0, 150.0)  # HU: width 400 at 40, width 1500 at -600
PERCENTILES = 1.0, 99.5


def window(values: np.ndarray, segmented: np.ndarray, is_ct: bool) -> tuple[float, float]:
    """Return the intensities shown as black and as white.

    Args:
        values: Intensities of any shape.
        segmented: Intensities of what is segmented, which tells whether a CT is looked at for the lungs; may be empty.
        is_ct: Whether intensities are in HU, which have fixed windows; others are shown between percentiles.
    """
    if is_ct:
        return LUNG if segmented.size and np.median(segmented) < -300 else SOFT_TISSUE
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return low, high if high > low else low + 1
