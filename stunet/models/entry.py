"""What the registry knows about a file of pre-trained weights, and which values that can have.

registry.py reads the entries.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stunet.errors import WeightsError, closest
from stunet.models.record import STORE_FILES
from stunet.names import is_orientation
from stunet.plans.blueprints import blueprints
from stunet.weights.v2 import NORMALIZATIONS

# Class of each network that an entry can name, and its size.
NETWORKS = {name: each.architecture.class_name for name, each in blueprints().items()}
_SIZES = {name: each.size for name, each in blueprints().items()}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # also a folder: no separator, no dot in front
_HEX = re.compile("[0-9a-f]{64}")
_NON_COMMERCIAL = re.compile(r"\bNC\b|non-? ?commercial|not? (be used |for )?commercial", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the registry; None means that nobody published the value.

    Args:
        name: As its publisher calls it; STU-Net-SIZE.TAG for an STU-Net.
        network: Key of NETWORKS.
        title: One line for listings.
        data: What it was trained on.
        modality: CT or MR.
        filename: Name of the file at its source; None: nobody states it.
        companions: Names of other files that lie beside it there and tell what the weights mean.
        folder: Name of the folder that is meant, in an archive that holds several models.
        has_plans: The download contains its own plans and class names.
        pretext: The method that trained it without labels; None: it was trained with labels.
        whole: Name of what this is one part of: several models that segment different classes.
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
    network: str
    title: str
    data: str
    modality: str
    filename: str | None = None
    companions: tuple[str, ...] = ()
    folder: str | None = None
    has_plans: bool = False
    pretext: str | None = None
    whole: str | None = None
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
    def size(self) -> str | None:
        """Key of stunet.sizes.SIZES; None: not an STU-Net."""
        return _SIZES.get(self.network)

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return bool(_NON_COMMERCIAL.search(self.licence or ""))

    @property
    def missing(self) -> list[str]:
        """Names of what is unknown and needed to run the model as it is."""
        if self.has_plans:
            return []
        if self.size is None:
            return ["plans"]  # plans are made here for STU-Nets only
        needed = ("channels", "classes", "spacing", "patch_size", "strides", "normalization")
        return [name for name in needed if getattr(self, name) is None]


def check_name(name: str) -> None:
    """Raise unless a model, and its folder in the store, can have this name.

    Raises:
        WeightsError: The name is invalid or taken by a file of the store.
    """
    if not _NAME.fullmatch(name) or name.lower() in STORE_FILES:
        raise WeightsError(
            f"{name[:120]!r} cannot be a model's name",
            f"at most 100 letters, digits, '.', '-' and '_'; {', '.join(STORE_FILES)} are taken",
        )


def make_entry(name: str, content: Mapping[str, Any], path: Any) -> Entry:
    """Return the entry that a table of models.toml describes.

    Args:
        name: Of the entry.
        content: The table, with its network.
        path: The file, for messages.

    Raises:
        WeightsError: A key is missing or unknown, or a value is impossible; the message names it.
    """
    where = f"{str(path)!r}: {name}"
    types = {key: kind for key, kind in get_type_hints(Entry).items() if key != "name"}
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
    entry = Entry(name=name, **values)
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
    yield "network", entry.network in NETWORKS, f"one of {', '.join(NETWORKS)}"
    numbers = ("bytes", "about_bytes", "epochs", "cases", "num_channels", "num_classes", "patch_size", "median_shape")
    for key in numbers:
        yield key, all(n > 0 for n in _flat(getattr(entry, key))), "positive"
    # The file is kept in the model's folder, next to our .json files.
    name = "x" if entry.filename is None else entry.filename
    plain = _is_plain(name) and not name.endswith(".json")
    yield "filename", plain, "a file name without a folder, not ending in .json"
    known = all(_is_plain(name) and name not in STORE_FILES for name in entry.companions)
    yield "companions", known, f"file names without a folder, none of {', '.join(STORE_FILES)}"
    yield "folder", _is_plain(entry.folder or ""), "the name of one folder"
    yield "sources", not entry.sources or bool(entry.filename), "accompanied by a filename"
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


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


def _flat(value: Any) -> list[Any]:
    """Return the numbers in a nested value of an entry; none for None."""
    if isinstance(value, tuple):
        return [number for item in value for number in _flat(item)]
    return [] if value is None else [value]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value has the type of a field: str, int, float, bool, a tuple of one of these, or a union."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and bool(value) and all(_fits(item, get_args(kind)[0]) for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))  # isinstance() would take True for an int
