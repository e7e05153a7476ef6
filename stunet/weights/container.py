"""Is a file one that torch may read: a whole container that makes no more memory than it has bytes, and no HTML page?

torch's restricted reader executes nothing, but it trusts sizes. checkpoints.py calls this first.
"""

import zipfile
from pathlib import Path
from typing import IO

from stunet.errors import WeightsError
from stunet.weights.foreign import LEGACY, describe_file
from stunet.weights.opcodes import Excessive, count


def check_container(path: Path) -> bool:
    """Whether the file can be mapped: a zip file of torch's, whose members are stored as they are.

    Raises:
        WeightsError: It is no checkpoint, or its members claim more bytes than the file has.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:  # of torch before 1.6
                file.seek(0)
                for _ in range(4):  # its magic number, version, system, content
                    _check_pickle(path, file)
                return False
        if not zipfile.is_zipfile(path):
            raise WeightsError(
                f"{str(path)!r} is not a whole checkpoint: {describe_file(path)}",
                "copy it again, and compare its size or sha256sum with the original",
            )
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise WeightsError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source") from None
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if not pickles:
        first = members[0].filename if members else "nothing"
        raise WeightsError(
            f"{str(path)!r} is a zip archive (of {first!r} ...), not a checkpoint",
            "unpack it and give the model folder or the checkpoint in it",
        )
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(
            f"{str(path)!r} claims more bytes than it has; it was not unpacked", "use weights from a source you trust"
        )
    with zipfile.ZipFile(path) as archive:
        for member in pickles:
            with archive.open(member) as file:
                _check_pickle(path, file)
    return True


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Counts what the next pickle in a file makes, and refuses bytearrays: torch allows them, with any number of bytes.

    Raises:
        WeightsError: It asks for one, makes too much, or is damaged.
    """
    try:
        names = count(file)
    except Excessive as error:
        what = f"{str(path)!r} makes {error}; it was not read"
        raise WeightsError(what, "use weights from a source you trust") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{str(path)!r} is damaged: {first_line(error)}", "copy it again from its source") from None
    if any(name.endswith(" bytearray") for name in names):
        raise WeightsError(
            f"{str(path)!r} asks for a bytearray, which no weights have; it was not read",
            "use weights from a source you trust",
        )


def first_line(error: BaseException) -> str:
    """The first line of a message, of torch's reader only what it says after two sentences of advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return (text or type(error).__name__).splitlines()[0][:200]
