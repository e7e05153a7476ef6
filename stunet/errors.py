"""What can go wrong in a user's hands, and the exit code each kind ends a command with.

An error says what happened and where; its hint is the command or the step that helps. cli/common.py prints both.
"""

SHOWN = 80  # characters of a value in a message


class StunetError(Exception):
    """Base of all errors that a user can do something about.

    Args:
        message: One line: what happened, and with which file, name or value.
        hint: The next step, ideally a command that can be copied.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(StunetError):
    """Options that contradict each other or values outside their range."""

    exit_code = 2


class DataError(StunetError):
    """A dataset, plan, folder or variable is missing or bad."""

    exit_code = 3


class WeightsError(StunetError):
    """A checkpoint cannot be read or does not fit the network."""

    exit_code = 4


class OutOfMemoryError(StunetError):
    """What was asked for does not fit into the memory of the device or the machine."""

    exit_code = 5


class Interrupted(StunetError):
    """A signal stopped the run; what was done so far can be resumed."""

    exit_code = 75


def closest(name: str, known: list[str]) -> str:
    """`; did you mean 'a' or 'b'?` for an unknown name, or an empty string where nothing is close."""
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def short(value: object) -> str:
    """How a message shows a value: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
