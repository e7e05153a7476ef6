"""How does memory that is only a view of a file go back to the system, once it has been copied?

A mapped checkpoint costs no memory until it is read; then its pages count as this process's own, beside the network
that they were copied into. checkpoints.py maps files, transfer.py copies what is in them.
"""

import ctypes
import mmap
import sys

from torch import Tensor


def release(tensor: Tensor) -> None:
    """Lets go of the pages of a mapped tensor; they are read from the file again where somebody looks at them.

    Nothing happens to tensors that are no views of a file, and on other systems than Linux. What was written into a
    mapped tensor is lost.
    """
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the neighbours' bytes are on the others
    length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if sys.platform == "linux" and tensor.is_cpu and length > 0 and _is_file(first, length):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _is_file(start: int, length: int) -> bool:
    """Whether these addresses are one mapping of a file: elsewhere letting go of pages destroys what is in them."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, *_, inode = line.split(maxsplit=5)[:5]
            low, high = (int(address, 16) for address in addresses.split("-"))
            if low <= start < high:
                return start + length <= high and inode != "0"
    return False
