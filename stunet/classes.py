"""Do two names mean the same class, and which classes of one list make up those of another?

`left kidney`, `kidney_left`, `LK` and `Kidney (left)` are one class, `kidney` is that and its right twin. What is not
a matter of spelling stands in presets/aliases.toml. Here is also which row of a head a class is. labels.py, weights/
and models/ use this.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
FILLERS = {"the", "of"}
NEAREST = 3  # names that are shown for one that is unknown, however far

_NUMBER = re.compile(r"\d+|[clst]\d{1,2}")  # of a rib, or a level of the spine
_NO_PLURAL = ("ss", "us", "is", "as", "os")  # humerus, pelvis, pancreas


@dataclass(frozen=True)
class Row:
    """Where a class of a target comes from.

    Attributes:
        target: Its name.
        sources: Names in the source that it is the union of: none where it is new.
        closest: For a new one, the names in the source that look most like it.
    """

    target: str
    sources: tuple[str, ...]
    closest: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Parts:
    """A name taken apart: its words in no order, its side, its number; the latter two may be empty."""

    words: frozenset[str]
    side: str = ""
    number: str = ""


def canonical(name: str) -> str:
    """The one spelling of all names of a class: `kidney_left` for `L Kidney`; an unknown name is its words, sorted."""
    parts = _parts(name)
    return _names().get(parts) or _spell(parts)


def match_classes(targets: Sequence[str], sources: Sequence[str]) -> list[Row]:
    """One row per target, in their order: the source classes that it is, by name.

    The very same name comes first, then another name of the same class, then a union of which every part is there. A
    class that the source has under two names is no match: both are among the closest, and one has to be renamed.

    Args:
        targets: Class names without the background.
        sources: Class names without the background.
    """
    known: dict[str, list[str]] = {}
    for source in sources:
        known.setdefault(canonical(source), []).append(source)
    rows = []
    for target in targets:
        found = (target,) if target in sources else _resolve(canonical(target), known)
        rows.append(Row(target, found, () if found else _closest(target, known)))
    return rows


def head_classes(labels: Mapping[str, Any]) -> list[str]:
    """The `labels` of a dataset.json in the order of the head's rows, as in nnU-Net; regions have no background.

    A list of one value is a single class. Regions, of which one has several values, stay in the order of the file.
    """
    values = {name: value if isinstance(value, list | tuple) else [value] for name, value in labels.items()}
    values.pop("ignore", None)
    if any(len(value) > 1 for value in values.values()):
        return [name for name, value in values.items() if {int(v) for v in value} != {0}]
    return sorted(values, key=lambda name: int(values[name][0]))


def _resolve(name: str, known: Mapping[str, list[str]]) -> tuple[str, ...]:
    if name in known:
        return tuple(known[name]) if len(known[name]) == 1 else ()
    parts = [_resolve(member, known) for member in _members(name)]
    return tuple(source for part in parts for source in part) if all(parts) else ()


def _members(name: str) -> tuple[str, ...]:
    """The classes that this one is the union of, by the table or as its two sides; none for a side."""
    parts = _parts(name)
    if name in _groups() or parts.side:
        return _groups().get(name, ())
    # Not canonical(): `ventricle` may be the brain's, although `left ventricle` is the heart's.
    sides = _spell(replace(parts, side="left")), _spell(replace(parts, side="right"))
    return sides if all(_parts(side).side for side in sides) else ()


def _closest(target: str, known: Mapping[str, list[str]]) -> tuple[str, ...]:
    near = get_close_matches(canonical(target), known, n=NEAREST, cutoff=0.0)
    return tuple(source for name in near for source in known[name])[:NEAREST]


def _spell(parts: _Parts) -> str:
    base = _names().get(_Parts(parts.words)) or "_".join(sorted(parts.words))
    return "_".join(filter(None, (base, parts.side, parts.number)))


def _parts(name: str) -> _Parts:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # LeftKidney
    spaced = re.sub(r"[/+&|]", " and ", spaced)
    tokens = [re.sub(r"^th(?=\d)", "t", token) for token in re.findall(r"[^\W_]+", spaced.casefold())]
    sides = {SIDES[token] for token in tokens if token in SIDES}
    numbers = [token for token in tokens if _NUMBER.fullmatch(token)]
    words = [token for token in tokens if token not in (*SIDES, *FILLERS, *numbers)]
    if not words and numbers and not numbers[0].isdigit():
        words = ["vertebra"]  # a level alone: C1, T12, L5
    if not words or len(sides) > 1 or len(numbers) > 1:  # left and right, or a range: taken as it stands
        return _Parts(frozenset(tokens or [name]))
    return _Parts(frozenset(map(_word, words)), "".join(sides), "".join(numbers))


def _word(token: str) -> str:
    spellings: dict[str, str] = _aliases()["words"]
    if len(token) > 3 and token.endswith("s") and not token.endswith(_NO_PLURAL) and token not in spellings:
        token = token[:-1]
    return spellings.get(token, token)


@cache
def _aliases() -> dict[str, Any]:
    return tomllib.loads((files("stunet.presets") / "aliases.toml").read_text())


@cache
def _names() -> dict[_Parts, str]:
    return {_parts(alias): name for name, others in _aliases()["names"].items() for alias in (name, *others)}


@cache
def _groups() -> dict[str, tuple[str, ...]]:
    return {canonical(name): tuple(map(canonical, members)) for name, members in _aliases()["groups"].items()}
