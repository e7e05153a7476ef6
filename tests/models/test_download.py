"""Downloads from a real server on this machine that breaks, changes, redirects and serves what was not asked for."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError, WeightsError
from stunet.files import sha256_of
from stunet.models import download
from stunet.models.download import fetch

CONTENT = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Does what the server's script says for this request; without a script it serves files properly."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append({"path": self.path, **self.headers})
        action = self.server.script.pop(0) if self.server.script else "serve"
        content = self.server.content
        if isinstance(action, int):
            self.answer(action, b"")
        elif action.startswith("to "):
            self.answer(302, b"", Location=action[3:])
        elif action == "html":
            self.answer(200, b"<html>quota exceeded</html>", **{"Content-Type": "text/html; charset=utf-8"})
        elif action == "wrong":
            self.answer(200, b"x" * len(content))
        elif action == "elsewhere":
            self.answer(206, content[7:], **{"Content-Range": f"bytes 7-{len(content) - 1}/{len(content)}"})
        elif action.startswith("break "):
            self.serve(content, int(action[6:]))
        elif action == "huge":
            self.answer(200, b"", length=10**18)
        elif action == "ignore range":
            self.answer(200, content)
        elif action == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.released.is_set():
                    self.wfile.write(content)
        elif action == "trickle":
            self.answer(200, b"", length=len(content))
            with contextlib.suppress(OSError):
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    if self.server.released.wait(0.01):
                        break
        elif action == "packed":
            self.answer(200, b"x" * 100, **{"Content-Encoding": "gzip"})
        elif action == "two lengths":
            self.answer(200, b"x" * 100, **{"Content-Length": "7"})
        elif action == "silent":
            self.server.released.wait(5)
        else:
            self.serve(content, len(content))

    def serve(self, content: bytes, until: int) -> None:
        """Answers as a server should, and ends the connection before byte `until` of the file."""
        start, headers = 0, dict(self.server.validators)
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, *headers.values()):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, content[start:], max(0, until - start), **headers)

    def answer(
        self, status: int, body: bytes, sent: int | None = None, length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/octet-stream"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `script` has what to do with the next requests, `requests` what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.script, self.requests = CONTENT, [], []
        self.validators = {"ETag": '"1"'}
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.model"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    running = [Server(), Server()]
    for server in running:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    for server in running:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(servers: list[Server]) -> Server:
    return servers[0]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights.model"


def ranges(server: Server) -> list[str | None]:
    return [request.get("Range") for request in server.requests]


def test_a_file_arrives_whole_and_its_progress_is_told(server: Server, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    source = fetch([server.url], target, sha256=SHA256, size=len(CONTENT), on_bytes=lambda *now: told.append(now))
    assert source == server.url
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [*target.parent.iterdir()] == [target]


def test_a_broken_connection_is_continued_where_it_broke(server: Server, target: Path) -> None:
    server.script = ["break 100000", "break 200000"]
    fetch([server.url], target, wait_s=0)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=65536-", "bytes=196608-"]
    assert server.requests[1]["If-Range"] == '"1"'


def test_a_later_run_continues_what_an_earlier_one_left(server: Server, target: Path) -> None:
    server.script = ["break 100000", 503, 503, 503]
    with pytest.raises(WeightsError, match="answers 503") as refused:
        fetch([server.url], target, wait_s=0)
    assert "kept and continued" in refused.value.hint
    assert not target.exists()
    fetch([server.url], target)
    assert target.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=65536-"


def test_a_file_that_changed_on_the_server_is_taken_from_its_start(server: Server, target: Path) -> None:
    server.script = ["break 100000", 404]
    with pytest.raises(WeightsError):
        fetch([server.url], target, wait_s=0)
    server.content, server.validators = CONTENT[::-1], {"ETag": '"2"'}
    fetch([server.url], target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"1"'}])
def test_nothing_is_continued_that_may_not_fit(server: Server, target: Path, validators: dict[str, str]) -> None:
    server.script, server.validators = ["break 100000"], validators
    fetch([server.url], target, wait_s=0)
    assert ranges(server) == [None, None]
    assert target.read_bytes() == CONTENT


def test_two_pieces_that_do_not_fit_are_noticed_and_fetched_anew(server: Server, target: Path) -> None:
    server.validators = {}
    part = target.with_name("weights.model.part")
    part.write_bytes(b"?" * 1000)
    fetch([server.url], target, sha256=SHA256, wait_s=0)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-", None]


@pytest.mark.parametrize("action", ["ignore range", "elsewhere", 416])
def test_servers_that_mistake_ranges_do_no_harm(server: Server, target: Path, action: str | int) -> None:
    server.script = ["break 100000", action]
    fetch([server.url], target, wait_s=0)
    assert target.read_bytes() == CONTENT


def test_a_file_that_was_there_already_is_not_sent_again(server: Server, target: Path) -> None:
    part = target.with_name("weights.model.part")
    part.write_bytes(CONTENT)
    fetch([server.url], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("encoding", ["", "Identity", "aws-chunked"])
def test_an_encoding_that_packs_nothing_is_none(server: Server, target: Path, encoding: str) -> None:
    server.validators = {"Content-Encoding": encoding}
    fetch([server.url], target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("wrong", "sha256 is .* instead of"),
        ("html", "a web page instead of the file"),
        ("packed", "packed as 'gzip'"),
        ("two lengths", "InvalidHeader"),
        ("to http://[bad/", "Invalid IPv6 URL"),
        (404, "answers 404"),
        (403, "answers 403"),
    ],
)
def test_the_next_mirror_is_asked_when_one_will_not_do(
    servers: list[Server], target: Path, action: str | int, reason: str
) -> None:
    first, second = servers
    first.script = [action]
    assert fetch([first.url, second.url], target, sha256=SHA256) == second.url
    assert target.read_bytes() == CONTENT
    target.unlink()
    first.script = [action]
    with pytest.raises(WeightsError, match=reason) as refused:
        fetch([first.url], target, sha256=SHA256)
    assert first.url in refused.value.message
    assert "stunet_models import" in refused.value.hint
    assert not target.exists()


def test_a_mirror_continues_what_another_one_began_where_the_checksum_is_known(
    servers: list[Server], target: Path
) -> None:
    first, second = servers
    first.script = ["break 100000", 404]
    fetch([first.url, second.url], target, sha256=SHA256, wait_s=0)
    assert ranges(second) == ["bytes=65536-"]
    assert sha256_of(target) == SHA256


def test_redirects_are_followed(servers: list[Server], target: Path) -> None:
    first, second = servers
    first.script = [f"to {second.url}"]
    fetch([first.url], target)
    assert target.read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_read(server: Server, target: Path) -> None:
    with pytest.raises(WeightsError, match=f"a file of {len(CONTENT)} bytes instead of 5"):
        fetch([server.url], target, size=5)
    assert not target.with_name("weights.model.part").exists()


def test_a_file_without_a_length_ends_where_it_should(server: Server, target: Path) -> None:
    server.script = ["endless"]
    with pytest.raises(WeightsError, match=f"a file of more than {len(CONTENT)} bytes"):
        fetch([server.url], target, size=len(CONTENT))
    assert not [*target.parent.iterdir()]


def test_a_file_that_is_not_accepted_is_taken_from_the_next_mirror(servers: list[Server], target: Path) -> None:
    first, second = servers
    first.script = ["wrong", "wrong"]

    def accept(source: str) -> None:
        if target.read_bytes() != CONTENT:
            raise WeightsError(f"{str(target)!r} is of another kind")

    assert fetch([first.url, second.url], target, accept=accept) == second.url
    with pytest.raises(WeightsError, match=f"{first.url}: the file is of another kind"):
        fetch([first.url], target, accept=accept)
    assert not target.exists()


def test_a_server_that_is_busy_or_silent_is_asked_again(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", (1.0, 0.1))
    server.script = [503, "silent", 429]
    fetch([server.url], target, wait_s=0)
    assert target.read_bytes() == CONTENT


def test_a_server_that_stalls_gives_way_to_the_next_one(
    servers: list[Server], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "WINDOW_S", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    first, second = servers
    first.script = ["trickle", "trickle"]
    assert fetch([first.url, second.url], target, sha256=SHA256, wait_s=0) == second.url
    assert target.read_bytes() == CONTENT
    target.unlink()
    first.script = ["trickle", "trickle"]
    with pytest.raises(WeightsError, match=r"too slow: \d+ bytes in 0 s"):
        fetch([first.url], target, wait_s=0)


def test_a_server_that_breaks_down_or_is_not_secure_or_sends_in_circles_gives_way(
    servers: list[Server], target: Path
) -> None:
    first, second = servers
    first.script = [500] * 4
    assert fetch([first.url, second.url], target, sha256=SHA256, wait_s=0) == second.url
    first.script = [f"to {first.url}"] * 31
    with pytest.raises(WeightsError, match="redirects in a circle"):
        fetch([first.url], target, wait_s=0)
    secure = first.url.replace("http:", "https:")
    first.script = []
    assert fetch([secure, second.url], target, sha256=SHA256, wait_s=9) == second.url
    with pytest.raises(WeightsError, match="no secure connection"):
        fetch([secure], target, wait_s=9)


def test_a_server_that_is_not_there_is_named(target: Path) -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1.*no connection"):
        fetch([url], target, wait_s=0)


def test_the_proxy_variable_is_respected(servers: list[Server], target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = servers[1]
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/weights.model"))
    monkeypatch.setenv("no_proxy", "")
    fetch(["http://weights.invalid/weights.model"], target)
    assert target.read_bytes() == CONTENT
    assert proxy.requests[0]["path"] == "http://weights.invalid/weights.model"


def test_a_file_larger_than_the_disk_is_not_begun(server: Server, target: Path) -> None:
    server.script = ["huge"]
    with pytest.raises(DataError, match="GB are to be downloaded"):
        fetch([server.url], target)
