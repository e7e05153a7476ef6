"""Map a function over items in worker processes that can neither outlive the command nor hang it.

Each process has its own pipe, so a process that is killed, by the system for lack of memory or by anyone else, only
affects the item that it was working on: that item is tried once more, alone, after all others are done. Ctrl-C, an
error or leaving the loop early kills what is still running. Imports neither torch nor nnunetv2.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from stunet.errors import DataError, OutOfMemoryError, StunetError, UsageError, is_out_of_memory, last_line

Item = TypeVar("Item")
Result = TypeVar("Result")
SHOWN = 3  # items that an error names


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    name: Callable[[Item], str],
    context: BaseContext | None = None,
) -> Generator[tuple[int, Result], None, None]:
    """Call the function with every item, in this process if one worker is enough.

    An item whose process is killed, or runs out of memory, does not stop the others. It is tried once more, alone.

    Args:
        function: Must be picklable, as must the items.
        items: In the order in which they are started.
        workers: Maximum number of processes.
        name: Returns the name of an item in errors: that of its case.
        context: How processes are started; if given, a single worker is a process as well. None: by spawn.

    Yields:
        Position of an item and the function's result, in the order in which they finish.

    Raises:
        OutOfMemoryError: Items do not fit into memory, not even one at a time; all others are done.
        DataError: The process of an item crashed twice; all others are done.
        UsageError: No process starts: the script that calls this runs again in each of them, or cannot be imported.
    """
    if context is None and min(workers, len(items)) <= 1:
        yield from _here(function, items, name)
        return
    queue, again, alone = deque(range(len(items))), deque[int](), False
    able, unable = False, 0  # whether any process has started, and how many could not
    failed: dict[int, StunetError] = {}
    context = context or multiprocessing.get_context("spawn")
    team: list[_Worker] = []
    try:
        while True:
            if not queue and again and all(worker.position is None for worker in team):
                queue, again, alone = again, deque(), True
            _give(queue, items, team, 1 if alone else workers, lambda: _Worker(context, function))
            busy = [worker for worker in team if worker.position is not None]
            if not busy:
                break
            ready = set(wait([part for worker in busy for part in (worker.pipe, worker.process.sentinel)]))
            for worker in [worker for worker in busy if {worker.pipe, worker.process.sentinel} & ready]:
                position = worker.position
                assert position is not None
                if worker.begins():
                    able = True
                    continue
                result, error = worker.answer()
                if error is None:
                    yield position, result
                    continue
                if not isinstance(error, _Ended) and not is_out_of_memory(error):
                    raise error
                team.remove(worker)
                worker.end()
                unable += isinstance(error, _Ended) and error.code == 1 and not worker.began
                if not able and unable == min(workers, len(items)):
                    hint = 'put what the script does under if __name__ == "__main__":, or take one process'
                    raise UsageError("processes cannot be started from this script: it cannot be imported", hint)
                if alone:
                    failed[position] = _explained(error, name(items[position]))
                else:
                    again.append(position)
    finally:
        for worker in team:
            worker.end()
    _raise(failed)


def start_worker() -> None:
    """Set up a worker: Ctrl-C is left to the parent, and the worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; real-time signals have none."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class _Ended(Exception):
    """A process has ended without an answer; holds its exit code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class _Worker:
    """A process, and the position of the item that it works on."""

    def __init__(self, context: BaseContext, function: Callable[[Any], Any]) -> None:
        self.position: int | None = None
        self.began = False
        self.pipe, theirs = multiprocessing.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, function))  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()

    def begins(self) -> bool:
        """Return whether the process has sent its first message, which only states that it has started."""
        if self.began or not self.pipe.poll():
            return False
        with suppress(EOFError, OSError):
            self.pipe.recv()
            self.began = True
        return self.began

    def answer(self) -> tuple[Any, BaseException | None]:
        """Return what the function returned and what it raised; a partial answer of a killed process does not count."""
        self.position = None
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            pass
        self.process.join()
        return None, _Ended(self.process.exitcode)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _give(
    queue: "deque[int]", items: Sequence[Any], team: list[_Worker], most: int, new: Callable[[], _Worker]
) -> None:
    """Give an item to every idle process, and start processes while there are too few."""
    for worker in team[most:]:  # from now on one at a time
        worker.end()
        team.remove(worker)
    while queue:
        idle = next((worker for worker in team if worker.position is None), None)
        if idle is None:
            if len(team) == most:
                return
            idle = new()
            team.append(idle)
        idle.position = queue.popleft()
        with suppress(OSError):  # it has just ended: wait() will report that
            idle.pipe.send(items[idle.position])


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answer each incoming item with the result or the error, in a worker."""
    start_worker()
    with suppress(EOFError, OSError):
        pipe.send(None)  # it has started
        while True:
            item = pipe.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = (function(item), None)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                error.add_note(traceback.format_exc())  # for --debug
                answer = (None, error)
            pipe.send_bytes(_pickled(*answer))


def _pickled(result: Any, error: Exception | None) -> bytes:
    """Pickle both; some libraries' errors cannot be pickled, or not be restored from their pickles."""
    if error is None:
        return pickle.dumps((result, None))
    try:
        content = pickle.dumps((None, error))
        pickle.loads(content)
        return content
    except Exception:  # noqa: BLE001 - whatever its own code raises
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


def _here(
    function: Callable[[Item], Result], items: Sequence[Item], name: Callable[[Item], str]
) -> Generator[tuple[int, Result], None, None]:
    """Call the function in this process."""
    failed: dict[int, StunetError] = {}
    for position, item in enumerate(items):
        try:
            result = function(item)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed[position] = _explained(error, name(item))
        else:
            yield position, result
    _raise(failed)


def _explained(error: BaseException, name: str) -> StunetError:
    """Return why an item failed although nothing else was running."""
    more, without = "a machine with more memory", "or do without this case; the others are done"
    if isinstance(error, OutOfMemoryError):
        return error
    if not isinstance(error, _Ended):
        return OutOfMemoryError(f"case {name!r} does not fit into memory: {last_line(error)}", f"{more}, {without}")
    if error.code == -signal.SIGKILL:
        what = (
            f"case {name!r}: its process was killed, also when it was alone, probably because the memory is not enough"
        )
        return OutOfMemoryError(what, f"{more}, {without}")
    how = signal_name(-error.code) if error.code and error.code < 0 else f"exit code {error.code}"
    return DataError(f"case {name!r}: its process crashed twice ({how})", f"look at its files, {without}")


def _raise(failed: dict[int, StunetError]) -> None:
    """Raise a single error that names the first ones and counts the others."""
    if not failed:
        return
    errors = [failed[position] for position in sorted(failed)]
    texts = [error.message for error in errors[:SHOWN]]
    if len(errors) > SHOWN:
        texts.append(f"and {len(errors) - SHOWN} more")
    first = next((error for error in errors if isinstance(error, OutOfMemoryError)), errors[0])
    raise type(first)("; ".join(texts), first.hint)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
