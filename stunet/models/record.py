"""What does the store say of its models: model.json, by which a folder is one, with its entry, origin and checksums,
and checksums.json, with those of first downloads.
"""

from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import read_json

RECORD, CHECKSUMS = "model.json", "checksums.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's model.json.

    Raises:
        DataError: It is missing, or no such record.
    """
    record = read_json(folder / RECORD)
    if not _is_record(record):
        raise DataError(f"{str(folder / RECORD)!r} is no record of a model", "remove its folder, or install it again")
    return record


def read_checksums(store: Path) -> dict[str, dict[str, str]]:
    """By entry the `sha256` of its first download, and its `date`.

    Raises:
        DataError: The file says something else.
    """
    path = store / CHECKSUMS
    known = read_json(path) if path.is_file() else {}
    if not isinstance(known, dict) or not all(isinstance(of_entry, dict) for of_entry in known.values()):
        raise DataError(f"{str(path)!r} holds no checksums", "remove it: they are recorded anew")
    return known


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
        return False
    texts = [record[key] for key in ("entry", "weights", "source", "sha256", "date") if record.get(key) is not None]
    weights = record.get("weights") or "none"
    return all(isinstance(text, str) for text in texts) and Path(weights).name == weights
