"""What every command shares: the parser, common arguments, and how an error becomes two lines and an exit code."""

import argparse
import errno
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from stunet import __version__, console
from stunet.errors import DataError, OutOfMemoryError, StunetError, UsageError

EXIT_CODES = """exit codes: 0 done, 1 unexpected, 2 usage, 3 data, plan or path missing or bad, 4 weights,
5 out of memory, 75 interrupted and resumable, 130 Ctrl-C, 141 nobody reads its output (as with | head)"""


def new_parser(program: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """A parser with the flags that all commands have: --verbose, --debug, --version."""
    parser = argparse.ArgumentParser(
        program,
        description=description,
        epilog=f"{examples}\n{EXIT_CODES}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # -pretrained_weights must not be read as -p retrained_weights
    )
    parser.add_argument("--verbose", action="store_true", help="also show what nnU-Net prints")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"stunet {__version__}")
    return parser


def run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> int:
    """Parses, runs the command and returns its exit code; a known error ends in one line and a hint."""
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Threads that wait by spinning slow each other down up to 20 times on a shared machine (benchmarks/README.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with console.own_stdout(args.verbose):
            return command(args) or 0
    except console.NobodyReads:
        return 141  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        console.error(parser.prog, "stopped by Ctrl-C", "")
        return 130
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        if args.debug:
            traceback.print_exc()
        known = explain(error)
        console.error(parser.prog, known.message, known.hint)
        return known.exit_code


def explain(error: BaseException) -> StunetError:
    """The error in our terms: itself, or what a full disk, too little memory or a bug means for the user."""
    if isinstance(error, StunetError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemoryError(
            f"out of memory: {error}",
            "less at a time: a smaller --size or batch_size in training, -device cpu in prediction",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _as(3, f"the disk is full: {error.filename or error}", "free some space and run the same command again")
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return _as(3, str(error), "check the path")
    if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return _as(3, str(error), "check the path and its permissions")
    return _as(
        1, f"unexpected {type(error).__name__}: {error}", "the same command with --debug, and report what it prints"
    )


def _as(exit_code: int, message: str, hint: str) -> StunetError:
    error = StunetError(message, hint)
    error.exit_code = exit_code
    return error


def device(requested: str | None) -> str:
    """The device to use: what was asked for, or "cuda" where there is one, else "cpu".

    Raises:
        UsageError: The device that was asked for is not there.
    """
    import torch

    if requested is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[requested]:
        raise UsageError(f"-device {requested}: torch finds no such device here", "-device cpu")
    return requested


def physical_cores() -> int:
    """Of this machine, as torch counts them."""
    import torch

    return int(torch.cpu.get_capabilities().get("num_physical_cores") or os.cpu_count() or 1)


def find_command(name: str) -> str:
    """The path of a command of ours: beside Python, as in a virtual environment, or on PATH, as after pip --user.

    Raises:
        DataError: It is in neither place.
    """
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if not found:
        where = f"beside {sys.executable!r} or on PATH"
        raise DataError(f"no command {name!r} {where}", "install stunet into this Python again")
    return found
