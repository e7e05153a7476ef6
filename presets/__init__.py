"""Named starting points for a plan, as TOML files in plans/. `load("b")` or `load("my.toml")`.

What else is data stands beside them: models.toml (stunet/models.py), aliases.toml (stunet/classes.py) and labels/
(stunet/labels.py).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from stunet.errors import DataError, closest

SIZES = ("T", "S", "B", "L", "H")  # keys of networks.SIZES, without loading torch


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset says; every command-line flag takes precedence over it.

    Args:
        title: One line for listings.
        size: Key of stunet.networks.SIZES.
        memory_gb: GPU memory that a training step may take, in GiB; None: the default of the size.
        stages: Number of stages, or "auto".
        set: Values as of `--set`, for training; planning takes `checkpointing` of them.
    """

    title: str
    size: str
    memory_gb: float | None = None
    stages: int | str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)

    def complete(
        self, size: str | None, memory_gb: float | None, stages: int | str | None
    ) -> tuple[str, float | None, int | str | None]:
        """Size, memory and stages with what was not given filled in; the memory is that of the preset's own size."""
        own_memory = self.memory_gb if size in (None, self.size) else None
        return size or self.size, memory_gb or own_memory, stages or self.stages


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(Path(p.name).stem for p in (files(__name__) / "plans").iterdir())


def load(name_or_path: str) -> Preset:
    """The preset of this name, or of this TOML file.

    Raises:
        DataError: Unknown name, missing file, invalid TOML, or unknown or missing keys.
    """
    path = files(__name__) / "plans" / f"{name_or_path}.toml"
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    if not path.is_file():
        raise DataError(
            f"no preset {name_or_path!r}{closest(name_or_path, names())}",
            f"one of {', '.join(names())}, or a .toml file",
        )
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"preset {name_or_path!r} is not valid TOML: {error}", "correct the line") from None
    known = [f.name for f in fields(Preset)]
    for key in content:
        if key not in known:
            raise DataError(
                f"preset {name_or_path!r}: unknown key {key!r}{closest(key, known)}", f"known keys: {', '.join(known)}"
            )
    if content.get("size") not in (None, *SIZES):
        raise DataError(
            f"preset {name_or_path!r}: unknown size {content['size']!r}", f"size is one of {', '.join(SIZES)}"
        )
    missing = {"title", "size"} - set(content)
    if missing:
        raise DataError(
            f"preset {name_or_path!r}: missing {', '.join(sorted(missing))}", "see the presets that come with stunet"
        )
    return Preset(**content)
