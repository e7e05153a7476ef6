"""Errors reach another process with all that they say."""

import pickle
from pathlib import Path

from stunet.errors import DataError
from stunet.runs.execution import FoldInUse
from stunet.trainers.distributed.group import ProcessError


def test_an_error_is_the_same_in_another_process() -> None:
    for error in (DataError("what", "next"), FoldInUse("what", "next", Path(".lock")), ProcessError(5)):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (str(copy), vars(copy)) == (str(error), vars(error))
