"""Validate values of a YAML file: each function returns the value, or raises an error with its place and content.

recipe.py reads merge.yaml with these functions.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stunet.errors import DataError, closest, short

MAX_VALUES = 1_000_000
# What PyYAML's constructors raise for values that do not fit their type: a 13th month, !!bool x, too many digits.
_CONSTRUCTING = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; keys are strings or integers, and aliases cannot make a small file huge.

    Raises:
        DataError: The file is missing, unreadable or not YAML; the message names the line.
    """
    try:
        content = yaml.load(path.read_bytes().decode("utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "give a merge.yaml, see docs/pretraining.md") from None
    except (yaml.YAMLError, *_CONSTRUCTING) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{str(path)!r} is not YAML: {words}", "correct the line") from None
    _check_tree(content, path)
    return content


def _check_tree(content: Any, path: Path) -> None:
    """Check the number of values with every alias expanded, the keys, and texts for null characters."""
    left, count = [content], 0
    while left:
        item, count = left.pop(), count + 1
        if count > MAX_VALUES:
            raise DataError(f"{str(path)!r} has more than {MAX_VALUES} values", "leave out its aliases (*name)")
        if isinstance(item, Mapping):
            for key in item:
                if isinstance(key, bool) or not isinstance(key, str | int):  # yes, no, on, null, 2024-01-01
                    raise DataError(f"{str(path)!r} has the key {key!r}, not a text", "put it in quotes")
            left += [*item, *item.values()]
        elif isinstance(item, list | tuple | set):
            left += item
        elif isinstance(item, str) and "\0" in item:
            raise DataError(f"{str(path)!r} has the text {short(item)}", "leave the null character out")


def text(path: Path) -> str:
    """Return the content of a text file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "one class per line") from None


def table(content: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """Return a table, which must not have unknown keys."""
    if not isinstance(content, Mapping):
        raise DataError(f"{where} is {short(content)}, not a table", f"keys: {', '.join(known)}")
    for key in content:
        if key not in known:
            raise DataError(
                f"{where} has the unknown key {key!r}{closest(str(key), list(known))}", f"keys: {', '.join(known)}"
            )
    return dict(content)


def name_list(content: Any, where: str, hint: str) -> tuple[str, ...]:
    """Return a list of names; a number counts as a name."""
    listed = isinstance(content, list | tuple)
    if not listed or not all(isinstance(item, str | int) and not isinstance(item, bool) for item in content):
        raise DataError(f"{where}: {short(content)} is not a list of names; no, yes, on and off need quotes", hint)
    return tuple(str(name) for name in content)


def one_of(value: Any, choices: Sequence[Any], where: str) -> Any:
    """Return a value that must be one of the choices."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise DataError(f"{where} is {short(value)}", f"one of {', '.join(map(str, choices))}")
    return value


def number(value: Any, valid: Callable[[float], bool], where: str, hint: str) -> float:
    """Return a finite number for which `valid` must hold."""
    # float() is exact for integers below 2**53.
    right = type(value) in (int, float) and abs(value) < 2**53 and valid(value)  # comparing NaN is always false
    if not right:
        raise DataError(f"{where} is {short(value)}", hint)
    return float(value)


def triple(content: Any, kind: type, where: str) -> tuple[Any, ...] | None:
    """Return three positive numbers, or None if no value is given."""
    if content is None:
        return None
    if not isinstance(content, list) or len(content) != 3:
        raise DataError(f"{where} is {short(content)}", f"{where.split('.')[1]}: three numbers, in the order of arrays")
    return tuple(kind(number(x, lambda n: n > 0 and kind(n) == n, where, "three positive numbers")) for x in content)
