"""A store of its own, and a website with weights, for tests of downloads."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import DOWNLOADABLE


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what it was asked for."""

    def __init__(self, *args: Any, asked: list[str], **more: Any) -> None:
        self.asked = asked
        super().__init__(*args, **more)

    def log_request(self, *_: object) -> None:
        self.asked.append(self.path)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    """What the website was asked for."""
    return []


@pytest.fixture
def website(tmp_path: Path, asked: list[str]) -> Iterator[Path]:
    """A folder that a server on this machine shows; the store and its registry know the address."""
    folder = tmp_path / "website"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder, asked=asked))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    (tmp_path / "store").mkdir()
    text = DOWNLOADABLE.replace("URL", f"http://127.0.0.1:{server.server_address[1]}")
    (tmp_path / "store" / "models.toml").write_text(text)
    yield folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of its own, and no proxies."""
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
