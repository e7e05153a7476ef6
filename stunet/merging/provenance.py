"""Say what a union or a completed dataset was made from: its provenance.json, which is written when it is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, first_few
from stunet.files import json_differences
from stunet.kinds import PROVENANCE, read

RECORD = "provenance.json"


def is_there(target: Path, now: Mapping[str, Any]) -> bool:
    """Return whether a dataset is in its final place.

    Args:
        target: nnUNet_raw/DatasetXXX_Name.
        now: What it would be made from.

    Raises:
        DataError: Another dataset has its name or its number, or it was made from something else.
    """
    # 10 characters of DatasetXXX; nnU-Net refuses a number that two datasets have.
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
