"""Match class names: which are the same class, which make up another one, and which are left and right.

`left kidney`, `kidney_left`, `LK` and `Kidney (left)` are one class; `kidney` is that and its right twin. What is not
just a matter of spelling is listed in presets/aliases.toml. This module also determines which row of a head a class is.
Used by systems.py, weights/ and models/; planner, trainers and merging ask it which classes a mirror exchanges.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

OPPOSITE = {"left": "right", "right": "left"}
FILLERS = {"the", "of"}
NEAREST = 3  # names shown for an unknown one, however distant

_NUMBER = re.compile(r"\d+|[clst]\d{1,2}")  # of a rib, or a level of the spine
_CHAMBER = re.compile(r"(?<![a-z])([lr][va])(?=(?:endo|epi|myo|wall|cav|bp|blood))", re.IGNORECASE)  # LVendo
_CLEAR = 4  # letters: a word that is shorter without its l or r could mean anything (LCA)
_NO_PLURAL = ("ss", "us", "is", "as", "os")  # humerus, pelvis, pancreas


@dataclass(frozen=True)
class ClassMatch:
    """Where a class of a target comes from.

    Attributes:
        target: Its name.
        sources: Names in the source that it is the union of; none if it is new.
        closest: For a new one, the names in the source that resemble it most.
    """

    target: str
    sources: tuple[str, ...]
    closest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sides:
    """Which classes of a list are on the left or on the right of the body; false if none are.

    Attributes:
        pairs: (left, right) with the same name: the kidneys, and the atria of the heart.
        images: Those of the pairs that are each other's mirror image: the kidneys, but not the atria.
        others: Classes of one side that a mirror turns into something without a name: their twin is not among the
            classes, or is not their mirror image, or an abbreviation makes it uncertain.
    """

    pairs: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.pairs or self.others)


@dataclass(frozen=True)
class _Parts:
    """The parts of a name: its words without order, its side, its number; the latter two may be empty."""

    words: frozenset[str]
    side: str = ""
    number: str = ""


def canonical(name: str) -> str:
    """Return the one spelling of all names of a class; the words of an unknown name are sorted.

    Examples:
        >>> canonical("L Kidney"), canonical("Kidney (left)")
        ('kidney_left', 'kidney_left')
    """
    parts = _parts(name)
    return _names().get(parts) or _spell(parts)


def name_of_key(key: str, labels: Mapping[str, Any]) -> str:
    """Return the name of a class in nnU-Net's summary.json, where it is the text of its value or values.

    Examples:
        >>> name_of_key("(1, 2)", {"background": 0, "whole": [1, 2], "core": 2})
        'whole'
        >>> name_of_key("(1, 2)", {"background": 0, "left": 1, "right": 2})
        'left + right'

    Args:
        key: Such as `1` or `(1, 2)`.
        labels: Those of the model's dataset.json.
    """
    keys = {str(tuple(value) if isinstance(value, list | tuple) else value): name for name, value in labels.items()}
    return name_by_key(key, keys)


def name_by_key(key: str, names: Mapping[str, str]) -> str:
    """Return the same where the names of classes are known by key; a union without one is named after its parts."""
    return names.get(key) or " + ".join(names.get(value, value) for value in re.findall(r"\d+", key)) or key


def match_classes(targets: Sequence[str], sources: Sequence[str]) -> list[ClassMatch]:
    """Return one row per target, in their order: the source classes that it consists of, by name.

    The identical name comes first, then another name of the same class, then a union of which every part is present. A
    class that the source has under two names is not a match: both are among the closest, and one has to be renamed.

    Examples:
        >>> [row.sources for row in match_classes(["Kidney", "LK"], ["kidney_left", "kidney_right"])]
        [('kidney_left', 'kidney_right'), ('kidney_left',)]

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
        rows.append(ClassMatch(target, found, () if found else _closest(target, known)))
    return rows


