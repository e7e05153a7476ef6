"""Find a model by name, file or folder, and show its download."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stunet.models import store
from stunet.runs.listener import Listener, Progress

MEGABYTE = 1 << 20


def fetch_model(text: str, listener: Listener, offline: bool = False, accept_licence: bool = False) -> Path:
    """Return the path of the model that a text names; download it if needed, unless `offline`.

    `accept_licence` accepts a licence that asks for it (models/licences.py).

    Raises:
        WeightsError: There is no such model or file, or it cannot be downloaded.
    """
    with shown_download(text, listener) as on_bytes:
        return store.find_model(text, offline, on_bytes, accept_licence)


@contextmanager
def shown_download(name: str, listener: Listener) -> Iterator[Callable[[int, int | None], None]]:
    """Yield what store.download() and store.find_model() call with the bytes so far, and in total if known."""
    progress: Progress | None = None
    shown = 0

    def on_bytes(done: int, total: int | None) -> None:
        nonlocal progress, shown
        if progress is None and total:  # not before: most models are installed, and nothing is to be shown
            progress = stack.enter_context(listener.progress(f"download {name} (MB)", max(1, total // MEGABYTE)))
        while progress is not None and shown < done // MEGABYTE:
            progress.step()
            shown += 1

    with ExitStack() as stack:
        yield on_bytes
