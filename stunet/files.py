"""Files and folders that appear whole or not at all, and JSON that says what is wrong with it."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import DataError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes the final name only if the block ends without an error.

    The temporary name keeps the file's ending, because image writers choose the format by it.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, message: str, hint: str) -> Iterator[None]:
    """Sees that no other process runs the block; the lock goes with the process, however that ends.

    Raises:
        DataError: Another one does: `message` and `hint`.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(message, hint) from None
        except OSError:  # some network file systems have no locks: two runs at a time go unnoticed there
            pass
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `target`; it takes the final name only if the block ends without an error.

    What a run that was killed left under the temporary name is removed first.

    Raises:
        DataError: `target` exists.
    """
    if target.exists():
        raise DataError(f"{str(target)!r} exists already", "take another name, or remove it")
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON under a temporary name first."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; kinds.read() also checks that it is what it should be.

    Raises:
        DataError: The file is missing, unreadable or not JSON, or has a key twice; the message names the line.
    """
    try:
        return json.loads(path.read_bytes().decode(), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise DataError(f"no file {str(path)!r}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise DataError(
            f"{str(path)!r} is not valid JSON: {error}", "correct the line, or make the file again"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of these pairs, of which Python would keep the last without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return content
