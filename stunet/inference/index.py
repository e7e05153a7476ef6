"""Record what became of each of very many cases, so that a run goes on in seconds and needs no memory for them.

A part of a run (parts.py) appends a line of JSON per finished case to its own log, .stunet/index/part-I-of-N.jsonl. The
last part makes two tables of all logs in the folder of the results:

    index.csv   per case: status, file, seconds, volumes by class, SHA-256 and size of the file, images, error
    failed.csv  the cases that failed, as a list for stunet_predict -i, with the reasons

A result is taken for what was written if its size and time are those of the record; if only the time is another, as of
a copy, by its SHA-256.
"""

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from stunet.errors import StunetError
from stunet.files import atomic_write, sha256_of
from stunet.inference.cases import InputCase
from stunet.names import csv_cells
from stunet.parts import Part

LOGS = ".stunet/index"
INDEX, FAILED = "index.csv", "failed.csv"
DONE, BAD = "done", "failed"


class Known(NamedTuple):
    """What a log says of a case, in few bytes: when, where in which log, a digest of the input, and of the result."""

    done: bool
    time: float
    log: Path
    offset: int
    input: bytes
    size: int | None
    changed_ns: int | None
    sha256: str | None


@dataclass(frozen=True)
class Index:
    """The logs of a folder of results.

    Args:
        folder: The folder of the results.
        part: That writes.
    """

    folder: Path
    part: Part

    def begin(self) -> IO[str]:
        """Open the log of this part, to add() to it."""
        path = self.folder / LOGS / f"part-{self.part.number}-of-{self.part.count}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":  # of a run that was killed
            file.write(b"\n")
        file.close()
        return path.open("a", encoding="utf-8")

    def known(self) -> dict[str, Known]:
        """Return what the logs say last of each case; lines that a killed run left unfinished do not count."""
        found: dict[str, Known] = {}
        for path in sorted((self.folder / LOGS).glob("part-*.jsonl")):
            for offset, row in _rows(path):
                try:
                    result = row["result"]
                    entry = Known(
                        row["status"] == DONE, row["time"], path, offset, bytes.fromhex(row["input"]), *result
                    )
                    if row["name"] not in found or found[row["name"]].time <= entry.time:
                        found[row["name"]] = entry
                except (KeyError, TypeError, ValueError):  # of another program, or another version
                    continue
        return found

    def is_done(self, known: Known | None, case: InputCase, result: Path) -> bool:
        """Return whether a case is done, was made from the same files, and its result is what was written."""
        if known is None or not known.done or known.input != bytes.fromhex(stamp(case)):
            return False
        if known.sha256 is None:
            return result.is_dir()
        try:
            stat = result.stat()
        except OSError:
            return False
        if (stat.st_size, stat.st_mtime_ns) == (known.size, known.changed_ns):
            return True
        return stat.st_size == known.size and sha256_of(result) == known.sha256

    def add(
        self,
        log: IO[str],
        case: InputCase,
        input_stamp: str,
        file: Path,
        seconds: float,
        volumes: Mapping[str, float | None],
        error: StunetError | None,
    ) -> None:
        """Record a case that is done or has failed.

        Args:
            log: Of begin().
            case: The case.
            input_stamp: Its stamp() before it was read.
            file: Its result, which need not be a single file.
            seconds: That it took.
            volumes: In mm3 by class.
            error: Why it failed.
        """
        result: list[Any] = [None, None, None]
        if error is None and file.is_file():
            stat = file.stat()
            result = [stat.st_size, stat.st_mtime_ns, sha256_of(file)]
        row = {
            "name": case.name,
            "time": time.time(),
            "status": BAD if error else DONE,
            "file": "" if error else file.relative_to(self.folder).as_posix(),
            "output": case.subfolder,
            "seconds": round(seconds, 3),
            "volumes": volumes,
            "result": result,
            "input": input_stamp,
            "images": [str(path.absolute()) for path in case.files],  # a list may be moved
            "error": [error.message, error.hint] if error else None,
        }
        log.write(json.dumps(row) + "\n")
        log.flush()

    def write_tables(self, names: Sequence[str]) -> int:
        """Write index.csv and failed.csv of these cases and those of earlier runs; return how many of these failed.

        Lines are read again one by one: what is in memory is where they are.
        """
        known, asked = self.known(), set(names)
        names = sorted(asked | known.keys())
        logs = {path: path.open("rb") for path in {entry.log for entry in known.values()}}
        try:
            first = next((row for name in names if (row := _row(known.get(name), logs)) and row["volumes"]), None)
            classes, failed = list(first["volumes"] if first else ()), 0
            images = max((len(row["images"]) for name in names if (row := _row(known.get(name), logs))), default=1)
            columns = ["image"] if images == 1 else [f"image_{number}" for number in range(images)]
            with (
                atomic_write(self.folder / INDEX) as part,
                atomic_write(self.folder / FAILED) as bad_part,
                part.open("w", newline="") as file,
                bad_part.open("w", newline="") as bad_file,
            ):
                table, bad = csv.writer(file), csv.writer(bad_file)
                volumes = [f"{name} mm3" for name in classes]
                table.writerow(
                    csv_cells(["case", "status", "file", "seconds", *volumes, "sha256", "bytes", *columns, "error"])
                )
                bad.writerow([*columns, "name", "output", "error", "try"])
                for name in names:
                    row = _row(known.get(name), logs)
                    if row is None:
                        table.writerow(csv_cells([name, "not done"]))
                        continue
                    size, _, digest = row["result"]
                    message, hint = row["error"] or ("", "")
                    files = row["images"] + [""] * (images - len(row["images"]))  # one may hold all channels
                    start = [name, row["status"], row["file"], row["seconds"]]
                    measured = [row["volumes"].get(each) for each in classes]
                    table.writerow(csv_cells([*start, *measured, digest, size, *files, message]))
                    if row["status"] == BAD:
                        failed += name in asked
                        # As they are, to be read again: no quotes against formulas.
                        bad.writerow([*files, name, row["output"], *csv_cells([message, hint])])
            return failed
        finally:
            for opened in logs.values():
                opened.close()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield offset, row
            offset += len(line)


def _row(known: Known | None, logs: Mapping[Path, IO[bytes]]) -> dict[str, Any] | None:
    if known is None:
        return None
    file = logs[known.log]
    file.seek(known.offset)
    row: dict[str, Any] = json.loads(file.readline())
    return row


def stamp(case: InputCase) -> str:
    """Return a digest of the paths of a case's images, and of what tells whether these have changed."""
    seen = [[str(path.absolute()) for path in case.files], case.fingerprint()]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest()
