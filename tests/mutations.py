"""Damage to files of JSON, YAML and TOML, as people, other programs and copies do it; seeded."""

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

import yaml

# What stands where something else should.
VALUES: list[Callable[[Any], Any]] = [
    *(
        lambda old, new=new: new
        for new in (
            None,
            True,
            False,
            -1,
            0,
            1,
            3.5,
            10**30,
            math.nan,
            math.inf,
            -math.inf,
            1e-300,
            "",
            " ",
            "x",
            "3",
            "Ω",
            "../../x",
            "/abs/x",
            "a\\b",
            "a/b",
            "..",
            ".",
            "a\x00b",
            "a\nb",
            "\ud800",
            "=1+1",
            [],
            {},
            [[]],
            [None],
            {"": 0},
        )
    ),  # fmt: skip
    lambda old: [old],
    lambda old: {"x": old},
    lambda old: str(old),
    lambda old: [old, old],
    lambda old: "n" * 400,
    lambda old: -old if type(old) in (int, float) else [old, 1],
    lambda old: old * 1e6 if type(old) in (int, float) else old,
    lambda old: [*old, *old] if isinstance(old, list) else list(old) if isinstance(old, dict) else old,
    lambda old: old[:-1] if isinstance(old, list) else old,
    lambda old: [*old, "x"] if isinstance(old, list) else old,
]


def damaged(content: Any, ending: str, seed: int) -> bytes:
    """The text of a file with one thing wrong in it.

    Args:
        content: Of the sound file.
        ending: ".json", ".yaml" or ".toml".
        seed: Of the damage.
    """
    chance = random.Random(seed)
    if chance.random() < 0.2:
        return _text(dump(content, ending), chance)
    content = copy.deepcopy(content)
    places = list(_places(content))
    holder, key = chance.choice(places) if places else ([content], 0)
    what = chance.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict):
        holder[chance.choice(["x", "../x", "", "a\x00", "n" * 300, "\ud800"])] = holder.pop(key)
    elif what < 0.3:
        content = chance.choice(VALUES)(content)
    else:
        holder[key] = chance.choice(VALUES)(holder[key])
    return dump(content, ending)


def dump(content: Any, ending: str) -> bytes:
    """The content as a file of this format; TOML from the table on as inline tables."""
    if ending == ".yaml":
        try:
            return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")
        except yaml.YAMLError:
            return b"!!python/object:os.system {}"
    if ending == ".toml":
        table = content if isinstance(content, dict) else {"x": content}
        return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in table.items()).encode()
    return json.dumps(content).encode()


def _places(content: Any) -> Any:
    """Everything in a content that can be exchanged: what holds it, and its key there."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _text(text: bytes, chance: random.Random) -> bytes:
    middle = chance.randrange(len(text))
    return chance.choice([
        text[:middle],
        b"",
        b"\xef\xbb\xbf" + text,
        text.decode(errors="replace").encode("utf-16"),
        text[:middle] + bytes([chance.randrange(256)]) + text[middle + 1 :],
        text[:middle] + b"\xff\xfe" + text[middle:],
        text + text,
        text.replace(b"{", b'{"version": 1, "version": 2, ', 1),
        b"[" * 100_000,
        b'{"a": ' * 50_000,
        b"9" * 5000,
        b"null",
        text.replace(b"0", b"9" * 5000, 1),
    ])  # fmt: skip
