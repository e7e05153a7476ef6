"""How is a checkpoint read without running anything in it, and written so that everybody can read it like that?

A .pth file is a pickle, and a pickle may call any function. torch's restricted reader (`weights_only=True`) builds
tensors and plain values; nnU-Net's own files also hold numpy scalars, which are the only addition to what it allows.
inference/predictor.py puts the weights into a network.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stunet.errors import DataError, WeightsError
from stunet.files import whole

_scalar = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    # numpy 1 and numpy 2 pickle the same function under two names
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of ours or of nnU-Net's; its tensors are mapped, and read when they are used.

    Raises:
        WeightsError: No such file, not a whole checkpoint, or one that asks for more than tensors and plain values;
            nothing of it was executed then.
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint {str(path)!r}", "check the path, or choose another file with -chk")
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{str(path)!r} is not a whole checkpoint: truncated, or not written by torch.save of torch 1.6 or later",
            "copy it again, and compare its size or sha256sum with the original",
        )
    with torch.serialization.safe_globals(ALLOWED):
        try:
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise _refusal(path, error) from None
        except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{str(path)!r} is damaged: {_first_line(error)}", "copy it again from its source"
            ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds a {type(content).__name__} instead of a checkpoint's dictionary")
    return content


def load_trained(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that training wrote: network_weights, and init_args with the configuration's name.

    Raises:
        WeightsError: As load_checkpoint, or the checkpoint is of another kind.
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
    """Sees that the weights read from `path` are those of the network, name by name and shape by shape.

    Raises:
        WeightsError: They are not; the message counts what differs and gives an example of each.
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


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that loads with `weights_only=True` alone; the file appears whole or not at all.

    Numpy scalars and arrays become Python numbers and lists; tensors stay as they are.

    Raises:
        DataError: The file could not be written to its end.
    """
    with whole(path) as part:
        try:
            torch.save(_plain(content), part)
        except RuntimeError as error:  # what torch makes of a full disk
            raise DataError(
                f"could not write {str(path)!r}: {_first_line(error)}",
                f"see whether the disk is full: df -h {path.parent}",
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def _refusal(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """The error for a file that the restricted reader stopped at; called with ALLOWED in force."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, IndexError, KeyError):  # too broken to be listed
        names = []
    if not names:
        return WeightsError(f"{str(path)!r} is damaged: {_first_line(error)}", "copy it again from its source")
    return WeightsError(
        f"{str(path)!r} wants to import {', '.join(names)}; it was refused and nothing was executed",
        "use weights from a source you trust that hold tensors and plain values only",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
