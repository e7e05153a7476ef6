"""Named starting points for a plan, as TOML files in plans/. `load("b")` or `load("my.toml")`.

What else is data stands beside them: models.toml (stunet/models.py), aliases.toml (stunet/classes.py), labels/
(stunet/labels.py) and totalsegmentator.toml (stunet/datasets/subjects.py).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from stunet.errors import DataError, closest

SIZES = ("T", "S", "B", "L", "H")  # keys of networks.SIZES, without loading torch
NORMALIZATIONS = {"zscore": "ZScoreNormalization", "ct": "CTNormalization"}  # nnU-Net's classes


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset says; every command-line flag takes precedence over it.

    Args:
        title: One line for listings.
        size: Key of stunet.networks.SIZES.
        memory_gb: GPU memory that a training step may take, in GiB; None: the default of the size.
        stages: Number of stages, or "auto".
        spacing: Of 3d_fullres in mm, decided in planning.
        normalization: Key of NORMALIZATIONS, for all channels, decided in planning; None: nnU-Net's choice.
        set: Values as of `--set`, for training; planning takes `checkpointing` of them.
        note: Hardware and time to expect, and where these numbers come from.
    """

    title: str
    size: str
    memory_gb: float | None = None
    stages: int | str | None = None
    spacing: Sequence[float] | None = None
    normalization: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def complete(
        self, size: str | None, memory_gb: float | None, stages: int | str | None
    ) -> tuple[str, float | None, int | str | None]:
        """Size, memory and stages with what was not given filled in; the memory is that of the preset's own size."""
        own_memory = self.memory_gb if size in (None, self.size) else None
        return size or self.size, memory_gb or own_memory, stages or self.stages

    def unlike(self, plans: Mapping[str, Any]) -> str:
        """What planning decided in another way than the preset would, for an error message; empty if nothing."""
        planned = plans["configurations"].get("3d_fullres", {})
        spacing, schemes = planned.get("spacing", ()), planned.get("normalization_schemes", ())
        if self.spacing and sorted(spacing) != sorted(self.spacing):  # plans may have another order of axes
            return f"spacing {list(spacing)}, not {list(self.spacing)} mm"
        if self.normalization and set(schemes) != {NORMALIZATIONS[self.normalization]}:
            return f"normalization {', '.join(schemes) or 'none'}, not {NORMALIZATIONS[self.normalization]}"
        return ""


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
    spacing = content.get("spacing")
    if spacing is not None and not (
        isinstance(spacing, list) and len(spacing) == 3 and all(type(s) in (int, float) and s > 0 for s in spacing)
    ):
        raise DataError(f"preset {name_or_path!r}: spacing is {spacing!r}", "three numbers in mm: [1.5, 1.5, 1.5]")
    if (normalization := content.get("normalization")) not in (None, *NORMALIZATIONS):
        raise DataError(
            f"preset {name_or_path!r}: unknown normalization {normalization!r}", f"one of {', '.join(NORMALIZATIONS)}"
        )
    missing = {"title", "size"} - set(content)
    if missing:
        raise DataError(
            f"preset {name_or_path!r}: missing {', '.join(sorted(missing))}", "see the presets that come with stunet"
        )
    return Preset(**content)
