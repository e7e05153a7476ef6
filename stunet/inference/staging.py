"""Write the files of a case under temporary names, and give them their own when all are there.

products.py writes them; a killed run's leftovers are recognised by the same names.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stunet.errors import DataError
from stunet.files import NAME_MAX, remove, shortened, staging_name
from stunet.nifti import check_nifti

LONGEST_CASE = 200  # bytes of a case's name in temporary names, which also have two .part-PID- prefixes and an ending


@contextmanager
def atomic_case(folder: Path, name: str, endings: Sequence[str]) -> Iterator[str]:
    """Yield a temporary path without ending; what the block writes there gets its final names, in this order.

    The block may change `endings` if it cannot write one of them.

    Raises:
        OSError: A segmentation came out truncated, which ITK does not report: the disk is full.
    """
    part, all_endings = folder / staging_of_case(name), list(endings)
    try:
        yield str(part)
        # All are checked before the first is renamed: a truncated file must not leave half a case.
        for ending in endings:
            try:
                check_nifti(Path(f"{part}{ending}"))
            except DataError:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / f"{name}{ending}")) from None
        for ending in endings:
            os.replace(f"{part}{ending}", folder / f"{name}{ending}")
    finally:
        # Also those that the block took out of `endings`, of which a part may exist.
        for ending in {*endings, *all_endings}:
            remove(Path(f"{part}{ending}"))


def staging_of_case(name: str) -> str:
    """Return the temporary name of a case while this process works on it; endings are appended to it."""
    return staging_name(name, LONGEST_CASE)


def name_too_long(name: str, endings: Sequence[str]) -> DataError | None:
    """Return an error for a case whose results would have names longer than any file system accepts."""
    length = max(len(os.fsencode(f"{name}{ending}")) for ending in endings)
    if length <= NAME_MAX:
        return None
    what = f"the results of case {name!r} would have names of {length} bytes, and at most {NAME_MAX} are possible"
    return DataError(what, "rename the image")


def staging_endings(name: str, endings: Sequence[str]) -> set[str]:
    """Return how temporary files of a case end: its name, as in staging_of_case(), followed by one of `endings`."""
    return {f"{shortened(name, LONGEST_CASE)}{ending}" for ending in endings}
