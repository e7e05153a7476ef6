"""Tests of runs/launch.py: one training per fold, what a new one forgets, signals, and threads."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from stunet.errors import DataError, Interrupted
from stunet.plans.plan import Plan
from stunet.runs.launch import Run, _stops, checkpoints, forget, limit_threads, reserved, starting_point
from stunet.trainers.finetune.start import REPORT
from stunet.trainers.supervised import STUNetTrainer
from stunet.workspace import BEST, FINAL, LATEST
from tests.loops import for_each
from tests.trainers.test_trainer import make_trainer


def test_starting_anew_forgets_the_earlier_training(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    run = Run(planned, Plan(trainer.plans_manager.plans), "3d_fullres", 0, resume=True)
    assert run.folder == Path(trainer.output_folder)
    for name in (FINAL, LATEST, BEST):
        (run.folder / name).touch()
    # A case that may train now, and drawings that would look like the later course of the new training.
    earlier = [
        run.folder / name for name in ("validation/phantom_000.nii.gz", "progress.png", "pictures/epoch_0003.png")
    ]
    for path in earlier:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert starting_point(run) == run.folder / FINAL
    forget(run)
    assert not any(path.exists() for path in earlier)
    assert checkpoints(run) == []
    with pytest.raises(DataError, match="nothing to continue"):
        starting_point(run)


@pytest.mark.process
@for_each("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_training_stops_at_once_and_is_resumable(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    with pytest.raises(Interrupted) as caught:
        _receive(number, trainer)
    assert caught.value.exit_code == 75
    assert "--c" in caught.value.hint


def _receive(number: int, trainer: STUNetTrainer) -> None:
    with _stops(trainer):
        os.kill(os.getpid(), number)


def a_fold(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Run:
    monkeypatch.setenv("nnUNet_results", str(folder))
    run = Run("Dataset998_Phantom", Plan({"plans_name": "P"}), "3d_fullres", 0, device="cpu", **options)
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth").touch()
    return run


def test_a_fold_that_is_being_trained_is_refused_before_anything_in_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_fold(tmp_path, monkeypatch, overwrite=True)
    with (
        FileLock(run.folder / ".lock"),
        pytest.raises(DataError, match="another process trains in"),
        reserved(run),
    ):
        pass
    assert checkpoints(run)
    (run.folder / ".part-1-checkpoint_latest.pth").touch()  # as a killed run leaves it
    with reserved(run) as checkpoint:
        assert checkpoint is None
        assert [path.name for path in run.folder.iterdir()] == [".lock"]
    assert not list(run.folder.iterdir())


def test_what_a_run_without_a_checkpoint_left_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_fold(tmp_path, monkeypatch)
    (run.folder / LATEST).unlink()
    for name in ("progress.png", "left_out.json", REPORT):
        (run.folder / name).touch()
    with reserved(run):
        assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_a_training_that_another_one_has_begun_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_fold(tmp_path, monkeypatch)
    with pytest.raises(DataError, match="this fold was begun"), reserved(run):
        pass
    assert checkpoints(run)


def test_processes_share_the_cores_unless_the_user_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    before = torch.get_num_threads()
    run = Run("Dataset998_Phantom", Plan({}), "3d_fullres", 0, device="cpu", processes=2)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", str(before))
        limit_threads(run)
        assert torch.get_num_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        limit_threads(run)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
