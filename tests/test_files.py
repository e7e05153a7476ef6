"""Locks (held by one process, gone with it, not inherited), what killed runs leave behind, hashes, differences."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.files import (
    atomic_folder,
    atomic_write,
    cached_sha256_of,
    exclusive_lock,
    is_held,
    json_differences,
    remove_staging,
    sha256_of,
    sha256_of_json,
    shared_lock,
    write_lock,
)

CODE = """
import sys, time
from pathlib import Path
from stunet.files import exclusive_lock, cached_sha256_of, sha256_of, sha256_of_json, json_differences
with exclusive_lock(Path(sys.argv[1]), "", ""):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_told_who_the_first_is_and_nothing_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with exclusive_lock(lock, "first", ""):
        assert is_held(lock)
        expected = rf"somebody works \(process {os.getpid()} on .+\)"
        with pytest.raises(DataError, match=expected) as caught, exclusive_lock(lock, "somebody works", "wait"):
            pass
        assert caught.value.hint == "wait"
        assert is_held(lock)
    assert not is_held(lock)
    assert not lock.exists()


@pytest.mark.process
def test_the_lock_of_a_killed_process_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", CODE, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=rf"process {other.pid} on"), exclusive_lock(lock, "", ""):
            pass
        other.kill()
    assert lock.exists()
    with exclusive_lock(lock, "", ""):
        pass
    assert not lock.exists()


@pytest.mark.process
def test_a_forked_child_does_not_inherit_the_lock_and_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive_lock(lock, "", ""):
        if not (child := os.fork()):
            try:
                with exclusive_lock(tmp_path / ".other", "", ""):
                    pass
                time.sleep(60)
            finally:
                os._exit(1)
    try:
        with exclusive_lock(lock, "", ""):  # while the child lives
            assert is_held(lock)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_who_shares_a_lock_excludes_who_wants_it_alone_to_the_last(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with shared_lock(lock, "", ""):
        with shared_lock(lock, "", ""), pytest.raises(DataError), exclusive_lock(lock, "", ""):
            pass
        with pytest.raises(DataError), exclusive_lock(lock, "", ""):
            pass
    with exclusive_lock(lock, "", ""), pytest.raises(DataError), shared_lock(lock, "", ""):
        pass
    assert not lock.exists()


def test_who_waits_goes_on_when_the_holder_has_removed_the_lock(tmp_path: Path) -> None:
    lock, told, inside = tmp_path / ".lock", threading.Event(), []

    def second() -> None:
        with exclusive_lock(lock, "busy", "", wait=lambda what: told.set()):
            inside.append(is_held(lock))

    with exclusive_lock(lock, "", ""):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert told.wait(10)
        assert not inside
    waiting.join(10)
    assert inside == [True]


def test_a_lock_file_of_somebody_else_is_locked_all_the_same(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    lock.chmod(0o444)
    with exclusive_lock(lock, "", ""):
        assert is_held(lock)


def test_a_full_disk_does_not_keep_a_lock_from_being_taken(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    with room_for(0), exclusive_lock(tmp_path / ".lock", "", ""):
        assert is_held(tmp_path / ".lock")


def test_two_that_make_the_same_folder_do_not_remove_each_others_files(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as part:
        (part / "a").touch()
        with pytest.raises(DataError, match=r"another process writes .*out"), atomic_folder(target):
            pass
        assert (part / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_temporary_files_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".part-12-a.json", ".part-3-b-c.nii.gz", ".part-Dataset001_X", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / ".part-4-masks").mkdir()
    remove_staging(tmp_path, {"a.json"})
    assert not (tmp_path / ".part-12-a.json").exists()
    remove_staging(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-Dataset001_X", "a.json"]
    remove_staging(tmp_path / "missing")


def test_a_file_beside_its_lock(tmp_path: Path) -> None:
    with write_lock(tmp_path / "x.zip"), atomic_write(tmp_path / "x.zip") as part:
        part.write_text("x")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-x.zip", part.name]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_differences_of_json_name_the_place_and_both_values() -> None:
    one = {"a": [1, {"b": 2}], "c": 3, "d": None, "e": float("nan")}
    assert json_differences(one, {"a": (1, {"b": 2}), "c": 3, "e": float("nan")}) == []
    now = {"a": [1, {"b": 4}], "d": "x", "e": 1}
    assert json_differences(one, now, "plans") == [
        "plans.a[1].b: 2 -> 4",
        "plans.c: 3 -> nothing",
        'plans.d: nothing -> "x"',
        "plans.e: NaN -> 1",
    ]
    assert json_differences([1], [1, 2]) == [": [1] -> [1, 2]"]


def test_null_differs_from_a_missing_keyword_argument_only() -> None:
    one, other = {"order": 3, "force_separate_z": None}, {"order": 3}
    assert json_differences(one, other, "train") == []
    before, now = {"resampling_fn_data_kwargs": one}, {"resampling_fn_data_kwargs": other}
    place = "resampling_fn_data_kwargs.force_separate_z"
    assert json_differences(before, now) == [f"{place}: null -> nothing"]
    assert json_differences(now, before, "plans") == [f"plans.{place}: nothing -> null"]


def test_the_hash_of_a_file_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"", b"one", b"three"):
        path.write_bytes(content)
        assert sha256_of(path) == cached_sha256_of(path) == hashlib.sha256(content).hexdigest()
    assert sha256_of_json({"b": 1, "a": [2]}) == sha256_of_json({"a": (2,), "b": 1})


def test_those_that_share_a_lock_never_refuse_each_other(tmp_path: Path) -> None:
    """The last one holds it alone for a moment, to remove it."""
    refused: list[DataError] = []

    def share() -> None:
        for _ in range(1000):
            try:
                with shared_lock(tmp_path / "lock", "taken", ""):
                    pass
            except DataError as error:
                refused.append(error)

    threads = [threading.Thread(target=share) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
