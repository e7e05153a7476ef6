"""Grow a dataset over several runs, such that it appears only once it is complete and was made from the same inputs.

Until then it is a folder with a hidden name next to its final place. Its provenance.json records what it is made from;
a run with different inputs reports what has changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import DataError, first_few, is_disk_full
from stunet.files import json_differences, remove, write_json, write_lock
from stunet.kinds import PROVENANCE, read
from stunet.workers import AGAIN

RECORD = "provenance.json"


def is_there(target: Path, now: Mapping[str, Any]) -> bool:
    """Return whether a dataset is in its final place.

    Args:
        target: nnUNet_raw/DatasetXXX_Name.
        now: What it would be made from.

    Raises:
        DataError: Another dataset has its name or its number, or it was made from something else.
    """
    taken = [path for path in target.parent.glob(f"{target.name[:10]}_*") if path.name != target.name]
    if taken:
        raise DataError(f"number {target.name[7:10]} is taken by {str(taken[0])!r}", "another number")
    if not target.exists():
        return False
    if not (target / RECORD).is_file():
        raise DataError(f"{str(target)!r} exists and was not made by this command", "another name")
    changed = json_differences(read(target / RECORD, PROVENANCE).get("state"), now)
    if changed:
        text = f"{str(target)!r} exists and was made from something else: {first_few(changed)}"
        raise DataError(text, "another name, or remove that folder")
    return True


@contextmanager
def growing(target: Path, now: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder in which the dataset grows; move it to its place if the block ends without an error.

    Args:
        target: nnUNet_raw/DatasetXXX_Name, which does not exist.
        now: What it is made from, as JSON.

    Raises:
        DataError: It was begun from something else, another run is working on it, or the disk is full.
    """
    part = target.with_name(f".part-{target.name}")
    try:
        with write_lock(target):
            if target.exists():
                raise DataError(f"{str(target)!r} was made by another run meanwhile", "nothing is left to do")
            part.mkdir(exist_ok=True)
            for path in part.rglob(".part-*"):  # files that a killed run left unfinished
                remove(path)
            _begin(part, target, now)
            yield part
            part.rename(target)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DataError(f"no space in {str(part)!r}: {error.strerror}", f"free some space, then {AGAIN}") from None


def _begin(part: Path, target: Path, now: Mapping[str, Any]) -> None:
    """Record what the dataset is made from, or check that it was begun from the same."""
    if not (part / RECORD).is_file():
        write_json(part / RECORD, {"state": now})
    changed = json_differences(read(part / RECORD, PROVENANCE).get("state"), now)
    if changed:
        text = f"{target.name} was begun and interrupted, and since then changed {first_few(changed)}"
        raise DataError(text, f"undo that to go on with it, or start anew: rm -r {part}")
