"""What does the store say of its models: model.json, by which a folder is one, with its entry, origin and checksums,
and checksums.json, with those of first downloads.
"""

from pathlib import Path
from typing import Any

from stunet import kinds

RECORD, CHECKSUMS = "model.json", "checksums.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's model.json.

    Raises:
        DataError: It is missing, or no such record.
    """
    record: dict[str, Any] = kinds.read(folder / RECORD, kinds.MODEL, "remove its folder, or install it again")
    return record


def read_checksums(store: Path) -> dict[str, dict[str, str]]:
    """By entry the `sha256` of its first download, and its `date`.

    Raises:
        DataError: The file says something else.
    """
    path = store / CHECKSUMS
    known: dict[str, dict[str, str]] = {}
    if path.is_file():
        known = kinds.read(path, kinds.CHECKSUMS, "remove it: they are recorded again")
    return known
