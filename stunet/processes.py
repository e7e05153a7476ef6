"""How is the same done to many items in several processes, without one that outlives the command or hangs it?

Ctrl-C, an error or a loop that is left early kills what is still running. Imports neither torch nor nnunetv2.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from stunet.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[tuple[int, Result], None, None]:
    """Calls the function with every item, in this process where one worker is enough.

    Args:
        function: Can be pickled, as can the items.
        items: In the order in which they are begun.
        workers: Processes at most.

    Yields:
        Position of an item and the function's result, in the order in which they are done.

    Raises:
        DataError: A process was killed.
    """
    if min(workers, len(items)) <= 1:
        yield from enumerate(map(function, items))
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(items)), multiprocessing.get_context("spawn"), start_worker)
    done = 0
    try:
        futures = {pool.submit(function, item): position for position, item in enumerate(items)}
        for future in as_completed(futures):
            result = future.result()
            done += 1
            yield futures[future], result
    except BrokenProcessPool:
        hint = f"fewer of them: -np {max(1, workers // 2)}"
        raise DataError("a process that reads images died, probably for lack of memory", hint) from None
    finally:
        if done < len(items):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """To be called in a worker: Ctrl-C is for the parent, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
