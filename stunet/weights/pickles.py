"""How are the plans of nnU-Net v1 (X.model.pkl) read without running anything in the file?

A pickle may call any function that it names. This reader knows five names and lends none of them: numpy's scalars and
arrays become numbers and lists here, without numpy's own code for unpickling. Read v1.py next.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import WeightsError
from stunet.weights.foreign import UNREADABLE, describe_file

MAX_BYTES = 64 << 20  # plans with the properties of thousands of cases have a few MB


def load_pickle(path: Path) -> Any:
    """The content of a pickle of plain values; numpy scalars and arrays in it are numbers and (nested) lists.

    Raises:
        WeightsError: No such file, larger than MAX_BYTES, damaged, or it asks for more; nothing was executed then.
    """
    if not path.is_file():
        raise WeightsError(f"no file {str(path)!r}", "check the path")
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size >> 20
        raise WeightsError(
            f"{str(path)!r} has {size} MiB: no plans of nnU-Net v1, which have a few",
            "give the X.model.pkl that stands beside X.model",
        )
    try:
        with path.open("rb") as file:
            return _Reader(file).load()
    except _Refused as error:
        raise WeightsError(
            f"{str(path)!r} wants to import {error}; it was refused and nothing was executed",
            "use plans from a source you trust that hold plain values only",
        ) from None
    except OSError as error:
        raise WeightsError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UNREADABLE as error:
        what = f"{type(error).__name__} {error}".splitlines()[0][:200]
        raise WeightsError(
            f"{str(path)!r} is no whole pickle ({describe_file(path)}): {what}", "copy it again from its source"
        ) from None


class _Refused(Exception):
    """A name that a pickle must not import."""


class _Type:
    """Stands for numpy.dtype: a kind of number."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf]\d{1,2}", code):
            raise ValueError(f"array of type {code!r}, which is no number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def decode(self, raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, self.order + self.code)


class _Array(list):
    """Stands for numpy.ndarray: nested lists."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        if raw:  # an empty one may claim any shape
            self[:] = np.atleast_1d(kind.decode(raw).reshape(shape, order="F" if fortran else "C")).tolist()


def _allowed() -> Mapping[str, Callable[..., Any]]:
    """What a pickle may name; new functions each time, because a pickle may set attributes of what it is given."""
    numpy: dict[str, Callable[..., Any]] = {
        "scalar": lambda kind, raw: kind.decode(raw).item(),
        "_reconstruct": lambda *_: _Array(),
    }
    # numpy 1 and numpy 2 pickle the same functions under two names
    both = {f"numpy.{core}.multiarray.{name}": f for core in ("core", "_core") for name, f in numpy.items()}
    return {"collections.OrderedDict": OrderedDict, "numpy.dtype": _Type, "numpy.ndarray": lambda: None, **both}


class _Reader(pickle._Unpickler):
    """The reader in Python: the one in C makes room for as many objects as the file says that it has."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._table = _allowed()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        full = f"{module}.{name}"
        if full not in self._table:
            raise _Refused(full)
        return self._table[full]
