"""Share the cases of a command between runs that know nothing of each other, such as the tasks of a Slurm array.

Part I of N takes every N-th case from case I on, in the order of names, as in nnU-Net: all parts see the same cases, so
all compute the same division, in any order and at any time. A part writes the files of its own cases, and one record in
a folder beside the results:

    part-1-of-4.json  what all parts have to agree about, whether this one is done, and what it hands over
    lock              held while a record is finished and while records are merged

What belongs to all cases (summaries, dataset.json, manifests, ...) is written once, by the part that finishes last or
by a run with --merge, from what the parts handed over. A part that runs again replaces its record, and nobody else's.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stunet.errors import DataError, UsageError, first_few
from stunet.files import json_differences, lock_across_machines, remove_staging, write_json
from stunet.kinds import PART, read

Case = TypeVar("Case")
COUNT, ID, LOWEST, HIGHEST, STEP = (f"SLURM_ARRAY_TASK_{name}" for name in ("COUNT", "ID", "MIN", "MAX", "STEP"))


@dataclass(frozen=True)
class Part:
    """A share of the cases.

    Args:
        number: Which one, from 0.
        count: Number of parts.

    Raises:
        UsageError: There is no such part.
    """

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise UsageError(f"-part_id {self.number} with -num_parts {self.count}", "count the parts from 0")

    def __str__(self) -> str:
        return f"part {self.number} of {self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether these are all cases."""
        return self.count == 1

    def take(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases of this part; all of them are given in the order of their names."""
        return self.of(self.number, cases)

    def of(self, number: int, cases: Sequence[Case]) -> list[Case]:
        """Return the cases of another part of the same run."""
        return list(cases[number :: self.count])


WHOLE = Part()


def part_of(count: int | None, number: int | None, environment: Mapping[str, str] = os.environ) -> Part:
    """Return the part that a command was started as: as its flags say, else by the variables of a Slurm array.

    Args:
        count: Of -num_parts; None: not given.
        number: Of -part_id; None: not given.
        environment: Where the variables are.

    Raises:
        UsageError: There is no such part, or the array does not tell which one this is.
    """
    if COUNT not in environment or number is not None or count == 1:
        return Part(number or 0, int(environment.get(COUNT, 1)) if count is None else count)
    tasks, task, step = int(environment[COUNT]), int(environment.get(ID, 0)), int(environment.get(STEP, 1))
    lowest = int(environment.get(LOWEST, 0))
    highest = int(environment.get(HIGHEST, lowest + step * (tasks - 1)))
    hint = f"-num_parts 1 takes all cases; a part has a name: -num_parts {count or tasks} -part_id I, from 0"
    if count not in (None, tasks):
        raise UsageError(f"-num_parts is {count}, and this Slurm array has {tasks} tasks", hint)
    if highest - lowest != step * (tasks - 1):  # as with --array=1,5,7, or of tasks that run again
        raise UsageError(f"the numbers {lowest} to {highest} of this Slurm array have gaps: it has {tasks} tasks", hint)
    return Part((task - lowest) // step, tasks)


@dataclass(frozen=True)
class Records:
    """The records of all parts of a run, as one of them sees them.

    Args:
        folder: Where they are; made when the first is written.
        part: The part that this run is.
        agreed: What all parts have to agree about, as JSON: records with anything else do not count.
    """

    folder: Path
    part: Part
    agreed: Mapping[str, Any]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other part begin, finish or merge during the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_across_machines(self.folder / "lock"):
            yield

    def save(self, content: Any, done: bool = False) -> None:
        """Replace the record of this part.

        Args:
            content: What is handed over, as JSON.
            done: Whether that is all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self.part.number)
        remove_staging(self.folder, {path.name})
        write_json(path, {"agreed": self.agreed, "done": done, "content": content})

    def missing(self) -> dict[int, str]:
        """Return by number why the records of parts do not count; empty if all are done."""
        return self._contents()[1]

    def own(self) -> Any | None:
        """Return what this part handed over in an earlier run, finished or not, that agreed; None: nothing."""
        return self._read(self.part.number)[0]

    def finish(self, content: Any, merge: Callable[[list[Any]], None]) -> str:
        """Replace the record of this part, and merge all of them if it was the last.

        Args:
            content: What is handed over, as JSON.
            merge: Called with what the parts handed over, in their order, while no other part merges.

        Returns:
            Which parts are missing, in words; empty after merging.
        """
        with self.locked():
            self.save(content, done=True)
            contents, missing = self._contents()
            if missing:
                return _in_words(missing)
            merge(contents)
        return ""

    def merge(self, merge: Callable[[list[Any]], None]) -> None:
        """Merge what the parts handed over, as finish() does.

        Raises:
            DataError: Parts are missing; the error names them.
        """
        if not self.folder.is_dir():
            raise DataError(f"nothing to merge: no part has left a record in {str(self.folder)!r}", "run the parts")
        with self.locked():
            contents, missing = self._contents()
            if missing:
                hint = f"the same command with -num_parts {self.part.count} -part_id {min(missing)}"
                what = f"of {self.part.count} parts, {len(missing)} are missing: {_in_words(missing)}"
                raise DataError(what, hint)
            merge(contents)

    def _contents(self) -> tuple[list[Any], dict[int, str]]:
        """Return what the parts that are done handed over, and by number why others do not count."""
        found = {number: self._read(number) for number in range(self.part.count)}
        missing = {number: why for number, (_, why) in found.items() if why}
        return [content for content, why in found.values() if not why], missing

    def _read(self, number: int) -> tuple[Any | None, str]:
        """Return what a part has recorded, if it agrees, and why that does not count; empty if it does."""
        path = self._path(number)
        try:
            record = read(path, PART) if path.exists() else None
        except DataError as error:
            return None, error.message
        if record is None:
            return None, "not run yet"
        if changed := json_differences(record["agreed"], self.agreed):
            return None, f"of another run: {changed[0]}"
        return record["content"], "" if record["done"] else "not finished"

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number}-of-{self.part.count}.json"


