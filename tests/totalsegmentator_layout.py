"""Small folders in the layouts of the TotalSegmentator data set: v1, v2 and MRI, with the masks of their classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from stunet.datasets.subjects import Release, releases

SHAPE = (6, 5, 4)
AFFINE = np.array([[1.5, 0, 0, -20], [0, 1.5, 0, 10], [0, 0, 1.5, 3], [0, 0, 0, 1]])
RELEASES = {release.name: release for release in releases()}
Box = tuple[slice, ...]


def box(start: int, stop: int) -> Box:
    """A slab of SHAPE along the first axis."""
    return (slice(start, stop),)


def write_mask(path: Path, *boxes: Box, shape: Sequence[int] = SHAPE, affine: np.ndarray = AFFINE) -> None:
    mask = np.zeros(shape, np.uint8)
    for where in boxes:
        mask[where] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask, affine), path)


def write_subject(
    folder: Path, release: Release, masks: Mapping[str, Sequence[Box]], seed: int = 0, names: Sequence[str] = ()
) -> None:
    """A subject with an image of noise and these masks, or all of the release; those without boxes are empty."""
    folder.mkdir(parents=True)
    image = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), folder / release.image)
    empty = folder / "segmentations" / "empty"
    write_mask(empty.with_suffix(".nii.gz"))
    content = empty.with_suffix(".nii.gz").read_bytes()
    empty.with_suffix(".nii.gz").unlink()
    for name in names or release.names:
        path = folder / "segmentations" / f"{name}.nii.gz"
        if name in masks:
            write_mask(path, *masks[name])
        else:
            path.write_bytes(content)


def write_release(
    source: Path,
    name: str,
    subjects: Mapping[str, str],
    masks: Mapping[str, Sequence[Box]],
    names: Sequence[str] = (),
) -> Path:
    """A folder of a release with meta.csv as upstream writes it: with a byte order mark, and more columns."""
    for seed, subject in enumerate(subjects):
        write_subject(source / subject, RELEASES[name], masks, seed, names)
    lines = [
        "image_id;age;gender;institute;study_type;split",
        *(f"{s};60;m;A;ct;{split}" for s, split in subjects.items()),
    ]
    (source / "meta.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8-sig")
    return source
