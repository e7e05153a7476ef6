"""Run the arms of an experiment, each in a process of its own, and record in a file which are done.

FOLDER/arms.json identifies every arm by its command, so that no arm is ever run twice, and an arm whose values were
changed counts as a new one. FOLDER/logs has the output of the arms. The result of an arm is an ordinary result folder
in nnUNet_results.
"""

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import Interrupted, UsageError
from stunet.experiment.arms import Arm
from stunet.experiment.child import Ending, read_ending
from stunet.files import exclusive_lock, is_held, remove_staging, write_json
from stunet.kinds import ARMS, CLASSES, SUMMARY_OF_CASES, read

DONE, BEGUN, FAILED = "done", "begun", "failed"
POLL_S = 0.1


class Record:
    """What is known about the arms: state, result folder, log and last message by command, in FOLDER/arms.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "arms.json"
        self._arms: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Read the file again, in case another run has changed it."""
        self._arms = read(self._path, ARMS) if self._path.is_file() else {}

    def state(self, command: Sequence[str]) -> str:
        """Return the state of an arm, "" if it was never begun; it only counts as done while its result exists."""
        state = self._of(command).get("state", "")
        return BEGUN if state == DONE and not self.summary(command).is_file() else state

    def summary(self, command: Sequence[str]) -> Path:
        """Return the path of nnU-Net's summary.json of a validated arm."""
        return Path(self._of(command).get("folder", "")) / "validation" / "summary.json"

    def message(self, command: Sequence[str]) -> str:
        """Return the last message of a failed arm."""
        return self._of(command).get("message", "")

    def log(self, arm: Arm) -> Path:
        """Return the path of an arm's output."""
        return self.folder / "logs" / f"{arm.name}.log"

    def write(self, arm: Arm, command: Sequence[str], state: str, **more: str) -> None:
        """Record a state; the file is written atomically."""
        self._arms[shlex.join(command)] = {"arm": arm.name, "state": state, "log": str(self.log(arm)), **more}
        write_json(self._path, self._arms)

    def _of(self, command: Sequence[str]) -> Mapping[str, Any]:
        return self._arms.get(shlex.join(command), {})


