"""Give cases to the workers of a cluster one by one, and again if a worker is lost, but no more than twice.

The queue is here and not in Dask's scheduler, and each task is for a certain worker. So it is known which case a lost
worker had: the scheduler blames all that were waiting for it too, and tries a case that kills its workers four times.
A second case that waits at a worker would save nothing (measured: 13 ms per case either way).
Which workers there are is asked for every second, because the futures of a lost worker may never be heard of again.
"""

import pickle
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from stunet.cluster import Shared
from stunet.cluster.admission import Invitation, admit, dismiss, invitation
from stunet.cluster.serving import Lost, Unsuitable, do
from stunet.errors import DataError, WorkerCrashed, is_out_of_memory
from stunet.workers import Outcome, failure

Item = TypeVar("Item")
Result = TypeVar("Result")
TRIES = 2  # of a case whose worker was lost
LOOK_S = 1.0  # between looks at which workers there are
NOTE_S = 10.0  # without any worker, until that is said, or the run ends because all were refused
PATIENCE_S = 120.0  # without any worker, until the run ends
RESULT_S = 30.0  # to wait for a result that is said to be there


class Seat(NamedTuple):
    """A worker process; a nanny's next process may get the same address, but never the same folder."""

    address: str
    folder: str


class Crew:
    """The workers of a cluster, as workers.map_cases() takes them.

    Args:
        client: Connected to the scheduler.
        cluster: What --cluster says, for messages.
        shared: What workers have to see.
        note: Called with what is waited for.
        warn: Called with each worker that is refused, and each case that failed.
        again: How the command goes on after it has ended early, for hints.
        waits: Whether workers may come at any time, so that the run does not end for lack of them.
    """

    def __init__(
        self,
        client: Client,
        cluster: str,
        shared: Shared,
        note: Callable[[str], None],
        warn: Callable[[str], None],
        again: str,
        waits: bool,
    ) -> None:
        self.client, self.cluster, self.shared = client, cluster, shared
        self.note, self.warn, self.again, self.waits = note, warn, again, waits

    def map_cases(
        self, function: Callable[[Item], Result], cases: Sequence[Item], name: Callable[[Item], str]
    ) -> Generator[Outcome[Item, Result], None, None]:
        """Call the function with every case on the workers; see workers.map_cases().

        Raises:
            DataError: The scheduler is gone, no worker comes, all are refused, or the disk is full. Finished cases are
                kept.
        """
        run = f"stunet-{secrets.token_hex(8)}"
        queue, tries, given = deque(range(len(cases))), Counter[int](), count()
        with invitation(run, function, self.shared) as invited:
            shift = _Shift(self, invited)
            try:
                while queue or shift.busy:
                    shift.look()
                    for seat in shift.idle()[: len(queue)]:
                        position = queue.popleft()
                        tries[position] += 1
                        shift.give(seat, position, f"{run}-{next(given)}", pickle.dumps(cases[position]))
                    for position, answer in shift.answers():
                        case = cases[position]
                        value, error = answer
                        if error is None:
                            yield Outcome(position, case, value=value)
                        elif isinstance(error, Unsuitable):
                            tries[position] -= 1
                            queue.appendleft(position)
                        elif (isinstance(error, Lost) or is_out_of_memory(error)) and tries[position] < TRIES:
                            queue.append(position)
                        else:
                            failed = self._failure(error, name(case))
                            self.warn(failed.message)
                            yield Outcome(position, case, error=failed)
            finally:
                shift.end()

    def _failure(self, error: Exception, name: str) -> Any:
        if isinstance(error, Lost):
            hint = "look at its files, give each worker more memory, or do without this case; the others are done"
            return WorkerCrashed(f"case {name!r}: its worker died, {TRIES} times", hint)
        return failure(error, name, self.again)


