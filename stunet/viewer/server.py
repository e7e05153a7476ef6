"""Serve the viewer to a browser on this machine: 127.0.0.1 only, under an address that nobody can guess.

Only the page, its scripts and the volumes of the cases have addresses; no file is ever opened by a name that a request
gives.
"""

import hmac
import json
import logging
import re
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stunet.errors import DataError, StunetError
from stunet.viewer.gallery import Gallery, Outdated
from stunet.viewer.page import SCRIPTS, SERVED_POLICY, STYLES, asset, served_page

HOST = "127.0.0.1"
HOSTS = {HOST, "localhost"}  # of requests: another name would be a page elsewhere that was made to lead here
TYPES = {".js": "text/javascript", ".css": "text/css"}
HEADERS = {
    "Content-Security-Policy": SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # files change, and a browser must not show what was there before
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CASE = re.compile(r"case/([0-9a-f]{16})/case\.json")
_VOLUME = re.compile(r"case/([0-9a-f]{16})/([0-9a-f]{16})/(prediction|reference|image\d{1,4})\.nii")
log = logging.getLogger("stunet")


class ViewServer(ThreadingHTTPServer):
    """The server of a gallery.

    Args:
        gallery: What to show.
        port: 0: any that is free.

    Raises:
        DataError: The port is in use, or may not be used.
    """

    daemon_threads = True  # a browser keeps connections open, for which nobody should have to wait
    # On Linux, a port stays blocked for a minute after a server has ended, unless this is set.
    allow_reuse_address = True

    def __init__(self, gallery: Gallery, port: int = 0) -> None:
        self.gallery = gallery
        self.token = secrets.token_urlsafe(16)
        self.fixed = {
            "": (served_page(), "text/html; charset=utf-8"),
            **{name: (asset(name), f"{TYPES[name[name.rindex('.') :]]}; charset=utf-8") for name in SCRIPTS + STYLES},
        }
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise DataError(
                f"port {port} cannot be used: {error.strerror or error}", "another --port, or none: any that is free"
            ) from None

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def run(self) -> None:
        """Serve until KeyboardInterrupt, and measure all cases meanwhile."""
        threading.Thread(target=self.gallery.measure, daemon=True).start()
        try:
            self.serve_forever()
        finally:
            self.server_close()
            self.gallery.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection; a browser that goes away is no error."""
        log.debug("a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "stunet_view", ""
    server: ViewServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        start, _, path = self.path.removeprefix("/").partition("?")[0].partition("/")
        if name not in HOSTS or not hmac.compare_digest(start.encode(), self.server.token.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND, "nothing is here: use the address that stunet_view shows")
        try:
            if path in self.server.fixed:
                self._send(*self.server.fixed[path])
            elif path == "cases.json":
                self._send_json(self.server.gallery.listing())
            elif found := _CASE.fullmatch(path):
                self._send_json(self.server.gallery.describe(found[1]))
            elif found := _VOLUME.fullmatch(path):
                self._send(self.server.gallery.volume(*found.groups()), "application/octet-stream")
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        except KeyError:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        except Outdated:
            self._refuse(HTTPStatus.CONFLICT, "the files of this case have changed")
        except StunetError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.message}. Try: {error.hint}")

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        """Send all, or the range that is asked for."""
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not found or found.groups() == ("", ""):  # none, several at once, or not understood: all of it
            return self._write(HTTPStatus.OK, content, kind)
        first, last = found.groups()
        size = len(content)
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            return self._write(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, f"bytes */{size}")
        self._write(HTTPStatus.PARTIAL_CONTENT, content[start:stop], kind, f"bytes {start}-{stop - 1}/{size}")

    def _refuse(self, status: HTTPStatus, what: str) -> None:
        self._write(status, json.dumps({"error": what}).encode(), "application/json")

    def _write(self, status: HTTPStatus, content: bytes, kind: str, part: str = "") -> None:
        self.send_response(status)
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