def run(
    todo: Mapping[Arm, Sequence[str]],
    record: Record,
    start: Callable[[Arm, Path], Sequence[str]],
    jobs: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the arms that are not done, `jobs` at a time; a failing arm does not stop the others.

    Args:
        todo: Each arm with its command.
        record: The record in their folder.
        start: Returns the words that start the process of an arm, which writes its ending (child.py) to the given file;
            the folder of that file is for this process alone.
        jobs: Arms at a time; on the CPU they share the cores.
        tell: Called with a message when an arm begins and ends.

    Raises:
        UsageError: Two arms are the same command, which would train twice in one folder.
        Interrupted: A signal arrived, which was passed on to the running arms, or an arm was stopped from outside.
    """
    by_command: dict[str, Arm] = {}
    for arm, command in todo.items():
        other = by_command.setdefault(shlex.join(command), arm)
        if other != arm:
            raise UsageError(f"{other.name} and {arm.name} are the same command", "leave one of them out")
    running: list[_Process] = []
    with (
        _alone(record.folder),
        # Names of arms are not unique, and an arm of a killed experiment may still run: no file is shared.
        tempfile.TemporaryDirectory(prefix="stunet_experiment-") as exchange,
        _received_signals() as signals,
        _stopped_at_the_end(running),
    ):
        remove_staging(record.folder)
        record.read()
        waiting = [(arm, command) for arm, command in todo.items() if record.state(command) != DONE]
        total, ended, passed_on = len(waiting), 0, 0
        while running or (waiting and not signals):
            while waiting and len(running) < jobs and not signals:
                arm, command = waiting.pop(0)
                record.write(arm, command, BEGUN)
                tell(f"{arm.name} starts; its output: {record.log(arm)}")
                ending = Path(exchange, str(total - len(waiting)), "ending.json")
                ending.parent.mkdir()
                running.append(_Process(arm, command, start(arm, ending), record.log(arm), ending, jobs, tell))
            new = signals[passed_on:]
            passed_on += len(new)
            for process in running:
                # A second signal has to reach the arms as a second one, which ends them without saving.
                process.stop(len(new))
            for process in [process for process in running if process.ended()]:
                running.remove(process)
                state, more = process.outcome()
                record.write(process.arm, process.command, state, **more)
                ended += state != BEGUN
                said = " ".join([f"{process.arm.name} {state} after {process.seconds:.0f} s", *more.values()])
                tell(f"{ended} of {total}: {said}")
            time.sleep(POLL_S if running else 0)
    left = sum(record.state(command) in (BEGUN, "") for command in todo.values())
    if left:
        raise Interrupted(f"stopped; {len(todo) - left} of {len(todo)} arms have ended", "the same command again")


class _Process:
    """A running arm.

    If it is still being trained, for example after its experiment was killed, that training is awaited, and the arm is
    started again.
    """

    def __init__(
        self,
        arm: Arm,
        command: Sequence[str],
        words: Sequence[str],
        log: Path,
        ending: Path,
        jobs: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.arm, self.command, self._begun, self._tell = arm, command, time.monotonic(), tell
        self._held: Path | None = None  # the lock of the other process
        self._words, self._log, self._ending_file, self._ending = list(words), log, ending, Ending()
        self._environment = {**os.environ}
        if jobs > 1:
            # Otherwise each arm would use all cores; a user's own value counts.
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        self._start()

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Of the attempt before, if this one was started again after waiting.
        self._ending_file.unlink(missing_ok=True)
        with self._log.open("ab") as file:
            file.write(f"$ {shlex.join(self.command)}\n".encode())
            file.flush()
            # The log keeps the output of earlier attempts; _last_line() must not quote these.
            self._offset = file.tell()
            # In its own session: a terminal sends Ctrl-C to a whole session, and on a second one an arm saves nothing.
            self._popen = subprocess.Popen(
                self._words,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stopped = False

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    def stop(self, times: int = 1) -> None:
        """Ask it to save and end; the second time, to end."""
        for _ in range(times):
            self._stopped = True
            self._popen.terminate()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._popen.wait()

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self._held is not None and not self._stopped:
            if is_held(self._held):
                return False
            self._held = None
            self._start()
        if self._popen.poll() is None:
            return False
        self._ending = read_ending(self._ending_file)
        if self._ending.lock and not self._stopped:
            self._held = Path(self._ending.lock)
            self._tell(f"{self.arm.name} is still being trained by another process: waiting for it")
            return False
        return True

    def outcome(self) -> tuple[str, dict[str, str]]:
        """Return the state it is left in, and its result folder or last message."""
        code = self._popen.returncode
        # Both: the file is written before the process ends, which may still fail.
        if code == 0 and self._ending.folder:
            return DONE, {"folder": self._ending.folder}
        if self._stopped or code == Interrupted.exit_code:
            return BEGUN, {}
        message = self._ending.message or self._last_line()
        return FAILED, {"message": f"{message} (exit code {code})" if message else f"exit code {code}"}

    def _last_line(self) -> str:
        """Return the last line of the log, which may tell why a process was killed; "" if it has written none."""
        output = self._log.read_bytes()[self._offset :].decode(errors="replace")
        return next((line for line in reversed(output.splitlines()) if line.strip()), "")


@contextmanager
def _stopped_at_the_end(running: list[_Process]) -> Iterator[None]:
    """Leave no arm running unattended, whatever goes wrong (a full disk, a closed terminal)."""
    try:
        yield
    finally:
        for process in running:
            process.stop()
        for process in running:
            process.wait()


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the folder, so that no two commands run the same arms."""
    folder.mkdir(parents=True, exist_ok=True)
    what = f"another stunet_experiment runs in {str(folder)!r}"
    return exclusive_lock(folder / ".lock", what, "wait for it, or -o FOLDER")


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop, as they arrive; those that the process ignores (nohup) stay ignored."""
    received: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def results(todo: Mapping[Arm, Sequence[str]], record: Record) -> dict[Arm, dict[str, dict[str, float]]]:
    """Return the Dice of every class (by name) of every held-out case of the finished arms; NaN if a class is absent.

    Raises:
        DataError: A summary is not as nnU-Net writes it.
    """
    found = {}
    for arm, command in todo.items():
        if record.state(command) == DONE:
            found[arm] = read_dice(record.summary(command))
    return found


def read_dice(summary: Path) -> dict[str, dict[str, float]]:
    """Read Dice by case and class from one of nnU-Net's summaries; class names are from the result's dataset.json.

    Raises:
        DataError: It is not as nnU-Net writes it.
    """
    # `summary` is MODEL/fold_X/validation/summary.json.
    labels = read(summary.parents[2] / "dataset.json", CLASSES)["labels"]
    # nnU-Net's key for a region is the text of a tuple, such as '(1, 2)'.
    names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    cases = read(summary, SUMMARY_OF_CASES, "delete it, and run again")["metric_per_case"]
    return {
        Path(case["reference_file"]).name: {
            names.get(key, key): metrics["Dice"] for key, metrics in case["metrics"].items()
        }
        for case in cases
    }
