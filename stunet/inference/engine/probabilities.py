"""Write the probabilities of all classes to a file when they are too large for memory.

They first go to a plain array on disk, in whatever order they arrive, and are then compressed into the .npz that
nnU-Net writes and reads (array `probabilities`, float32).
"""

import errno
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PLAIN = ".npy"  # ending of the plain array
BLOCK = 2**24  # bytes compressed at a time


@contextmanager
def plain_array(path: Path, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield an array of zeros, float32, that is on disk when the block ends, and removed if the block fails.

    Args:
        path: The .npy to create.
        shape: (K, D, H, W).

    Raises:
        OSError: The disk is full.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", np.float32, tuple(shape))
        _reserve(path)
        yield array
        # What is dropped from memory stays in the file. Kept, 60 classes of 200^3 counted as 2.3 GB instead of 0.4.
        array.flush()
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def compress(path: Path, on_block: Callable[[], None] = lambda: None) -> None:
    """Compress the plain array next to `path`, an .npz, into it, and remove the plain array.

    Args:
        path: Removed if this fails.
        on_block: Called before each part of the array; an exception that it raises stops the work.

    Raises:
        OSError: The disk is full.
    """
    plain = path.with_suffix(PLAIN)
    try:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("probabilities.npy", "w", force_zip64=True) as target,  # may pass 4 GiB
            plain.open("rb") as source,
        ):
            while block := source.read(BLOCK):
                on_block()
                target.write(block)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        plain.unlink(missing_ok=True)


def put(part: np.ndarray, values: np.ndarray) -> None:
    """Write values to a part of such an array, one entry of the first axis at a time, and keep none of it in memory.

    Written pages would otherwise count as this process's memory, up to the size of the file.
    """
    for entry, value in zip(part, values, strict=True):
        entry[...] = value
        file = getattr(entry, "_mmap", None)
        if file is not None and entry.size:
            reach = [(n - 1) * stride for n, stride in zip(entry.shape, entry.strides, strict=True)]
            begin = entry.ctypes.data - np.frombuffer(file, np.uint8, 1).ctypes.data + sum(min(0, r) for r in reach)
            last = sum(map(abs, reach))
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE
            file.madvise(mmap.MADV_DONTNEED, first, begin + last + entry.itemsize - first)


def _reserve(path: Path) -> None:
    """Allocate the space of a sparse file now: writing to a memory map of it on a full disk kills the process.

    Raises:
        OSError: The disk is full.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system does not support it
                raise