def sides(names: Iterable[str]) -> Sides:
    """Return which of these classes are left and right, for mirroring training images and exchanging labels.

    A side is a word (`kidney_left`, `L kidney`, `KidneyL`), part of a known abbreviation (`LAG`), or an l in one name
    and an r in another (`lpsoas`, `rpsoas`) if neither is a word of its own (`liver`, `river`).

    Examples:
        >>> sides(["KidneyL", "KidneyR", "liver"]).images
        (('KidneyL', 'KidneyR'),)
    """
    names = list(dict.fromkeys(names))
    places: dict[_Place, list[str]] = {}
    for name in names:
        places.setdefault(_place(name), []).append(name)
    pairs, images = [], []
    for place, own in places.items():
        twins = places.get(place.mirrored, [])
        if place.sides[:1] == ("left",) and len(own) == len(twins) == 1:
            pairs.append((own[0], twins[0]))
            images += [] if _uneven(place.words) else pairs[-1:]
    for left, right, clear in _by_letter([name for place, own in places.items() if not place.sides for name in own]):
        pairs.append((left, right))
        images += [(left, right)] if clear else []
    exchanged = {name for pair in images for name in pair}
    sided = {name for place, own in places.items() if len(set(place.sides)) == 1 for name in own}
    sided |= {name for pair in pairs for name in pair}
    return Sides(tuple(pairs), tuple(images), tuple(n for n in names if n in sided - exchanged))


@dataclass(frozen=True)
class _Place:
    """A name without its sides, its words, and its sides: none, one, or several that a mirror exchanges together."""

    name: str
    words: frozenset[str]
    sides: tuple[str, ...] = ()

    @property
    def mirrored(self) -> "_Place":
        return replace(self, sides=tuple(OPPOSITE[side] for side in self.sides))


def _place(name: str) -> _Place:
    parts = _parts(canonical(name))
    if parts.side:
        return _Place(_spell(replace(parts, side="")), parts.words, (parts.side,))
    split = [_split(token) for token in _tokens(name)]
    tokens = [word for _, words in split for word in words]
    numbers = [token for token in tokens if _NUMBER.fullmatch(token)]
    words = frozenset(_word(token) for token in tokens if token not in (*FILLERS, *numbers))
    base = _names().get(_Parts(words)) or "_".join(sorted(words))
    return _Place("_".join([base, *numbers]), words, tuple(side for side, _ in split if side))


def _split(token: str) -> tuple[str, list[str]]:
    """Split a word into its side, or "", and the rest: `lk` into left and kidney, `rightfemur` into right and femur."""
    if token in _sides():
        return _sides()[token], []
    known = _parts(_names().get(_Parts(frozenset([_word(token)])), ""))
    if known.side:
        return known.side, sorted(known.words)
    if not _is_word(token):
        for side in OPPOSITE:
            for rest in (token.removeprefix(side), token.removesuffix(side), token.removeprefix(side[0])):
                if rest != token and len(rest) >= len("hip") and _is_word(rest):
                    return side, [rest]
    return "", [token]


