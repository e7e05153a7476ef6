"""Surface area at a corner where 2x2x2 voxels meet (in 2D: contour length at a corner of 2x2 pixels).

Which of the voxels are inside determines an 8-bit code, and the code determines the triangles of the surface. Their
areas are those of google-deepmind/surface-distance 0.1 (lookup_tables.py, Apache-2.0), the implementation by the
metric's authors, so that results can be compared with published ones. The triangles come from one run of marching cubes
and are not the same for all rotations of a code: swapping the axes of both masks changes areas a little, in that
implementation as in this one.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

# Eight times the components of a triangle's normal, unsigned; in voxels, the length of a normal is the area.
_NORMALS = {
    "a": (1, 1, 1), "b": (2, 2, 0), "c": (2, 0, 2), "d": (0, 2, 2), "e": (4, 0, 0), "f": (0, 4, 0), "g": (0, 0, 4),
    "h": (2, 2, 2), "i": (3, 3, 3),
}  # fmt: skip

# The triangles of codes 0 to 127. A code and its complement have the same surface.
_TRIANGLES = """
- a a bb a cc aa aeh a aa cc aeh bb aeh aeh ee a dd aa afh aa agh aaa aahh aa add acc acdi abb abdi aaeh aeh
a aa dd afh aa acc add acdi aa aaa agh aahh abb aaeh abdi aeh bb afh afh ff abb abci aafh afh abb aafh abci afh
bbbb abb abb bb a aa aa abb dd agh add abdi aa aaa acc aaeh afh aahh acdi aeh cc agh acc abci agh gg aagh agh
acc aagh cccc acc abci agh acc cc aa aaa add aafh add aagh dddd add aaa aaaa aagh aaa aafh aaa add aa aeh aahh
acdi afh abdi agh add dd aaeh aaa acc aa abb aa aa a
"""


def codes(padded: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the code of each corner: bit 0 is the last voxel around it in array order, the highest bit the first.

    Args:
        padded: Boolean mask (D, H, W) or (H, W).
        corners: (N, axes); corner (0, ...) is where the first voxels of the mask meet.
    """
    result = np.zeros(len(corners), np.uint8)
    for side in product((0, 1), repeat=padded.ndim):
        result = result << 1 | padded[tuple((corners + side).T)]
    return result


def sizes(spacing: Sequence[float]) -> np.ndarray:
    """Return the area in mm2 of each of the 256 codes, or the length in mm of each of the 16 codes in 2D.

    Args:
        spacing: mm per voxel, in array order.
    """
    if len(spacing) == 2:
        down, right = spacing
        diagonal = 0.5 * np.hypot(down, right)
        half = np.array([0, diagonal, diagonal, right, diagonal, down, 2 * diagonal, diagonal])
    else:
        z, y, x = spacing
        areas = {
            name: float(np.linalg.norm(np.array(normal) / 8 * (y * x, z * x, z * y)))
            for name, normal in _NORMALS.items()
        }
        half = np.array([sum(areas.get(triangle, 0.0) for triangle in triangles) for triangles in _TRIANGLES.split()])
    return np.concatenate([half, half[::-1]])
