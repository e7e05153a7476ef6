"""How much memory this process may use: what the machine has, and what containers, batch systems and ulimit leave.

Prediction, preprocessing and training check this before starting what cannot fit. Imports neither torch nor nnunetv2.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GB = 1e9  # bytes, in messages and for --max_memory
GIB = 2**30  # bytes, for GPU memory, as in nnU-Net's gpu_memory_target
SHARE = 0.9  # of the available memory, if nobody has specified how much to use
# By version of cgroups: limit, usage, and which parts of it are cached files, which make room when memory is needed.
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
CGROUP_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def memory_limit(root: Path = Path("/")) -> int:
    """Return how many bytes of memory this process may use: what it has, and what it can still get at this moment.

    That is limited by the free memory of the machine (including swap), what each control group of the process has left,
    and the limit of its address space (ulimit -v).

    Args:
        root: Where proc and sys are.
    """
    free = [_free_on_the_machine(root), *_free_in_groups(root), _free_addresses(root)]
    return resident(root) + max(0, min(free))


def resident(root: Path = Path("/")) -> int:
    """Return how many bytes this process has in memory now; 0 if the system does not report it."""
    return _pages(root, 1)


def peak_resident() -> int:
    """Return the largest number of bytes that this process has had in memory so far."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource  # missing on Windows; on Linux its value would include the process that started this one

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _pages(root: Path, position: int) -> int:
    """Return an entry of statm in bytes: 0 is the address space, 1 the resident memory."""
    try:
        return int((root / "proc/self/statm").read_text().split()[position]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _free_on_the_machine(root: Path) -> int:
    """Return the free bytes of the machine; unlimited if the system does not report them."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
        return 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _free_addresses(root: Path) -> int:
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - _pages(root, 0)


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield what is left in the control groups of the process and in their ancestors."""
    for folder, (limit_file, use_file, cached) in _groups(root):
        with suppress(OSError, ValueError):  # ValueError for "max": no limit
            limit, use = (int((folder / name).read_text()) for name in (limit_file, use_file))
            with suppress(OSError, ValueError):
                lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                use -= sum(int(words[1]) for words in lines if len(words) > 1 and words[0] in cached)
            yield limit - max(0, use)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Yield the folders of the process's control groups and all their ancestors, each with the names of its files."""
    try:
        # Folder names can contain any bytes, for example on a USB disk from Windows.
        groups, mounted = (
            (root / "proc/self" / name).read_text(errors="surrogateescape").splitlines()
            for name in ("cgroup", "mountinfo")
        )
    except OSError:
        return
    entries, mounts = [line.split(":", 2) for line in groups], [line.split() for line in mounted]
    own = {}
    # Lines are number:controllers:path; version 2 is the line 0::path (man 7 cgroups).
    for number, controllers, path in (entry for entry in entries if len(entry) == 3):
        if "memory" in controllers.split(","):
            own["cgroup"] = path
        elif number == "0" and not controllers:
            own["cgroup2"] = path
    # Words 3 and 4 are the mounted part of the hierarchy and the mount point; the type follows a dash (man 5 proc).
    for words in (words for words in mounts if "-" in words[6:-1]):
        kind, options = words[words.index("-", 6) + 1], words[-1].split(",")
        if kind not in own or (kind == "cgroup" and "memory" not in options):
            continue
        top = root / words[4].lstrip("/")
        with suppress(ValueError):  # the mount shows a different part of the hierarchy
            folder = top / Path(own[kind]).relative_to(words[3])
            # A limit of any ancestor applies to the process as well.
            while folder != top and top in folder.parents:
                yield folder, CGROUP_V1 if kind == "cgroup" else CGROUP_V2
                folder = folder.parent
        yield top, CGROUP_V1 if kind == "cgroup" else CGROUP_V2
