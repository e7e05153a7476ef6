"""User output: results on stdout, messages and errors on stderr. Used by stunet.cli only; live.py shows progress."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TextIO

_results: TextIO | None = None  # the real stdout while reserve_stdout() holds it
bars: list[Any] = []  # rich's bars (live.py), which make way for every line


class OutputClosed(Exception):
    """The reader of stdout or stderr is gone, as with `head`; cli/common.py then ends the command quietly."""


@contextmanager
def reserve_stdout(verbose: bool) -> Iterator[None]:
    """Keep stdout for results: what nnU-Net and its worker processes print goes to stderr (verbose) or nowhere.

    nnU-Net reports through `print`, also in processes that it starts, so the file descriptor itself is replaced.
    """
    global _results
    stdout = sys.stdout
    stdout.flush()
    saved = os.dup(1)
    elsewhere = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    os.dup2(elsewhere, 1)
    captured = not _writes_to(stdout, 1)  # for example by a test: results go where the caller looks for them
    _results = stdout if captured else os.fdopen(os.dup(saved), "w")
    try:
        with os.fdopen(elsewhere, "w") as target, redirect_stdout(target):
            yield
    finally:
        # A bar that still runs would draw over the error that is shown next.
        while bars:
            bars.pop().stop()
        _results.flush()
        if not captured:
            _results.close()
        _results = None
        os.dup2(saved, 1)
        os.close(saved)


def result(text: str) -> None:
    """Write a line of the command's result to stdout."""
    _write(text, _results or sys.stdout)


def result_json(document: Any) -> None:
    """Write the command's result to stdout as one JSON document."""
    result(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Write a message to stderr."""
    _write(text, sys.stderr)


def warn(text: str) -> None:
    """Write a warning to stderr; the run continues."""
    note(f"warning: {text}")


def error(program: str, message: str, hint: str) -> None:
    """Write what happened on one line, and the next step on a second one."""
    note(f"{program}: {' '.join(message.split())}")
    if hint:
        note(f"  try: {hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Write a table to stdout."""
    for line in ([title] if title else []) + aligned(columns, rows):
        result(line)


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column left-aligned, the others right-aligned; plain text for piping."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Take the bars off the terminal, on which something is written."""
    live = [bar for bar in bars if bar.live.is_started]
    for bar in live:
        bar.stop()
    yield
    for bar in live:
        bar.start()


def _write(text: str, stream: TextIO) -> None:
    try:
        with _without_bars() if stream.isatty() else nullcontext():
            _print(text, stream)
    except BrokenPipeError:
        _discard(stream)
        raise OutputClosed from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _discard(stream)  # the terminal is gone, as after logging out: a training goes on


def _discard(stream: TextIO) -> None:
    """Let a stream write nowhere, also what it still buffers, which Python writes on exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:  # a name that is not UTF-8, or a terminal that is not
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _writes_to(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # io.UnsupportedOperation of in-memory streams is both
        return False
