"""Read the CSV files of stunet_features: targets to probe for, and points.

Columns may be separated by commas, semicolons or tabs; their names are in the first line, in any case.
"""

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stunet.errors import DataError, UsageError, closest

CLASSIFICATION, REGRESSION = "classification", "regression"
TASKS = (CLASSIFICATION, REGRESSION)
MOST_CLASSES = 10  # different whole numbers that are still taken for classes
OF_A_LINE = ("case", "subject", "name")  # columns that say what a line is of
MISSING = ("", "na", "n/a", "nan", "null")  # how R, pandas and databases write a value that is not there
TARGETS_EXAMPLE = "case,diagnosis, then one line per case: scan_001,benign"
POINTS_EXAMPLE = "case,x,y,z (and name, if points have names), then one line per point, in mm"


@dataclass(frozen=True)
class Target:
    """What is predicted from features.

    Attributes:
        name: Of the column.
        task: CLASSIFICATION or REGRESSION.
        values: By case, and by the name of a row of its features, "" for every row.
        subjects: By case, as far as the file says it.
    """

    name: str
    task: str
    values: Mapping[tuple[str, str], str | float]
    subjects: Mapping[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """The cases that have a value, sorted."""
        return sorted({case for case, _ in self.values})

    @property
    def by_row(self) -> bool:
        """Whether each row of features has a value of its own."""
        return any(name for _, name in self.values)


def read_targets(path: Path, columns: Sequence[str] = (), task: str | None = None) -> list[Target]:
    """Read what cases are to be probed for: a line per case, or per case and row of features (column `name`).

    Args:
        path: The file, with the column `case`, and `subject` where cases of one person have several names.
        columns: The targets; empty: all other columns.
        task: Of all targets; None: classification for text and for up to MOST_CLASSES different whole numbers.

    Raises:
        DataError: The file cannot be read, has no such column, or a line contradicts another one.
    """
    names, lines = _read(path, ("case",), TARGETS_EXAMPLE)
    given = [name for name in names if name not in OF_A_LINE]
    if unknown := [name for name in columns if name.lower() not in given]:
        what = f"{str(path)!r} has no column {unknown[0]!r}{closest(unknown[0], given)} (there: {', '.join(given)})"
        raise DataError(what, f"--target {given[0]}" if given else TARGETS_EXAMPLE)
    if not given:
        raise DataError(f"{str(path)!r} has no column with a target besides {', '.join(names)}", TARGETS_EXAMPLE)
    subjects: dict[str, str] = {}
    for number, line in lines:
        case, subject = line["case"], line.get("subject", "")
        if subject.lower() not in MISSING and subjects.setdefault(case, subject) != subject:
            what = f"line {number} of {str(path)!r}: case {case!r} is of {subject!r} and of {subjects[case]!r}"
            raise DataError(what, "one subject per case")
    found = []
    for column in [name.lower() for name in columns] or given:
        texts: dict[tuple[str, str], str] = {}
        for number, line in lines:
            key = (line["case"], line.get("name", ""))
            if line[column].lower() not in MISSING and texts.setdefault(key, line[column]) != line[column]:
                what = f"line {number} of {str(path)!r}: {' '.join(filter(None, key))!r} has two values of {column!r}"
                raise DataError(what, "remove one of the lines; a column `name` tells rows of one case apart")
        if not texts:
            raise DataError(f"{str(path)!r}: the column {column!r} is empty", TARGETS_EXAMPLE)
        if len({bool(name) for _, name in texts}) > 1:
            raise DataError(f"{str(path)!r}: `name` is empty in some lines", "fill it in everywhere, or nowhere")
        chosen = task or _task_of(list(texts.values()))
        values: dict[tuple[str, str], str | float] = {key: _class_name(text) for key, text in texts.items()}
        if chosen == REGRESSION:
            values = {key: _number(text) for key, text in texts.items()}
            if wrong := [key for key, value in values.items() if not math.isfinite(float(value))]:
                what = f"{str(path)!r}: {texts[wrong[0]]!r} of case {wrong[0][0]!r} in {column!r} is not a number"
                raise DataError(what, f"correct it, or --task {CLASSIFICATION}")
        found.append(Target(column, chosen, values, subjects))
    return found


@dataclass(frozen=True)
class CasePoints:
    """Points of a case: their names, and (x, y, z) of each in mm."""

    names: tuple[str, ...]
    at: tuple[tuple[float, float, float], ...]


def read_points(path: Path) -> dict[str, CasePoints]:
    """Read points by case.

    Raises:
        DataError: The file cannot be read, a coordinate is not a number, or a case has a name twice.
    """
    _, lines = _read(path, ("case", "x", "y", "z"), POINTS_EXAMPLE)
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for number, line in lines:
        of_case = found.setdefault(line["case"], {})
        name = line.get("name") or str(len(of_case) + 1)
        x, y, z = (_number(line[axis]) for axis in "xyz")
        if not all(map(math.isfinite, (x, y, z))):
            what = f"line {number} of {str(path)!r}: {line['x']!r}, {line['y']!r}, {line['z']!r} are not three numbers"
            raise DataError(what, POINTS_EXAMPLE)
        if name in of_case:
            what = f"line {number} of {str(path)!r}: case {line['case']!r} has two points {name!r}"
            raise DataError(what, "another name for one of them")
        of_case[name] = (x, y, z)
    return {case: CasePoints(tuple(points), tuple(points.values())) for case, points in found.items()}


def check_cases(named: Collection[str], there: Collection[str], path: Path, where: Path) -> None:
    """Check that all cases of a file exist.

    Raises:
        DataError: One does not; the message names the closest.
    """
    if unknown := sorted({*named} - {*there}):
        more = f", nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
        what = f"{str(path)!r} has the case {unknown[0]!r}, which is not among the images in {str(where)!r}{more}"
        raise DataError(f"{what}{closest(unknown[0], sorted(there))}", "correct its name, or remove its line")


def check_task(task: str | None) -> None:
    """Raise a UsageError if there is no such task."""
    if task not in (None, *TASKS):
        raise UsageError(f"--task {task!r}", f"one of {', '.join(TASKS)}")


def _read(path: Path, needed: Sequence[str], example: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of columns, and the lines with their numbers; cells without spaces around them."""
    try:
        # -sig: spreadsheets begin such a file with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True))
    except FileNotFoundError:
        raise DataError(f"no file {str(path)!r}", example) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", example) from None
    names = [name.strip().lower() for name in rows[0]] if rows else []
    if lacking := [name for name in needed if name not in names]:
        near = closest(lacking[0], names)
        there = ", ".join(map(repr, names)) or "nothing"
        raise DataError(f"{str(path)!r} has no column {lacking[0]!r}{near} (there: {there})", example)
    if len({*names}) != len(names):
        raise DataError(f"{str(path)!r} has two columns of one name: {', '.join(names)}", "rename one of them")
    lines = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise DataError(f"line {number} of {str(path)!r} has {len(row)} cells for {len(names)} columns", example)
        lines.append((number, {name: cell.strip() for name, cell in zip(names, row, strict=True)}))
        if not lines[-1][1]["case"]:
            raise DataError(f"line {number} of {str(path)!r} names no case", example)
    if not lines:
        raise DataError(f"{str(path)!r} has no line besides the names of its columns", example)
    return names, lines


def _task_of(texts: Sequence[str]) -> str:
    numbers = [_number(text) for text in texts]
    if not all(map(math.isfinite, numbers)):
        return CLASSIFICATION
    whole = all(number == int(number) for number in numbers)
    return CLASSIFICATION if whole and len({*numbers}) <= MOST_CLASSES else REGRESSION


def _class_name(text: str) -> str:
    """Return the name of a class; 1 and 1.0 are the same."""
    number = _number(text)
    return f"{number:g}" if math.isfinite(number) else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
