"""What does model.json say, the file by which a folder of the store is a model: its entry, origin and checksums."""

from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import read_json

RECORD = "model.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's model.json.

    Raises:
        DataError: It is missing, or no such record.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
        raise DataError(f"{str(folder / RECORD)!r} is no record of a model", "remove its folder, or install it again")
    return record
