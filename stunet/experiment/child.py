"""The process of an arm: it trains what a file says, and writes how it ended to another one.

runs.py starts such processes and reads what they write; cli/arm.py is what they run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stunet.errors import StunetError, explain
from stunet.files import read_json, write_json
from stunet.runs.execution import FoldInUse
from stunet.runs.listener import Listener
from stunet.runs.training import TrainingRequest, train

MODULE = "stunet.cli.arm"  # shows what the training reports, which goes to the arm's log


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an arm has ended; all are None if its process was killed.

    Args:
        folder: The folder of the fold that was trained and validated.
        message: Why there is none.
        lock: What the process that trains the same fold holds, if that is why.
    """

    folder: str | None = None
    message: str | None = None
    lock: str | None = None


def write_request(request: TrainingRequest, path: Path) -> None:
    """Write what an arm's process reads."""
    # Paths become text, which TrainingRequest takes as well.
    write_json(path, json.loads(json.dumps(asdict(request), default=str)))


def train_arm(request: Path, ending: Path, listener: Listener) -> None:
    """Train what the file `request` says, from where an earlier process stopped, and write the file `ending`.

    Raises:
        StunetError: As for train(); the file has the message.
    """
    try:
        result = train(TrainingRequest(**read_json(request)), listener, resume_if_begun=True)
    except FoldInUse as error:
        write_json(ending, asdict(Ending(message=_message(error), lock=str(error.lock))))
        raise
    except Exception as error:
        write_json(ending, asdict(Ending(message=_message(error))))
        raise
    write_json(ending, asdict(Ending(folder=str(result.folder.absolute()))))


def _message(error: Exception) -> str:
    return f"stunet_train: {' '.join(explain(error).message.split())}"


def read_ending(path: Path) -> Ending:
    """Return how an arm has ended; without a file, or with a damaged one, nothing is known."""
    try:
        return Ending(**read_json(path)) if path.is_file() else Ending()
    except (StunetError, TypeError):
        return Ending()
