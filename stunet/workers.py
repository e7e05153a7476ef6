"""Map a function over cases in worker processes that can neither outlive the command nor hang it.

Each process has its own pipe, so a process that is killed, by the system for lack of memory or by anyone else, only
affects the case that it was working on: that case is tried once more, alone, after all others are done. Ctrl-C, an
error or leaving the loop early kills what is still running. multiprocessing.Pool waits forever for a case whose process
was killed, and concurrent.futures fails all cases with it and names none. Imports neither torch nor nnunetv2.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Generic, Protocol, TypeVar

from stunet.errors import (
    DataError,
    OutOfMemoryError,
    StunetError,
    UsageError,
    WorkerCrashed,
    is_disk_full,
    is_out_of_memory,
    last_line,
    raise_first,
)

Item = TypeVar("Item")
Result = TypeVar("Result")
AGAIN = "run the same command again; finished cases are kept"


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of a case.

    Attributes:
        position: Of the case among all.
        case: The case.
        error: What it failed with; None: it did not.
    """

    position: int
    case: Item
    value: Result | None = None
    error: StunetError | None = None

    @property
    def bad_files(self) -> DataError | None:
        """What is wrong with the case's files, if it failed for that: whoever can do without the case may go on.

        Insufficient memory and crashes are not that: their reason may be the machine, and the files may be fine.
        """
        error = self.error
        return error if isinstance(error, DataError) and not isinstance(error, WorkerCrashed) else None

    @property
    def result(self) -> Result:
        """What the function returned; raises the error if the case failed."""
        if self.error:
            raise self.error
        return self.value  # type: ignore[return-value]  # a function may return None


class Elsewhere(Protocol):
    """Workers that are not processes of this one: those of a cluster (stunet/cluster)."""

    def map_cases(
        self, function: Callable[[Item], Result], cases: Sequence[Item], name: Callable[[Item], str]
    ) -> Generator[Outcome[Item, Result], None, None]:
        """Do what the function below does."""


Workers = int | Elsewhere  # a number of processes here, or workers elsewhere


def map_cases(
    function: Callable[[Item], Result],
    cases: Sequence[Item],
    workers: Workers,
    name: Callable[[Item], str],
    context: BaseContext | None = None,
) -> Generator[Outcome[Item, Result], None, None]:
    """Call the function with every case, in this process if one worker is enough.

    A case fails, and does not stop the others, if the function raises one of our errors. If its process is killed or
    runs out of memory, it is tried once more, alone, and fails if that happens again.

    Args:
        function: Must be picklable, as must the cases.
        cases: In the order in which they are started.
        workers: Maximum number of processes; or workers of a cluster, which try again in their own way.
        name: Returns the name of a case for errors.
        context: How processes are started; if given, a single worker is a process as well. None: by spawn.

    Yields:
        The outcome of each case, in the order in which they finish.

    Raises:
        DataError: The disk is full.
        UsageError: No process starts: the script that calls this runs again in each of them, or cannot be imported.
        Exception: Any other error that the function raised; a bug, or a problem of the machine rather than of a case.
    """
    if not isinstance(workers, int):
        return workers.map_cases(function, cases, name)
    if context is None and min(workers, len(cases)) <= 1:
        return _map_here(function, cases, name)
    # By spawn, so that it does not matter what threads and CUDA contexts this process has.
    return _map_in_workers(function, cases, workers, name, context or multiprocessing.get_context("spawn"))


def map_all(
    function: Callable[[Item], Result],
    cases: Sequence[Item],
    workers: Workers,
    name: Callable[[Item], str],
    on_case: Callable[[str], None] | None = None,
) -> list[Result]:
    """Return the results of map_cases() in the order of the cases.

    Args:
        function: As for map_cases(), like the next three.
        cases: All cases.
        workers: Of map_cases().
        name: Returns the name of a case.
        on_case: Called with the name of each case that is finished, whether it failed or not: it counts progress.

    Raises:
        StunetError: Cases have failed; all others are done. Other errors as in map_cases().
    """
    outcomes: list[Outcome[Item, Result]] = []
    for outcome in map_cases(function, cases, workers, name):
        outcomes.append(outcome)
        if on_case:
            on_case(name(outcome.case))
    raise_failed(outcomes)
    return [outcome.result for outcome in sorted(outcomes, key=lambda outcome: outcome.position)]


def raise_failed(outcomes: Iterable[Outcome[Any, Any]]) -> None:
    """Raise a single error that names the first cases that failed, in the order of the cases, and counts the others."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.position)
    raise_first([outcome.error for outcome in ordered if outcome.error])


def start_worker() -> None:
    """Set up a worker: Ctrl-C is left to the parent, and the worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; real-time signals have none."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _map_here(
    function: Callable[[Item], Result], cases: Sequence[Item], name: Callable[[Item], str]
) -> Generator[Outcome[Item, Result], None, None]:
    for position, case in enumerate(cases):
        try:
            outcome = Outcome(position, case, value=function(case))
        except Exception as error:  # noqa: BLE001 - failure() raises what is not a failure of the case
            outcome = Outcome(position, case, error=failure(error, name(case)))
        yield outcome


