"""Bring the tensors of a file to the names that its network has for them.

Files of other programs hold a network inside other modules (`module.`, `network.`, `teacher.encoder.`), an encoder
without its usual prefix, or a tensor under several names. Everything behind reading.py only sees the official names, of
which Architecture.canonical says what stands for what; in a network's state dict are all of them (all_names).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stunet import architectures
from stunet.architectures.base import ENCODER, STEM, Architecture
from stunet.errors import WeightsError

_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile


def official_tensors(raw: Mapping[str, Any], path: Path, meant: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file under their official names; those of other modules keep theirs.

    A decoder that only looks like the network's is left out.

    Args:
        raw: What the file has by name.
        path: The file, for messages.
        meant: What the names of the encoder begin with, if the file says it, as nnssl's do.

    Raises:
        WeightsError: A tensor is damaged or has two values, or there are several networks.
    """
    tensors = _stored(raw, path)
    for architecture in architectures.TABLE.values():
        named = _canonical(tensors, architecture, path)
        if prefixes := _prefixes(named, architecture):
            found = _renamed(named, architecture, _chosen(prefixes, architecture, meant, path))
            misfits = architecture.misfits({name: tuple(value.shape) for name, value in found.items()})
            return {name: value for name, value in found.items() if name not in misfits}
    return tensors


def all_names(tensors: Mapping[str, Tensor], names: Iterable[str], architecture: Architecture) -> dict[str, Tensor]:
    """Return the tensors under all names of a network's state dict; the same object for the names of one tensor.

    Args:
        tensors: Under their official names.
        names: Those of the state dict; those that stand for none of the tensors are left out.
        architecture: The network.
    """
    found = {name: architecture.canonical(name) for name in names}
    known = {name: tensors[official] for name, official in found.items() if official in tensors}
    taken = set(found.values())
    return known | {name: value for name, value in tensors.items() if name not in taken}


def _stored(raw: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return what are tensors, without the prefixes of DDP and torch.compile."""
    tensors: dict[str, Tensor] = {}
    for key, value in raw.items():
        if not isinstance(value, Tensor):
            continue
        name = str(key)
        # In either order, and repeatedly: DDP around a compiled network, or the other way round.
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        stored = value.layout == torch.strided and value.is_cpu
        # With strides of 0, a few bytes stand for a tensor of any shape.
        stored = stored and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        if name in tensors or not stored:
            raise WeightsError(
                f"{str(path)!r} is damaged: {key!r} exists twice or claims more bytes than it has",
                "copy it again from its source",
            )
        tensors[name] = value.detach()
    return tensors


def _canonical(tensors: Mapping[str, Tensor], architecture: Architecture, path: Path) -> dict[str, Tensor]:
    """Return each tensor once.

    Raises:
        WeightsError: Two names of one tensor have different values: which of them a program takes is its choice.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for name, value in tensors.items():
        official = architecture.canonical(name)
        first, known = found.setdefault(official, (name, value))
        if not is_same(known, value):
            raise WeightsError(
                f"{str(path)!r} is damaged: {first!r} and {name!r} are names of one tensor, and differ",
                "use the checkpoint that training wrote",
            )
    return {name: value for name, (_, value) in found.items()}


def is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same bytes, which are read only if they are not in one place."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True  # the same bytes, as nnU-Net's checkpoints have it
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _prefixes(tensors: Mapping[str, Tensor], architecture: Architecture) -> set[str]:
    """Return what the names of encoders begin with: of the architecture's own, "encoder." or "" is usual."""
    own = architecture.encoder_prefix
    end = min(architecture.inputs).removeprefix(own)
    found = {name.removesuffix(end) for name in tensors if name.endswith(end)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def _chosen(prefixes: set[str], architecture: Architecture, meant: str | None, path: Path) -> str:
    found = [prefix for prefix in prefixes if len(prefixes) == 1 or (meant and f"{meant}.".startswith(prefix))]
    found = found or [prefix for prefix in prefixes if prefix == architecture.encoder_prefix]
    if not found:
        raise WeightsError(
            f"{str(path)!r} holds several networks: {', '.join(sorted(prefixes))}",
            "save the tensors of one of them under network_weights",
        )
    return max(found, key=len)


def _renamed(tensors: dict[str, Tensor], architecture: Architecture, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of the network whose encoder's names begin with this prefix, and of what is around it."""
    own = architecture.encoder_prefix
    if prefix == own:
        return tensors
    if not own or prefix.endswith(f".{own}"):
        whole = prefix.removesuffix(own)
        return {name.removeprefix(whole): value for name, value in tensors.items() if name.startswith(whole)}
    # An encoder alone, under another name or under none.
    renamed = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            within = f"{own}{name.removeprefix(prefix)}"
            renamed[within if architecture.place(within).part in (STEM, ENCODER) else name] = value
    return renamed
