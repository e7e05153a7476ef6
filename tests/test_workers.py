"""Many cases in several processes: one that fails, is killed, crashes or lacks memory stops no other."""

import errno
import multiprocessing
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError, OutOfMemoryError, UsageError, WorkerCrashed, raise_first
from stunet.workers import map_all, map_cases, raise_failed
from tests.loops import for_each

ITEMS = [f"case_{number}" for number in range(4)]


def work(item: tuple[str, str, str]) -> str:
    """What the item says: KIND, the name of a case, and a file in which each attempt leaves a byte."""
    kind, name, file = item
    with open(file, "ab") as attempts:
        attempts.write(b"x")
    if kind == "killed" or (kind == "killed once" and os.path.getsize(file) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    if kind == "waits":
        time.sleep(120)
    if kind == "crashes":
        os._exit(7)
    if kind == "large":
        raise MemoryError("Unable to allocate 3 GB")
    if kind == "fails":
        raise DataError(f"{name} is damaged", "copy it again")
    if kind == "wrong":
        raise Odd("what", "where")
    return name


class Odd(ValueError):
    """Cannot be made again from what it is pickled as."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


def run(folder: Path, kinds: dict[str, str], workers: int = 2, done: list[str] | None = None) -> list[str]:
    folder.mkdir(exist_ok=True)
    items = [(kinds.get(name, "fine"), name, str(folder / name)) for name in ITEMS]
    done = [] if done is None else done
    context: Any = multiprocessing.get_context("fork")  # quick; what map_cases() does is the same
    outcomes = []
    for outcome in map_cases(work, items, workers, lambda item: item[1], context):
        outcomes.append(outcome)
        if not outcome.error:
            assert outcome.result == ITEMS[outcome.position]
            done.append(outcome.result)
    assert not multiprocessing.active_children()
    raise_failed(outcomes)
    return done


@pytest.mark.process
def test_an_item_whose_process_is_killed_once_is_done_again(tmp_path: Path) -> None:
    assert sorted(run(tmp_path, {"case_1": "killed once"})) == ITEMS
    assert [(tmp_path / name).stat().st_size for name in ITEMS] == [1, 2, 1, 1]


@pytest.mark.process
@for_each(
    ("kind", "error", "message"),
    [
        ("killed", OutOfMemoryError, "case 'case_1': its process was killed, also when it was alone"),
        ("large", OutOfMemoryError, "case 'case_1' does not fit into memory: Unable to allocate 3 GB"),
        ("crashes", WorkerCrashed, r"case 'case_1': its process crashed twice \(exit code 7\)"),
    ],
)
def test_an_item_that_fails_alone_too_is_named_after_all_others(
    tmp_path: Path, kind: str, error: type, message: str
) -> None:
    done: list[str] = []
    with pytest.raises(error, match=message) as caught:
        run(tmp_path, {"case_1": kind}, done=done)
    assert sorted(done) == ["case_0", "case_2", "case_3"]
    assert "do without this case; the others are done" in caught.value.hint
    assert not multiprocessing.active_children()


@pytest.mark.process
@for_each("workers", [1, 2])
def test_cases_that_fail_are_named_in_order_after_all_others(tmp_path: Path, workers: int) -> None:
    done: list[str] = []
    with pytest.raises(DataError, match=r"^case_1 is damaged; case_3 is damaged$") as caught:
        run(tmp_path / str(workers), {"case_3": "fails", "case_1": "fails"}, workers, done)
    assert sorted(done) == ["case_0", "case_2"]
    assert caught.value.hint == "copy it again"


def test_too_little_memory_decides_the_exit_code_and_damage_is_named_too() -> None:
    damaged = [DataError(f"{name} is damaged", "copy it again") for name in ITEMS]
    large = [OutOfMemoryError(f"{name} is too large", "more memory") for name in ("x", "y", "z")]
    with pytest.raises(OutOfMemoryError, match=r"^x is too large; case_0 is damaged; y is too large; and 4 more$") as c:
        raise_first([*damaged, *large])
    assert c.value.hint == "more memory"
    with pytest.raises(DataError, match=r"^case_0 is damaged; its process crashed$"):
        raise_first([damaged[0], WorkerCrashed("its process crashed")])


@pytest.mark.process
def test_a_full_disk_ends_the_loop_and_names_the_case(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no space for case 'case_1' at 'x'") as caught:
        run(tmp_path, {"case_1": "full"})
    assert "finished cases are kept" in caught.value.hint
    assert not multiprocessing.active_children()


@pytest.mark.process
def test_other_errors_end_the_loop_at_once_and_come_out_as_what_they_are(tmp_path: Path) -> None:
    # Of its own class where Dask has been imported, by another test: it lets every error be pickled.
    with pytest.raises((RuntimeError, Odd), match="what where"):
        run(tmp_path, {"case_0": "wrong", "case_1": "wrong"})
    assert not multiprocessing.active_children()


@pytest.mark.process
def test_a_loop_that_is_left_ends_its_processes(tmp_path: Path) -> None:
    items = [("fine", name, str(tmp_path / name)) for name in ITEMS]
    loop = map_cases(work, items, 2, lambda item: item[1], multiprocessing.get_context("fork"))
    next(loop)
    assert len(multiprocessing.active_children()) == 2
    loop.close()
    assert not multiprocessing.active_children()


@pytest.mark.process
def test_processes_end_with_the_one_that_started_them_however_it_ends(tmp_path: Path) -> None:
    items = [("waits", name, str(tmp_path / name)) for name in ITEMS]
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = os.pipe()
    parent = context.Process(target=lambda: list(map_cases(work, items, 2, str, context)))
    parent.start()
    os.close(theirs)
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.is_alive()
        time.sleep(0.01)
    parent.kill()
    parent.join()
    assert select.select([ours], [], [], 60)[0]  # ends when the last process that holds the other end is gone
    os.close(ours)


@pytest.mark.process
def test_one_worker_needs_no_other_process_and_names_what_does_not_fit(tmp_path: Path) -> None:
    items = [("large" if name == "case_2" else "fine", name, str(tmp_path / name)) for name in ITEMS]
    outcomes = list(map_cases(work, items, 1, lambda item: item[1]))
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True]
    with pytest.raises(OutOfMemoryError, match="case 'case_2' does not fit"):
        raise_failed(outcomes)


@for_each("workers", [1, 2])
def test_results_come_in_the_order_of_the_cases_and_failures_after_all(tmp_path: Path, workers: int) -> None:
    items = [("fine", name, str(tmp_path / name)) for name in ITEMS]
    finished: list[str] = []
    assert map_all(work, items, workers, lambda item: item[1], finished.append) == ITEMS
    assert sorted(finished) == ITEMS
    items[1] = ("fails", *items[1][1:])
    with pytest.raises(DataError, match=r"^case_1 is damaged$"):
        map_all(work, items, workers, lambda item: item[1], finished.append)
    assert sorted(finished[4:]) == ITEMS


class Unable:
    """Cannot be read in another process, as the functions of a script that cannot be imported there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.mark.process
def test_processes_that_cannot_begin_are_not_blamed_on_the_data() -> None:
    with pytest.raises(UsageError, match="processes cannot be started from this script") as caught:
        list(map_cases(Unable(), ITEMS, 2, str))  # type: ignore[arg-type]
    assert "__main__" in caught.value.hint
    assert not multiprocessing.active_children()
