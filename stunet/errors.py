"""The errors that users can encounter, and the exit code with which each kind ends a command.

An error states what happened and where; its hint is the command or step that helps. cli/common.py prints both.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any, TypeGuard

SHOWN = 80  # characters of a value in a message
# Messages about insufficient memory from libraries without an error class of their own for it: torch on the CPU and on
# GPUs, cuDNN and cuBLAS, C++, ITK, and Linux if it cannot start a process for that reason.
NO_MEMORY = (
    "can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation", "Cannot allocate memory",
    "Failed to allocate memory", "Unable to allocate",
)  # fmt: skip
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, or what the file system allows a file
LISTED = 3  # texts of a list in a message
SYSTEM_HINTS = {  # the next step, by error number
    **dict.fromkeys(NO_SPACE, "free some space and run the same command again"),
    errno.EROFS: "use another folder: this one's file system is mounted read-only",
    errno.EACCES: "use another folder, or get write permission for this one: ls -ld",
    errno.EPERM: "use another folder, or get write permission for this one: ls -ld",
    errno.ENAMETOOLONG: "use a shorter name, or a folder closer to the root",
    errno.ELOOP: "fix the symbolic links, which form a loop",
    errno.EMFILE: "allow more open files, ulimit -n 4096, and run the same command again",
    errno.ENFILE: "allow more open files, ulimit -n 4096, and run the same command again",
    errno.EAGAIN: "fewer processes at a time, or allow more: ulimit -u",
    errno.EIO: "check the disk or the network drive, and run the same command again",
    errno.ESTALE: "check the disk or the network drive, and run the same command again",
    errno.ETIMEDOUT: "check the disk or the network drive, and run the same command again",
    errno.ENOTCONN: "check the disk or the network drive, and run the same command again",
}


class StunetError(Exception):
    """Base class of all errors that a user can do something about.

    Args:
        message: One line: what happened, and with which file, name or value.
        hint: The next step, ideally a command that can be copied.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is rebuilt from its args, the message alone, which loses the hint or is too few.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[StunetError], args: tuple[Any, ...], state: dict[str, Any]) -> StunetError:
    """Return an error that was pickled, as between processes."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(StunetError):
    """Options that contradict each other or values outside their range."""

    exit_code = 2


class DataError(StunetError):
    """A dataset, plan, folder or variable is missing or invalid."""

    exit_code = 3


class WorkerCrashed(DataError):
    """The process of a case crashed, also when it was tried again: by its files, a library, or the machine."""


class WeightsError(StunetError):
    """A checkpoint cannot be read or does not fit the network."""

    exit_code = 4


class OutOfMemoryError(StunetError):
    """The request does not fit into the memory of the device or the machine."""

    exit_code = 5


class Interrupted(StunetError):
    """A signal stopped the run; what was done so far can be resumed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the machine ran out of memory, whichever library reported it."""
    # torch's class by its name: this module must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # A number is unambiguous; texts are only searched where libraries pass on no number.
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in NO_MEMORY)


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether the system refused to write because there is no space left."""
    return isinstance(error, OSError) and error.errno in NO_SPACE


def raise_first(errors: Sequence[StunetError]) -> None:
    """Raise one error that names the first of these, counts the others, and has the hint of the first, if any.

    Of several kinds, insufficient memory is raised and named first: its exit code tells a script that fewer processes
    or another machine may help, which the message of a damaged file would hide.
    """
    kinds = {type(error) for error in errors}
    kind: type[StunetError] = DataError
    if len(kinds) == 1:
        kind = kinds.pop()
    elif OutOfMemoryError in kinds:
        kind = OutOfMemoryError
        memory = [error for error in errors if isinstance(error, kind)]
        others = [error for error in errors if not isinstance(error, kind)]
        errors = [memory[0], others[0], *memory[1:], *others[1:]]
    if errors:
        raise kind(first_few([error.message for error in errors]), errors[0].hint)


def explain(error: BaseException) -> StunetError:
    """Convert an error to ours: itself, or what insufficient memory, the system or a bug means for the user.

    Exit codes are 5 for memory, 3 for what the system refuses (a full disk, a read-only file system, permissions), 1
    for anything else.
    """
    if isinstance(error, StunetError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory: {last_line(error)}",
            "less at a time: --set batch_size=2 or a smaller network in training, fewer processes (-np 1), "
            "-device cpu in prediction",
        )
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, RuntimeError):  # from libraries that only keep the system's message
        number = next((number for number in SYSTEM_HINTS if os.strerror(number) in str(error)), None)
        number = errno.EAGAIN if "can't start new thread" in str(error) else number
    if number in NO_SPACE:
        return DataError(f"the disk is full: {getattr(error, 'filename', None) or error}", SYSTEM_HINTS[number])
    if number in SYSTEM_HINTS or (isinstance(error, OSError) and error.filename is not None):
        return DataError(str(error), SYSTEM_HINTS.get(number or 0, "check the path and its permissions"))
    return StunetError(
        f"unexpected {type(error).__name__}: {error}", "the same command with --debug, and report what it prints"
    )


def first_few(texts: Sequence[str], count: int = LISTED, separator: str = "; ") -> str:
    """Join the first texts of a list and count the others: `a; b; c; and 4 more`, or `a, b, c and 4 more`."""
    shown, more = separator.join(texts[:count]), len(texts) - count
    return f"{shown}{';' if separator == '; ' else ''} and {more} more" if more > 0 else shown


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message; libraries put the reason there."""
    return (str(error).strip().splitlines() or [""])[-1]


def closest(name: str, known: list[str]) -> str:
    """Return `; did you mean 'a' or 'b'?` for an unknown name, or an empty string if nothing is close."""
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def short(value: object) -> str:
    """Return a value as shown in messages: its repr, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
