"""Read which value in label files is which class, from common formats: ITK-SNAP, CSV, TSV, JSON, TOML, plain names.

The values need not be consecutive as nnU-Net requires; `renumber` makes them so.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stunet.errors import DataError, UsageError
from stunet.files import read_json
from stunet.kinds import LARGEST_LABEL
from stunet.labels import systems

EXAMPLE = "liver spleen, or a file: ITK-SNAP's, .csv or .tsv with index and name, .json or .toml"
VALUES, NAMES = ("index", "value", "id", "idx", "label"), ("name", "class", "structure", "label")  # names of columns
ITK_SNAP = re.compile(r'(\d+)(?:\s+\d+){3}\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"')  # IDX R G B A VIS MSH "LABEL"
NUMBERED = re.compile(r"(\d+)[\s,;:=]+(.+)")
IGNORE = "ignore"  # nnU-Net's name for voxels that do not count


def read_labels(given: Sequence[str]) -> dict[int, str]:
    """Return class names by value, without the background; several values may share a name.

    Args:
        given: A file, or names for the values 1, 2, ...

    Raises:
        DataError: The file cannot be read, or is not a list of labels.
        UsageError: A name is given twice.
    """
    path = Path(given[0])
    if (
        len(given) == 1
        and path.suffix
        and (path.is_file() or path.suffix in (".txt", ".csv", ".tsv", ".json", ".toml"))
    ):
        return _checked(_read_file(path), repr(str(path)))
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice:
        raise UsageError(f"--labels names {twice!r} twice", EXAMPLE)
    return _checked(list(enumerate(given, start=1)), "--labels")


def renumber(names: Mapping[int, str]) -> tuple[dict[str, int], dict[int, int]]:
    """Return `labels` for a dataset.json, and the new value by old value.

    The new values are consecutive, in the order of the old ones, except that `ignore` comes last.
    """
    ordered = [names[value] for value in sorted(names)]
    classes = sorted(dict.fromkeys(ordered), key=lambda name: name == IGNORE)  # stable: only ignore moves to the end
    new = {"background": 0, **{name: value for value, name in enumerate(classes, start=1)}}
    return new, {0: 0, **{value: new[name] for value, name in names.items()}}


def _read_file(path: Path) -> list[tuple[Any, str]]:
    if not path.is_file():
        raise DataError(f"no list of labels {str(path)!r}", EXAMPLE)
    if path.suffix == ".toml":
        system = systems.load(str(path))
        return [(value, entry.name) for entry in system.classes for value in entry.labels]
    if path.suffix == ".json":
        return _from_json(read_json(path), path)
    try:
        # -sig: spreadsheets begin such a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", EXAMPLE) from None
    if path.suffix in (".csv", ".tsv"):
        return _from_table(text, path)
    return _from_lines(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def _from_json(content: Any, path: Path) -> list[tuple[Any, str]]:
    """Return the entries of {"liver": 1}, {"1": "liver"}, a list of names, or a dataset.json."""
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content = content["labels"]
    if isinstance(content, list):
        return list(enumerate(content, start=1))
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} is not a list of labels but a {type(content).__name__}", '{"liver": 1}')
    return [(name, value) if isinstance(value, str) else (value, name) for name, value in content.items()]


def _from_table(text: str, path: Path) -> list[tuple[Any, str]]:
    lines = text.splitlines()
    separator = max("\t;,", key=lines[0].count) if lines else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator) if any(row)]
    except csv.Error as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", EXAMPLE) from None
    header = [cell.casefold() for cell in rows[0]] if rows else []
    # A column `label` may be either: it is the name if there is another one for the value.
    value = next((header.index(name) for name in VALUES if name in header), None)
    name = next((header.index(n) for n in NAMES if n in header and header.index(n) != value), None)
    if value is None or name is None:
        found = ", ".join(map(repr, header)) or "nothing"
        raise DataError(f"{str(path)!r} has no columns index and name (there: {found})", "index,name in the first line")
    short = next((row for row in rows if len(row) <= max(value, name)), None)
    if short:
        raise DataError(
            f"{str(path)!r} has the line {separator.join(short)!r} with too few columns", "correct the line"
        )
    return [(row[value], row[name]) for row in rows[1:]]


def _from_lines(lines: Iterable[str]) -> list[tuple[Any, str]]:
    entries: list[tuple[Any, str]] = []
    for line in lines:
        match = ITK_SNAP.fullmatch(line) or NUMBERED.fullmatch(line)
        entries.append((match[1], match[2]) if match else (len(entries) + 1, line))
    return entries


def _checked(entries: Sequence[tuple[Any, Any]], where: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for value, name in entries:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(f"{where}: value {value!r} has the name {name!r}", EXAMPLE)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)) or int(value) > LARGEST_LABEL:
            hint = "one value per class; regions of several values are made in dataset.json afterwards"
            raise DataError(f"{where}: {name!r} is {value!r}, not an integer from 0 to {LARGEST_LABEL}", hint)
        number, name = int(value), name.strip()
        if number == 0:  # "Clear Label", "background"
            continue
        if name == "background":
            raise DataError(f"{where}: background is {number}", "the background is 0; give this value another name")
        if names.setdefault(number, name) != name:
            raise DataError(f"{where}: value {number} is {names[number]!r} and {name!r}", "keep one of the two")
    if not set(names.values()) - {IGNORE}:
        raise DataError(f"{where} names no class", EXAMPLE)
    return names
