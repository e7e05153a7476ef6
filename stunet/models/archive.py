"""Pack a model folder into a zip, and unpack a zip from any source without writing what it should not.

The zip is what nnUNetv2_export_model_to_zip writes, or ours. installing.py imports models, exporting.py exports them.
"""

import errno
import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from stunet.errors import WeightsError
from stunet.files import atomic_folder, atomic_write

# Files that are read from an archive, below the folder of a model.
CHECKPOINT = r"fold_([0-9]{1,3}|all)/checkpoint_[a-z]{1,20}\.pth"
FILES = re.compile(rf"(plans|dataset|model)\.json|{CHECKPOINT}")
_MODEL = re.compile(rf"(?P<root>(.*/)?)(plans\.json|{CHECKPOINT})")
# Limits on unpacking. Weights hardly compress; the JSON files next to them do, but are small.
MAX_RATIO, MAX_EXTRA_BYTES, MAX_MEMBERS = 20, 16 << 20, 10_000


def pack(folder: Path, archive: Path, place: str) -> None:
    """Write a model folder as a zip, uncompressed, because weights do not compress; it is called `place` in there."""
    with atomic_write(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as target:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target.write(path, f"{place}/{path.relative_to(folder).as_posix()}")


def is_packed_model(path: Path) -> bool:
    """Return whether a file is a zip of a model folder; torch's files are zips, too, but of other members."""
    if not zipfile.is_zipfile(path):
        return False
    with _reading(path), zipfile.ZipFile(path) as archive:
        return any(_MODEL.fullmatch(name) for name in archive.namelist())


def unpack(path: Path, target: Path, name: str | None = None) -> Path:
    """Write a model folder that a zip holds to the folder `target`: plans, dataset, model.json, checkpoints.

    Args:
        path: The zip.
        target: Must not exist.
        name: Of the model's folder in the zip, wherever it is; None: the zip holds one model.

    Raises:
        WeightsError: A member would be written outside `target` or is a link; the members are far larger than the
            archive; it holds no model folder, several, or none of this name; or it is damaged. Nothing is left behind.
    """
    with _reading(path), zipfile.ZipFile(path) as archive, atomic_folder(target) as part:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _check_members(path, members)
        root = _root(path, members, name)
        for member in members:
            inside = PurePosixPath(member.filename)
            if inside.is_relative_to(root) and FILES.fullmatch(str(inside.relative_to(root))):
                file = part / inside.relative_to(root)
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    return target


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report a damaged archive as such, whatever the libraries for its members raise."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, RuntimeError,
        ValueError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the system: a full disk, a folder that cannot be written
        raise WeightsError(f"{str(path)!r} is damaged or encrypted: {error}", "copy it again from its source") from None


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    def refuse(what: str) -> WeightsError:
        return WeightsError(f"{str(path)!r} was refused: {what}; nothing was written", "use another source")

    if len(members) > MAX_MEMBERS:
        raise refuse(f"it has {len(members)} members")
    for member in members:
        # Windows' separators and drive letters are refused on every system.
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", member.filename):
            raise refuse(f"its member {member.filename!r} would be written outside of the folder")
        if stat.S_ISLNK(member.external_attr >> 16):  # the Unix mode
            raise refuse(f"its member {member.filename!r} is a link")
    total = sum(member.file_size for member in members)
    if total > MAX_RATIO * path.stat().st_size + MAX_EXTRA_BYTES:
        raise refuse(f"{path.stat().st_size} bytes that would become {total}")


def _root(path: Path, members: list[zipfile.ZipInfo], name: str | None) -> PurePosixPath:
    found = [match for member in members if (match := _MODEL.fullmatch(member.filename))]
    roots = sorted({PurePosixPath(match["root"]) for match in found})
    chosen = [root for root in roots if root.name == name] if name else roots
    if len(chosen) != 1:
        listed = ", ".join(map(str, roots[:3])) or "none"
        meant = f", none of them named {name}" if name else ""
        raise WeightsError(
            f"{str(path)!r} holds {len(roots)} model folders ({listed}){meant}",
            "give the zip of one model, or unpack it first and give the folder of one",
        )
    return chosen[0]
