"""Is a value of a YAML file what it should be? Each function returns the value, or says where it stands and what it is.

recipe.py reads merge.yaml with these.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stunet.errors import DataError, closest


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which does not take a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    try:
        return yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "give a merge.yaml, see docs/pretraining.md") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise DataError(f"{str(path)!r} is no YAML: {text}", "correct the line") from None


def text(path: Path) -> str:
    """The content of a text file."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "one class per line") from None


def table(content: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """A table without unknown keys."""
    if not isinstance(content, Mapping):
        raise DataError(f"{where} is {content!r}, not a table", f"keys: {', '.join(known)}")
    for key in content:
        if key not in known:
            raise DataError(
                f"{where} has the unknown key {key!r}{closest(str(key), list(known))}", f"keys: {', '.join(known)}"
            )
    return dict(content)


def name_list(content: Any, where: str, hint: str) -> tuple[str, ...]:
    """A list of names; a number is one, too."""
    if not isinstance(content, list | tuple) or not all(isinstance(name, str | int) for name in content):
        raise DataError(f"{where}: {content!r} is no list of names", hint)
    return tuple(str(name) for name in content)


def one_of(value: Any, choices: Sequence[Any], where: str) -> Any:
    """One of the choices."""
    if value not in choices:
        raise DataError(f"{where} is {value!r}", f"one of {', '.join(map(str, choices))}")
    return value


def number(value: Any, valid: Callable[[float], bool], where: str, hint: str) -> float:
    """A finite number for which `valid` holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not valid(value):
        raise DataError(f"{where} is {value!r}", hint)
    return float(value)


def triple(content: Any, kind: type, where: str) -> tuple[Any, ...] | None:
    """Three positive numbers, or None for none."""
    if content is None:
        return None
    if not isinstance(content, list) or len(content) != 3:
        raise DataError(f"{where} is {content!r}", f"{where.split('.')[1]}: three numbers, in the order of arrays")
    return tuple(kind(number(x, lambda n: n > 0 and kind(n) == n, where, "three positive numbers")) for x in content)