class _Shift:
    """The workers of a run: who has been admitted, and what each is doing."""

    def __init__(self, crew: Crew, invited: Invitation) -> None:
        self._crew, self._client, self._invited = crew, crew.client, invited
        self._admitted: set[Seat] = set()
        self._leaving: set[Seat] = set()  # they get no more cases
        self._refused: dict[Seat, str] = {}
        self.busy: dict[Seat, tuple[int, Future]] = {}
        self._finished: SimpleQueue[tuple[Seat, Future]] = SimpleQueue()
        self._lost: list[int] = []  # cases of lost workers
        self._looked = self._alone = self._noted = 0.0

    def look(self) -> None:
        """Find out which workers there are, once a second: admit new ones, and notice those that are gone.

        Raises:
            DataError: The scheduler is gone, or there is no worker for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S and self._admitted:
            return
        self._looked = now
        there = self._there()
        for seat in (self._admitted | self.busy.keys()) - there.keys():
            self._admitted.discard(seat)
            if seat in self.busy:
                position, future = self.busy.pop(seat)
                future.cancel()
                self._lost.append(position)
        for seat, (_, future) in self.busy.items():
            if future.done():  # should the client have forgotten to call back
                self._finished.put((seat, future))
        self._leaving = {seat for seat, each in there.items() if each["status"] != "running"}
        self._refused = {seat: reason for seat, reason in self._refused.items() if seat in there}
        known = self._admitted | self._leaving | self._refused.keys()
        self._admit([seat for seat in there if seat not in known], there)
        self._wait_for_workers(now)

    def idle(self) -> list[Seat]:
        """Return the workers without a case."""
        return sorted(self._admitted - self._leaving - self.busy.keys())

    def give(self, seat: Seat, position: int, key: str, case: bytes) -> None:
        """Give a worker a case."""
        future = self._client.submit(
            do, self._invited.run, case, key=key, workers=[seat.address], allow_other_workers=False, pure=False
        )
        self.busy[seat] = position, future
        future.add_done_callback(lambda done: self._finished.put((seat, done)))

    def answers(self) -> list[tuple[int, tuple[Any, Exception | None]]]:
        """Wait for a moment, and return what became of cases that are finished: what was returned or raised."""
        found: list[tuple[int, tuple[Any, Exception | None]]] = [(place, (None, Lost())) for place in self._lost]
        self._lost.clear()
        with suppress(Empty):
            seat, future = self._finished.get(timeout=0 if found else LOOK_S)
            while True:
                if seat in self.busy and self.busy[seat][1] is future:  # not one that was given up
                    position, _ = self.busy.pop(seat)
                    answer = self._answer(seat, future)
                    if isinstance(answer[1], Unsuitable):
                        self._refuse(seat, answer[1].message)
                    found.append((position, answer))
                seat, future = self._finished.get_nowait()
        return found

    def end(self) -> None:
        """Leave the workers: cases that are still worked on end, and what was loaded is freed."""
        if self._client.status != "running":
            return
        with suppress(OSError, TimeoutError):
            # Their processes end with them (serving.py).
            self._client.cancel([future for _, future in self.busy.values()], force=True)
            idle = [seat.address for seat in self.idle()]
            self._client.run(dismiss, self._invited.run, workers=idle, on_error="ignore")

    def _there(self) -> dict[Seat, dict[str, Any]]:
        gone = DataError(
            f"the Dask scheduler of {self._crew.cluster} is gone", f"start it and its workers, then {self._crew.again}"
        )
        if self._client.status != "running":
            raise gone
        try:
            workers = self._client.scheduler_info()["workers"]
        except (OSError, TimeoutError):
            raise gone from None
        return {Seat(address, each["local_directory"]): each for address, each in workers.items()}

    def _admit(self, new: list[Seat], there: dict[Seat, dict[str, Any]]) -> None:
        for seat in [seat for seat in new if not there[seat]["nanny"]]:
            self._refuse(seat, "it has no nanny, which starts it again after a crash; start it without --no-nanny")
        new = [seat for seat in new if seat not in self._refused]
        if not new:
            return
        addresses = [seat.address for seat in new]
        replies: dict[str, Any] = {}
        with suppress(OSError, TimeoutError):  # the scheduler is gone, as the next look will find
            replies = self._client.run(admit, self._invited, workers=addresses, on_error="return")
        for seat in new:
            reply = replies.get(seat.address, OSError())
            if reply is None:
                self._admitted.add(seat)
            elif isinstance(reply, str):
                self._refuse(seat, reply)
            elif not isinstance(reply, OSError):  # it is gone again
                self._refuse(seat, f"it does not have what this run uses: {type(reply).__name__}: {reply}")

    def _refuse(self, seat: Seat, reason: str) -> None:
        self._admitted.discard(seat)
        self._refused[seat] = reason
        self._crew.warn(f"worker {seat.address} is not used: {reason}")

    def _wait_for_workers(self, now: float) -> None:
        """Raise if there has been no worker for too long, or if none of those that are there may take part."""
        if self._admitted - self._leaving or self.busy:
            self._alone = self._noted = 0.0
            return
        self._alone = self._alone or now
        waited, where = now - self._alone, self._crew.cluster
        if self._refused and waited > NOTE_S:  # others may just be starting
            reason = next(iter(self._refused.values()))
            raise DataError(
                f"no worker of {where} can be used: {reason}", f"see docs/cluster.md, then {self._crew.again}"
            )
        if waited > PATIENCE_S and not self._crew.waits:
            hint = f"start some: dask worker ADDRESS --nworkers 1, then {self._crew.again}"
            raise DataError(f"{where} has had no worker for {PATIENCE_S:.0f} s", hint)
        if waited > NOTE_S and not self._noted:
            self._noted = now
            self._crew.note(
                f"waiting for workers of {where}" + (": squeue --me shows its jobs" if self._crew.waits else "")
            )

    def _answer(self, seat: Seat, future: Future) -> tuple[Any, Exception | None]:
        """Return what a finished case returned and raised; Lost if its worker is gone with it."""
        if future.status in ("cancelled", "lost"):
            return None, Lost()
        try:
            value, error = pickle.loads(self._result(seat, future))
        except (KilledWorker, CancelledError, OSError, TimeoutError):
            return None, Lost()
        except Exception as error:  # noqa: BLE001 - of Dask, which could not run the task
            return None, error
        if error is not None:
            error.add_note(f"on worker {seat.address}")
        return value, error

    def _result(self, seat: Seat, future: Future) -> bytes:
        """Return the result of a finished task; it is lost with a worker that has ended since, and Dask would wait."""
        begun = time.monotonic()
        while True:
            try:
                return bytes(future.result(timeout=LOOK_S))
            except TimeoutError:
                if time.monotonic() - begun > RESULT_S or seat not in self._there():
                    raise
