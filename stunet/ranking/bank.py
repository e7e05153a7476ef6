"""The feature bank: what candidates compute at the points of cases, in files that are made once.

    bank/points/CASE.safetensors         the points of a case
    bank/CANDIDATE-1f3c5a7e/CASE.safetensors   features there; the digits are a hash of weights, plan and options

A file states what it was made from, and a checksum of its arrays. It counts only if both are right, so one that is
damaged, or of a case, label map or version that has changed, is made again. Only files of this kind are ever replaced.
"""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from stunet.files import atomic_write, sha256_of_json, shortened

VERSION = 1  # of what the arrays mean; another number makes earlier files void
ENDING = ".safetensors"
POINTS = "points"
_LONGEST = 60  # bytes of a candidate's name in that of its folder

Arrays = Mapping[str, np.ndarray]


class Bank:
    """A folder of features.

    Args:
        folder: Made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, candidate: str, made_by: Mapping[str, Any]) -> Path:
        """Return the folder of a candidate whose features are determined, besides cases and points, by `made_by`."""
        name = shortened(re.sub(r"[^\w.-]+", "-", candidate).strip(".-") or "candidate", _LONGEST)
        return self.folder / f"{name}-{sha256_of_json(dict(made_by))[:8]}"


def write_arrays(path: Path, arrays: Arrays, made_from: Mapping[str, Any]) -> None:
    """Write arrays with what they were made from; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = {"version": VERSION, "crc32": _checksum(stored), "made_from": made_from}
    with atomic_write(path) as part:
        save_file(stored, part, {"stunet": json.dumps(content)})


def read_arrays(path: Path, made_from: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file, or None if there is none that is whole, of this version, and made from the same."""
    try:
        with safetensors.safe_open(path, "np") as file:
            content = json.loads((file.metadata() or {})["stunet"])
        if content["version"] != VERSION or content["made_from"] != json.loads(json.dumps(made_from)):
            return None
        arrays = load_file(path)
        return arrays if content["crc32"] == _checksum(arrays) else None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def _checksum(arrays: Arrays) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), total))
    return total
