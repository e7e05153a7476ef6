"""The process of an arm: what it reads, what it trains, and what it writes about how it ended."""

from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError
from stunet.experiment import child
from stunet.experiment.child import Ending, read_ending, train_arm, write_request
from stunet.plans.plan import Plan
from stunet.runs.execution import FoldInUse
from stunet.runs.listener import Listener
from stunet.runs.training import TrainingRequest, TrainingResult

REQUEST = TrainingRequest(dataset=998, fold=1, pretrained=Path("w.pth"), set={"num_epochs": 3, "patch_size": [8, 8, 8]})


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> tuple[list[Any], Ending]:
    """Train an arm that ends like this; return what was trained, and the ending."""
    trained: list[Any] = []

    def train(request: TrainingRequest, listener: Listener, resume_if_begun: bool) -> TrainingResult:
        trained.append((request, resume_if_begun))
        if error:
            raise error
        return TrainingResult(
            dataset="", configuration="", fold=0, folder=Path("fold_0"), plan=Plan({}), checkpoint=None, metrics=None
        )

    monkeypatch.setattr(child, "train", train)
    monkeypatch.chdir(tmp_path)
    write_request(REQUEST, tmp_path / "request.json")
    try:
        train_arm(tmp_path / "request.json", tmp_path / "ending.json", Listener())
    except type(error or KeyError()):
        pass
    return trained, read_ending(tmp_path / "ending.json")


def test_an_arm_trains_what_was_written_and_continues_where_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained,), ending = run(tmp_path, monkeypatch, None)
    assert trained == (TrainingRequest(**{**vars(REQUEST), "pretrained": "w.pth"}), True)
    assert ending == Ending(folder=str(tmp_path / "fold_0"))


def test_an_error_is_written_with_the_lock_that_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ending = run(tmp_path, monkeypatch, DataError("no\ncases", "more"))
    assert ending == Ending(message="stunet_train: no cases")
    _, ending = run(tmp_path, monkeypatch, ZeroDivisionError("by zero"))
    assert ending == Ending(message="stunet_train: unexpected ZeroDivisionError: by zero")
    _, ending = run(tmp_path, monkeypatch, FoldInUse("held", "wait", tmp_path / ".lock"))
    assert ending == Ending(message="stunet_train: held", lock=str(tmp_path / ".lock"))


def test_without_a_file_or_with_a_damaged_one_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "ending.json"
    assert read_ending(path) == Ending()
    for text in ("{", "[]", '{"other": 1}'):
        path.write_text(text)
        assert read_ending(path) == Ending()
