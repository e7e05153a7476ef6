"""Scan the files of a case for shape, voxels per label, the side each label is on, and a fingerprint of the image.

Every file is read once, as nnU-Net will read it, in several processes. Results are kept next to the recipe
(merge.scan.jsonl) and stay valid while the files have the same size and modification time. findings.py judges them.
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

from stunet.datasets import RawCase, Rules
from stunet.datasets.check import UNREADABLE, read_case
from stunet.errors import DataError
from stunet.files import atomic_write
from stunet.schema import anything, dict_of, integer, list_of, number, table, text
from stunet.workers import Outcome, map_cases, raise_failed

NIFTI = (".nii", ".nii.gz")
EVERY = 4  # every 4th voxel along each axis goes into the fingerprint: 1/64 of them
SQUARE_ATOL = 1e-3  # tolerance on the cosine between axes


@dataclass(frozen=True)
class CaseScan:
    """What the files of a case hold.

    Attributes:
        shape: In voxels, (D, H, W) as the reader returns them, the last axis from the patient's left to the right.
        spacing: In mm, same order.
        channels: Number of channels.
        voxels: Voxel counts by value of the label file, without 0.
        centre: Mean index of each value's voxels along the last axis, by value; 0 is the patient's left.
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
    cases: Sequence[RawCase], rules: Rules, cache: Path, workers: int, on_case: Callable[[str], None]
) -> list[CaseScan | DataError]:
    """Return what each case holds, or what is wrong with its files; cases in the cache are not read again.

    Args:
        cases: Cases of one source.
        rules: The reader, and the channels and values allowed in every case.
        cache: A file that may not exist yet; an interrupted scan resumes from it.
        workers: Number of reading processes.
        on_case: Called with the name of a case once it is done.

    Raises:
        WorkerCrashed: The process of a case crashed twice; all others are in the cache.
        OutOfMemoryError: A case does not fit into memory; all others are in the cache.
    """
    keys = [_key(case, rules) for case in cases]
    wanted = set(keys)
    known = {key: found for key, found in _load(cache) if key in wanted}
    todo = [case for case, key in zip(cases, keys, strict=True) if key not in known]
    found: dict[str, CaseScan | DataError] = {}
    failed: list[Outcome[RawCase, CaseScan]] = []
    for case, key in zip(cases, keys, strict=True):
        if key in known:
            on_case(case.name)
    with cache.open("a") as file:
        for outcome in map_cases(partial(_scan, rules=rules), todo, workers, lambda case: case.name):
            case, error = outcome.case, outcome.error
            if error is None:
                found[case.name] = outcome.result
                file.write(json.dumps([_key(case, rules), asdict(outcome.result)]) + "\n")
                # A killed run loses only the cases that it is reading.
                file.flush()
            # Files that cannot be read are a finding; a crash or a lack of memory says nothing about the files.
            elif outcome.bad_files:
                found[case.name] = outcome.bad_files
            else:
                failed.append(outcome)
            on_case(case.name)
    raise_failed(failed)
    return [found.get(case.name) or known[key] for case, key in zip(cases, keys, strict=True)]


def tidy(cache: Path) -> None:
    """Reduce a cache to the last entry of each case."""
    # By paths without sizes and times: a later entry of the same files replaces the earlier one.
    newest = {tuple(path for path, *_ in json.loads(key)[0]): (key, found) for key, found in _load(cache)}
    with atomic_write(cache) as part:
        part.write_text("".join(json.dumps([key, asdict(found)]) + "\n" for key, found in newest.values()))


def files_of(case: RawCase) -> list[list[Any]]:
    """Return path, size in bytes and modification time in ns of each file of a case."""
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path in case.files for stat in [path.stat()]]


def _key(case: RawCase, rules: Rules) -> str:
    # With the rules, because a case that conforms to these need not conform to others.
    return json.dumps([files_of(case), rules.reader.__name__, len(rules.channels), sorted(rules.values)])


def _load(cache: Path) -> Iterator[tuple[str, CaseScan]]:
    """Yield the entries of a cache; skip a line that a killed run left unfinished."""
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
                yield key, CaseScan(**content)
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


def _scan(case: RawCase, rules: Rules) -> CaseScan:
    for path in case.files:
        _check_axes(path)
    image, label, properties = read_case(case, rules)
    voxels, centre = _voxels(label)
    spacing = tuple(round(float(pitch), 5) for pitch in properties["spacing"])
    return CaseScan(
        shape=tuple(map(int, label.shape)),
        spacing=spacing,
        channels=len(image),
        voxels=voxels,
        centre=centre,
        fingerprint=_fingerprint(image, spacing),
        image_bytes=sum(path.stat().st_size for path in case.images),
        label_bytes=case.needed_label.stat().st_size,
    )


def check_endings(cases: Iterable[RawCase]) -> None:
    """Check that all files are NIfTI.

    Raises:
        DataError: A file is not.
    """
    for case in cases:
        for path in case.files:
            if not path.name.endswith(NIFTI):
                raise DataError(f"{str(path)!r} is not a NIfTI file", "convert the dataset to .nii.gz first")


def _check_axes(path: Path) -> None:
    """Reject files that do not have three axes at right angles to each other: readers would call them damaged."""
    try:
        header: Any = nibabel.load(path)
        shape, affine = header.shape, header.affine
    except UNREADABLE as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "copy the file again, or exclude the case") from None
    if len(shape) != 3:
        hint = "one file of three axes per channel: CASE_0000.nii.gz, CASE_0001.nii.gz, ..."
        raise DataError(f"{str(path)!r} has {len(shape)} axes: {tuple(shape)}", hint)
    # Columns of length 1: their products are the cosines of the angles.
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=SQUARE_ATOL):
        hint = "resample image and label onto a grid with right angles, or exclude the case"
        raise DataError(f"the axes of {str(path)!r} are not at right angles to each other", hint)


def _voxels(label: np.ndarray) -> tuple[dict[int, int], dict[int, float]]:
    """Return the number of voxels and their mean index along the last axis, by value.

    The label is processed slice by slice, without a copy.
    """
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
    """Return a hash of shape, spacing and every 64th voxel as 16-bit integers.

    Images that hold fractions are scaled to the range of these integers.
    """
    sample = image[:, ::EVERY, ::EVERY, ::EVERY]
    if (sample != np.rint(sample)).any():
        # Rounding would make all fractions below 0.5 equal, and with them images that differ.
        sample = sample / np.abs(sample).max() * np.iinfo(np.int16).max
    numbers = np.rint(sample).clip(-(2**15), 2**15 - 1).astype("<i2")
    # Rounded, because the last digits of a stored spacing may vary.
    head = json.dumps([list(image.shape), [round(pitch, 3) for pitch in spacing]])
    return hashlib.sha256(head.encode() + numbers.tobytes()).hexdigest()[:32]
