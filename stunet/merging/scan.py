"""What do the files of a case hold? Shape, voxels per label, on which side each is, and a fingerprint of the image.

Every file is read once, as nnU-Net will read it, in several processes; what was found is kept beside the recipe
(merge.scan.jsonl), for as long as the files have the same size and time of change. findings.py judges it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from stunet.datasets import Case, Rules
from stunet.datasets.check import UNREADABLE, read_case
from stunet.errors import DataError
from stunet.files import whole
from stunet.processes import each
from stunet.schema import anything, dict_of, integer, list_of, number, table, text

NIFTI = (".nii", ".nii.gz")
EVERY = 4  # of the voxels along each axis go into the fingerprint: 1/64 of them
SQUARE_ATOL = 1e-3  # of the cosine between axes


@dataclass(frozen=True)
class Scan:
    """What a case holds.

    Attributes:
        shape: Voxels (D, H, W) as the reader gives them, the last axis from the patient's left to the right.
        spacing: In mm, same order.
        channels: Number of them.
        voxels: Number by value of the label file, without 0.
        centre: Where the voxels of a value are on average along the last axis, by value: 0 is the patient's left.
        fingerprint: Equal for equal images.
        image_bytes: Size of its image files.
        label_bytes: Size of its label file.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int
    voxels: dict[int, int]
    centre: dict[int, float]
    fingerprint: str
    image_bytes: int
    label_bytes: int


def scan(
    cases: Sequence[Case], rules: Rules, cache: Path, workers: int, on_case: Callable[[str], None]
) -> list[Scan | DataError]:
    """What each case holds, or what is wrong with its files; what the cache has is not read again.

    Args:
        cases: Of one source.
        rules: The reader, and the channels and values that every case has to have.
        cache: A file that may not exist yet; a scan that was stopped goes on from it.
        workers: Processes that read.
        on_case: Called with the name of a case when it is done.
    """
    keys = [_key(case, rules) for case in cases]
    wanted = set(keys)
    known = {key: found for key, found in _load(cache) if key in wanted}
    todo = [case for case, key in zip(cases, keys, strict=True) if key not in known]
    found: dict[str, Scan | DataError] = {}
    for case, key in zip(cases, keys, strict=True):
        if key in known:
            on_case(case.name)
    with cache.open("a") as file:
        for position, result in each(partial(_scan, rules=rules), todo, workers, lambda case: case.name):
            case = todo[position]
            found[case.name] = result
            if isinstance(result, Scan):
                file.write(json.dumps([_key(case, rules), asdict(result)]) + "\n")
                file.flush()
            on_case(case.name)
    return [found.get(case.name) or known[key] for case, key in zip(cases, keys, strict=True)]


def tidy(cache: Path) -> None:
    """Keeps the last entry of each case of a cache."""
    newest = {tuple(path for path, *_ in json.loads(key)[0]): (key, found) for key, found in _load(cache)}
    with whole(cache) as part:
        part.write_text("".join(json.dumps([key, asdict(found)]) + "\n" for key, found in newest.values()))


def files_of(case: Case) -> list[list[Any]]:
    """Path, size in bytes and time of change in ns of the files of a case."""
    return [
        [str(path), stat.st_size, stat.st_mtime_ns] for path in (*case.images, case.label) for stat in [path.stat()]
    ]


def _key(case: Case, rules: Rules) -> str:
    return json.dumps([files_of(case), rules.reader.__name__, len(rules.channels), sorted(rules.values)])


def _load(cache: Path) -> Iterator[tuple[str, Scan]]:
    """The entries of a cache; a line that a killed run left unfinished is none."""
    if not cache.is_file():
        return
    with cache.open(errors="replace") as file:
        for line in file:
            try:
                key, content = json.loads(line)
                _SCAN(content, "")
                _is_key(json.loads(key), "")
                content["shape"], content["spacing"] = tuple(content["shape"]), tuple(content["spacing"])
                for name in ("voxels", "centre"):
                    content[name] = {int(value): number for value, number in content[name].items()}
                yield key, Scan(**content)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue


def _is_key(value: Any, where: str) -> None:
    list_of(anything, least=1)(value, where)
    list_of(list_of(anything, least=1), least=1)(value[0], where)


_SCAN = table({
    "shape": list_of(integer(1), 3, 3),
    "spacing": list_of(number(above=0), 3, 3),
    "channels": integer(1),
    "voxels": dict_of(integer(0)),
    "centre": dict_of(number()),
    "fingerprint": text,
    "image_bytes": integer(0),
    "label_bytes": integer(0),
})  # fmt: skip


def _scan(case: Case, rules: Rules) -> Scan | DataError:
    try:
        for path in (*case.images, case.label):
            _check_axes(path)
        image, label, properties = read_case(case, rules)
    except DataError as error:
        return error
    voxels, centre = _voxels(label)
    spacing = tuple(round(float(pitch), 5) for pitch in properties["spacing"])
    return Scan(
        shape=tuple(map(int, label.shape)),
        spacing=spacing,
        channels=len(image),
        voxels=voxels,
        centre=centre,
        fingerprint=_fingerprint(image, spacing),
        image_bytes=sum(path.stat().st_size for path in case.images),
        label_bytes=case.label.stat().st_size,
    )


def check_endings(cases: Iterable[Case]) -> None:
    """Sees that all files are NIfTI.

    Raises:
        DataError: One is not.
    """
    for case in cases:
        for path in (*case.images, case.label):
            if not path.name.endswith(NIFTI):
                raise DataError(f"{str(path)!r} is no NIfTI file", "convert the dataset to .nii.gz before")


def _check_axes(path: Path) -> None:
    """Refuses files of more than three axes and of axes that are not at right angles, which readers take for damage."""
    try:
        header: Any = nibabel.load(path)
        shape, affine = header.shape, header.affine
    except UNREADABLE as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "copy the file again, or exclude the case") from None
    if len(shape) != 3:
        hint = "one file of three axes per channel: CASE_0000.nii.gz, CASE_0001.nii.gz, ..."
        raise DataError(f"{str(path)!r} has {len(shape)} axes: {tuple(shape)}", hint)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=SQUARE_ATOL):
        hint = "resample image and label onto a grid with right angles, or exclude the case"
        raise DataError(f"the axes of {str(path)!r} are not at right angles to each other", hint)


def _voxels(label: np.ndarray) -> tuple[dict[int, int], dict[int, float]]:
    """Number of voxels and mean position along the last axis, by value; slice by slice, without a copy of the label."""
    count = np.zeros(int(label.max()) + 1, np.int64)
    position = np.zeros(len(count))
    for plane in label:
        where = np.nonzero(plane)
        values = plane[where].astype(np.intp)
        count += np.bincount(values, minlength=len(count))
        position += np.bincount(values, where[-1], len(count))
    present = np.flatnonzero(count)
    return (
        {int(value): int(count[value]) for value in present},
        {int(value): round(float(position[value] / count[value]), 3) for value in present},
    )


def _fingerprint(image: np.ndarray, spacing: Sequence[float]) -> str:
    """A hash of shape, spacing and every 64th voxel as a 16-bit integer; images of fractions are scaled to these."""
    sample = image[:, ::EVERY, ::EVERY, ::EVERY]
    if (sample != np.rint(sample)).any():
        sample = sample / np.abs(sample).max() * np.iinfo(np.int16).max
    numbers = np.rint(sample).clip(-(2**15), 2**15 - 1).astype("<i2")
    head = json.dumps([list(image.shape), [round(pitch, 3) for pitch in spacing]])
    return hashlib.sha256(head.encode() + numbers.tobytes()).hexdigest()[:32]
