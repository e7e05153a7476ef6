"""Pre-training on a small phantom with real nnU-Net: it stops, continues, and is shared by parts and processes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import Interrupted, WeightsError
from stunet.trainers import checkpoint, pictures, pretraining
from stunet.trainers.pretexts.base import Patches
from stunet.trainers.pretexts.combined import PCRL
from stunet.trainers.pretexts.contrastive import EMBEDDED
from stunet.trainers.pretexts.methods import METHODS
from stunet.trainers.pretraining import STUNetPretrainer
from stunet.trainers.progress import NullListener
from stunet.trainers.trainer import BaseTrainer
from stunet.weights.nnssl import check_written
from stunet.weights.reading import read_weights
from stunet.workspace import LATEST, PRETRAINED, PRETRAINED_TEACHER
from tests.loops import for_each
from tests.pretext_inputs import kept_rows
from tests.pretraining_run import everything, make_pretrainer

# With the most state, and with losses of both kinds; the slow tests go through all methods.
RESUMED, SPLIT = ("dino", "pcrl"), ("mae", "global")


class StopAt(NullListener):
    """Asks for a stop after a step."""

    def __init__(self, epoch: int, done: int) -> None:
        self.at = epoch, done

    def step(self, trainer: BaseTrainer, phase: str, done: int, loss: float) -> None:
        if phase == "train" and (trainer.current_epoch, done) == self.at:
            trainer.request_stop()


@for_each("method", RESUMED)
def test_a_stopped_pretraining_continues_exactly(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    check_resumed(planned, tmp_path, monkeypatch, method)


@for_each(("method", "network"), [("mae", RESENC), ("simclr", RESENC), ("dino", RESENC), ("mae", PLAIN_UNET)])
def test_nnunets_networks_are_pretrained_and_continue_exactly(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, network: NNUNet
) -> None:
    trainer = check_resumed(planned, tmp_path, monkeypatch, method, network=network)
    weights = read_weights(Path(trainer.output_folder) / PRETRAINED)
    assert (weights.network.architecture, weights.pretext) == (network, method)
    state = trainer.bare_network().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in weights.tensors.items())


def check_resumed(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, **options: Any
) -> STUNetPretrainer:
    whole = make_pretrainer(planned, tmp_path / "whole", monkeypatch, method, **options)
    whole.run_training()
    stopped = make_pretrainer(planned, tmp_path / "stopped", monkeypatch, method, **options)
    stopped.configure(listener=StopAt(1, 1))
    with pytest.raises(Interrupted):
        stopped.run_training()
    resumed = make_pretrainer(planned, tmp_path / "stopped", monkeypatch, method, **options)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / LATEST))
    resumed.run_training()
    assert torch.equal(everything(resumed), everything(whole))
    assert resumed.summary() == whole.summary()
    return resumed


@for_each("method", SPLIT)
def test_micro_batches_compute_what_a_batch_does(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    check_split(planned, tmp_path, monkeypatch, method)


def check_split(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def train(accumulation: int) -> torch.Tensor:  # a single step: further ones amplify the rounding
        values = {"num_epochs": 1, "num_iterations_per_epoch": 1, "batch_size": 3, "accumulation": accumulation}
        trainer = make_pretrainer(planned, tmp_path / str(accumulation), monkeypatch, method, **values)
        trainer.run_training()
        return everything(trainer)

    assert torch.allclose(train(2), train(1), rtol=0, atol=1e-5)


@pytest.mark.slow
@for_each("method", METHODS)
def test_every_method_continues_exactly_and_can_be_split(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    check_resumed(planned, tmp_path, monkeypatch, method)
    check_split(planned, tmp_path, monkeypatch, method)


class Warned(NullListener):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


def test_a_measure_at_chance_is_warned_of_once(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "rot", num_epochs=30)
    trainer.configure(listener=(warned := Warned()))
    trainer.initialize()
    logged = {"train_losses": 2.0, "val_losses": 2.0, "dice_per_class_or_region": [], "lrs": 0.01}
    monkeypatch.setattr(trainer, "write_checkpoint", lambda *_: None)
    for epoch in range(4):
        for key, value in {**logged, "mean_fg_dice": 0.1, "epoch_start_timestamps": 0.0}.items():
            trainer.logger.log(key, value, epoch)
        trainer.on_epoch_end()
    # After 10 % of 30 epochs.
    assert [text.split(" on ")[0] for text in warned.texts] == ["after 3 epochs the accuracy"]
    assert trainer.epoch_results()[0]["chance"] == "0.25"
    assert "samples/s" in trainer.epoch_results()[0]
    # The last epoch decides: the first ones may be far below.
    trainer.logger.local_logger.my_fantastic_logging["mean_fg_dice"] = [-9.0, 0.1, 0.1, 0.9]
    assert not trainer._is_at_chance()


def test_held_out_scans_are_told_from_each_other_or_a_single_one_is_warned_of(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for held_out, chance in ((1, 1), (2, 1 / 3)):
        values = {"num_epochs": 2, "num_iterations_per_epoch": 1, "batch_size": 4, "patch_size": [16, 16, 16]}
        trainer = make_pretrainer(planned, tmp_path / str(held_out), monkeypatch, "byol", **values)
        trainer.configure(listener=(warned := Warned()))
        divided = trainer.do_split()
        if held_out == 2:
            divided = divided[0][1:], [*divided[1], divided[0][0]]
        monkeypatch.setattr(trainer, "do_split", lambda divided=divided: divided)
        trainer.initialize()
        trainer.on_train_start()
        assert len(set(trainer.dataloader_val.batch(3)["keys"])) == held_out
        assert trainer.pretext.chance == pytest.approx(chance)
        assert trainer._is_alone == (held_out == 1)
        told = [text for text in warned.texts if text.startswith("a single scan is held out, and byol tells scans")]
        assert len(told) == (held_out == 1)


def test_what_an_untrained_network_reaches_is_the_level_to_exceed_and_measuring_it_changes_nothing(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    for measured in (False, True):
        values = {"num_epochs": 1, "num_iterations_per_epoch": 1, "accumulation": 1 + measured}
        trainer = make_pretrainer(planned, tmp_path / str(measured), monkeypatch, "pcrl", **values)
        monkeypatch.setattr(PCRL, "above_chance", measured)
        trainer.run_training()
        assert (trainer.summary()["untrained"] is not None) == measured
        trained.append(everything(trainer))
    assert torch.allclose(*trained, rtol=0, atol=1e-5)
    whole = make_pretrainer(planned, tmp_path / "whole", monkeypatch, "pcrl", **{**values, "accumulation": 1})
    whole.initialize()
    whole.on_train_start()
    assert trainer.untrained == pytest.approx(whole.untrained, abs=1e-5)
    trainer.num_val_iterations_per_epoch = 100  # so that 0.85 is told from 0.5
    for untrained, name, level in ((0.9, "untrained", "0.9"), (0.4, "chance", "0.5"), (None, "chance", "0.5")):
        trainer.untrained = untrained
        assert trainer.epoch_results()[0][name] == level
        trainer.logger.local_logger.my_fantastic_logging["mean_fg_dice"] = [0.85]
        assert trainer._is_at_chance() == (untrained == 0.9)


def test_a_collapse_is_warned_of_once(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No negatives hold BYOL's embeddings apart: a rate that is far too high makes all of them the same.
    values = {"num_epochs": 3, "num_iterations_per_epoch": 2, "initial_lr": 100.0}
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "byol", **values)
    trainer.configure(listener=(warned := Warned()))
    trainer.run_training()
    assert trainer.measures["spread"] < 0.02
    (text,) = [text for text in warned.texts if "spread" in text]
    assert text.startswith("after 2 epochs the spread on held-out subjects is 0.0")


def test_a_method_has_its_own_share_of_the_rate_unless_one_is_set(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {
        (method, *values.values()): make_pretrainer(planned, tmp_path, monkeypatch, method, **values).initial_lr
        for method in ("mae", "moco")
        for values in ({}, {"initial_lr": 0.02})
    }
    assert rates == {("mae",): 0.01, ("moco",): 0.003, ("mae", 0.02): 0.02, ("moco", 0.02): 0.02}


def test_features_that_have_lost_their_scale_are_warned_of(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"num_epochs": 2, "num_iterations_per_epoch": 1, "initial_lr": 1e-9}
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "rot", **values)
    trainer.configure(listener=(warned := Warned()))
    trainer.on_train_start()
    trainer._warn_of_scale()
    assert not warned.texts
    with torch.no_grad():
        for parameter in trainer.pretext.network.parameters():
            parameter *= 1000
    trainer._warn_of_scale()
    (text,) = warned.texts
    assert text.startswith("epoch 1: the features of encoder stage")


def test_patches_that_do_not_count_are_warned_of(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "rot", num_epochs=1, num_iterations_per_epoch=1)
    trainer.configure(listener=(warned := Warned()))
    monkeypatch.setattr(trainer, "_patches", lambda part: all_padding(STUNetPretrainer._patches(part)))
    trainer.run_training()
    (text,) = warned.texts
    assert text.startswith("only 0% of the held-out patches count")
    assert trainer.measures["accuracy"] == pytest.approx(trainer.pretext.chance)


def all_padding(patches: Patches) -> Patches:
    return patches._replace(valid=torch.zeros_like(patches.valid))


def test_measures_are_of_the_whole_batch_however_it_is_split(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for accumulation in (1, 3):  # of single samples, whose embeddings have no spread
        values = {"num_epochs": 1, "num_iterations_per_epoch": 1, "batch_size": 3, "accumulation": accumulation}
        trainer = make_pretrainer(planned, tmp_path / str(accumulation), monkeypatch, "moco", **values)
        trainer.run_training()
        found.append(trainer.measures)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0]["spread"] > 0


def test_the_logged_losses_are_the_mean_of_what_counts_however_a_batch_is_split(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_first(part: dict) -> Patches:
        patches = STUNetPretrainer._patches(part)
        numbers = part["first"] + torch.arange(len(patches.valid))
        return patches._replace(valid=patches.valid & (numbers > 0)[:, None, None, None, None])

    found = []
    for accumulation in (1, 3):
        values = {"num_epochs": 1, "num_iterations_per_epoch": 1, "batch_size": 3, "accumulation": accumulation}
        trainer = make_pretrainer(planned, tmp_path / str(accumulation), monkeypatch, "jigsaw", **values)
        trainer.configure(listener=Warned())
        monkeypatch.setattr(trainer, "_patches", without_the_first)
        trainer.run_training()
        found.append(trainer.summary())
    for key in ("train_losses", "val_losses"):
        assert found[0][key] == pytest.approx(found[1][key], abs=1e-5)
        assert found[0][key][0] == pytest.approx(trainer.pretext.chance_loss, abs=0.5)


def test_values_that_are_not_finite_do_not_last(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "moco", num_epochs=1)
    trainer.initialize()
    before = everything(trainer)
    trainer._kept = [kept_rows(trainer.pretext, key=torch.full((4, EMBEDDED), math.nan))]
    trainer.after_step(np.array(math.nan))
    assert torch.equal(everything(trainer), before)
    trainer._kept = [kept_rows(trainer.pretext, key=torch.ones(4, EMBEDDED))]
    trainer.after_step(np.array(1.0))
    assert not torch.equal(everything(trainer), before)


def test_pictures_are_of_the_same_patches_in_all_epochs(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, drawn = pictures.write, []
    monkeypatch.setattr(
        pictures, "write", lambda shown, *more: (drawn.append(len(shown["input"])), write(shown, *more))
    )
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "mae", accumulation=2)
    trainer.run_training()
    assert drawn == [1, 1]  # of the batch of two, what a step has in memory at a time
    folder = Path(trainer.output_folder) / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    first, again = (trainer.dataloader_val.batch(0) for _ in range(2))
    assert torch.equal(first["data"], again["data"])
    assert torch.equal(first["seed"], again["seed"])


def test_a_checkpoint_of_another_method_is_refused(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "rot")
    trainer.initialize()
    saved = checkpoint.content_of(trainer, 1)
    other = make_pretrainer(planned, tmp_path, monkeypatch, "jigsaw")
    with pytest.raises(WeightsError, match=r"another plan than today's \(.*pretext.*rot.*jigsaw"):
        other.load_checkpoint(saved)
    trainer.load_checkpoint(saved)
    with pytest.raises(WeightsError, match="was pre-trained with 'moco', not 'rot'"):
        trainer.load_network_state(saved["network_weights"], {"pretext": {"method": "moco"}})


def test_what_was_pretrained_is_written_at_the_end_and_can_be_from_the_beginning(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[str] = []
    monkeypatch.setattr(
        pretraining, "check_written", lambda path, state: (check_written(path, state), rehearsed.append(path.name))
    )
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "byol", num_epochs=1)
    folder = Path(trainer.output_folder)

    class Look(NullListener):
        def step(self, trainer: BaseTrainer, phase: str, done: int, loss: float) -> None:
            assert len(rehearsed) == 2
            assert not list(folder.glob("*pretrained*")), "before the end, weights that were hardly trained"

    trainer.configure(listener=Look())
    trainer.run_training()
    student, teacher = (read_weights(folder / name) for name in (PRETRAINED, PRETRAINED_TEACHER))
    assert (student.pretext, student.transfers) == ("byol", "encoder")
    for weights, network in ((student, trainer.bare_network()), (teacher, trainer.pretext.teacher)):
        assert all(torch.equal(weights.tensors[name], value) for name, value in network.state_dict().items())
    name = "conv_blocks_context.0.0.conv1.weight"
    assert not torch.equal(teacher.tensors[name], student.tensors[name])
