"""Translate errors in the middle of a case into errors that mean something to the user."""

from stunet.errors import DataError, OutOfMemoryError, StunetError, is_out_of_memory, last_line


def reason(error: Exception, what: str = "prediction") -> StunetError:
    """Return the user-facing error for an exception in the middle of a case; `what` failed."""
    if isinstance(error, StunetError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(f"out of memory: {last_line(error)}", "--max_memory, or a machine with more memory")
    kind = "" if isinstance(error, RuntimeError | OSError) else f"{type(error).__name__}: "
    return DataError(f"{what} failed: {kind}{last_line(error)}", "the same command with --verbose")
