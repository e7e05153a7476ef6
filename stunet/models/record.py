"""Read what the store records about its models.

A folder is a model if it has a model.json, which holds its entry, origin and checksums. checksums.json holds the
checksums of first downloads, licences.json the licences that the user accepted (licences.py).
"""

from pathlib import Path
from typing import Any

from stunet import kinds

RECORD, CHECKSUMS, LICENCES = "model.json", "checksums.json", "licences.json"
OWN = "models.toml"  # the user's own entries
STORE_FILES = (OWN, CHECKSUMS, LICENCES)  # beside the folders of models


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's model.json.

    Raises:
        DataError: It is missing, or not such a record.
    """
    record: dict[str, Any] = kinds.read(folder / RECORD, kinds.MODEL, "remove its folder, or install it again")
    return record


def read_checksums(store: Path) -> dict[str, dict[str, str]]:
    """Return, by entry, the `sha256` of its first download and its `date`.

    Raises:
        DataError: The file holds something else.
    """
    path = store / CHECKSUMS
    known: dict[str, dict[str, str]] = {}
    if path.is_file():
        known = kinds.read(path, kinds.CHECKSUMS, "remove it: they are recorded again")
    return known
