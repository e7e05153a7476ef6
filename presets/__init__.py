"""Named starting points for a plan, as TOML files in plans/. `load("b")` or `load("my.toml")`.

What else is data stands beside them: models.toml (stunet/models/registry.py), aliases.toml (stunet/labels/names.py),
labels/ (stunet/labels/systems.py), totalsegmentator.toml (stunet/datasets/subjects.py) and known_results.toml
(stunet/ranking/scores/static.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, closest
from stunet.schema import (
    Check,
    anything,
    check,
    dict_of,
    either,
    integer,
    list_of,
    number,
    one_of,
    read_toml,
    table,
    text,
)
from stunet.sizes import SIZES

if TYPE_CHECKING:
    from stunet.plans.plan import Plan

NORMALIZATIONS = {"zscore": "ZScoreNormalization", "ct": "CTNormalization"}  # nnU-Net's classes


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset says; every command-line flag takes precedence over it.

    Args:
        title: One line for listings.
        size: Key of stunet.sizes.SIZES.
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
        """Return size, memory and stages, what was not given from the preset; its memory only suits its own size."""
        own_memory = self.memory_gb if size in (None, self.size) else None
        return size or self.size, memory_gb or own_memory, stages or self.stages

    def unlike(self, plan: "Plan") -> str:
        """Return what a plan has that the preset would not have planned, for an error message; empty if nothing."""
        planned = plan.configuration("3d_fullres") if "3d_fullres" in plan.configurations else None
        spacing, schemes = (planned.known_spacing, planned.known_normalization) if planned else (None, None)
        spacing, schemes = spacing or [], schemes or []
        if self.spacing and sorted(spacing) != sorted(self.spacing):  # plans may have another order of axes
            return f"spacing {list(spacing)}, not {list(self.spacing)} mm"
        if self.normalization and set(schemes) != {NORMALIZATIONS[self.normalization]}:
            return f"normalization {', '.join(schemes) or 'none'}, not {NORMALIZATIONS[self.normalization]}"
        return ""


def names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(Path(p.name).stem for p in (files(__name__) / "plans").iterdir())


def load(name_or_path: str) -> Preset:
    """Return the preset of this name, or of this TOML file.

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
    content = read_toml(path)
    check(
        content, table({key: _KEYS[key] for key in ("title", "size")}, _KEYS), f"preset {name_or_path!r}", "correct it"
    )
    return Preset(**content)


_KEYS: dict[str, Check] = {
    "title": text,
    "size": one_of(*SIZES),
    "memory_gb": number(above=0, most=10_000),
    "stages": either("a number from 2 to 9 or 'auto'", integer(2, 9), one_of("auto")),
    "spacing": list_of(number(above=0, most=1000), 3, 3, "three numbers in mm"),
    "normalization": one_of(*NORMALIZATIONS),
    "set": dict_of(anything),  # plans/settings.py has more to say
    "note": text,
}