def _by_letter(names: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield names that differ only in left/right or l/r at the start or end of one word, and whether that is clear."""
    by_tokens = {tuple(_tokens(name)): name for name in names}
    for tokens, name in by_tokens.items():
        for place, token in enumerate(tokens):
            for twin, rest in _twins(token):
                other = by_tokens.get((*tokens[:place], twin, *tokens[place + 1 :]))
                if other and not _is_word(token) and not _is_word(twin):
                    words = frozenset(map(_word, (*tokens[:place], rest, *tokens[place + 1 :])))
                    clear = len(rest) >= _CLEAR or (rest.isdigit() and len(tokens) > 1)
                    yield name, other, clear and not _uneven(words)


def _twins(token: str) -> Iterator[tuple[str, str]]:
    """Yield the same word for the right side, if this is one for the left, and what it contains besides the side."""
    for left, right in (("left", "right"), ("l", "r")):
        if token.startswith(left) and (rest := token.removeprefix(left)):
            yield right + rest, rest
        if token.endswith(left) and (rest := token.removesuffix(left)):
            yield rest + right, rest


def _uneven(words: frozenset[str]) -> bool:
    """Return whether left and right with these words are not mirror images of each other."""
    table = _aliases()["uneven"]
    named, but = (any(_parts(entry).words <= words for entry in table[key]) for key in ("parts", "but_not"))
    return named and not but


def _is_word(token: str) -> bool:
    return _word(token) in _vocabulary()


def head_classes(labels: Mapping[str, Any]) -> list[str]:
    """Return the `labels` of a dataset.json in the order of the head's rows, as in nnU-Net; regions lack background.

    A list of one value is a single class. Regions, of which one has several values, keep the order of the file.
    """
    values = {name: value if isinstance(value, list | tuple) else [value] for name, value in labels.items()}
    values.pop("ignore", None)
    # As in nnU-Net's LabelManager: only a list of several values makes regions.
    if any(len(value) > 1 for value in values.values()):
        return [name for name, value in values.items() if {int(v) for v in value} != {0}]
    return sorted(values, key=lambda name: int(values[name][0]))


def region_values(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the rows of a head for regions, in the network's order, as `rows`; nothing without regions.

    Args:
        description: A dataset.json; its `labels` may be missing.
    """
    labels = description.get("labels") or {}
    rows = [list(v) if isinstance(v := labels[name], list | tuple) else [v] for name in head_classes(labels)]
    return {"rows": rows} if any(len(values) > 1 for values in rows) else {}


def _resolve(name: str, known: Mapping[str, list[str]]) -> tuple[str, ...]:
    if name in known:
        # One class under two names: which one is meant is unknown.
        return tuple(known[name]) if len(known[name]) == 1 else ()
    parts = [_resolve(member, known) for member in _members(name)]
    return tuple(source for part in parts for source in part) if all(parts) else ()


def _members(name: str) -> tuple[str, ...]:
    """Return the classes that this one is the union of, from the table or as its two sides; none for a side."""
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
    tokens = _tokens(name)
    sides = {_sides()[token] for token in tokens if token in _sides()}
    numbers = [token for token in tokens if _NUMBER.fullmatch(token)]
    words = [token for token in tokens if token not in (*_sides(), *FILLERS, *numbers)]
    if not words and numbers and not numbers[0].isdigit():
        words = ["vertebra"]  # a level alone: C1, T12, L5
    if not words or len(sides) > 1 or len(numbers) > 1:  # left and right, or a range: kept as it is
        return _Parts(frozenset(tokens or [name]))
    return _Parts(frozenset(map(_word, words)), "".join(sides), "".join(numbers))


def _tokens(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _CHAMBER.sub(r"\1 ", name))  # LeftKidney
    spaced = re.sub(r"(?<![A-Za-z])([LR])(?=[A-Z][a-z])", r"\1 ", spaced)  # LKidney
    # Chinese writes the side directly before the noun: 左肾.
    spaced = re.sub(r"([左右])", r" \1 ", spaced)
    spaced = re.sub(r"[/+&|]", " and ", spaced)
    # Th12 is T12.
    return [re.sub(r"^th(?=\d)", "t", token) for token in re.findall(r"[^\W_]+", spaced.casefold())]


def _word(token: str) -> str:
    spellings: dict[str, str] = _aliases()["words"]
    if len(token) > 3 and token.endswith("s") and not token.endswith(_NO_PLURAL) and token not in spellings:
        token = token[:-1]
    return spellings.get(token, token)


@cache
def _aliases() -> dict[str, Any]:
    return tomllib.loads((files("stunet.presets") / "aliases.toml").read_text())


@cache
def _sides() -> dict[str, str]:
    return {word: side for side in OPPOSITE for word in (side, *_aliases()["sides"][side])}


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(word for parts in _names() for word in parts.words)


@cache
def _names() -> dict[_Parts, str]:
    return {_parts(alias): name for name, others in _aliases()["names"].items() for alias in (name, *others)}


@cache
def _groups() -> dict[str, tuple[str, ...]]:
    return {canonical(name): tuple(map(canonical, members)) for name, members in _aliases()["groups"].items()}
