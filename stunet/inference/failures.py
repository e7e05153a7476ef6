"""What does an error in the middle of a case mean for the user?"""

import torch

from stunet.errors import DataError, OutOfMemoryError, StunetError


def reason(error: Exception) -> StunetError:
    """What an error in the middle of a case means for the user."""
    if isinstance(error, StunetError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(f"out of memory: {last_line(error)}", "--max_memory, or a machine with more memory")
    kind = "" if isinstance(error, RuntimeError | OSError) else f"{type(error).__name__}: "
    return DataError(f"prediction failed: {kind}{last_line(error)}", "the same command with --verbose")


def is_out_of_memory(error: Exception) -> bool:
    """Also what torch says on the CPU, where it has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def last_line(error: BaseException) -> str:
    """Of its message; libraries put the reason there."""
    return (str(error).strip().splitlines() or [""])[-1]
