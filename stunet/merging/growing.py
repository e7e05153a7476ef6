"""How does a dataset grow over several runs, and appear only when it is complete and made from one thing?

Until then it is a folder of a hidden name beside its place. provenance.json in it says what it is made from: a run that
would make something else of it says what has changed.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import NO_SPACE, alone, write_json
from stunet.kinds import PROVENANCE, read

RECORD = "provenance.json"
FULL_HINT = "free some space and run the same command again; finished cases are kept"
SHOWN = 3  # differences in a message


def is_there(target: Path, now: Mapping[str, Any]) -> bool:
    """Whether a dataset stands in its place.

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
    changed = differences(read(target / RECORD, PROVENANCE).get("state"), now)
    if changed:
        text = f"{str(target)!r} exists and was made from something else: {shown(changed)}"
        raise DataError(text, "another name, or remove that folder")
    return True


@contextmanager
def growing(target: Path, now: Mapping[str, Any]) -> Iterator[Path]:
    """Yields the folder in which the dataset grows; it takes its place when the block ends without an error.

    Args:
        target: nnUNet_raw/DatasetXXX_Name, which is not there.
        now: What it is made from, as JSON.

    Raises:
        DataError: It was begun from something else, another run works on it, or the disk is full.
    """
    part = target.with_name(f".part-{target.name}")
    part.mkdir(exist_ok=True)
    lock = target.with_name(f".lock-{target.name}")
    try:
        with alone(lock, f"another run makes {target.name}", "wait until it is done"):
            _begin(part, target, now)
            yield part
            part.rename(target)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DataError(f"no space in {str(part)!r}: {error.strerror}", FULL_HINT) from None
    lock.unlink(missing_ok=True)


def differences(before: object, now: object, where: str = "") -> list[str]:
    """What differs between two contents of JSON files, each as `recipe.head: "softmax" -> "sigmoid"`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now}, key=str)
        found = [differences(before.get(k), now.get(k), f"{where}.{k}" if where else str(k)) for k in keys]
        return [text for texts in found for text in texts]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = [differences(b, n, f"{where}[{i}]") for i, (b, n) in enumerate(zip(before, now, strict=True))]
        return [text for texts in found for text in texts]
    return [] if before == now else [f"{where}: {_short(before)} -> {_short(now)}"]


def shown(changed: list[str]) -> str:
    """The first differences, in one line."""
    return "; ".join(changed[:SHOWN]) + (f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


def _begin(part: Path, target: Path, now: Mapping[str, Any]) -> None:
    """Puts down what is made, or sees that what was begun is the same."""
    if not (part / RECORD).is_file():
        write_json(part / RECORD, {"state": now})
    changed = differences(read(part / RECORD, PROVENANCE).get("state"), now)
    if changed:
        text = f"{target.name} was begun and interrupted, and since then changed {shown(changed)}"
        raise DataError(text, f"undo that to go on with it, or start anew: rm -r {part}")


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
