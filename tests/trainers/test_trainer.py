"""Training on a small phantom with real nnU-Net: order of data, resume, checkpoints, deep supervision."""

import io
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stunet import workspace
from stunet.cli.live import TrainingProgress
from stunet.errors import DataError, Interrupted, OutOfMemoryError, WeightsError
from stunet.files import exclusive_lock, read_json, write_json
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.settings import MIRROR
from stunet.runs.overview import last_stopped, trained_folds
from stunet.trainers.data.batches import SeededBatches
from stunet.trainers.data.mirroring import MirrorSides
from stunet.trainers.progress import NullListener
from stunet.trainers.supervised import STUNetTrainer
from stunet.trainers.trainer import BaseTrainer
from stunet.workspace import BEST, LATEST
from tests.loops import for_each

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}


def make_trainer(dataset: str, results: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> STUNetTrainer:
    monkeypatch.setenv("nnUNet_results", str(results))
    plan = read_plan(plan_path(dataset, "STUNetPlans_T"))
    dataset_json = read_json(workspace.preprocessed_dataset(dataset) / "dataset.json")
    for key in ("labels", "regions_class_order"):
        if (value := overrides.pop(key, None)) is not None:
            dataset_json[key] = value
    configuration = overrides.pop("configuration", "3d_fullres")
    stages = overrides.pop("stages", None)
    plans = derive(plan, dataset_json, stages=stages, overrides={**SHORT, **overrides}).to_json()
    return STUNetTrainer(plans, configuration, 0, dataset_json, torch.device("cpu"))


def weights(trainer: BaseTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.bare_network().parameters()])


class StopAt(NullListener):
    """Asks for a stop at a step, as a signal would."""

    def __init__(self, phase: str, epoch: int, done: int) -> None:
        self.at = (phase, epoch, done)

    def step(self, trainer: BaseTrainer, phase: str, done: int, loss: float) -> None:
        if (phase, trainer.current_epoch, done) == self.at:
            trainer.request_stop()


def stop_at(trainer: BaseTrainer, phase: str, epoch: int, done: int) -> None:
    trainer.configure(listener=StopAt(phase, epoch, done))
    with pytest.raises(Interrupted) as caught:
        trainer.run_training()
    assert caught.value.exit_code == 75


