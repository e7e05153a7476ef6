"""What restorative pretexts do to an image: mask blocks, deform intensities, shuffle and paint over voxels.

The deformations are those of Models Genesis (Zhou et al. 2019, arXiv:1908.06912), with the numbers of its
published code. They are defined on intensities in [0, 1], so genesis() scales each channel of a patch to that range,
and back.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stunet.trainers.pretexts.draws import Draws

SHUFFLED, WINDOWS, LARGEST = 0.5, 10_000, 10  # probability, windows per patch, sides up to 1/10 of the patch's
BENT, INVERTED, POINTS = 0.9, 0.5, 1000  # probability, share that is inverted, points of the curve
PAINTED, INSIDE = 0.9, 0.2  # probability, share that is painted inside of boxes and not around them
BOXES, ANOTHER = 5, 0.95  # boxes at most, probability of each further one
INNER, OUTER = (1 / 6, 1 / 3), (3 / 7, 4 / 7)  # sides of boxes: shares of the patch's


def mask_blocks(patch: Sequence[int], side: int, share: float, draws: Draws) -> Tensor:
    """Draw which blocks of a patch are masked; the same number in every sample.

    Args:
        patch: Voxels per axis.
        side: Of a block, in voxels; those at the end of an axis may be smaller.
        share: Of the blocks.
        draws: A generator per sample.

    Returns:
        (B, 1, D, H, W), bool: True where voxels are hidden.
    """
    blocks = [math.ceil(n / side) for n in patch]
    count = round(share * math.prod(blocks))
    masks = []
    for each in draws:
        mask = torch.zeros(math.prod(blocks), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=each)[:count]] = True
        mask = mask.view(1, *blocks)
        for axis, n in enumerate(patch, 1):
            mask = mask.repeat_interleave(side, axis).narrow(axis, 0, n)
        masks.append(mask)
    return torch.stack(masks)


def genesis(images: Tensor, draws: Draws) -> Tensor:
    """Deform images as Models Genesis does: shuffle locally, bend intensities, paint; (B, C, D, H, W)."""
    low = images.amin(tuple(range(2, images.ndim)), keepdim=True)
    extent = (images.amax(tuple(range(2, images.ndim)), keepdim=True) - low).clamp_min(1e-6)
    deformed = [_deform(image, each) for image, each in zip((images - low) / extent, draws, strict=True)]
    return torch.stack(deformed) * extent + low


def _deform(image_CDHW: Tensor, draw: torch.Generator) -> Tensor:
    steps: tuple[tuple[float, Callable[[Tensor, torch.Generator], Tensor]], ...]
    steps = (SHUFFLED, shuffle), (BENT, bend), (PAINTED, paint)
    for probability, step in steps:
        if _share(draw) < probability:
            image_CDHW = step(image_CDHW, draw)
    return image_CDHW


def shuffle(image_CDHW: Tensor, draw: torch.Generator) -> Tensor:
    """Shuffle the voxels within 10,000 random windows; where windows overlap, the last one counts.

    The published code goes through the windows in a loop. Here one sort shuffles all of them: their voxels stand one
    window behind the other, and random numbers in [0, 1) added to a window's number order them within it.
    """
    shape = image_CDHW.shape[1:]
    depth, height, width = (1, *shape) if len(shape) == 2 else shape
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=draw)))
    sides = [random.integers(1, max(2, n // LARGEST + 1), WINDOWS, dtype=np.int32) for n in (depth, height, width)]
    firsts = [
        random.integers(0, n - side + 1, dtype=np.int32) for n, side in zip((depth, height, width), sides, strict=True)
    ]
    # By rows along the last axis, of which there are far fewer than voxels.
    rows = sides[0] * sides[1]
    window = np.repeat(np.arange(WINDOWS, dtype=np.int32), rows)
    row = np.arange(len(window), dtype=np.int32) - np.repeat(_starts(rows), rows)
    z, y = np.divmod(row, sides[1][window])
    first = ((firsts[0][window] + z) * height + firsts[1][window] + y) * width + firsts[2][window]
    lengths = sides[2][window]
    total = int(lengths.sum())
    place = np.arange(total, dtype=np.int32) + np.repeat(first - _starts(lengths), lengths)
    order = np.argsort(np.repeat(window.astype(np.float64), lengths) + random.random(total))
    source = np.arange(depth * height * width)
    # Of several values for one voxel numpy keeps the last.
    source[place] = place[order]
    return image_CDHW.flatten(1)[:, torch.from_numpy(source).to(image_CDHW.device)].view_as(image_CDHW)


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Return where each of several consecutive ranges of these lengths begins."""
    return (np.cumsum(lengths) - lengths).astype(np.int32)


def bend(image_CDHW: Tensor, draw: torch.Generator) -> Tensor:
    """Map intensities in [0, 1] by a random cubic Bezier curve from (0, 0) to (1, 1), or from (0, 1) to (1, 0)."""
    t = torch.linspace(0, 1, POINTS)
    (x1, y1), (x2, y2) = torch.rand(2, 2, generator=draw).tolist()
    first, second, last = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = first * x1 + second * x2 + last, first * y1 + second * y2 + last
    x = x.sort().values
    y = y.flip(0) if _share(draw) < INVERTED else y.sort().values
    x, y = x.to(image_CDHW.device), y.to(image_CDHW.device)
    right = torch.searchsorted(x, image_CDHW.contiguous()).clamp(1, POINTS - 1)
    x0, x1_, y0, y1_ = x[right - 1], x[right], y[right - 1], y[right]
    return y0 + (y1_ - y0) * ((image_CDHW - x0) / (x1_ - x0).clamp_min(1e-9)).clamp(0, 1)


def paint(image_CDHW: Tensor, draw: torch.Generator) -> Tensor:
    """Put noise into a few boxes, or everywhere but in a few boxes."""
    inside = _share(draw) < INSIDE
    noise = torch.rand(image_CDHW.shape, generator=draw).to(image_CDHW.device)
    image, base = (noise, image_CDHW) if inside else (image_CDHW, noise)
    painted = base.clone()
    shape = image_CDHW.shape[1:]
    for number in range(BOXES):
        if number and _share(draw) >= ANOTHER:
            break
        low, high = INNER if inside else OUTER
        box = []
        for n in shape:
            side = max(1, int(n * (low + (high - low) * _share(draw))))
            first = int(torch.randint(n - side + 1, (), generator=draw))
            box.append(slice(first, first + side))
        painted[(slice(None), *box)] = image[(slice(None), *box)]
    return painted


def _share(draw: torch.Generator) -> float:
    return float(torch.rand((), generator=draw))
