"""Read checkpoints without executing anything in them, and write checkpoints that anyone can read that way.

A .pth or .model file is a pickle, and a pickle may call any function. torch's restricted reader (`weights_only=True`)
builds only tensors and plain values; nnU-Net's own files also hold numpy scalars, the only addition here to what it
allows. reading.py interprets checkpoints; inference/predictor.py loads them into networks.
"""

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file

from stunet import architectures
from stunet.architectures.base import Architecture
from stunet.errors import DataError, WeightsError, is_out_of_memory
from stunet.files import atomic_write
from stunet.weights.container import check_container, check_seal, first_line, seal
from stunet.weights.foreign import UNREADABLE
from stunet.weights.mapped import release
from stunet.weights.naming import is_same

FORMAT = 1  # version of the metadata in our safetensors files, under the key "stunet"
# numpy's unpickling function under whatever name this numpy has.
_scalar = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    # numpy 1 and numpy 2 pickle the same function under two names
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the content of a checkpoint of ours or of nnU-Net's; its tensors are memory-mapped, so read on use.

    Raises:
        WeightsError: The file is missing or not a whole checkpoint, or asks for more than tensors and plain values; if
            so, nothing in it was executed.
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint {str(path)!r}", "check the path, or choose another file with -chk")
    mapped = check_container(path)
    with torch.serialization.safe_globals(ALLOWED):
        try:
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise _refusal(path, error) from None
        except UNREADABLE as error:
            # Neither is the file's fault: they have messages of their own.
            if is_out_of_memory(error) or isinstance(error, PermissionError):
                raise
            raise WeightsError(
                f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source"
            ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds a {type(content).__name__} instead of a checkpoint's dictionary")
    return content


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors, by content: eight bytes with the JSON header's length, then its brace."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False  # load_checkpoint() will report the error
    # The library's own limit for the header is 100 MB.
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors, memory-mapped, and the `meta` given to save_weights(), which is empty in files of others.

    Raises:
        WeightsError: The file is damaged, or was written by a later version.
    """
    try:
        check_seal(path)
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
            meta = json.loads((file.metadata() or {}).get("stunet", "{}"))
    except (safetensors.SafetensorError, RecursionError, *UNREADABLE) as error:
        if is_out_of_memory(error) or isinstance(error, PermissionError):
            raise
        raise WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source") from None
    if not isinstance(meta, dict) or meta.pop("version", FORMAT) != FORMAT:
        raise WeightsError(
            f"{str(path)!r} has metadata that this version of stunet does not know", "pip install -U stunet"
        )
    return tensors, meta


def load_trained(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint written by training: network_weights, and init_args with the configuration.

    Raises:
        WeightsError: As in load_checkpoint, or the checkpoint is of another kind.
    """
    checkpoint = load_checkpoint(path)
    weights, arguments = checkpoint.get("network_weights"), checkpoint.get("init_args")
    if not isinstance(weights, dict) or not isinstance(arguments, dict) or "configuration" not in arguments:
        there = ", ".join(map(str, list(checkpoint)[:5]))
        raise WeightsError(
            f"{str(path)!r} is not a checkpoint of nnU-Net v2: no network_weights or init_args in it (there: {there})",
            "use the checkpoint_final.pth that training wrote",
        )
    return checkpoint


def check_weights(path: Path, network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Check that the weights read from `path` are those of the network: names, shapes, one value for all names of one.

    Raises:
        WeightsError: They are not; the message counts the differences and gives an example of each kind.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    kinds = {
        "missing": [repr(name) for name in expected if name not in given],
        "unexpected": [repr(name) for name in given if name not in expected],
        "of another shape": [
            f"{name!r}: {given[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ],
    }
    problems = [f"{len(found)} {kind} (e.g. {found[0]})" for kind, found in kinds.items() if found]
    if problems:
        raise WeightsError(
            f"{str(path)!r} is of another network than plans.json describes; tensors: {', '.join(problems)}",
            "put the plans.json and the checkpoint of one training together",
        )
    known: dict[int, str] = {}
    for name, value in (
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ):
        first = known.setdefault(id(value), name)
        if name in weights and first in weights and not is_same(weights[first], weights[name]):
            raise WeightsError(
                f"{str(path)!r} is damaged: {first!r} and {name!r} are names of one tensor, and differ",
                "use the checkpoint that training wrote",
            )


def check_finite(tensors: Mapping[str, torch.Tensor], path: Path, architecture: Architecture | None = None) -> None:
    """Check all values: none may be NaN or infinite, and no convolution of the encoder may consist of zeros only.

    Args:
        tensors: By name; read once each, and released again if they are mapped from a file.
        path: Where they come from, for the message.
        architecture: The network they belong to; None: as recognised, and zeros are let pass in unknown networks.

    Raises:
        WeightsError: A tensor fails the check; the message names the first one and gives their number.
    """
    if architecture is None:
        architecture = architectures.find_tensors({name: tuple(value.shape) for name, value in tensors.items()})
    bad, empty = [], []
    for name, value in tensors.items():
        if value.numel():
            extremes = torch.stack(torch.aminmax(value))  # no copy, unlike value.isfinite()
            if not extremes.isfinite().all():
                bad.append(name)
            if value.ndim > 1 and not extremes.any() and architecture and architecture.is_encoder(name):
                empty.append(name)
        release(value)
    if empty:
        raise WeightsError(
            f"{str(path)!r} has nothing but zeros in {len(empty)} convolutions of the encoder (e.g. {empty[0]!r})",
            "copy it again from its source: a part of it did not arrive, or was never trained",
        )
    if bad:
        raise WeightsError(
            f"{str(path)!r} has NaN or infinite weights in {len(bad)} of {len(tensors)} tensors (e.g. {bad[0]!r})",
            "use an earlier checkpoint: this training diverged, or the file is damaged",
        )


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that loads with plain `weights_only=True`; the file appears whole or not at all.

    Numpy scalars and arrays become Python numbers and lists; tensors are unchanged.

    Raises:
        DataError: The file could not be written completely.
    """
    with atomic_write(path) as part, _written_to(path):
        torch.save(_plain(content), part)


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], half: bool = False) -> None:
    """Write a safetensors file with metadata that describe it; it appears whole or not at all.

    Args:
        meta: Fields of Weights: plans, configuration, dataset, mirror_axes, entry; those that are None are omitted.
        half: Write float16, half the bytes.

    Raises:
        WeightsError: A weight is NaN, infinite, or, with `half`, too large for float16.
        DataError: The file could not be written completely.
    """
    check_finite(tensors, path)
    # safetensors refuses tensors that are not contiguous.
    stored = {name: value.detach().contiguous() for name, value in tensors.items()}
    if half:
        stored = to_half(stored)
    text = json.dumps({key: value for key, value in meta.items() if value is not None} | {"version": FORMAT})
    with atomic_write(path) as part, _written_to(path):
        # Zeros hold the place of the checksum, which covers this header as well; seal() fills it in.
        save_file(stored, part, {"format": "pt", "stunet": text, "crc32": "0" * 8})
        seal(part)


def to_half(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors in float16, half the bytes.

    Raises:
        WeightsError: A value is too large for float16.
    """
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    if large := [name for name, value in halved.items() if not value.isfinite().all()]:
        raise WeightsError(
            f"{len(large)} tensors (e.g. {large[0]!r}) have values above 65504, the largest of float16",
            "export them in full precision",
        )
    return halved


@contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """Translate the errors that torch and safetensors raise for a full disk or a missing folder."""
    try:
        yield
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(
            f"could not write {str(path)!r}: {first_line(error)}",
            f"see whether the folder is there and the disk full: df -h {path.parent}",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        # Not for named tuples, whose constructors take their fields one by one.
        return type(value)(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def _refusal(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """Return the error for a file that the restricted reader rejected; called while ALLOWED is in force."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, IndexError, KeyError):  # too damaged to be listed
        names = []
    names = names or re.findall(r"GLOBAL (\S+)", str(error))  # torch does not list those of a legacy file
    if not names:
        return WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source")
    return WeightsError(
        f"{str(path)!r} wants to import {', '.join(names)}; it was refused and nothing was executed",
        "use weights from a source you trust that hold tensors and plain values only",
    )
