"""Return memory that is only a view of a file to the system, once it has been copied.

A mapped checkpoint costs no memory until it is read; then its pages count as this process's own, in addition to the
network that they were copied into. checkpoints.py maps files, transfer.py copies their tensors.
"""

import ctypes
import mmap
import sys

from torch import Tensor


def release(tensor: Tensor) -> None:
    """Release the pages of a mapped tensor; they are read from the file again on the next access.

    This does nothing for tensors that are not views of a file, and on systems other than Linux. Anything written to a
    mapped tensor is lost.
    """
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # only whole pages: the others also hold neighbours' bytes
    length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if sys.platform == "linux" and tensor.is_cpu and length > 0 and _is_file(first, length):
        # Python's mmap objects have madvise(), but torch does not hand out its own.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _is_file(start: int, length: int) -> bool:
    """Return whether the addresses are in one file mapping: elsewhere, releasing pages destroys their content."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, *_, inode = line.split(maxsplit=5)[:5]
            low, high = (int(address, 16) for address in addresses.split("-"))
            if low <= start < high:
                return start + length <= high and inode != "0"
    return False
