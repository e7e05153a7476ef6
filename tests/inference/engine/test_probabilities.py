"""Tests of inference/engine/probabilities.py: an .npz as nnU-Net's, or an error and nothing; and little memory."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from stunet.inference.engine.probabilities import compress, plain_array, put
from stunet.machine import resident
from tests.loops import for_each

SHAPE = (3, 20, 30, 40)
WRITE = """
import sys, errno, numpy as np
from pathlib import Path
from stunet.inference.engine.probabilities import compress, plain_array
try:
    with plain_array(Path(sys.argv[1]) / "c.npy", (4, 64, 64, 64)) as array:
        array[:] = np.random.default_rng(0).random(array.shape)
    compress(Path(sys.argv[1]) / "c.npz")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    raise SystemExit(28)
"""


@contextmanager
def probabilities_file(path: Path, shape: Sequence[int] = SHAPE) -> Iterator[np.ndarray]:
    """An array to fill that becomes an .npz, as a case's does."""
    with plain_array(path.with_suffix(".npy"), shape) as array:
        yield array
    compress(path)


def values() -> np.ndarray:
    return np.random.default_rng(0).random(SHAPE).astype(np.float32)


@for_each("name", ["c.npz", ".part-12-c.1.2.npz"])
def test_what_is_put_there_is_what_numpy_loads(tmp_path: Path, name: str) -> None:
    with probabilities_file(tmp_path / name) as array:
        assert array.shape == SHAPE
        assert not array.any()
        put(array[:, 3:17], values()[:, 3:17])
    assert os.listdir(tmp_path) == [name]
    with np.load(tmp_path / name) as file:
        assert file.files == ["probabilities"]
        loaded = file["probabilities"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded[:, 3:17], values()[:, 3:17])
    assert not loaded[:, :3].any()
    assert not loaded[:, 17:].any()


@for_each("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1)])
def test_values_reach_their_place_in_any_order_of_the_axes(tmp_path: Path, order: tuple[int, ...]) -> None:
    with probabilities_file(tmp_path / "c.npz") as array:
        turned, wanted = array.transpose(order), values().transpose(order)
        for first in range(0, turned.shape[1], 7):
            put(turned[:, first : first + 7, 1:], wanted[:, first : first + 7, 1:])
        put(turned[0, :, :1], np.broadcast_to(np.float32(1), turned[0, :, :1].shape))
    loaded = np.load(tmp_path / "c.npz")["probabilities"].transpose(order)
    np.testing.assert_array_equal(loaded[:, :, 1:], wanted[:, :, 1:])
    assert (loaded[0, :, 0] == 1).all()
    assert not loaded[1:, :, 0].any()


def test_what_is_put_into_an_ordinary_array_is_there() -> None:
    array = np.zeros(SHAPE, np.float32)
    put(array[:, 2:5], values()[:, 2:5])
    np.testing.assert_array_equal(array[:, 2:5], values()[:, 2:5])


def test_what_was_put_into_the_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    if not resident():
        pytest.skip("no /proc here")
    shape = (16, 64, 128, 128)  # 67 MB
    plane = np.ones((16, 4, 128, 128), np.float32)
    with probabilities_file(tmp_path / "c.npz", shape) as array:
        before = resident()
        for first in range(0, 64, 4):
            put(array[:, first : first + 4], plane)
            assert resident() - before < 16e6
        assert array[:, ::9].all()


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    def write() -> None:
        with probabilities_file(tmp_path / "c.npz") as array:
            put(array, values())

    with room_for(values().nbytes), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write()
    assert os.listdir(tmp_path) == []
    with room_for(values().nbytes + 128):  # the header
        write()


@pytest.mark.process
@for_each("size", ["2m", "5m"])  # of 4.2 MB: the plain array does not fit, or only both do not
def test_a_disk_that_is_really_full_ends_with_an_error_and_not_with_the_process(tmp_path: Path, size: str) -> None:
    """The kernel kills a process that writes to a map of a file for which there is no space."""
    script = f'mount -t tmpfs -o size={size} none "$0" && "$1" -c "$2" "$0"; code=$?; ls -A "$0"; exit $code'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, tmp_path, sys.executable, WRITE]
    if not shutil.which("unshare") or subprocess.run([*inside[:4], "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (28, ""), done.stderr


def test_an_error_in_between_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with probabilities_file(tmp_path / "c.npz") as array:
            array[0] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []
