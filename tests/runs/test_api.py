"""The Python API: signatures as of the requests, results as objects, errors as exceptions, and nothing printed."""

import dataclasses
import inspect
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import stunet
from stunet.errors import DataError, StunetError, UsageError, WeightsError
from stunet.files import exclusive_lock, read_json
from stunet.runs.execution import FoldInUse
from stunet.runs.training import train
from stunet.trainers.progress import NullListener
from tests.loops import for_each

ROUND = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}


@for_each(
    ("name", "request_class"),
    [
        ("plan", stunet.PlanningRequest),
        ("train", stunet.TrainingRequest),
        ("pretrain", stunet.PretrainingRequest),
        ("predict", stunet.PredictionRequest),
        ("evaluate", stunet.EvaluationRequest),
        ("features", stunet.FeaturesRequest),
    ],
)
def test_a_function_takes_what_its_request_holds(name: str, request_class: type) -> None:
    given = dict(inspect.signature(getattr(stunet, name)).parameters)
    assert given.pop("listener").default is None
    for field in dataclasses.fields(request_class):
        parameter = given.pop(field.name)
        default = {} if field.name == "set" else parameter.default
        required = field.default is dataclasses.MISSING and field.name != "set"
        expected = {} if field.name == "set" else inspect.Parameter.empty if required else field.default
        assert default == expected, field.name
        assert f"{field.name}: " in (request_class.__doc__ or ""), field.name
    assert not given


def test_importing_the_package_loads_neither_torch_nor_the_api() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import stunet; assert time.perf_counter() - start < 0.5\n"
        "assert {'train', 'Listener'} <= set(dir(stunet))\n"
        "assert not {'torch', 'numpy', 'argparse', 'stunet.runs'} & set(sys.modules)\n"
        "stunet.TrainingRequest, stunet.Listener, stunet.train\n"
        "assert not {'torch', 'nnunetv2', 'argparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'stunet' has no attribute 'trian'"):
        stunet.trian  # noqa: B018


@for_each(
    ("options", "error", "message"),
    [
        ({"dataset": 7}, DataError, "no dataset '7'"),
        ({"size": "XL"}, UsageError, "--size 'XL'"),
        ({"fold": "x"}, UsageError, "fold 'x' is neither a number nor 'all'"),
        ({"fold": -1}, UsageError, "fold -1 is neither"),
        ({"device": "tpu"}, UsageError, "-device 'tpu' is not cuda, cpu or mps"),
        ({"set": {"num_epoch": 3}}, UsageError, "did you mean 'num_epochs'"),
        ({"set": {"num_epochs": 0}}, UsageError, "num_epochs=0 is not a valid int"),
        ({"resume": True}, DataError, "nothing to continue"),
    ],
)
def test_mistakes_are_exceptions(
    planned: str, capfd: pytest.CaptureFixture[str], options: dict[str, Any], error: type[StunetError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        stunet.train(**{"dataset": 998, **options})
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_the_other_functions_raise_as_well(planned: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no dataset '7'"):
        stunet.plan(7)
    with pytest.raises(UsageError, match="unknown configuration '3d_ful'; did you mean"):
        stunet.plan(998, configurations=["3d_ful"])
    with pytest.raises(UsageError, match="-np 0 must be 1 or more"):
        stunet.plan(998, np=0)
    with pytest.raises(UsageError, match="no model is named"):
        stunet.predict(tmp_path, tmp_path / "out")
    with pytest.raises(WeightsError, match="no model or file 'NoSuch'"):
        stunet.predict(tmp_path, tmp_path / "out", model="NoSuch")
    with pytest.raises(UsageError, match="--format 'jpg'"):
        stunet.predict(tmp_path, tmp_path / "out", model="NoSuch", format="jpg")
    with pytest.raises(DataError, match="no file or folder"):
        stunet.evaluate(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UsageError, match="only one folder is given"):
        stunet.evaluate(None, tmp_path)
    assert capfd.readouterr() == ("", "")


class Heard(stunet.Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.results: list[stunet.TrainingResult] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        print("heard")  # noqa: T201

    def trained(self, result: stunet.TrainingResult) -> None:
        self.results.append(result)


def test_a_dry_run_tells_what_would_be_trained(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    heard = Heard()
    result = stunet.train(998, set=ROUND, device="cpu", dry_run=True, listener=heard)
    assert result.plan.name == "STUNetPlans_T-epochs1-its2-valits1-bs2"
    assert result.metrics is None
    assert result.checkpoint is None
    assert heard.results == []
    assert str(result.folder) in heard.notes[0]
    assert capfd.readouterr() == ("heard\n", "")
    assert not list(tmp_path.rglob("*"))


def test_a_training_returns_its_result_and_leaves_the_process_as_it_was(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    state, handlers = torch.get_rng_state(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    results: list[stunet.TrainingResult] = []
    other = threading.Thread(target=lambda: results.append(stunet.train(998, set=ROUND, device="cpu")))
    other.start()  # where signals cannot be handled
    other.join()
    assert capfd.readouterr() == ("", "")
    (result,) = results
    assert result.dataset == planned
    assert result.checkpoint == result.folder / "checkpoint_final.pth"
    assert result.metrics == read_json(result.folder / "validation" / "summary.json")
    assert 0 <= result.dice <= 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(DataError, match="this fold was trained to the end"):
        stunet.train(998, set=ROUND, device="cpu")
    heard = Heard()
    again = stunet.train(998, set=ROUND, device="cpu", resume=True, listener=heard)
    assert again == result
    assert heard.results == [again]
    assert heard.notes[-1] == "this fold is trained and validated; nothing to do"
    assert pickle.loads(pickle.dumps(result)) == result
    with (
        pytest.raises(FoldInUse, match="another process trains in") as caught,
        exclusive_lock(result.folder / ".lock", "", ""),
    ):
        train(stunet.TrainingRequest(dataset=998, set=ROUND, device="cpu", val=True))
    assert caught.value.lock == result.folder / ".lock"
    assert train(stunet.TrainingRequest(dataset=998, set=ROUND, device="cpu"), resume_if_begun=True) == result


class Epochs(NullListener):
    """Writes a line per epoch into a file, from whichever process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch(self, trainer: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.current_epoch}\n")


class InAFile(stunet.Listener):
    """Shows epochs in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def training(self) -> Epochs:
        return Epochs(self.path)


@pytest.mark.slow
def test_several_processes_train_from_the_api(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("MASTER_PORT", raising=False)
    result = stunet.train(998, set=ROUND, device="cpu", num_gpus=2, listener=InAFile(tmp_path / "epochs"))
    assert (tmp_path / "epochs").read_text() == "1\n"
    assert 0 <= result.dice <= 1
    assert capfd.readouterr().out == ""
