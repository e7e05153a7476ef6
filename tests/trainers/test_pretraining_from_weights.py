"""Pre-training that starts from weights: what is taken, where teachers start, and that the file is needed only once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stunet.architectures.stunet import STUNET
from stunet.errors import Interrupted, UsageError, WeightsError
from stunet.files import read_json
from stunet.plans.files import plan_path, read_plan
from stunet.trainers.distributed import sharding
from stunet.trainers.distributed.group import Member, join_group
from stunet.trainers.finetune.start import REPORT, Start, choose_heads, plan_entry, preview, start_from_weights
from stunet.trainers.pretexts.checks import check_method
from stunet.trainers.pretraining import STUNetPretrainer
from stunet.trainers.progress import NullListener
from stunet.trainers.trainer import BaseTrainer
from stunet.workspace import FINAL, LATEST
from tests.pretraining_run import everything, make_pretrainer, write_weights

Make = Callable[..., STUNetPretrainer]


@pytest.fixture
def make(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes pre-trainers whose plan names weights."""

    def new(folder: str, method: str, weights: Path, transfer: str | None = None, **values: Any) -> STUNetPretrainer:
        start = Start(weights)
        named = plan_entry(start, choose_heads(start, None, None, transfer=transfer), is_file=True, transfer=transfer)
        trainer = make_pretrainer(planned, tmp_path / folder, monkeypatch, method, weights=named, **values)
        return trainer

    return new


def given(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network_weights"]


def same(trainer: STUNetPretrainer, weights: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the network that are as in the weights, of those whose tensors are not constant at first."""
    network = sharding.gather(trainer.bare_network().state_dict())
    parts: dict[str, list[bool]] = {}
    for name, value in network.items():
        part = "encoder" if STUNET.is_encoder(name) else "heads" if "seg_outputs" in name else "decoder"
        if value.ndim > 1:
            parts.setdefault(part, []).append(value.shape == weights[name].shape and torch.equal(value, weights[name]))
    assert all(len(set(found)) == 1 for found in parts.values())
    return {part for part, (first, *_) in parts.items() if first}


def test_encoder_and_decoder_are_taken_as_the_weights_say_and_heads_are_new(
    planned: str, tmp_path: Path, make: Make
) -> None:
    for taught, transfers, asked, parts in (
        ("global", "encoder", None, {"encoder"}),
        ("mae", "all", None, {"encoder", "decoder"}),
        ("mae", "all", "encoder", {"encoder"}),
        (None, "all", None, {"encoder", "decoder"}),
    ):
        path = write_weights(planned, tmp_path / f"{taught}.pth", taught, transfers)
        trainer = make(f"{taught} {asked}", "mae", path, asked)
        report = start_from_weights(trainer, Start(path))
        assert same(trainer, given(path)) == parts, taught
        shown = preview(Start(path), trainer.plan, "3d_fullres", trainer.dataset_json)
        assert shown == report
        assert report.heads.mode == "reset"
        assert report.warnings == ()
        assert report.lines()[-1] == "heads: initialised at random, as those of a pre-training are of no classes"
        written = read_json(Path(trainer.output_folder) / REPORT)
        assert (written["sha256"], written["coverage"]) == (trainer.plan.weights[0].sha256, 1)
        tags = [tag for tag in (taught, asked) if tag]
        assert "-".join([f"-Phantom.{written['sha256'][:6]}", *tags, "epochs2"]) in trainer.plan.name


def test_teachers_start_as_copies_of_the_network_with_the_weights(planned: str, tmp_path: Path, make: Make) -> None:
    path = write_weights(planned, tmp_path / "weights.pth", "rot")
    for method in ("moco", "byol", "dino", "voco", "pcrl"):
        trainer = make(method, method, path)
        start_from_weights(trainer, Start(path))
        assert same(trainer, given(path)) == {"encoder"}
        seen = trainer.pretext.teacher.state_dict()
        ours = trainer.bare_network().state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in seen.items()), method


def test_local_trains_a_decoder_on_the_encoder_of_global_and_continues_without_the_file(
    planned: str, tmp_path: Path, make: Make
) -> None:
    path = write_weights(planned, tmp_path / "global.pth", "global")
    weights = given(path)
    whole, stopped, resumed = (make(folder, "local", path) for folder in ("whole", "stopped", "stopped"))
    first = start_from_weights(whole, Start(path))
    before = {name: value.clone() for name, value in whole.bare_network().state_dict().items()}
    whole.run_training()
    after = given(Path(whole.output_folder) / FINAL)
    assert all(torch.equal(after[name], weights[name]) for name in weights if STUNET.is_encoder(name))
    assert not torch.equal(
        after["conv_blocks_localization.0.0.conv1.weight"], before["conv_blocks_localization.0.0.conv1.weight"]
    )
    assert first.fresh == {name for name in weights if not STUNET.is_encoder(name)}

    class Stop(NullListener):
        def step(self, trainer: BaseTrainer, phase: str, done: int, loss: float) -> None:
            trainer.request_stop()

    stopped.configure(listener=Stop())
    start_from_weights(stopped, Start(path))
    with pytest.raises(Interrupted):
        stopped.run_training()
    path.unlink()
    resumed.load_checkpoint(str(Path(resumed.output_folder) / LATEST))
    resumed.run_training()
    assert torch.equal(everything(resumed), everything(whole))


def test_local_without_weights_is_refused_with_the_next_step(planned: str) -> None:
    plan = read_plan(plan_path(planned, "STUNetPlans_T")).with_ours(pretext="local")
    with pytest.raises(
        UsageError, match="local trains on top of an encoder that stays as it is, and no weights"
    ) as caught:
        check_method(plan, "3d_fullres", 1)
    assert (
        caught.value.hint == "stunet_pretrain --method global first, then --method local --pretrained with its result"
    )


def test_nothing_but_the_named_file_starts_a_pretraining(planned: str, tmp_path: Path, make: Make) -> None:
    path = write_weights(planned, tmp_path / "weights.pth", "rot")
    trainer = make("a", "mae", path)
    with pytest.raises(WeightsError, match="nothing was loaded") as caught:
        trainer.run_training()
    assert caught.value.hint == f"stunet_pretrain with -p {trainer.plan.name}, and --pretrained"
    other = write_weights(planned, tmp_path / "other.pth", "jigsaw")
    with pytest.raises(WeightsError, match="is not the file that the plan starts from"):
        start_from_weights(trainer, Start(other))


def test_a_sharded_pretraining_starts_as_the_whole_one(
    planned: str, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_weights(planned, tmp_path / "weights.pth", "rot")
    whole = make("whole", "byol", path)
    start_from_weights(whole, Start(path))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    with join_group(Member(0, 0, 1), "cpu"):
        sharded = make("sharded", "byol", path)
        sharded.configure(fsdp=True)
        start_from_weights(sharded, Start(path))
        ours, theirs = (sharding.gather(each.pretext.state_dict()) for each in (sharded, whole))
        torch.testing.assert_close(ours, dict(theirs), rtol=0, atol=0)
