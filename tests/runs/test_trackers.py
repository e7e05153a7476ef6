"""A training is followed by the real libraries, and what is missing is said before anything starts."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError, Interrupted, UsageError
from stunet.plans.files import plan_path, read_plan
from stunet.runs.launch import Run
from stunet.runs.trackers import Tracker, _show, check_trackers
from stunet.runs.training import TrainingRequest, TrainingResult, train
from tests.loops import for_each

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
NAMES = {"loss/training", "loss/validation", "Dice on patches/mean", "learning rate", "seconds of an epoch"}


def trained(planned: str, results: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> TrainingResult:
    if importlib.util.find_spec(where) is None:
        pytest.skip(f"{where} is not installed: pip install 'stunet[{where}]'")
    monkeypatch.setenv("nnUNet_results", str(results))
    return train(TrainingRequest(dataset=planned, set=SHORT, device="cpu", log=[where]))


def test_tensorboard_has_each_epoch_under_names_of_classes(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = trained(planned, tmp_path, monkeypatch, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(result.folder / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) > NAMES
    assert {"Dice on patches/kidney_left", "Dice of validation/mean"} < set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss/training")] == [0, 1]
    assert found.Scalars("Dice of validation/mean")[0].value == pytest.approx(result.dice, abs=1e-6)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (result.folder / "validation").glob("*.nii.gz"))
    assert sorted(found.Tags()["images"]) == ["progress", *(f"worst cases/{case}" for case in cases)]
    (image,) = found.Images(f"worst cases/{cases[0]}")
    assert image.width == 1056


@pytest.mark.slow
def test_mlflow_has_the_same(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    result = trained(planned, tmp_path / "results", monkeypatch, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run((result.folder / "mlflow_run.txt").read_text())
    assert set(run.data.metrics) > NAMES
    assert run.data.metrics["Dice of validation/mean"] == pytest.approx(result.dice, abs=1e-6)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss/training")] == [0, 1]
    assert run.data.tags["plans"] == result.plan.name
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_has_the_same(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    result = trained(planned, tmp_path, monkeypatch, "wandb")
    (written,) = result.folder.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    assert all(name.encode() in content for name in NAMES)


@pytest.fixture
def run(planned: str) -> Run:
    return Run(planned, read_plan(plan_path(planned, "STUNetPlans_T")), "3d_fullres", 0)


class Heard(Tracker):
    """Keeps what it is told."""

    def open(self, run: Any) -> None:
        self.heard: dict[str, float] = {}

    def scalar(self, name: str, value: float, step: int) -> None:
        self.heard[name] = value


def test_values_have_names_that_people_know(run: Run) -> None:
    tracker = Heard(run, ["liver", "spleen"], {"background": 0, "spleen": 1, "liver": 3, "whole": [1, 3]})
    for key, value in (("epoch_start_timestamps", 10.0), ("epoch_end_timestamps", 12.5), ("other", 1.0)):
        tracker.log(key, value, 0)
    tracker.log("dice_per_class_or_region/class_2", 0.5, 0)
    tracker.log_summary("final_val/class_1_dice", 0.75)
    tracker.log_summary("final_val/class_(1, 3)_dice", 0.25)
    tracker.log_summary("final_val/class_(1, 4)_dice", 0.125)
    assert tracker.heard == {
        "seconds of an epoch": 2.5,
        "other": 1.0,
        "Dice on patches/spleen": 0.5,
        "Dice of validation/spleen": 0.75,
        "Dice of validation/whole": 0.25,
        "Dice of validation/spleen + 4": 0.125,
    }


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Heard):
        def scalar(self, name: str, value: float, step: int) -> None:
            super().scalar(name, value, step)
            raise ConnectionError("gone")

    tracker = Failing(run, [], {})
    tracker.log("lrs", 0.1, 0)
    tracker.log("other", 0.2, 1)
    assert tracker.heard == {"learning rate": 0.1}
    assert [record.getMessage() for record in caplog.records] == ["warning: Failing is left out from now on: gone"]

    class Absent(Heard):
        def open(self, run: Any) -> None:
            raise ConnectionError("no server")

    with pytest.raises(DataError, match="--log: Absent cannot be reached: no server"):
        Absent(run, [], {})

    class Stopped(Heard):
        def scalar(self, name: str, value: float, step: int) -> None:
            raise Interrupted("stopped", "--c")

    with pytest.raises(Interrupted):
        Stopped(run, [], {}).log("lrs", 0.1, 0)


def test_pictures_that_cannot_be_made_do_not_end_a_training(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Watching(Tracker):
        def picture(self, name: str, path: Path) -> None:
            shown.append(name)
            raise ConnectionError("gone")

    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "progress.png").write_bytes(b"picture")
    tracker = Watching(run, [], {})
    _show(run.folder, [tracker])
    _show(run.folder, [tracker])
    assert shown == ["progress"]  # it has failed, and is left out
    monkeypatch.setattr("tempfile.tempdir", str(run.folder / "full"))
    _show(run.folder, [tracker])
    assert "pictures are left out: [Errno 2]" in caplog.text


@for_each(
    ("names", "switch", "error", "message"),
    [
        (["tensorbord"], "0", UsageError, "--log 'tensorbord'; did you mean 'tensorboard'"),
        (["wandb"], "0", DataError, "--log wandb: wandb is not installed"),
        ([], "1", DataError, "nnUNet_wandb_enabled=1: wandb is not installed"),
        ([], "yes", UsageError, "nnUNet_wandb_enabled is 'yes'"),
        (["wandb"], "1", UsageError, "asks for it as well"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(
    names: list[str], switch: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    monkeypatch.setenv("nnUNet_wandb_enabled", switch)
    with pytest.raises(error) as caught:
        check_trackers(names)
    assert message in str(caught.value)
