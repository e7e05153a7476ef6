"""Two views of a patch: overlapping crops that are flipped, turned and changed in intensity, each on its own.

Crops lie inside the box around the voxels that count, where it has room for them. Padding and what a mask excludes may
be seen otherwise, as part of both views.

standard    crops of 0.8 of each side, flips, and nnU-Net's changes of intensity with nnssl's probabilities
safe        the whole patch, turned by up to 10 degrees: nothing that could hide or imitate a finding (MoCo-CXR,
            Sowrirajan et al. 2021, arXiv:2010.05352, left out crops, blur and intensities for this reason)
none        the crops alone
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stunet.trainers.pretexts.base import Patches, Setting, full_precision
from stunet.trainers.pretexts.draws import Draws, flags, uniform
from stunet.trainers.pretexts.views import cut, inside

SIDE = 0.8  # of a crop: any two have an intersection over union of at least 0.6^3 / (2 * 0.8^3 - 0.6^3) = 0.267
DEGREES = 10.0  # of safe turns
STANDARD, SAFE, NONE = "standard", "safe", "none"


def two_views(patches: Patches, setting: Setting) -> tuple[Tensor, Tensor]:
    """Return two views of each patch, of the same shape."""
    return view(patches, setting), view(patches, setting)


def view(patches: Patches, setting: Setting, fraction: float = SIDE) -> Tensor:
    """Return a view of each patch: (B, C, D, H, W), with sides of a fraction of the patch's unless it is a safe one."""
    moved = move(patches, setting, fraction)
    return disturb(moved, patches.draws) if setting.augment == STANDARD else moved


def move(patches: Patches, setting: Setting, fraction: float = SIDE) -> Tensor:
    """Return a view of each patch without the changes of intensity."""
    images, valid, draws, *_ = patches
    if setting.augment == SAFE:
        with full_precision(images):
            return turn(images, draws, setting.spacing)
    size = size_of_view(images.shape[2:], setting, fraction)
    cropped = cut(images, inside(valid, size, draws)[0], size)
    return flip(cropped, draws) if setting.augment == STANDARD else cropped


def size_of_view(patch: Sequence[int], setting: Setting, fraction: float = SIDE) -> list[int]:
    """Return the voxels per axis of a view of a patch."""
    return list(patch) if setting.augment == SAFE else [math.ceil(fraction * n) for n in patch]


def flip(images: Tensor, draws: Draws) -> Tensor:
    """Flip each sample along each axis with probability 0.5."""
    axes = flags(draws, 0.5, images.ndim - 2)
    return torch.stack([
        image.flip([axis + 1 for axis, flipped in enumerate(chosen) if flipped])
        for image, chosen in zip(images, axes.tolist(), strict=True)
    ])  # fmt: skip


def turn(images: Tensor, draws: Draws, spacing: Sequence[float]) -> Tensor:
    """Turn each sample by up to DEGREES about each axis; what comes in from outside continues the border.

    Args:
        images: (B, C, D, H, W).
        draws: A generator per sample.
        spacing: In mm: turns are those of the body, not of the grid of voxels.
    """
    ndim = images.ndim - 2
    planes = [(a, b) for a in range(ndim) for b in range(a + 1, ndim)]
    angles = uniform(draws, -math.radians(DEGREES), math.radians(DEGREES), len(planes))
    # grid_sample counts in half sides, along which a turn of unequal sides would shear.
    sides = torch.tensor([n * mm for n, mm in zip(images.shape[2:], spacing, strict=True)][::-1])
    matrices = []
    for row in angles.tolist():
        matrix = torch.eye(ndim)
        for angle, (a, b) in zip(row, planes, strict=True):
            turned = torch.eye(ndim)
            turned[a, a] = turned[b, b] = math.cos(angle)
            turned[a, b], turned[b, a] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turned
        matrices.append(torch.cat([matrix * sides[None] / sides[:, None], torch.zeros(ndim, 1)], 1))
    grid = F.affine_grid(torch.stack(matrices).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def disturb(images: Tensor, draws: Draws, always: bool = False) -> Tensor:
    """Change the intensities of each sample, and its resolution: nothing moves.

    Args:
        images: (B, C, D, H, W).
        draws: A generator per sample.
        always: Change them in all ways, in place of each with a probability, which is nnssl's.
    """
    disturbed = []
    with full_precision(images):
        for image, draw in zip(images, draws, strict=True):
            for probability, change in DISTURBANCES:
                if always or _share(draw) < probability:
                    image = change(image, draw)
            disturbed.append(image)
    return torch.stack(disturbed)


def add_noise(image: Tensor, draw: torch.Generator) -> Tensor:
    """Add normal noise with a variance of up to 0.1."""
    return image + torch.randn(image.shape, generator=draw).to(image.device) * math.sqrt(0.1 * _share(draw))


def blur(image: Tensor, draw: torch.Generator) -> Tensor:
    """Blur with a Gaussian whose standard deviation is 0.5 to 1 voxels."""
    sigma = 0.5 + 0.5 * _share(draw)
    kernel = torch.exp(-(torch.arange(-3.0, 4.0).to(image) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in range(1, image.ndim):
        lines = image.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (3, 3), mode="replicate")
        image = F.conv1d(flat, kernel[None, None]).view(lines.shape).movedim(-1, axis)
    return image


def brighten(image: Tensor, draw: torch.Generator) -> Tensor:
    """Multiply by 0.75 to 1.25."""
    return image * (0.75 + 0.5 * _share(draw))


def stretch_contrast(image: Tensor, draw: torch.Generator) -> Tensor:
    """Scale the distances to each channel's mean by 0.75 to 1.25, within its range."""
    mean, low, high = _statistics(image)
    return ((image - mean) * (0.75 + 0.5 * _share(draw)) + mean).clamp(low, high)


def coarsen(image: Tensor, draw: torch.Generator) -> Tensor:
    """Sample at 0.5 to 1 of the resolution and back."""
    scale = 0.5 + 0.5 * _share(draw)
    mode = "trilinear" if image.ndim == 4 else "bilinear"
    low = F.interpolate(image[None], size=[max(1, round(n * scale)) for n in image.shape[1:]], mode="nearest")
    return F.interpolate(low, size=image.shape[1:], mode=mode)[0]


def bend_gamma(image: Tensor, draw: torch.Generator) -> Tensor:
    """Raise each channel's intensities, scaled to [0, 1], to the power of 0.7 to 1.5; mean and deviation stay."""
    mean, low, high = _statistics(image)
    bent = ((image - low) / (high - low).clamp_min(1e-6)) ** (0.7 + 0.8 * _share(draw))
    deviation, bent_deviation = (each.flatten(1).std(1).view_as(mean) for each in (image, bent))
    return (bent - _statistics(bent)[0]) / bent_deviation.clamp_min(1e-6) * deviation + mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, the minimum and the maximum of each channel, (C, 1, 1, 1) each."""
    space = tuple(range(1, image.ndim))
    return image.mean(space, keepdim=True), image.amin(space, keepdim=True), image.amax(space, keepdim=True)


Disturbance = Callable[[Tensor, torch.Generator], Tensor]
DISTURBANCES: Sequence[tuple[float, Disturbance]] = (
    (0.1, add_noise),
    (0.2, blur),
    (0.15, brighten),
    (0.15, stretch_contrast),
    (0.1, coarsen),
    (0.3, bend_gamma),
)


def _share(draw: torch.Generator) -> float:
    return float(torch.rand((), generator=draw))