def test_a_training_value_that_nobody_knows_is_refused(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    content = trainer.plan.to_json()
    content["stunet"]["train"]["momentun"] = 0.9
    with pytest.raises(DataError, match="unknown training value 'momentun'; did you mean 'momentum'"):
        STUNetTrainer(content, "3d_fullres", 0, trainer.dataset_json, torch.device("cpu"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def shown_run(planned: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[STUNetTrainer, str]:
    """A trainer after its whole training, and what the training wrote on a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        trainer = make_trainer(planned, tmp_path_factory.mktemp("whole"), patch)
        patch.setattr("sys.stderr", terminal := Terminal())
        patch.setenv("TERM", "xterm")
        trainer.configure(listener=TrainingProgress())
        trainer.run_training()
    return trainer, terminal.getvalue()


@pytest.fixture
def whole(shown_run: tuple[STUNetTrainer, str]) -> STUNetTrainer:
    return shown_run[0]


def test_a_terminal_shows_the_bars_and_a_line_for_each_epoch(shown_run: tuple[STUNetTrainer, str]) -> None:
    assert re.search(r"epoch +loss +val +Dice +time +left +classes, worst first\n", shown_run[1])
    lines = re.findall(r"epoch ([12]/2)( +-?\d+\.\d{3}){2} 0\.\d{3} +\S+ s .*\w+ 0\.\d\d", shown_run[1])
    assert [line[0] for line in lines] == ["1/2", "2/2"]
    assert "epoch 2/2 validation" in shown_run[1]


def test_the_overview_says_how_far_a_training_is(
    whole: STUNetTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of nnU-Net's log; the final validation, and a log that was cut off, are files as they would be."""
    fold = tmp_path / "Dataset998_Phantom/STUNetTrainer__STUNetPlans_T__3d_fullres/fold_0"
    shutil.copytree(whole.output_folder, fold)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    (found,) = trained_folds()
    assert found.name == "Dataset998_Phantom/STUNetTrainer__STUNetPlans_T__3d_fullres/fold_0"
    assert (found.epoch, found.epochs, found.state, found.measure) == (2, 2, "stopped", "Dice of patches")
    assert found.value == pytest.approx(whole.logger.get_value("mean_fg_dice", step=-1), abs=1e-4)
    with exclusive_lock(fold / ".lock", "", ""):
        assert trained_folds()[0].state == "running"
    assert last_stopped().folder == fold
    shutil.copytree(fold, fold.with_name("fold_0_old"))
    (fold / "validation").mkdir()
    write_json(fold / "validation/summary.json", {"foreground_mean": {"Dice": 0.5}, "mean": {}})
    (found,) = trained_folds()
    assert (found.state, found.measure, found.value) == ("finished", "Dice", 0.5)
    shutil.rmtree(fold / "validation")
    (fold / workspace.FINAL).unlink()
    (fold / "metrics.csv").unlink()  # as of nnU-Net's own training
    (log,) = fold.glob("training_log*.txt")
    text = log.read_text()
    log.write_text(text[: text.index("Epoch 1") + 20])
    (found,) = trained_folds()
    assert (found.epoch, found.epochs, found.state) == (1, 2, "stopped")
    dice = "[np.float32(0.5), np.float32(1e-04), nan]"
    for day, number in (("10", 1), ("9", 1), ("9", 0)):  # the later one counts, whatever order their names have
        lines = f"Epoch {number} ", f"Pseudo dice {dice if day == '10' else '[0.75]'} ", "Epoch time: 1.5 s"
        with (fold / f"training_log_2026_10_{day}_1_1_1.txt").open("a") as stream:
            stream.writelines(f"2026-10-{day}: {line}\n" for line in lines)
    log.unlink()
    (found,) = trained_folds()
    assert (found.epoch, found.value) == (2, pytest.approx(0.25005))
    for name in (BEST, LATEST):
        (fold / name).unlink(missing_ok=True)
    (fold / LATEST).symlink_to("nowhere")
    (found,) = trained_folds()
    assert found.state == "without checkpoint"
    with pytest.raises(DataError, match="no training was stopped"):
        last_stopped()
    log.write_text("")
    for each in fold.glob("training_log_2026_10*"):
        each.unlink()
    assert trained_folds()[0].to_json()["value"] is None


def test_a_stopped_run_continues_exactly(
    planned: str, whole: STUNetTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    for stop in (("train", 0, 2), ("train", 1, 1), ("validation", 1, 1)):
        stop_at(trainer, *stop)
        assert not torch.equal(weights(trainer), weights(whole)) or stop[0] == "validation"
        trainer = make_trainer(planned, tmp_path, monkeypatch)
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        assert trainer.current_epoch == stop[1]
    trainer.run_training()
    assert torch.equal(weights(trainer), weights(whole))
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        assert trainer.logger.get_value(key, None) == whole.logger.get_value(key, None)
    assert sorted(p.name for p in Path(trainer.output_folder).glob("*.pth")) == [
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    ]


def test_worker_processes_change_nothing(
    planned: str, whole: STUNetTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    helped = make_trainer(planned, tmp_path, monkeypatch)
    stop_at(helped, "validation", 1, 1)
    assert torch.equal(weights(helped), weights(whole))


def test_another_seed_is_another_run(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_trainer(planned, tmp_path / "0", monkeypatch, seed=0)
    second = make_trainer(planned, tmp_path / "1", monkeypatch, seed=1)
    for trainer in (first, second):
        trainer.initialize()
    assert not torch.equal(weights(first), weights(second))
    batches = [next(trainer.get_dataloaders()[0])["data"] for trainer in (first, second, first)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_checkpoints_need_no_pickle_and_no_trainer_of_ours(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer(planned, tmp_path, monkeypatch, num_epochs=1, num_iterations_per_epoch=1)
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)  # without any allow-list
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["current_epoch"] == 1
    assert content["inference_allowed_mirroring_axes"] == (0, 1)  # kidney_left and kidney_right forbid the third axis

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    loaded = predictor.list_of_parameters[0]
    assert all(torch.equal(value, loaded[name]) for name, value in trainer.bare_network().state_dict().items())
    assert tuple(predictor.allowed_mirroring_axes) == (0, 1)


def test_where_the_images_lie_does_not_become_part_of_a_model(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(planned, tmp_path, monkeypatch)
    listed = {**made.dataset_json, "dataset": {"case": {"images": ["/data/case.nii.gz"], "label": "case.nii.gz"}}}
    again = STUNetTrainer(made.my_init_kwargs["plans"], "3d_fullres", 0, listed, torch.device("cpu"))
    assert again.dataset_json == made.dataset_json
    assert again.my_init_kwargs["dataset_json"] == made.dataset_json


def test_mirroring_keeps_to_the_plan_in_two_dimensions(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, configuration="2d")
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (0,)
    trainer.plans_manager.plans["stunet"]["mirror_axes"] = [0]
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == ()
    assert trainer.inference_allowed_mirroring_axes is None


def test_mirroring_follows_the_plans_value(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for policy in MIRROR:
        trainer = make_trainer(planned, tmp_path, monkeypatch, mirror=policy)
        axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3]
        found[policy] = (axes, trainer.inference_allowed_mirroring_axes)
    assert found == {
        "auto": ((0, 1), (0, 1)),
        "none": ((), None),
        "swap": ((0, 1, 2), (0, 1)),
        "all": ((0, 1, 2), (0, 1, 2)),
    }


def test_classes_change_sides_when_an_image_is_mirrored_with_swap(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, mirror="swap")
    trainer.initialize()
    loader = trainer.get_dataloaders()[0]
    (step,) = [s for s in loader_transforms(loader) if isinstance(s, MirrorSides)]
    label = torch.tensor([[[[4, 5, 1, -1]]]], dtype=torch.int16)  # kidney_left, kidney_right, spine, outside
    assert step._apply_to_segmentation(label, axes=[2]).tolist() == [[[[-1, 1, 4, 5]]]]
    assert step._apply_to_segmentation(label, axes=[0, 1]).tolist() == [[[[4, 5, 1, -1]]]]


@for_each(
    ("labels", "axes", "said"),
    [
        ({"LK": 1, "RK": 2}, [0, 1, 2], "the plan mirrors all axes, although 'LK' and 'RK' would change sides"),
        ({"LK": 1, "liver": 2}, [0, 1], "the dataset has 'LK' without its mirror image"),
        ({"LK": 1, "RK": 2, "LV": 3, "RV": 4}, [0, 1], "the dataset has 'LV' without its mirror image"),
    ],
)
def test_swap_is_refused_where_a_mirror_makes_what_has_no_name(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: dict[str, int], axes: list[int], said: str
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, mirror="swap", labels={"background": 0, **labels})
    trainer.plans_manager.plans["stunet"]["mirror_axes"] = axes
    with pytest.raises(DataError, match=said):
        trainer.replaced_transforms()


def test_a_plan_that_mirrors_left_and_right_classes_is_warned_about(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for axes in ([0, 1], [0, 1, 2]):
        trainer = make_trainer(planned, tmp_path, monkeypatch)
        trainer.plans_manager.plans["stunet"]["mirror_axes"] = axes
        trainer.configure(listener=type("Heard", (NullListener,), {"warning": lambda self, text: said.append(text)})())
        trainer.on_train_start()
    (warning,) = said
    assert "although 'kidney_left' and 'kidney_right' would change sides with the image" in warning


def loader_transforms(batches: SeededBatches) -> list[Any]:
    return batches._loader.dataset.source.transforms.transforms  # type: ignore[attr-defined]


def test_labels_take_the_nearest_ones_value_where_the_plan_says_so(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, label_interpolation="nearest")
    trainer.initialize()
    spatial = loader_transforms(trainer.get_dataloaders()[0])[0]
    assert spatial.mode_seg == "nearest"
    label = torch.arange(8).reshape(1, 2, 2, 2).to(torch.int16)
    grid = torch.zeros((1, 1, 1, 3)) + 0.3  # nearer to the last voxel
    assert spatial._apply_to_segmentation(label, grid=grid).item() == 7


@for_each(("configuration", "stages"), [("3d_fullres", n) for n in (2, 3, 4, 7)] + [("2d", 5)])
def test_every_head_has_its_target_for_any_number_of_stages(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str, stages: int
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch, configuration=configuration, stages=stages)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    outputs = trainer.network(batch["data"])
    if stages == 2:
        assert outputs.shape[2:] == batch["target"].shape[2:]
    else:
        assert len(outputs) == len(batch["target"]) == stages - 1
        assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch["target"]]
    before = weights(trainer)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert torch.isfinite(weights(trainer)).all()
    assert not torch.equal(weights(trainer), before)


def test_a_second_stop_while_steps_are_replayed_loses_none(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_trainer(planned, tmp_path, monkeypatch, num_iterations_per_epoch=3)
    stop_at(first, "train", 0, 2)
    file = Path(first.output_folder) / LATEST
    before = torch.load(file, weights_only=True)
    again = make_trainer(planned, tmp_path, monkeypatch, num_iterations_per_epoch=3)
    again.load_checkpoint(str(file))
    again.request_stop()
    with pytest.raises(Interrupted):
        again.run_training()
    after = torch.load(file, weights_only=True)
    assert len(before["stunet"]["losses"]) == 2
    assert after["stunet"]["losses"] == before["stunet"]["losses"]
    assert torch.equal(weights(again), weights(first))


def test_the_latest_checkpoint_is_written_by_time_whatever_the_best_does(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    trainer.initialize()
    saved = trainer._saved
    trainer.save_checkpoint(str(Path(trainer.output_folder) / BEST))
    assert trainer._saved == saved
    trainer.save_checkpoint(str(Path(trainer.output_folder) / LATEST))
    assert trainer._saved > saved


def test_a_checkpoint_of_another_plan_is_refused(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(planned, tmp_path, monkeypatch)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1)
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    other = make_trainer(planned, tmp_path, monkeypatch, initial_lr=0.5)
    with pytest.raises(WeightsError, match=r"another plan than today's \(plans"):
        other.load_checkpoint(str(file))


class KillsLoader(NullListener):
    """Kills the process that loads data, in the middle of a step."""

    def step(self, trainer: BaseTrainer, phase: str, done: int, loss: float) -> None:
        if (trainer.current_epoch, phase, done) == (1, "train", 1):
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()


@pytest.mark.process
def test_a_run_whose_loader_is_killed_keeps_its_state_and_continues_exactly(
    planned: str, whole: STUNetTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")
        killed = make_trainer(planned, tmp_path / "killed", monkeypatch)
        killed.configure(listener=KillsLoader())
        with pytest.raises(OutOfMemoryError, match="data loading process was killed"):
            killed.run_training()
    resumed = make_trainer(planned, tmp_path / "killed", monkeypatch)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / LATEST))
    assert (resumed.current_epoch, len(resumed.to_replay)) == (1, 1)
    stop_at(resumed, "validation", 1, 1)
    assert torch.equal(weights(resumed), weights(whole))
