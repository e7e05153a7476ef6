"""Write files and folders atomically, lock them, hash them, and read, write and compare JSON.

Every command takes the lock of a folder before it removes or writes anything there. The lock is that of flock(2), which
belongs to the open file: two holders in one process exclude each other, reading the file does not lose the lock (POSIX
record locks are lost when any descriptor is closed), and `flock` in a shell script respects it. What flock lacks is
handled here: a forked child, such as a data loader, closes its copy at once, or it would hold the lock after its parent
died.

The exception is lock_across_machines(), for what parts of a run on several machines write together.
"""

import codecs
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from stunet.errors import DataError, is_disk_full

MAX_DEPTH = 64  # of JSON and TOML; plans are 6 levels deep
_STAGING = re.compile(r"\.part-\d+-(.+)", re.DOTALL)  # a temporary file; the digits are a process id
_held: set[int] = set()  # descriptors of this process's locks
NAME_MAX = 255  # bytes in a file name
LAST_SHARER_S = 1.0
KEPT = 32  # bytes of its end that a shortened name keeps: the ending, by which image writers choose the format
PREFIX_MAX = len(".part-4194304-")  # of a temporary name, with the largest process id of Linux


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which gets the final name only if the block ends without an error.

    The temporary name keeps the file's ending, because image writers choose the format by it.
    """
    # In the same folder: a rename is atomic only within one file system.
    part = path.with_name(staging_name(path.name))
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if is_disk_full(error):  # writing to an open file does not name it, and copying names the other one
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def staging_name(name: str, longest: int = NAME_MAX - PREFIX_MAX) -> str:
    """Return the temporary name of a file while this process writes it, with at most `longest` bytes of `name`."""
    return f".part-{os.getpid()}-{shortened(name, longest)}"


def staging_folder(target: Path) -> Path:
    """Return where a folder is made until it is complete: without a process id, so that the next run finds it."""
    return target.with_name(f".part-{target.name}")


def shortened(name: str, longest: int) -> str:
    """Return a name of at most `longest` bytes: if it is longer, a hash replaces its start, but its end stays."""
    raw = os.fsencode(name)
    if len(raw) <= longest:
        return name
    end = raw[-KEPT:].decode(errors="ignore")
    return f"{hashlib.sha256(raw).hexdigest()[:32]}{end}"


def remove_staging(folder: Path, own: set[str] | None = None) -> None:
    """Remove temporary files of runs that were killed; for whoever holds the folder's lock.

    Args:
        folder: Need not exist.
        own: If other processes share the folder, the final names that belong to this one.
    """
    for path in folder.glob(".part-*"):
        found = _STAGING.fullmatch(path.name)
        if found and (own is None or found[1] in own):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(lock: Path, message: str, hint: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Let no other process run the block; the lock ends with this process, however that ends.

    If the file system has no locks (some network file systems), two simultaneous runs go unnoticed.

    Args:
        lock: A file that states who holds the lock, and is removed at the end. Its folder is made.
        message: What another holder does.
        hint: The next step for a command that is refused.
        wait: Called with the message if the lock is held; the block begins when it is free. None: do not wait.

    Raises:
        DataError: Another process or block holds it: `message`, who that is, and `hint`.
    """
    with _locked(lock, fcntl.LOCK_EX, message, hint, wait):
        yield


@contextmanager
def shared_lock(lock: Path, message: str, hint: str) -> Iterator[None]:
    """As exclusive_lock(), but others may share it; it excludes only those who want it exclusively."""
    with _locked(lock, fcntl.LOCK_SH, message, hint, None):
        yield


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Let no other process write a file or folder: an exclusive lock next to it."""
    lock = path.with_name(f".lock-{path.name}")
    with exclusive_lock(lock, f"another process writes {str(path)!r}", "wait until it is done"):
        yield


@contextmanager
def lock_across_machines(lock: Path) -> Iterator[None]:
    """Let no other process, on this machine or another, run the block; wait for them.

    A record lock, which NFS clients pass on to the server, while flock(2) may be local to a machine there (mount option
    local_lock). It ends with its process, however that ends. It does not exclude threads of one process. The file
    stays: other machines may see for seconds that a removed one is still there, and lock that.

    Without locks (ENOLCK), two runs go unnoticed: what they write has to be the same, and whole.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Return whether another process, or another block of this one, holds a lock exclusively."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        # A shared lock is refused only if somebody holds it exclusively; closing the file gives it back.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _locked(lock: Path, kind: int, message: str, hint: str, wait: Callable[[str], None] | None) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock, kind, message, hint, wait)
    try:
        yield
    finally:
        if descriptor in _held:  # otherwise this is a forked child, which has no lock to release
            _release(lock, descriptor)


