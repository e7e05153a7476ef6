"""Locks of the store: one process at a time installs a model or writes one of the store's files."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stunet.errors import DataError
from stunet.files import exclusive_lock
from stunet.models import registry

log = logging.getLogger("stunet")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock of the store; wait, with a message, while another process holds it.

    Raises:
        DataError: The store cannot be written.
    """
    lock = exclusive_lock(lock_of(name), f"another process is busy with {name}", "", wait=_warn_of_waiting)
    # Translate only errors of taking the lock; those of the block pass through.
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except OSError as error:
            raise DataError(
                f"cannot write into the folder of models {str(registry.store())!r}: {error.strerror}",
                "choose another one: export STUNET_MODELS=/path/to/models",
            ) from None
        yield


def lock_of(name: str) -> Path:
    """Return the file of a lock."""
    return registry.store() / ".locks" / f"{name}.lock"


def _warn_of_waiting(what: str) -> None:
    log.warning("%s: waiting for it", what)
