"""Read pickles without executing anything in them: plans of nnU-Net v1, and properties of preprocessed cases.

A pickle may call any function that it names. These readers accept a few of numpy's names but provide none of numpy's
functions: scalars and arrays are built here, without numpy's own unpickling code. In plans (X.model.pkl) they become
numbers and lists; in properties (CASE.pkl) they stay what they are. opcodes.py counts first. Read next: v1.py.
"""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import WeightsError
from stunet.weights.foreign import UNREADABLE, describe_file
from stunet.weights.opcodes import Excessive, count

MAX_BYTES = 64 << 20  # plans with the properties of thousands of cases take a few MB
_counted: set[tuple[str, int, int, int]] = set()  # files of properties, by path, size, mtime and inode


def load_pickle(path: Path) -> Any:
    """Return the content of a pickle of plain values; numpy scalars and arrays become numbers and (nested) lists.

    Raises:
        WeightsError: The file is missing, larger than MAX_BYTES, damaged, or asks for more than plain values; if so,
            nothing in it was executed.
    """
    if not path.is_file():
        raise WeightsError(f"no file {str(path)!r}", "check the path")
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size >> 20
        raise WeightsError(
            f"{str(path)!r} has {size} MiB: no plans of nnU-Net v1, which have a few",
            "give the X.model.pkl next to X.model",
        )
    try:
        content = path.read_bytes()
        count(content)
        return _Reader(BytesIO(content)).load()
    except Excessive as error:
        raise WeightsError(f"{str(path)!r} makes {error}; it was not read", "copy it again from its source") from None
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
            f"{str(path)!r} is not a complete pickle ({describe_file(path)}): {what}", "copy it again from its source"
        ) from None


def load_properties(path: str | Path) -> dict[str, Any]:
    """Return the content of a CASE.pkl, like nnU-Net's load_pickle and as fast; it is counted only the first time.

    Raises:
        UnpicklingError: The file is damaged, or asks for more than numbers, text and arrays; if so, nothing in it was
            executed.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        content, state = file.read(), os.fstat(file.fileno())
    try:
        if (known := (str(path), state.st_size, state.st_mtime_ns, state.st_ino)) not in _counted:
            count(content)
            _counted.add(known)
        return _native(_Properties(BytesIO(content)).load())
    except (Excessive, _Refused) as error:
        what = f"makes {error}" if isinstance(error, Excessive) else f"wants to import {error}"
        raise pickle.UnpicklingError(f"{str(path)!r} {what}; it was refused and nothing was executed") from None
    except UNREADABLE as error:
        what = f"{type(error).__name__} {error}".splitlines()[0][:200]
        raise pickle.UnpicklingError(f"{str(path)!r} is damaged: {what}") from None


class _Refused(Exception):
    """A pickle names something that it must not import."""


class _Type:
    """Stand-in for numpy.dtype: a numeric type."""

    def __init__(self, code: str, *_: object) -> None:
        # Booleans, integers and floats: an array of objects could hold anything.
        if not re.fullmatch(r"[biuf]\d{1,2}", code):
            raise ValueError(f"array of type {code!r}, which is not a number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        # state[1] is the byte order; bytes and native order have "|" and "=".
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    @property
    def native(self) -> np.dtype:
        return np.dtype(self.order + self.code)

    def decode(self, raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, self.native)


class _Array(list):
    """Stand-in for numpy.ndarray: nested lists."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        if raw:  # an empty array may claim any shape
            self[:] = np.atleast_1d(kind.decode(raw).reshape(shape, order="F" if fortran else "C")).tolist()


class _Stored(np.ndarray):
    """Stand-in for numpy.ndarray while it is filled: numpy only gets a dtype that was built in this module."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type) or not isinstance(raw, bytes):
            raise ValueError("an array of something else than numbers")
        super().__setstate__((1, shape, kind.native, bool(fortran), raw))  # type: ignore[arg-type]


def _allowed() -> Mapping[str, Callable[..., Any]]:
    """Return what a pickle may name; the functions are new on each call, as a pickle may set attributes on them."""
    numpy: dict[str, Callable[..., Any]] = {
        "scalar": lambda kind, raw: kind.decode(raw).item(),
        "_reconstruct": lambda *_: _Array(),
    }
    # numpy 1 and numpy 2 pickle the same functions under two names
    both = {f"numpy.{core}.multiarray.{name}": f for core in ("core", "_core") for name, f in numpy.items()}
    return {"collections.OrderedDict": OrderedDict, "numpy.dtype": _Type, "numpy.ndarray": lambda: None, **both}


class _Reader(pickle._Unpickler):
    """Reader in pure Python: the C one would allocate as many objects as the file claims to have."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._table = _allowed()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        return _found(self._table, module, name)


def _found(table: Mapping[str, Callable[..., Any]], module: str, name: str) -> Callable[..., Any]:
    if (full := f"{module}.{name}") not in table:
        raise _Refused(full)
    return table[full]


def _arrays() -> Mapping[str, Callable[..., Any]]:
    """Return the same as _allowed(), but arrays stay arrays; the last function is for pickle protocol 5."""
    numpy: dict[str, Callable[..., Any]] = {
        "multiarray.scalar": lambda kind, raw: kind.decode(raw)[0],
        "multiarray._reconstruct": lambda *_: _Stored(0),
        "numeric._frombuffer": lambda raw, kind, shape, order: kind.decode(raw).reshape(shape, order=order),
    }
    both = {f"numpy.{core}.{name}": f for core in ("core", "_core") for name, f in numpy.items()}
    return {"collections.OrderedDict": OrderedDict, "numpy.dtype": _Type, "numpy.ndarray": lambda: None, **both}


class _Properties(pickle.Unpickler):
    """Reader in C: what it would allocate has already been counted."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self._table = _arrays()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        return _found(self._table, module, name)


def _native(value: Any) -> Any:
    """Return the value with plain arrays in its dictionaries, lists and tuples."""
    if isinstance(value, _Stored):
        return value.view(np.ndarray)
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, _Stored | dict | list | tuple):
                value[key] = _native(item)
    elif isinstance(value, list):
        value[:] = [_native(item) for item in value]
    elif isinstance(value, tuple):
        return tuple(_native(item) for item in value)
    return value