def _acquire(lock: Path, kind: int, message: str, hint: str, wait: Callable[[str], None] | None) -> int:
    """Return the descriptor of the lock file that is at this path while the lock is held."""
    while True:
        descriptor = _open(lock)
        _held.add(descriptor)  # before it is locked: another thread may fork
        try:
            _lock(descriptor, kind, message, hint, wait)
            if _is_at(lock, descriptor):
                _sign(descriptor)
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)  # the previous holder has removed the file: the next lock is on a new file


def _lock(descriptor: int, kind: int, message: str, hint: str, wait: Callable[[str], None] | None) -> None:
    # The last of those that share a lock holds it alone for a moment, in _release().
    until = time.monotonic() + (LAST_SHARER_S if kind == fcntl.LOCK_SH else 0)
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.01)
    except BlockingIOError:
        text = f"{message}{_holder(descriptor)}"
        if wait is None:
            raise DataError(text, hint) from None
        wait(text)
    except OSError:  # locks are not supported here
        return
    with suppress(OSError):
        fcntl.flock(descriptor, kind)


def _release(lock: Path, descriptor: int) -> None:
    """Remove the lock file while it is held, unless others share it; whoever waits for it then takes a new one."""
    with suppress(OSError):
        # Fails while others share the lock, and then the file has to stay for them.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, descriptor):
            lock.unlink()
    _close(descriptor)


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # left by another user whose process was killed; reading is enough to lock it
        if not lock.exists():
            raise
        return os.open(lock, os.O_RDONLY)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _is_at(lock: Path, descriptor: int) -> bool:
    try:
        # By inode: a file that was removed and made again has the same path, but another lock.
        return os.path.samestat(os.stat(lock), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    text = f"process {os.getpid()} on {socket.gethostname()}"
    with suppress(OSError):  # a full disk, or a read-only file
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(errors="replace"), 0)


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 100, 0).decode(errors="replace")
    return f" ({text})" if text and text.isprintable() else ""


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target`, which gets the final name only if the block ends without an error.

    What a killed run left under the temporary name is removed first.

    Raises:
        DataError: `target` exists, or another process is making it.
    """
    part = staging_folder(target)
    with write_lock(target):
        if target.exists():
            raise DataError(f"{str(target)!r} exists already", "take another name, or remove it")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; the file is read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256_of(path: str | Path) -> str:
    """As sha256_of(), but read a file again only if its size or modification time has changed since."""
    status = os.stat(path)
    return _sha256_of_version(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**16)  # about 20 MB if full: the raw files of a large dataset
def _sha256_of_version(path: str, size: int, changed_ns: int) -> str:
    return sha256_of(path)


def sha256_of_json(content: Any) -> str:
    """Return the SHA-256 of a JSON document; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically through a temporary name."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; kinds.read() also validates it.

    Raises:
        DataError: The file is missing, unreadable or not JSON, or has a duplicate key; the message names the line.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(codecs.BOM_UTF8):  # nnU-Net reads most of these files as well, and does not accept it
            hint = "save it as UTF-8 without BOM"
            raise DataError(f"{str(path)!r} begins with a byte order mark (BOM): {hint}", hint)
        content = json.loads(raw.decode(), object_pairs_hook=_unique)
        check_depth(content)
        return content
    except FileNotFoundError:
        raise DataError(f"no file {str(path)!r}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError also for a number with too many digits
        raise DataError(
            f"{str(path)!r} is not valid JSON: {error}", "correct the line, or make the file again"
        ) from None


def check_depth(content: Any) -> None:
    """Reject content nested so deeply that neither we nor nnU-Net could have written it, or could copy it.

    Raises:
        ValueError: It is nested too deeply.
    """
    # Level by level, not recursively: content that is too deep would end in a RecursionError here.
    level = [content]
    for _ in range(MAX_DEPTH):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inside for item in items]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def json_differences(before: object, now: object, where: str = "") -> list[str]:
    """List the differences between two JSON documents, each as `recipe.head: "softmax" -> "sigmoid"`.

    A missing key equals null, since records of older versions lack keys that newer ones write as null; but not in a
    table of keyword arguments (`..._kwargs`). A tuple equals a list, as in a file, and NaN equals NaN.

    Args:
        before: The older document.
        now: The newer one.
        where: What both are part of, such as "plans"; starts each line.
    """
    found: list[str] = []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}, key=str):
            place = f"{where}.{key}" if where else str(key)
            if where.endswith("_kwargs") and (key in before) != (key in now):
                # A missing argument has the function's default. That of force_separate_z is False in nnU-Net's
                # resampling, while null decides by the spacing.
                one, other = (_as_text(values[key]) if key in values else "nothing" for values in (before, now))
                found.append(f"{place}: {one} -> {other}")
            else:
                found += json_differences(before.get(key), now.get(key), place)
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            found += json_differences(one, other, f"{where}[{index}]")
    elif before != now and not (before != before and now != now):
        found.append(f"{where}: {_short(before)} -> {_short(now)}")
    return found


def _short(value: object) -> str:
    return "nothing" if value is None else _as_text(value)


def _as_text(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the table of these pairs; for a duplicate key, Python would silently keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return content
