"""List the known pre-trained weights, with what is known about each: origin, training data, input and classes.

The entries are in presets/models.toml; a user's own go into models.toml in the store, in the same format. This module
does not import torch. Read next: store.py, which turns an entry into a model that runs.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stunet.errors import DataError, WeightsError, closest
from stunet.models.record import CHECKSUMS
from stunet.names import is_orientation
from stunet.plans.plan import Plan
from stunet.schema import read_toml
from stunet.sizes import SIZES
from stunet.weights.v2 import NORMALIZATIONS, make_dataset, make_plan

DEFAULT_TAG = "totalseg"
CONFIGURATION = "3d_fullres"
OWN = "models.toml"  # in the store: entries of the user
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # also a folder: no separator, no dot in front
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of pre-trained weights; None means that nobody published the value.

    Args:
        name: STU-Net-SIZE.TAG.
        size: Key of stunet.sizes.SIZES.
        title: One line for listings.
        data: What it was trained on.
        modality: CT or MR.
        filename: Name of the file at its source.
        channels: Names of the input channels, in order.
        num_channels: Number of channels; follows from `channels`.
        sources: URLs of the file, in the order in which they are tried.
        pages: URLs to download it by hand, in a browser.
        bytes: Exact size of the file.
        about_bytes: Size as its host lists it, if the exact one is unknown.
        sha256: Checksum as published.
        licence: Licence of the weights.
        citation: What to cite.
        note: What a user needs to know.
        epochs: Number of training epochs.
        cases: Number of training cases.
        classes: Names in the order of the head's rows, background first.
        num_classes: Number of rows of the head; follows from `classes`.
        spacing: In mm, array order.
        patch_size: In voxels.
        median_shape: Median shape of the training images at that spacing, in voxels.
        strides: One per stage; the first is all ones.
        normalization: nnU-Net's scheme per channel.
        mirror_axes: Axes that training mirrored.
        orientation: Orientation of the training images, as a code of stunet.orientation.
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
    orientation: str | None = None

    @property
    def missing(self) -> list[str]:
        """Names of the unknown values that are needed to run the model as it is."""
        needed = ("channels", "classes", "spacing", "patch_size", "strides", "normalization")
        return [name for name in needed if getattr(self, name) is None]


def store() -> Path:
    """Return the folder of installed models: $STUNET_MODELS, or else one in the user's data folder.

    Raises:
        DataError: $STUNET_MODELS is in the home of an unknown user.
    """
    if folder := os.environ.get("STUNET_MODELS"):
        try:
            return Path(folder).expanduser()
        except RuntimeError as error:
            raise DataError(f"STUNET_MODELS={folder}: {error}", "export STUNET_MODELS=/path/to/models") from None
    from platformdirs import user_data_path

    return user_data_path("stunet") / "models"


def entries() -> list[Entry]:
    """Return all entries: those that come with stunet, then those of models.toml in the store, which may replace them.

    Raises:
        WeightsError: The user's own file is not valid; the message names the entry and the key.
    """
    found = {entry.name.lower(): entry for entry in _that_come_with_stunet()}
    users_own = store() / OWN
    if users_own.is_file():
        found |= {entry.name.lower(): entry for entry in _read(users_own)}
    return list(found.values())


def check_name(name: str) -> None:
    """Raise unless a model, and its folder in the store, can have this name.

    Raises:
        WeightsError: The name is invalid or taken by a file of the store.
    """
    if not _NAME.fullmatch(name) or name.lower() in (OWN, CHECKSUMS):
        raise WeightsError(
            f"{name[:120]!r} cannot be a model's name",
            f"at most 100 letters, digits, '.', '-' and '_'; {OWN} and {CHECKSUMS} are taken",
        )


def look_up(name: str) -> Entry | None:
    """Return the entry of this name, in upper or lower case; `STU-Net-L` is `STU-Net-L.totalseg`."""
    known = {entry.name.lower(): entry for entry in entries()}
    return known.get(name.lower()) or known.get(f"{name.lower()}.{DEFAULT_TAG}")


def find(name: str) -> Entry:
    """Return the entry of this name; see look_up().

    Raises:
        WeightsError: There is none; the message names the closest.
    """
    if entry := look_up(name):
        return entry
    raise WeightsError(f"no model {name!r}{closest(name, [e.name for e in entries()])}", "stunet_models list")


def plan_of(entry: Entry) -> Plan:
    """Return a complete plan for nnU-Net v2 (DefaultPreprocessor, one configuration 3d_fullres).

    Raises:
        WeightsError: The entry lacks strides, spacing or something else that a plan needs.
    """
    _require_complete(entry)
    return make_plan(
        entry.name,
        CONFIGURATION,
        entry.size,
        strides=entry.strides or (),
        spacing=entry.spacing or (),
        patch_size=entry.patch_size or (),
        median_shape=entry.median_shape or entry.patch_size or (),
        normalization=entry.normalization or (),
        mirror_axes=entry.mirror_axes or (),
        orientation=entry.orientation,
    )


def dataset_of(entry: Entry) -> dict[str, Any]:
    """Return a complete dataset.json for nnU-Net v2.

    Raises:
        WeightsError: As in plan_of.
    """
    _require_complete(entry)
    return make_dataset(entry.name, entry.channels or (), entry.classes or (), entry.cases or 0)


def _require_complete(entry: Entry) -> None:
    if entry.missing:
        raise WeightsError(
            f"{entry.name}: unknown {', '.join(entry.missing)}; it was published without its plans",
            f"fine-tune it: stunet_train --pretrained {entry.name}; or import it with the .model.pkl of its training",
        )


@cache
def _that_come_with_stunet() -> tuple[Entry, ...]:
    return tuple(_read(files("stunet.presets") / "models.toml"))


def _read(path: Any) -> list[Entry]:
    content = read_toml(path, WeightsError)
    found = []
    for tag, table in content.items():
        by_size = {size: part for size, part in table.items() if size in SIZES} if isinstance(table, dict) else {}
        if not by_size or not all(isinstance(part, dict) for part in by_size.values()):
            what = f"[{tag}] has no table [{tag}.SIZE]"
            raise WeightsError(f"{str(path)!r}: {what}", f"SIZE is one of {', '.join(SIZES)}")
        # A value of a size overrides that of its tag, which is for all sizes.
        shared = {key: value for key, value in table.items() if key not in SIZES}
        found += [_entry(f"STU-Net-{size}.{tag}", size, shared | part, path) for size, part in by_size.items()]
    return found


def _entry(name: str, size: str, content: Mapping[str, Any], path: Any) -> Entry:
    where = f"{str(path)!r}: {name}"
    types = {key: kind for key, kind in get_type_hints(Entry).items() if key not in ("name", "size")}
    values = {key: _frozen(value) for key, value in content.items()}
    for key, value in values.items():
        if key not in types:
            raise WeightsError(f"{where}: unknown key {key!r}{closest(key, [*types])}", f"known: {', '.join(types)}")
        if not _fits(value, types[key]):
            raise WeightsError(f"{where}: {key} = {content[key]!r} is not of type {types[key]}", "correct the value")
    missing = [f.name for f in fields(Entry) if f.default is MISSING and f.name in types and f.name not in values]
    if missing:
        raise WeightsError(f"{where}: missing {', '.join(missing)}", "add them to the file")
    for names, number in (("channels", "num_channels"), ("classes", "num_classes")):
        if names in values and values.setdefault(number, len(values[names])) != len(values[names]):
            raise WeightsError(
                f"{where}: {number} = {values[number]}, but {names} has {len(values[names])}", f"correct {number}"
            )
    entry = Entry(name=name, size=size, **values)
    try:
        check_name(name)
    except WeightsError as error:
        raise WeightsError(f"{where}: {error.message}", error.hint) from None
    for key, right, rule in _rules(entry):
        if getattr(entry, key) is not None and not right:
            raise WeightsError(
                f"{where}: {key} = {str(getattr(entry, key))[:100]}: must be {rule}", "correct the value"
            )
    return entry


def _rules(entry: Entry) -> Iterator[tuple[str, bool, str]]:
    """Yield, for each rule, the key, whether its value is valid if known, and what it must be."""
    numbers = ("bytes", "about_bytes", "epochs", "cases", "num_channels", "num_classes", "patch_size", "median_shape")
    for key in numbers:
        yield key, all(n > 0 for n in _flat(getattr(entry, key))), "positive"
    name = entry.filename
    # The file is kept in the model's folder, next to our .json files.
    plain = Path(name).name == name and name not in ("", "..") and "\0" not in name and not name.endswith(".json")
    yield "filename", plain, "a file name without a folder, not ending in .json"
    for key in ("sources", "pages"):
        web = all(address.startswith(("https://", "http://")) for address in getattr(entry, key))
        yield key, web, "URLs that start with https:// or http://"
    yield "sha256", bool(_HEX.fullmatch(entry.sha256 or "")), "64 digits 0-9a-f"
    classes = entry.classes or ()
    unique = len({*classes}) == len(classes) and classes[:1] == ("background",)
    yield "classes", unique, "distinct names, the first 'background'"
    yield "spacing", all(0 < pitch < math.inf for pitch in _flat(entry.spacing)), "positive"
    strides = entry.strides or ((),)
    steps = len(strides) > 1 and {*strides[0]} == {1} and all(step > 0 for step in _flat(strides))
    yield "strides", steps, "positive, and 1 in the first stage"
    known = {*(entry.normalization or ())} <= {*NORMALIZATIONS}
    yield "normalization", known, f"among {', '.join(NORMALIZATIONS)}"
    counted = entry.num_channels in (None, len(entry.normalization or ()))
    yield "normalization", counted, "one per channel"
    axes = len(entry.spacing or entry.patch_size or strides[0]) or 3
    for key in ("spacing", "patch_size", "median_shape"):
        yield key, len(getattr(entry, key) or ()) == axes, f"one number for each of {axes} axes"
    yield "strides", all(len(stride) == axes for stride in strides), f"one number for each of {axes} axes"
    yield "orientation", is_orientation(entry.orientation or "LPS"), "one letter of each of LR, PA and SI"
    yield "mirror_axes", {*(entry.mirror_axes or ())} <= {*range(axes)}, f"axes from 0 to {axes - 1}"


def _flat(value: Any) -> list[Any]:
    """Return the numbers in a nested value of an entry; none for None."""
    if isinstance(value, tuple):
        return [number for item in value for number in _flat(item)]
    return [] if value is None else [value]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value has the type of a field: str, int, float, a tuple of one of these, or a union."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and bool(value) and all(_fits(item, get_args(kind)[0]) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))  # isinstance() would take True for an int
