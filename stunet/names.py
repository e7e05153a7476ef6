"""Check that a name from a file (of a case, dataset, plan or configuration) cannot lead out of its folder.

Everything that builds a path from such a name validates it here, on reading. The cells of a CSV file also contain text
from elsewhere: `cell` keeps spreadsheets from interpreting it as a formula.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from stunet.errors import DataError, short
from stunet.schema import Wrong, expected

SIDES = ("LR", "PA", "SI")  # pairs of sides of the patient between which an axis runs
NAME_MAX = 255  # bytes of a file name on common file systems
RESERVED_BYTES = 32  # bytes that we and nnU-Net add around a name: .part-PID-, _0000.nii.gz
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # starts of cells that spreadsheets compute (OWASP, CSV injection)


def has_control_characters(text: str) -> bool:
    """Return whether a text contains anything that moves the cursor or ends a line, or is not UTF-8."""
    return any(unicodedata.category(letter) in _REFUSED for letter in text)


def name_problem(name: str, longest: int = NAME_MAX - RESERVED_BYTES) -> str | None:
    """Return what keeps a text from being a file name of at most `longest` bytes; None if nothing does."""
    if not name.strip():
        return "is empty"
    if has_control_characters(name):
        return "has a control character or is not UTF-8"
    if "/" in name or "\\" in name or os.sep in name:
        return "is a path, not a name"
    if name.startswith("."):
        return "begins with a dot"
    if len(name.encode()) > longest:
        return f"is longer than {longest} bytes"
    return None


def check_name(value: Any, what: str, where: str = "") -> str:
    """Return the name, if it can be a file name.

    Args:
        value: What a file or a person supplied.
        what: What it is the name of, such as "case".
        where: The file that contains it, with the place in it.

    Raises:
        DataError: It is not a valid name.
    """
    problem = name_problem(value) if isinstance(value, str) else "is not text"
    if what == "case" and str(value).endswith("_seg"):  # CASE_seg.b2nd are the preprocessed labels of CASE
        problem = "ends with _seg, which nnU-Net takes for labels, so the case would not be trained on"
    if problem:
        place = f"{where}: " if where else ""
        raise DataError(
            f"{place}{what} {short(value)} {problem}",
            "use a name of at most 223 bytes without /, \\, control characters or a leading dot",
        )
    return str(value)


def name(value: Any, where: str, longest: int = NAME_MAX - RESERVED_BYTES) -> None:
    """Check that a value is a name, as a check of schema.py."""
    problem = name_problem(value, longest) if isinstance(value, str) else None
    if not isinstance(value, str):
        raise expected(value, where, "a name")
    if problem:
        raise Wrong(where, f"the name {short(value)} {problem}")


def to_file_name(text: str) -> str:
    """Return a file name for any text, such as a class `GTV/CTV`: characters that names must not have become `_`."""
    plain = re.sub(r"[^\w.+()-]+", "_", text.encode(errors="replace").decode()).strip(".") or "_"
    return plain.encode()[: NAME_MAX - RESERVED_BYTES].decode(errors="ignore")


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file; text that spreadsheets would compute gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_cells(values: Iterable[Any]) -> list[Any]:
    """Return the cells of a row of a CSV file."""
    return [csv_cell(value) for value in values]


def is_orientation(code: str) -> bool:
    """Return whether a code has one letter of each pair of sides."""
    return sorted(next((i for i, side in enumerate(SIDES) if letter in side), -1) for letter in code) == [0, 1, 2]
