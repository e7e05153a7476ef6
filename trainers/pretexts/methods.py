"""The methods of self-supervised pre-training, by name. To add one: its class in a file of its family, and a row here.

Does not import torch. base.py says what a class has to provide.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stunet.errors import UsageError, closest

DEFAULT = "mae"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        family: The file below stunet.trainers.pretexts that has the class.
        pretext: The name of the class.
        title: What it does, in a few words.
        transfers: What of the network is worth transferring: "encoder" or "all".
        mirrors: Whether patches are mirrored, as part of the loader's augmentation.
        turns: Whether patches are rotated and scaled by the loader.
        options: Arguments of the class.
    """

    family: str
    pretext: str
    title: str
    transfers: str = "encoder"
    mirrors: bool = True
    turns: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "rot": Method("predictive", "Rotation", "recognise how a cube was turned", mirrors=False),
}


def find(name: str) -> Method:
    """Return the method of this name.

    Raises:
        UsageError: There is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}{closest(name, list(METHODS))}", f"one of {', '.join(METHODS)}")
    return METHODS[name]


def build(name: str, network: Any, setting: Any) -> Any:
    """Return the pretext of a method; base.py explains `network` and `setting`."""
    method = find(name)
    module = importlib.import_module(f"stunet.trainers.pretexts.{method.family}")
    return getattr(module, method.pretext)(network, setting, **method.options)
