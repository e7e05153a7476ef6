"""The networks that stunet plans, trains and fine-tunes. To add one, write a file like stunet.py and list it here.

base.py states what such a file answers. Everything that depends on a network asks here, by the class in a plan, by the
network itself, or by the tensors in a file. Does not import torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stunet.architectures.base import Architecture, Shapes
from stunet.architectures.multi_encoder import MULTI_ENCODER
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import nn

# In the order they are recognised.
TABLE: dict[str, Architecture] = {each.class_name: each for each in (STUNET, MULTI_ENCODER, RESENC, PLAIN_UNET)}


def find(class_name: str) -> Architecture | None:
    """Return the architecture whose class plans name; None if it is not in the table."""
    return TABLE.get(class_name)


def of_class(class_name: str | None, where: str = "plans") -> Architecture:
    """Return the architecture whose class plans name.

    Raises:
        DataError: It is not in the table; the message begins with `where`.
    """
    if class_name is None or class_name not in TABLE:
        raise DataError(
            f"{where}: network {class_name!r} is not {' or '.join(TABLE)}",
            "correct the plans file, or make it again: stunet_plan_and_preprocess -d ... --no_pp",
        )
    return TABLE[class_name]


def find_network(network: "nn.Module") -> Architecture | None:
    """Return the architecture of a network without wrappers; None if it is not in the table."""
    return next((each for each in TABLE.values() if each.built(network)), None)


def of_network(network: "nn.Module") -> Architecture:
    """Return the architecture of a network without wrappers.

    Raises:
        ValueError: It is not in the table.
    """
    architecture = find_network(network)
    if architecture is None:
        raise ValueError(f"{type(network).__name__} is not one of the networks {', '.join(TABLE)}")
    return architecture


def find_tensors(shapes: Shapes) -> Architecture | None:
    """Return the architecture that tensors belong to, by names and shapes; None if it is not in the table."""
    for each in TABLE.values():
        if each.owns({each.canonical(name): shape for name, shape in shapes.items()}):
            return each
    return None


def with_encoders(
    architecture: Architecture, arguments: Mapping[str, Any], encoders: int
) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture and its arguments in a plan, for the same network with so many encoders.

    Raises:
        UsageError: There is none with several.
    """
    if encoders == arguments.get("encoders", 1):
        return architecture, dict(arguments)
    if architecture not in (STUNET, MULTI_ENCODER):
        raise UsageError(f"a {architecture.title} has one encoder, not {encoders}", "one --pretrained")
    others = {key: value for key, value in arguments.items() if key != "encoders"}
    return (STUNET, others) if encoders == 1 else (MULTI_ENCODER, {**others, "encoders": encoders})
