"""Which pre-trained weights there are, and what is known of each: where from, trained on what, which input and classes.

The entries stand in presets/models.toml; your own go into models.toml in the store, in the same format. Imports no
torch. Read store.py next for how an entry becomes a model that runs.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stunet.errors import WeightsError, closest
from stunet.presets import SIZES
from stunet.weights.v2 import make_dataset, make_plans

DEFAULT_TAG = "totalseg"
CONFIGURATION = "3d_fullres"
# Million parameters with 105 classes: README of uni-medical/STU-Net; T is ours, for tests.
PARAMETERS = {"T": 0.9, "S": 14.6, "B": 58.3, "L": 440.3, "H": 1457.3}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of pre-trained weights; None is what nobody published.

    Args:
        name: STU-Net-SIZE.TAG.
        size: Key of networks.SIZES.
        title: One line for listings.
        data: What it was trained on.
        modality: CT or MR.
        filename: Name of the file at its source.
        channels: Names of the input channels, in order.
        num_channels: How many; follows from `channels`.
        sources: Direct addresses, in the order of trying.
        pages: Addresses for a person with a browser.
        bytes: Exact size of the file.
        about_bytes: Size as its host lists it, where the exact one is unknown.
        sha256: As published.
        licence: Of the weights.
        citation: Whom to cite.
        note: What a user has to know.
        epochs: Of its training.
        cases: Number of training cases.
        classes: Names in the order of the head, background first.
        num_classes: Rows of the head; follows from `classes`.
        spacing: In mm, array order.
        patch_size: In voxels.
        median_shape: Of the training images at that spacing, in voxels.
        strides: One per stage, the first all ones.
        normalization: nnU-Net's scheme per channel.
        mirror_axes: Axes that training mirrored.
    """

    name: str
    size: str
    title: str
    data: str
    modality: str
    filename: str
    channels: tuple[str, ...] | None = None
    num_channels: int | None = None
    sources: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    bytes: int | None = None
    about_bytes: int | None = None
    sha256: str | None = None
    licence: str | None = None
    citation: str | None = None
    note: str | None = None
    epochs: int | None = None
    cases: int | None = None
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    spacing: tuple[float, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    median_shape: tuple[int, ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    normalization: tuple[str, ...] | None = None
    mirror_axes: tuple[int, ...] | None = None

    @property
    def missing(self) -> list[str]:
        """What would have to be known to run the model as it is."""
        needed = ("channels", "classes", "spacing", "patch_size", "strides", "normalization")
        return [name for name in needed if getattr(self, name) is None]


def store() -> Path:
    """The folder of installed models: $STUNET_MODELS, or a folder of the user's own."""
    if folder := os.environ.get("STUNET_MODELS"):
        return Path(folder).expanduser()
    from platformdirs import user_data_path

    return user_data_path("stunet") / "models"


def entries() -> list[Entry]:
    """All entries: those that come with stunet, then those of models.toml in the store, which may replace them.

    Raises:
        WeightsError: The user's own file is not valid; the message names the entry and the key.
    """
    found = {entry.name: entry for entry in _read(files("stunet.presets") / "models.toml")}
    own = store() / "models.toml"
    if own.is_file():
        found |= {entry.name: entry for entry in _read(own)}
    return list(found.values())


def look_up(name: str) -> Entry | None:
    """The entry of this name, in any case; `STU-Net-L` is `STU-Net-L.totalseg`."""
    known = {entry.name.lower(): entry for entry in entries()}
    return known.get(name.lower()) or known.get(f"{name.lower()}.{DEFAULT_TAG}")


def find(name: str) -> Entry:
    """The entry of this name; see look_up().

    Raises:
        WeightsError: There is none; the message has the closest names.
    """
    if entry := look_up(name):
        return entry
    raise WeightsError(f"no model {name!r}{closest(name, [e.name for e in entries()])}", "stunet_models list")


def plans_of(entry: Entry) -> dict[str, Any]:
    """A complete plans.json for nnU-Net v2 (DefaultPreprocessor, one configuration 3d_fullres).

    Raises:
        WeightsError: The entry lacks strides, spacing or something else that plans need.
    """
    _require_complete(entry)
    return make_plans(
        entry.name,
        CONFIGURATION,
        entry.size,
        strides=entry.strides or (),
        spacing=entry.spacing or (),
        patch_size=entry.patch_size or (),
        median_shape=entry.median_shape or entry.patch_size or (),
        normalization=entry.normalization or (),
        mirror_axes=entry.mirror_axes or (),
    )


def dataset_of(entry: Entry) -> dict[str, Any]:
    """A complete dataset.json for nnU-Net v2.

    Raises:
        WeightsError: As plans_of.
    """
    _require_complete(entry)
    return make_dataset(entry.name, entry.channels or (), entry.classes or (), entry.cases or 0)


def _require_complete(entry: Entry) -> None:
    if entry.missing:
        raise WeightsError(
            f"{entry.name}: unknown {', '.join(entry.missing)}; it was published without its plans",
            f"fine-tune it: stunet_train --pretrained {entry.name}; or import it with the .model.pkl of its training",
        )


def _read(path: Any) -> list[Entry]:
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{str(path)!r} is not valid TOML: {error}", "correct the line") from None
    found = []
    for tag, table in content.items():
        own = {size: part for size, part in table.items() if size in SIZES} if isinstance(table, dict) else {}
        if not own or not all(isinstance(part, dict) for part in own.values()):
            what = f"[{tag}] has no table [{tag}.SIZE]"
            raise WeightsError(f"{str(path)!r}: {what}", f"SIZE is one of {', '.join(SIZES)}")
        shared = {key: value for key, value in table.items() if key not in SIZES}
        found += [_entry(f"STU-Net-{size}.{tag}", size, shared | part, path) for size, part in own.items()]
    return found


def _entry(name: str, size: str, content: Mapping[str, Any], path: Any) -> Entry:
    where = f"{str(path)!r}: {name}"
    types = {key: kind for key, kind in get_type_hints(Entry).items() if key not in ("name", "size")}
    values = {key: _frozen(value) for key, value in content.items()}
    for key, value in values.items():
        if key not in types:
            raise WeightsError(f"{where}: unknown key {key!r}{closest(key, [*types])}", f"known: {', '.join(types)}")
        if not _fits(value, types[key]):
            raise WeightsError(
                f"{where}: {key} = {content[key]!r} is not of the kind {types[key]}", "correct the value"
            )
    missing = [f.name for f in fields(Entry) if f.default is MISSING and f.name in types and f.name not in values]
    if missing:
        raise WeightsError(f"{where}: missing {', '.join(missing)}", "add them to the file")
    for names, number in (("channels", "num_channels"), ("classes", "num_classes")):
        if names in values:
            values[number] = len(values[names])
    return Entry(name=name, size=size, **values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an Entry's type: str, int, float, tuples of these, or one of them or None."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and bool(value) and all(_fits(item, get_args(kind)[0]) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))
