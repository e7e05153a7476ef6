"""Validate a file's content with checks that mirror its structure and name the place of an error.

    PATCH = list_of(integer(1), least=2, most=3)
    check({"patch_size": [64, "x"]}, table({"patch_size": PATCH}), Path("plans.json"), "correct it")
    # DataError: 'plans.json': patch_size[1]: expected an integer of at least 1, got 'x'

Why not msgspec or pydantic: contents remain the dictionaries that nnU-Net takes, so classes would gain nothing; msgspec
does not name the key of a table in its errors (`$.configurations[...].patch_size[1]`) and accepts duplicate keys;
pydantic takes longer to load than our commands take to answer. kinds.py describes the files that nnU-Net and we write;
files.py reads JSON, yaml_values.py YAML.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from stunet.errors import DataError, StunetError, closest, short
from stunet.files import check_depth

# A check takes a value and its place in the file, and raises Wrong unless the value is right.
Check = Callable[[Any, str], None]


class Wrong(ValueError):
    """A value is not what it should be; `where` is its place in the file, or "" for the whole file."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.where, self.what = where, what


def expected(value: Any, where: str, what: str) -> Wrong:
    """Return the error for a value that is not `what`."""
    return Wrong(where, f"expected {what}, got {short(value)}")


def check(content: Any, kind: Check, file: object, hint: str, error: type[StunetError] = DataError) -> None:
    """Check the content of a file.

    Args:
        content: The parsed content.
        kind: What it should be.
        file: Its path, or words for it in the message.
        hint: The error's hint.
        error: Class of the error.

    Raises:
        StunetError: Of the class `error`: the first value that is wrong, with its place in the file.
    """
    try:
        kind(content, "")
    except Wrong as wrong:
        shown = file if isinstance(file, str) else repr(str(file))
        raise error(f"{shown}: {wrong}", hint) from None


def read_toml(path: Any, error: type[StunetError] = DataError) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        StunetError: Of the class `error`: the file is missing, unreadable or not TOML; the message names the line.
    """
    try:
        # `path` is a Path or, for files of this package, a Traversable of importlib; both have read_bytes().
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # Windows editors add a byte order mark
        check_depth(content)
        return content
    except FileNotFoundError:
        raise error(f"no file {str(path)!r}", "check the path") from None
    except UnicodeDecodeError as problem:
        raise error(f"{str(path)!r} is not UTF-8 text: {problem}", "save it as UTF-8") from None
    except OSError as problem:
        raise error(f"cannot read {str(path)!r}: {problem.strerror}", "check the path") from None
    except (ValueError, RecursionError) as problem:  # ValueError also for a number with too many digits
        raise error(f"{str(path)!r} is not valid TOML: {problem}", "correct the line") from None


def anything(value: Any, where: str) -> None:
    """Accept any value."""


def boolean(value: Any, where: str) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise expected(value, where, "true or false")


def text(value: Any, where: str) -> None:
    """Check for text that is not blank, has no null character and can be encoded in UTF-8."""
    if not isinstance(value, str) or not value.strip() or "\0" in value or not _encodable(value):
        raise expected(value, where, "text")


def integer(least: int | None = None, most: int | None = None) -> Check:
    """Return a check for an integer in a range, bounds included."""
    return _number(least, most, (int,), "an integer")


def number(least: float | None = None, most: float | None = None, *, above: float | None = None) -> Check:
    """Return a check for a finite number in a range, bounds included, or above a bound."""
    return _number(least, most, (int, float), "a number", above)


def _number(
    least: float | None, most: float | None, types: tuple[type, ...], name: str, above: float | None = None
) -> Check:
    if least is not None and most is not None:
        what = f"{name} from {least} to {most}"
    else:
        bounds = {"of at least": least, "above": above, "of at most": most}
        given = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        what = f"{name} {given}".strip()

    def found(value: Any, where: str) -> None:
        # The type itself, because bool is a subclass of int, and true is not a number.
        right = type(value) in types and (isinstance(value, int) or math.isfinite(value))
        right = right and abs(value) < 2**63  # a larger one does not fit into any array
        if not right or not (least is None or value >= least) or not (most is None or value <= most):
            raise expected(value, where, what)
        if above is not None and value <= above:
            raise expected(value, where, what)

    return found


def measured(value: Any, where: str) -> None:
    """Check for a number, or NaN or infinity, which nnU-Net writes where there was nothing to measure."""
    if type(value) not in (int, float):
        raise expected(value, where, "a number")


def one_of(*choices: Any) -> Check:
    """Return a check for one of these values; for an unknown text, the error suggests the closest one."""
    known = ", ".join(map(repr, choices))

    def found(value: Any, where: str) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):  # 1 == True
            near = closest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
            raise Wrong(where, f"expected one of {known}, got {short(value)}{near}")

    return found


def list_of(kind: Check, least: int = 0, most: int | None = None, name: str = "a list") -> Check:
    """Return a check for a list of values of one kind, with at least `least` and at most `most` items."""
    size = " that is not empty" * bool(least)
    if most:
        size = f" of {least}" if least == most else f" of {least} to {most}"

    def found(value: Any, where: str) -> None:
        listed = isinstance(value, list | tuple)
        if not listed or len(value) < least or (most is not None and len(value) > most):
            raise expected(value, where, name + size)
        for index, item in enumerate(value):
            kind(item, f"{where}[{index}]")

    return found


def dict_of(kind: Check, key: Check = text, least: int = 0) -> Check:
    """Return a check for a table with values of one kind, under any keys that pass the check `key`."""

    def found(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or len(value) < least:
            raise expected(value, where, "a table" + " that is not empty" * bool(least))
        for name, item in value.items():
            key(name, _below(where, name))
            kind(item, _below(where, name))

    return found


def table(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, others: bool = False) -> Check:
    """Return a check for a table with these keys.

    Args:
        required: Keys that must be present.
        optional: Keys that may be present.
        others: Whether to ignore any other keys, such as those that other programs add.
    """
    kinds = {**required, **(optional or {})}

    def found(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise expected(value, where, "a table")
        for key, item in value.items():
            if key in kinds:
                kinds[key](item, _below(where, key))
            elif not others:
                raise Wrong(where, f"unknown key {short(key)}{closest(str(key), list(kinds))}")
        if missing := [key for key in required if key not in value]:
            raise Wrong(where, f"missing {', '.join(map(repr, missing))}")

    return found


def either(what: str, *kinds: Check) -> Check:
    """Return a check for a value of one of the kinds, which `what` describes in words."""

    def found(value: Any, where: str) -> None:
        inner = []
        for kind in kinds:
            try:
                return kind(value, where)
            except Wrong as wrong:
                inner.append(wrong)
        # If a list or a table was intended and something in it is wrong, that is what the user needs to know.
        inside = [wrong for wrong in inner if wrong.where != where or not wrong.what.startswith("expected")]
        raise max(inside, key=lambda wrong: len(wrong.where)) if inside else expected(value, where, what)

    return found


def optional(kind: Check) -> Check:
    """Return a check for a value of the kind, or null."""

    def found(value: Any, where: str) -> None:
        if value is not None:
            kind(value, where)

    return found


def _below(where: str, key: Any) -> str:
    name = str(key) if isinstance(key, str) and key.isprintable() and len(key) <= 60 else short(key)
    return f"{where}.{name}" if where else name


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
