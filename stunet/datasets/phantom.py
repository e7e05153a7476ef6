"""Make what the demo and the tests segment: a small seeded CT-like abdomen, written as a raw dataset of nnU-Net.

Arrays are (D, H, W): D increases towards the head, H towards the back, W towards the patient's LEFT (DICOM's LPS,
identity direction), so kidney_left is at higher W than kidney_right. The kidneys are equally bright: only their
position tells them apart.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from stunet.datasets import FILE_ENDING, write_dataset_json
from stunet.errors import UsageError
from stunet.files import atomic_folder

AIR_HU, BODY_HU = -1000.0, 0.0
NOISE_HU, BLUR_VOXELS = 15.0, 0.6


@dataclass(frozen=True)
class Organ:
    """An ellipsoid in the body's own coordinates (d, h, w), each from -1 to 1 over the volume.

    Args:
        centre: Its position in the mean patient.
        radii: Half its length along each of its own axes; infinity makes a column.
        angle_deg: Its rotation in the plane of H and W.
        hu: Its mean intensity.
    """

    name: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle_deg: float
    hu: float


ORGANS = (
    Organ("spine", (0.0, 0.52, 0.0), (math.inf, 0.16, 0.16), 0, 550),
    Organ("liver", (0.28, -0.12, -0.38), (0.48, 0.44, 0.36), 20, 130),
    Organ("spleen", (0.42, 0.22, 0.58), (0.36, 0.32, 0.20), -15, 230),
    Organ("kidney_left", (-0.38, 0.30, 0.42), (0.40, 0.23, 0.19), 25, 330),
    Organ("kidney_right", (-0.46, 0.30, -0.42), (0.40, 0.23, 0.19), -25, 330),
)
BODY = Organ("body", (0.0, 0.0, 0.0), (math.inf, 0.80, 0.90), 0, BODY_HU)
LABELS = {"background": 0} | {organ.name: value for value, organ in enumerate(ORGANS, 1)}


def make_phantom(
    folder: Path,
    cases: int,
    seed: int,
    held_out: int = 0,
    shape: tuple[int, int, int] = (40, 56, 56),
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.5),
) -> Path:
    """Write `cases` training cases, and `held_out` more in imagesTs and labelsTs; return `folder`.

    Case i depends only on `seed` and i: the same seed gives the same bytes, and adding cases changes no others.

    Args:
        shape: In voxels, (D, H, W).
        spacing: In mm, (D, H, W).

    Raises:
        DataError: `folder` exists.
        UsageError: There are no cases, or the shape is too small to hold the organs.
    """
    if cases < 1 or held_out < 0:
        raise UsageError(
            f"a phantom of {cases} cases and {held_out} held out", "one case or more, and none or more held out"
        )
    if min(shape) < 16:
        raise UsageError(f"a phantom of shape {shape}", "16 voxels or more along each axis")
    with atomic_folder(folder) as part:
        for index in range(cases + held_out):
            subset = "Tr" if index < cases else "Ts"
            name = f"phantom_{index:03d}"
            image, label = make_case(np.random.default_rng((seed, index)), shape)
            _write(part / f"images{subset}" / f"{name}_0000{FILE_ENDING}", image, spacing)
            _write(part / f"labels{subset}" / f"{name}{FILE_ENDING}", label, spacing)
        write_dataset_json(part, folder.name, {0: "CT"}, LABELS, cases, description=f"synthetic abdomen, seed {seed}")
    return folder


def make_case(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make a patient of random pose, size and contrast: image in HU (int16) and label (uint8), both (D, H, W)."""
    where = _body_coordinates(rng, shape)
    body = _inside(BODY, where, np.zeros(3), 1.0)
    image = np.where(body, BODY_HU, AIR_HU).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    for organ in ORGANS:
        inside = body & _inside(organ, where, rng.uniform(-0.04, 0.04, 3), rng.uniform(0.9, 1.1))
        image[inside] = organ.hu + rng.normal(0, 8)
        label[inside] = LABELS[organ.name]
    image = gaussian_filter(image, BLUR_VOXELS)
    image += rng.normal(0, NOISE_HU, shape)
    # The range of a CT of 12 bits.
    return np.rint(image).clip(-1024, 3071).astype(np.int16), label


def _body_coordinates(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Return the body's coordinates (d, h, w) at every voxel, for a random position, size and rotation."""
    shift, scale, angle = rng.uniform(-0.08, 0.08, 3), rng.uniform(0.92, 1.04), math.radians(rng.uniform(-8, 8))
    # Centres of voxels, so that -1 and 1 are the borders of the volume whatever its shape.
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    d, h, w = ((x - s) / scale for x, s in zip(np.meshgrid(*axes, indexing="ij"), shift, strict=True))
    return d, *_turn(h, w, angle)


def _inside(organ: Organ, where: tuple[np.ndarray, ...], shift: np.ndarray, scale: float) -> np.ndarray:
    """Return the mask of an organ that is moved by `shift` and has `scale` times its mean size."""
    d, h, w = (x - c - s for x, c, s in zip(where, organ.centre, shift, strict=True))
    h, w = _turn(h, w, math.radians(organ.angle_deg))
    return sum((x / (scale * r)) ** 2 for x, r in zip((d, h, w), organ.radii, strict=True)) <= 1


def _turn(h: np.ndarray, w: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return h * math.cos(angle) - w * math.sin(angle), h * math.sin(angle) + w * math.cos(angle)


def _write(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    # ITK's order is (W, H, D).
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, path, useCompression=True)
