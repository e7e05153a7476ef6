"""List the known pre-trained weights, with what is known about each: origin, training data, input and classes.

The entries are in presets/models.toml; a user's own go into models.toml in the store, in the same format. entry.py has
their keys. This module does not import torch. Read next: store.py, which turns an entry into a model that runs.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from stunet.errors import DataError, WeightsError, closest
from stunet.models.entry import NETWORKS, Entry, make_entry
from stunet.models.record import OWN
from stunet.names import check_name
from stunet.plans.plan import Plan
from stunet.schema import read_toml
from stunet.sizes import SIZES
from stunet.weights.v2 import make_dataset, make_plan

DEFAULT_TAG = "totalseg"
CONFIGURATION = "3d_fullres"


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
    if parts := parts_of(name):
        raise several(parts)
    raise WeightsError(f"no model {name!r}{closest(name, [e.name for e in entries()])}", "stunet_models list")


def parts_of(name: str) -> list[Entry]:
    """Return the entries that are the parts of this name, such as TotalSegmentator-total; none for any other name."""
    return [entry for entry in entries() if name and name.lower() == (entry.whole or "").lower()]


def several(parts: Sequence[Entry]) -> WeightsError:
    """Return the error for the name of a whole where one model is needed."""
    whole = parts[0].whole
    return WeightsError(
        f"{whole} is {len(parts)} models, each with classes of its own: {parts[0].name} to {parts[-1].name}",
        f"take one of them; stunet_models info NAME lists the classes, stunet_models download {whole} gets all",
    )


def plan_of(entry: Entry) -> Plan:
    """Return a complete plan for nnU-Net v2 (DefaultPreprocessor, one configuration 3d_fullres) of an STU-Net.

    Raises:
        WeightsError: The entry lacks strides, spacing or something else that a plan needs.
    """
    check_complete(entry)
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
    check_complete(entry)
    return make_dataset(entry.name, entry.channels or (), entry.classes or (), entry.cases or 0)


def adaptation_of(entry: Entry) -> dict[str, Any] | None:
    """Return what an entry says of the images of a pre-trained ResEnc-L, as an adaptation plan of nnssl; None: nothing.

    For files that were published without one; weights/nnssl.py reads it.
    """
    if entry.network != "resenc-l" or not entry.pretext or not entry.spacing or not entry.normalization:
        return None
    configuration = {
        "spacing": entry.spacing,
        "normalization_schemes": entry.normalization,
        **({"patch_size": entry.patch_size} if entry.patch_size else {}),
    }
    return {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"plans_name": "nnsslPlans", "configurations": {"pretraining": configuration}},
        "pretrain_num_input_channels": entry.num_channels,
    }


def check_complete(entry: Entry) -> None:
    """Check that a model can run as it is, before it is downloaded for that.

    Raises:
        WeightsError: It was pre-trained without labels, or published without something that prediction needs.
    """
    tune = f"fine-tune it: stunet_train --pretrained {entry.name}"
    if entry.pretext:
        raise WeightsError(f"{entry.name} was pre-trained without labels: it has no head for classes", tune)
    if entry.missing:
        hint = f"{tune}; or import it with the .model.pkl of its training" if entry.size else tune
        raise WeightsError(
            f"{entry.name}: unknown {', '.join(entry.missing)}; it was published without its plans", hint
        )


@cache
def _that_come_with_stunet() -> tuple[Entry, ...]:
    return tuple(_read(files("stunet.presets") / "models.toml"))


def _read(path: Any) -> list[Entry]:
    """Return the entries of a file, each with the values of the table around it and its own, which take precedence."""
    found = []
    for key, table in read_toml(path, WeightsError).items():
        for name, content in _members(path, key, table).items():
            if isinstance(content.get("classes"), dict):
                content["classes"] = _classes(f"{str(path)!r}: {name}", content["classes"])
            found.append(make_entry(name, content, path))
    return found


def _members(path: Any, key: str, table: Any) -> dict[str, dict[str, Any]]:
    """Return the contents of the entries in a table, by name.

    [NAME] with a network is the entry NAME or, with tables [NAME.OTHER], the entries NAME-OTHER; [TAG] without a
    network has a [TAG.SIZE] for each STU-Net-SIZE.TAG.
    """
    values = table if isinstance(table, dict) else {}
    named = "network" in values
    parts = {name for name, part in values.items() if isinstance(part, dict)} - {"classes"}
    if not named:
        parts &= {*SIZES}
    if not named and not parts:
        raise WeightsError(
            f"{str(path)!r}: [{key}] has no table [{key}.SIZE], and no network",
            f"SIZE is one of {', '.join(SIZES)}; network is one of {', '.join(NETWORKS)}",
        )
    shared = {name: value for name, value in values.items() if name not in parts}
    within = {name: shared | part for name, part in values.items() if name in parts}
    if named:
        return {f"{key}-{name}": part for name, part in within.items()} or {key: shared}
    return {f"STU-Net-{size}.{key}": {**part, "network": f"stunet-{size.lower()}"} for size, part in within.items()}


def _classes(where: str, content: Mapping[str, Any]) -> list[str]:
    """Return the class names that {labels = SYSTEM, first = CLASS, last = CLASS} stands for, background first.

    SYSTEM is a file of presets/labels, whose classes are in the order of the ids; without `first` and `last` it is all
    of them.

    Raises:
        WeightsError: There is no such label system or class.
    """
    try:
        if {*content} - {"labels", "first", "last"}:
            raise ValueError("unknown key")
        system = check_name(content.get("labels"), "label system")
        # Not with labels/systems.py, which imports numpy: listing models is instant.
        names = [*read_toml(files("stunet.presets") / "labels" / f"{system}.toml")["classes"]]
        first, last = names.index(content.get("first", names[0])), names.index(content.get("last", names[-1]))
    except (DataError, ValueError) as error:
        what = f"{where}: classes = {str(dict(content))[:100]}: {error}"
        raise WeightsError(what, "labels = a file of presets/labels, first and last = two of its classes") from None
    return ["background", *names[first : last + 1]]