def _in_words(missing: Mapping[int, str]) -> str:
    return first_few([f"{number} ({why})" for number, why in missing.items()], separator=", ")


def in_array(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the process is a task of a Slurm array."""
    return COUNT in environment


def refuse_other_count(part: Part, folders: Iterable[Path]) -> None:
    """Check that a part that an array gave is of the run that has left records in the folders of the results.

    Some tasks of an array that are submitted again are an array of their own: they would divide the cases otherwise,
    and take the results of others for their own.

    Raises:
        UsageError: The records are of another number of parts.
    """
    places = [place for folder in folders for place in (folder / ".stunet/parts", folder / ".parts")]
    places += [place for folder in folders for place in folder.glob(".parts-*")]
    records = [path for place in places for path in place.glob("part-*-of-*.json")]
    counts = {int(path.stem.rpartition("-")[2]) for path in records} - {part.count}
    if counts and not any(path.stem.endswith(f"-of-{part.count}") for path in records):
        what = (
            f"{str(records[0].parent)!r} has records of a run of {max(counts)} parts, and this array has {part.count}"
        )
        raise UsageError(what, f"-num_parts {max(counts)} -part_id I for what is missing, or -num_parts 1")


def unfinished(part: Part, missing: str) -> str:
    """Return what to say when a part is done and others, which Records.finish() named, are not."""
    return f"{part} is done; missing: {missing}. The last to finish merges, or the same command with --merge"


def to_merge(folder: Path, count: int) -> Part:
    """Return a part, of which only the count matters, of those whose records are to be merged.

    Args:
        folder: Where the records are.
        count: Number of parts; 1: as the records say.

    Raises:
        DataError: There are no records, or of several numbers of parts.
    """
    if count > 1:
        return Part(0, count)
    counts = {int(path.stem.rpartition("-")[2]) for path in folder.glob("part-*-of-*.json")}
    if not counts:
        raise DataError(f"nothing to merge: no part has left a record in {str(folder)!r}", "run the parts")
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise DataError(f"{str(folder)!r} has records of runs of {listed} parts", f"-num_parts {max(counts)} --merge")
    return Part(0, counts.pop())
