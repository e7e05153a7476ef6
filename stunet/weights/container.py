"""Check that torch may read a file: a whole container that needs no more memory than it has bytes, not an HTML page.

torch's restricted reader executes nothing, but it trusts sizes, and it maps tensors without verifying the checksums
that every zip file has: a flipped bit would silently become another weight. checkpoints.py calls this first.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from stunet.errors import WeightsError
from stunet.weights.foreign import LEGACY, LFS_POINTER, describe_file
from stunet.weights.opcodes import Excessive, count

CHUNK = 1 << 20
MAX_PICKLE_BYTES = 256 << 20  # for names, plans and training log, which take a few MB
SUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')  # in the header of our safetensors files
_verified: set[tuple[str, int, int, int]] = set()  # files by path, size, mtime and inode


def check_container(path: Path) -> bool:
    """Check a checkpoint; return whether it can be mapped, being a torch zip file with uncompressed members.

    Raises:
        WeightsError: The file is not a checkpoint, or its members claim more bytes than it has.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:  # written by torch before 1.6
                file.seek(0)
                for _ in range(5):  # its magic number, version, system, content, and the keys of its tensors' data
                    _check_pickle(path, file)
                return False
        if not zipfile.is_zipfile(path):
            what = describe_file(path)
            hint = "copy it again, and compare its size or sha256sum with the original"
            if what == LFS_POINTER:
                hint = "git lfs pull in its repository, or download the file itself from its page"
            raise WeightsError(f"{str(path)!r} is not a whole checkpoint: {what}", hint)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise WeightsError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source") from None
    # As torch names it: ARCHIVE/data.pkl.
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if not pickles:
        first = members[0].filename if members else "nothing"
        raise WeightsError(
            f"{str(path)!r} is a zip archive (of {first!r} ...), not a checkpoint",
            "unpack it and give the model folder or the checkpoint in it",
        )
    # torch never compresses; a few bytes that unpack to terabytes would.
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(
            f"{str(path)!r} claims more bytes than it has; it was not unpacked", "use weights from a source you trust"
        )
    for member in members:
        if not member.CRC:  # torch can be told to omit it; without the attribute zipfile compares nothing
            del member.CRC
    # A file that is written again has another time, size or inode, and is verified again.
    if (state := _state(path)) in _verified:
        return True
    with zipfile.ZipFile(path) as archive:
        for member in pickles:
            if member.file_size > MAX_PICKLE_BYTES:
                what = f"{str(path)!r} has {member.file_size >> 20} MiB beside its tensors; it was not read"
                raise WeightsError(what, "use weights from a source you trust")
            with _damage(path), archive.open(member) as file:
                _check_pickle(path, BytesIO(file.read()))
    _check_members(path, members)
    _verified.add(state)
    return True


def _state(path: Path) -> tuple[str, int, int, int]:
    state = path.stat()
    return str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Verify the CRC-32 of all bytes, at about 1 GB per second.

    Raises:
        WeightsError: They differ from what was written.
    """
    with _damage(path), zipfile.ZipFile(path) as archive:
        for member in members:
            with archive.open(member) as file:
                while file.read(CHUNK):
                    pass


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Report a zip file as damaged, whatever zipfile raises for it."""
    try:
        yield
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _changed(path, first_line(error)) from None


def seal(path: Path) -> None:
    """Write the checksum of a safetensors file into its header, in place of eight zeros."""
    with path.open("r+b") as file:
        place, total = _sum(file)
        file.seek(place)
        file.write(b"%08x" % total)


def check_seal(path: Path) -> None:
    """Compare a safetensors file with its checksum, once per process; files of others have none.

    Raises:
        WeightsError: Its bytes differ from what was written.
    """
    if (state := _state(path)) in _verified:
        return
    with path.open("rb") as file:
        # Length of the JSON header, and the header.
        found = SUM.search(file.read(int.from_bytes(file.read(8), "little")))
        if found and int(found[1], 16) != _sum(file)[1]:
            raise _changed(path, "Bad CRC-32")
    _verified.add(state)


def _sum(file: IO[bytes]) -> tuple[int, int]:
    """Return the offset of a safetensors file's checksum, and the CRC-32 of the file with zeros at that place."""
    file.seek(0)
    start = file.read(8)
    header = file.read(int.from_bytes(start, "little"))
    found = SUM.search(header)
    if found is None:
        raise ValueError("no place for a checksum")
    low, high = found.span(1)
    # Zeros where the checksum is: it cannot contain itself.
    total = zlib.crc32(start + header[:low] + b"0" * 8 + header[high:])
    while chunk := file.read(CHUNK):
        total = zlib.crc32(chunk, total)
    return len(start) + low, total


def _changed(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{str(path)!r} is damaged: its bytes are not those that were written ({what})", "copy it again from its source"
    )


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Count what the file's next pickle creates, and reject bytearrays: torch allows them, with any number of bytes.

    Raises:
        WeightsError: The pickle asks for one, creates too much, or is damaged.
    """
    try:
        names = count(file)
    except Excessive as error:
        what = f"{str(path)!r} makes {error}; it was not read"
        raise WeightsError(what, "use weights from a source you trust") from None
    except ValueError as error:
        raise WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source") from None
    if any(name.endswith(" bytearray") for name in names):
        raise WeightsError(
            f"{str(path)!r} asks for a bytearray, which no weights have; it was not read",
            "use weights from a source you trust",
        )


def first_line(error: BaseException) -> str:
    """Return the first line of a message; for torch's reader, without the two sentences of advice before it."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return (text or type(error).__name__).splitlines()[0][:200]