def _map_in_workers(
    function: Callable[[Item], Result],
    cases: Sequence[Item],
    workers: int,
    name: Callable[[Item], str],
    context: BaseContext,
) -> Generator[Outcome[Item, Result], None, None]:
    queue, retried, last_try = deque(range(len(cases))), deque[int](), False
    any_began, unable = False, 0  # whether any process has started, and how many could not
    team: list[_Worker] = []
    try:
        while True:
            # Only when nobody else works any more: what it failed with may have been the memory that the others took.
            if not queue and retried and all(worker.position is None for worker in team):
                queue, retried, last_try = retried, deque(), True
            _give(queue, cases, team, 1 if last_try else workers, lambda: _Worker(context, function))
            busy = [worker for worker in team if worker.position is not None]
            if not busy:
                return
            # The sentinel becomes ready when the process ends: a killed one closes its pipe without an answer.
            ready = set(wait([part for worker in busy for part in (worker.pipe, worker.process.sentinel)]))
            for worker in [worker for worker in busy if {worker.pipe, worker.process.sentinel} & ready]:
                position = worker.position
                assert position is not None
                if worker.begins():
                    any_began = True
                    continue
                value, error = worker.answer()
                if error is None:
                    yield Outcome(position, cases[position], value=value)
                    continue
                if isinstance(error, _Ended) or is_out_of_memory(error):
                    team.remove(worker)  # a new process gives back memory that a library may still hold
                    worker.end()
                    # Python ends with 1 if it cannot import the calling script, which spawn does before anything else.
                    unable += isinstance(error, _Ended) and error.code == 1 and not worker.began
                    if not any_began and unable == min(workers, len(cases)):
                        hint = 'put what the script does under if __name__ == "__main__":, or take one process'
                        raise UsageError("processes cannot be started from this script: it cannot be imported", hint)
                    if not last_try:
                        retried.append(position)
                        continue
                yield Outcome(position, cases[position], error=failure(error, name(cases[position])))
    finally:
        for worker in team:
            worker.end()


class _Ended(Exception):
    """A process has ended without an answer; holds its exit code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class _Worker:
    """A process, and the position of the case that it works on."""

    def __init__(self, context: BaseContext, function: Callable[[Any], Any]) -> None:
        self.position: int | None = None
        self.began = False
        self.pipe, theirs = multiprocessing.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, function))  # type: ignore[attr-defined]
        self.process.start()
        # Its end belongs to the process alone: otherwise ours would not be closed with it.
        theirs.close()

    def begins(self) -> bool:
        """Return whether the process has sent its first message, which only states that it has started."""
        if self.began or not self.pipe.poll():
            return False
        with suppress(EOFError, OSError):
            self.pipe.recv()
            self.began = True
        return self.began

    def answer(self) -> tuple[Any, Exception | None]:
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
    queue: "deque[int]", cases: Sequence[Any], team: list[_Worker], most: int, new: Callable[[], _Worker]
) -> None:
    """Give a case to every idle process, and start processes while there are too few."""
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
            idle.pipe.send(cases[idle.position])


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answer each incoming case with the result or the error, in a worker."""
    start_worker()
    # The parent has closed its end or is gone: there is nobody left to answer.
    with suppress(EOFError, OSError):
        pipe.send(None)  # it has started
        while True:
            case = pipe.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = (function(case), None)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                error.add_note(traceback.format_exc())  # for --debug
                answer = (None, error)
            pipe.send_bytes(pickled(*answer))


def pickled(result: Any, error: Exception | None) -> bytes:
    """Pickle both; some libraries' errors cannot be pickled, or not be restored from their pickles."""
    if error is None:
        return pickle.dumps((result, None))
    try:
        content = pickle.dumps((None, error))
        pickle.loads(content)
        return content
    except Exception:  # noqa: BLE001 - whatever its own code raises
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


def failure(error: Exception, name: str, again: str = AGAIN) -> StunetError:
    """Return why a case failed; raise the error if it is not a failure of the case. `again`: how it goes on."""
    more, without = "a machine with more memory", "or do without this case; the others are done"
    if isinstance(error, StunetError):
        return error
    if isinstance(error, _Ended):
        # The signal with which Linux ends a process when memory runs out.
        if error.code == -signal.SIGKILL:
            what = "its process was killed, also when it was alone, probably because the memory is not enough"
            return OutOfMemoryError(f"case {name!r}: {what}", f"{more}, {without}")
        how = signal_name(-error.code) if error.code and error.code < 0 else f"exit code {error.code}"
        return WorkerCrashed(f"case {name!r}: its process crashed twice ({how})", f"look at its files, {without}")
    if is_out_of_memory(error):
        return OutOfMemoryError(f"case {name!r} does not fit into memory: {last_line(error)}", f"{more}, {without}")
    if is_disk_full(error):  # the next case would fail in the same way
        where = f" at {error.filename!r}" if error.filename else ""
        raise DataError(f"no space for case {name!r}{where}: {error.strerror}", f"free some space, then {again}")
    raise error


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        # Not sys.exit(), which would end only this thread.
        os._exit(1)
