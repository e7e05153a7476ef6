"""A name that a file gives (of a case, dataset, plan or configuration) is a name, and never leads to another folder.

Everything that makes a path of such a name checks it here, on reading. What stands in a cell of a CSV file is also text
of somebody else: `cell` keeps spreadsheets from taking it for a formula.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from stunet.errors import DataError, short
from stunet.schema import Wrong, expected

SIDES = ("LR", "PA", "SI")  # of the patient, that an axis runs between
NAME_MAX = 255  # bytes of a file's name on the usual file systems
ROOM = 32  # bytes that we and nnU-Net put around a name: .part-PID-, _0000.nii.gz
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of pairs, line and paragraph separators
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that spreadsheets compute (OWASP, CSV injection)


def is_controlled(text: str) -> bool:
    """Whether a text has what moves the cursor or ends a line, or is not UTF-8."""
    return any(unicodedata.category(letter) in _REFUSED for letter in text)


def problem_of(name: str, longest: int = NAME_MAX - ROOM) -> str | None:
    """What keeps a text from being the name of a file, of `longest` bytes at most; None: nothing."""
    if not name.strip():
        return "is empty"
    if is_controlled(name):
        return "has a control character or is not UTF-8"
    if "/" in name or "\\" in name or os.sep in name:
        return "is a path, not a name"
    if name.startswith("."):
        return "begins with a dot"
    if len(name.encode()) > longest:
        return f"is longer than {longest} bytes"
    return None


def check_name(value: Any, what: str, where: str = "") -> str:
    """The name, where it can be that of a file.

    Args:
        value: What a file or a person gives.
        what: Of what it is the name: "case".
        where: The file that says so, with the place in it.

    Raises:
        DataError: It is not a name.
    """
    problem = problem_of(value) if isinstance(value, str) else "is not a text"
    if what == "case" and str(value).endswith("_seg"):  # CASE_seg.b2nd are the preprocessed labels of CASE
        problem = "ends with _seg, by which nnU-Net knows labels, and would not be trained with"
    if problem:
        place = f"{where}: " if where else ""
        raise DataError(
            f"{place}{what} {short(value)} {problem}",
            "a name of at most 223 bytes, without /, \\, control characters and a dot in front",
        )
    return str(value)


def name(value: Any, where: str, longest: int = NAME_MAX - ROOM) -> None:
    """A schema's check for a name."""
    problem = problem_of(value, longest) if isinstance(value, str) else None
    if not isinstance(value, str):
        raise expected(value, where, "a name")
    if problem:
        raise Wrong(where, f"the name {short(value)} {problem}")


def file_name(text: str) -> str:
    """A file's name for any text, such as a class `GTV/CTV`: what names must not have becomes `_`."""
    plain = re.sub(r"[^\w.+()-]+", "_", text.encode(errors="replace").decode()).strip(".") or "_"
    return plain.encode()[: NAME_MAX - ROOM].decode(errors="ignore")


def cell(value: Any) -> Any:
    """A value for a cell of a CSV file; a text that spreadsheets would compute gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """The cells of a row of a CSV file."""
    return [cell(value) for value in values]


def is_orientation(code: str) -> bool:
    """Whether it has one letter of each pair of sides."""
    return sorted(next((i for i, side in enumerate(SIDES) if letter in side), -1) for letter in code) == [0, 1, 2]
