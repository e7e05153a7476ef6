"""Download a large file completely over connections that break, from servers that may have changed it.

One file, several mirrors. What has arrived stays in FILE.part for the next attempt or run. It is continued only if the
server confirms that it still has the same file, or a known sha256 will verify the result. requests follows redirects
and the usual proxy variables. store.py decides what is downloaded.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import requests
import urllib3

from stunet.errors import DataError, WeightsError
from stunet.files import sha256_of
from stunet.kinds import read
from stunet.machine import GB
from stunet.schema import dict_of, text

TIMEOUT_S = (10.0, 60.0)  # to connect; without receiving a byte
ATTEMPTS = 4  # without progress, per mirror
MIN_BYTES, WINDOW_S = 1 << 18, 60.0  # bytes that must arrive per window of this many seconds; less counts as stalled
CHUNK = 1 << 16  # bytes; the last, incomplete chunk is lost when a connection breaks


class _Interrupted(Exception):
    """The attempt failed; another one may succeed."""


class _TooSlow(_Interrupted):
    """Data arrived too slowly, however much of it arrived."""


class _Unusable(Exception):
    """This source is unusable; another one may work."""


RETRYABLE = (
    _Interrupted, requests.ConnectionError, requests.Timeout, urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
)  # fmt: skip  # after which another attempt may succeed
HARMLESS_ENCODINGS = {"", "identity", "aws-chunked"}  # of the content; S3 keeps aws-chunked from an upload
TRY_LATER = {408, 425, 429, 500, 502, 503, 504}
log = logging.getLogger("stunet")

Progress = Callable[[int, int | None], None]  # bytes so far, and the total if known


def fetch(
    sources: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    on_bytes: Progress | None = None,
    before: Callable[[str], None] = lambda source: None,
    accept: Callable[[str], None] = lambda source: None,
    wait_s: float = 1.0,
) -> str:
    """Download `target` from the first source that has it, and return that source.

    Args:
        sources: Addresses of the same file.
        target: Appears only once it is complete; its folder must exist, and only one process may download it at a time.
        sha256: Checksum of the file, if known.
        size: Size in bytes, if known.
        on_bytes: Called as the file grows.
        before: Called with the source before anything is downloaded from it; if it raises WeightsError, the next one is
            tried.
        accept: Called with the source once `target` exists; if it raises WeightsError, `target` is removed and the next
            source is tried.
        wait_s: Seconds before the second attempt; doubles with each further one.

    Raises:
        WeightsError: No source delivered the file; the message has the reason for each.
        DataError: The disk has too little space.
    """
    reasons = []
    for source in sources:
        try:
            _use(before, source)
            _fetch_one(source, target, sha256, size, on_bytes or (lambda done, total: None), wait_s)
            _accept(accept, source, target)
            return source
        except _Unusable as error:
            log.info("%s: %s", source, error)
            reasons.append(f"{source}: {error}")
    kept = " (what arrived is kept and continued)" if _part(target).exists() else ""
    raise WeightsError(
        f"could not download {target.name!r}: {'; '.join(reasons)}",
        f"run the same command again{kept}, or download it with a browser: stunet_models import FILE",
    )


def _use(before: Callable[[str], None], source: str) -> None:
    try:
        before(source)
    except WeightsError as error:
        raise _Unusable(error.message) from None


def _accept(accept: Callable[[str], None], source: str, target: Path) -> None:
    try:
        accept(source)
    except WeightsError as error:
        target.unlink()
        raise _Unusable(error.message.replace(repr(str(target)), "the file")) from None


def _fetch_one(url: str, target: Path, sha256: str | None, size: int | None, on_bytes: Progress, wait_s: float) -> None:
    part = _part(target)
    while True:
        continued = _complete(url, part, sha256, size, on_bytes, wait_s)
        digest = sha256_of(part) if sha256 else None
        if digest == sha256:
            os.replace(part, target)
            _state(part).unlink(missing_ok=True)
            return
        _forget(part)
        if not continued:  # two pieces may not fit together, but a single one must match
            raise _Unusable(f"its sha256 is {digest} instead of {sha256}: damaged, or another file")


def _complete(url: str, part: Path, sha256: str | None, size: int | None, on_bytes: Progress, wait_s: float) -> bool:
    """Repeat attempts until the file is complete; return whether it came in more than one piece."""
    continued, failures = False, 0
    while True:
        before = _length(part)
        try:
            return _attempt(url, part, sha256, size, on_bytes) or continued
        # A subclass of ConnectionError, but a certificate that is wrong stays wrong.
        except requests.exceptions.SSLError as error:
            raise _Unusable(_reason(error)) from None
        except RETRYABLE as error:
            reason, slow = _reason(error), isinstance(error, _TooSlow)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # includes odd redirects
            raise _Unusable(_reason(error)) from None
        continued = True
        # Progress starts the count again, but not if it was slow: a stalling server would never be given up.
        failures = failures + 1 if slow or _length(part) < before + CHUNK else 1
        if failures == ATTEMPTS:
            raise _Unusable(reason)
        pause = wait_s * 2 ** (failures - 1)
        log.warning("%s; trying again in %g s, %.1f MB have arrived", reason, pause, _length(part) / 1e6)
        time.sleep(pause)


def _attempt(url: str, part: Path, sha256: str | None, size: int | None, on_bytes: Progress) -> bool:
    """Make one request; return whether it continued an earlier part."""
    have = _length(part)
    # Lengths, ranges and checksum are those of the file, not of a packed form of it.
    headers = {"Accept-Encoding": "identity"} | _resume_headers(url, part, bool(sha256))
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise _Unusable("leads to an unencrypted address")
        if answer.status_code == 416 and _total(answer) == have:  # nothing is left to send
            return True
        if answer.status_code == 416:
            _forget(part)
            raise _Interrupted("the server's file has another length than before")
        if answer.status_code in TRY_LATER:
            raise _Interrupted(f"the server answers {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise _Unusable(f"the server answers {answer.status_code} {answer.reason}")
        packed = answer.headers.get("Content-Encoding", "")
        if {word.strip().lower() for word in packed.split(",")} - HARMLESS_ENCODINGS:
            raise _Unusable(f"packed as {packed!r}, which was not asked for")
        if "html" in answer.headers.get("Content-Type", ""):
            raise _Unusable("a web page instead of the file")
        start = have if answer.status_code == 206 else 0
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _forget(part)
            raise _Interrupted("the server sends another part than was asked for")
        total = _total(answer)
        if size is not None and total not in (None, size):
            raise _Unusable(f"a file of {total} bytes instead of {size}")
        _check_room(part.parent, (total or 0) - start)
        _remember(part, url, answer)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            total = size if total is None else total
            for chunk in _chunks(answer):
                if total is not None and file.tell() + len(chunk) > total:
                    file.close()
                    _forget(part)
                    raise _Unusable(f"a file of more than {total} bytes")
                file.write(chunk)
                on_bytes(file.tell(), total)
        arrived = _length(part)
        if total is not None and arrived < total:
            raise _Interrupted(f"the connection ended after {arrived} of {total} bytes")
        return bool(start)


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """Yield the content as it arrives; each read has a timeout, and MIN_BYTES ends a transfer that is too slow."""
    began, came, kept = time.monotonic(), 0, bytearray()
    # read1() returns what has arrived; read() waits for a whole chunk.
    while piece := answer.raw.read1(CHUNK):
        kept += piece
        came += len(piece)
        while len(kept) >= CHUNK:
            yield bytes(kept[:CHUNK])
            del kept[:CHUNK]
        if (now := time.monotonic()) - began > WINDOW_S:
            if came < MIN_BYTES:
                raise _TooSlow(f"too slow: {came} bytes in {now - began:.0f} s")
            began, came = now, 0
    yield bytes(kept)


def _resume_headers(url: str, part: Path, verified: bool) -> dict[str, str]:
    """Return the headers that ask for the rest of the file.

    There are none unless the two pieces are sure to fit, or the checksum will show if they do not.
    """
    have = _length(part)
    if not have:
        return {}
    state: dict[str, str] = {}
    with suppress(DataError):
        state = read(_state(part), dict_of(text))
    if state.get("url") == url and state.get("validator"):
        return {"Range": f"bytes={have}-", "If-Range": state["validator"]}
    return {"Range": f"bytes={have}-"} if verified else {}


def _remember(part: Path, url: str, answer: requests.Response) -> None:
    tag = answer.headers.get("ETag", "")
    # If-Range does not allow weak tags: they do not promise the same bytes (RFC 9110, 13.1.5).
    validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
    _state(part).write_text(json.dumps({"url": url, "validator": validator}))


def _total(answer: requests.Response) -> int | None:
    """Return the length of the whole file in bytes, if the server states it."""
    ranged = re.fullmatch(r"bytes .*/(\d+)", answer.headers.get("Content-Range", ""))
    length = ranged.group(1) if ranged else answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and (ranged or answer.status_code == 200) else None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{needed / GB:.1f} GB are to be downloaded and {free / GB:.1f} GB are free in {str(folder)!r}",
            "free some space, or put the models elsewhere: export STUNET_MODELS=/path/to/models",
        )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection: its certificate, or the clock of this machine, is not right"
    if isinstance(error, requests.TooManyRedirects):
        return "redirects in a circle"
    if isinstance(error, requests.RequestException):
        return f"no connection, or it broke ({type(error).__name__})"
    return str(error)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
