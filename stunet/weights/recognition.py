"""Recognise the network that tensors belong to: names and shapes determine everything but the strides.

stunet/architectures knows the networks; foreign.py names those that it does not know.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stunet import architectures
from stunet.architectures.base import ENCODER, STEM, Recognised
from stunet.errors import WeightsError
from stunet.weights.foreign import describe_network

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTER = ".num_batches_tracked"  # of a norm with running statistics, the only integer in a network


def recognise(tensors: Mapping[str, Tensor], path: Path) -> Recognised:
    """Return the network that the tensors belong to; the decoder and the heads may be missing.

    Raises:
        WeightsError: They belong to a network that is not in the table, which is named, or are inconsistent.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    architecture = architectures.find_tensors(shapes)
    if architecture is None:
        *titles, last = (each.title for each in architectures.TABLE.values())
        what, instead = describe_network(shapes)
        raise WeightsError(f"{str(path)!r} holds {what}, not a {', '.join(titles)} or {last}", instead)
    for name, value in tensors.items():
        # Quantised or integer weights would be cast to numbers that mean something else.
        is_weight = value.dtype in _TYPES or (value.dtype == torch.int64 and name.endswith(_COUNTER))
        if not is_weight or not value.numel():
            raise WeightsError(
                f"{str(path)!r}: {name!r} has {value.numel()} values of type {str(value.dtype).removeprefix('torch.')}",
                "weights are float16, bfloat16, float32 or float64: use the checkpoint that training wrote",
            )
    try:
        found = architecture.recognise(shapes)
        _check_shapes(shapes, found)
    except ValueError as error:
        raise WeightsError(f"{str(path)!r} {error}", "copy it again from its source") from None
    return found


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], found: Recognised) -> None:
    with torch.device("meta"):  # no memory, however large the network
        network = found.build()
    own, architecture = network.state_dict(), found.architecture
    places = {architecture.matching(architecture.canonical(name)) for name in own}
    # What the network has no place for would be left out, and the rest of the encoder compute something else.
    more = [
        name
        for name in shapes
        if architecture.place(name).part in (STEM, ENCODER)
        and architecture.matching(architecture.canonical(name)) not in places
    ]
    if more:
        raise ValueError(
            f"is not a {architecture.title} of {found}: {len(more)} more tensors in its encoder (e.g. {more[0]!r})"
        )
    for name, value in own.items():
        if name in shapes and shapes[name] != tuple(value.shape):
            raise ValueError(
                f"is not a {architecture.title} of {found}: {name!r} has shape {shapes[name]} instead of "
                f"{tuple(value.shape)}"
            )
