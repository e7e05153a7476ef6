"""How much memory there is: of the machine, of control groups of both versions, of ulimit."""

import mmap
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stunet.machine import memory_limit, resident

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nSwapFree:         1048576 kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 8 GiB of free memory and 1 GiB of swap, and a process that is in no control group."""
    own = tmp_path / "proc" / "self"
    own.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (own / "statm").write_text("1000 0 0 0 0 0 0")
    (own / "cgroup").write_text("")
    (own / "mountinfo").write_text("")
    return tmp_path


def group(root: Path, path: str, files: dict[str, str]) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_without_groups_it_is_what_the_machine_has_free(root: Path) -> None:
    assert memory_limit(root) == 9 * GIB


def test_a_group_of_version_2_and_those_above_it_count_without_cached_files(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/slurm/job_1/step_0\n")
    (root / "proc/self/mountinfo").write_text("25 1 0:22 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw\n")
    group(root, "slurm/job_1/step_0", {"memory.max": "max\n", "memory.current": "5\n"})
    stat = f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\n"
    used = {"memory.current": f"{3 * GIB}\n", "memory.stat": stat}
    group(root, "slurm/job_1", {"memory.max": f"{4 * GIB}\n", **used})
    group(root, "slurm", {"memory.max": f"{6 * GIB}\n", **used})
    assert memory_limit(root) == 3 * GIB


def test_a_group_of_version_1_is_found_among_the_other_controllers(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("9:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    mounts = "30 1 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    # A container sees its own group as the top of the mount, under the path that the machine knows it by.
    mounts += "31 1 0:2 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    (root / "proc/self/mountinfo").write_text(mounts)
    files = {"memory.limit_in_bytes": f"{2 * GIB}", "memory.usage_in_bytes": f"{GIB}"}
    group(root, "memory", {**files, "memory.stat": f"total_inactive_file {GIB // 2}\n"})
    assert memory_limit(root) == 1.5 * GIB
    group(root, "memory", {"memory.limit_in_bytes": "9223372036854771712"})
    assert memory_limit(root) == 9 * GIB


def test_what_the_process_has_already_counts(root: Path) -> None:
    (root / "proc/self/statm").write_text("1000 512 0 0 0 0 0")
    assert memory_limit(root) == 9 * GIB + 512 * resource.getpagesize()


@pytest.mark.process
def test_the_limit_of_the_address_space_counts() -> None:
    code = (
        "import resource; from stunet.machine import memory_limit\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); print(memory_limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 * GIB < int(done.stdout) < 1.1 * GIB


def test_the_memory_in_use_is_known() -> None:
    before = resident()
    if not before:
        pytest.skip("no /proc here")
    with mmap.mmap(-1, 1 << 25) as block:  # never memory that the process already has
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert 30e6 < resident() - before < 60e6


def test_lines_and_names_of_any_kind_do_no_harm(root: Path) -> None:
    (root / "proc/self/cgroup").write_bytes(b"0::/us\xe9r\n")
    own = b"25 1 0:22 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw\n"
    disk = b"30 23 0:27 / /media/Gr\xf6\xdfe rw - ext4 /dev/sdb rw\n"
    (root / "proc/self/mountinfo").write_bytes(disk + b"no dash\n\n" + own)
    files = {"memory.max": f"{2 * GIB}", "memory.current": f"{GIB}", "memory.stat": "\ninactive_file\n"}
    group(root, "us\udce9r", files)
    assert memory_limit(root) == GIB
