"""Fine-tuning on a small phantom with real nnU-Net: where it starts, what trains in which phase, exact resume."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stunet import workspace
from stunet.architectures.stunet import STUNET
from stunet.errors import DataError, Interrupted, UsageError, WeightsError
from stunet.files import read_json, write_json
from stunet.labels.names import head_classes
from stunet.networks import build
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import StartingWeights
from stunet.runs.listener import Listener
from stunet.runs.plan_choice import choose_plans
from stunet.runs.training import TrainingRequest
from stunet.trainers.finetune import lora, strategies
from stunet.trainers.finetune.peft_export import base_network, export_adapter
from stunet.trainers.finetune.start import REPORT, Start, choose_heads, plan_entry, preview, start_from_weights
from stunet.trainers.progress import NullListener
from stunet.trainers.supervised import STUNetTrainer
from stunet.weights.checkpoints import check_finite, load_safetensors, save_checkpoint, save_weights
from stunet.weights.reading import Weights, read_weights
from stunet.workspace import FINAL, LATEST

SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
Make = Callable[..., STUNetTrainer]


@pytest.fixture
def source(planned: str, tmp_path: Path) -> Path:
    """Weights of size T with the phantom's classes but one, and one that it does not have."""
    plans = read_plan(plan_path(planned, "STUNetPlans_T")).to_json()
    strides = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    names = ["background", "pancreas", *[name for name in classes(planned) if name not in ("background", "spleen")]]
    torch.manual_seed(99)
    network = build("T", strides, 1, len(names))
    path = tmp_path / "phantom weights.safetensors"
    meta = {
        "plans": {**plans, "configurations": {"3d_fullres": plans["configurations"]["3d_fullres"]}},
        "configuration": "3d_fullres",
        "dataset": {"channel_names": {"0": "CT"}, "labels": {name: i for i, name in enumerate(names)}},
    }
    save_weights(path, network.state_dict(), meta)
    return path


@pytest.fixture
def make(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes trainers whose results go into a folder of their own."""

    def new(folder: str, finetune: str | None = None, weights: Path | None = None, **overrides: Any) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / folder))
        plan = read_plan(plan_path(planned, "STUNetPlans_T"))
        dataset_json = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
        head, named = overrides.pop("head", None), []
        ways = {key: overrides.pop(key) for key in ("transfer", "inflate") if key in overrides}
        if weights is not None:
            start = Start(weights)
            heads = choose_heads(start, head, dataset_json, transfer=ways.get("transfer"))
            named = [plan_entry(start, heads, is_file=True, **ways)]
        stages = overrides.pop("stages", None)
        plan = derive(
            plan, dataset_json, finetune=finetune, weights=named, stages=stages, overrides={**SHORT, **overrides}
        )
        return STUNetTrainer(plan.to_json(), "3d_fullres", 0, dataset_json, torch.device("cpu"))

    return new


def classes(dataset: str) -> list[str]:
    return head_classes(read_json(workspace.preprocessed_dataset(dataset) / "dataset.json")["labels"])


def state(trainer: STUNetTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lora.merged_state(trainer.bare_network()).items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the network in which a tensor differs."""
    return {strategies.part_of(name, STUNET) for name, value in before.items() if not torch.equal(value, after[name])}


class StopAt(NullListener):
    def __init__(self, epoch: int, done: int) -> None:
        self.at = (epoch, done)

    def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
        if (trainer.current_epoch, done) == self.at and phase == "train":
            trainer.request_stop()


def train_until(trainer: STUNetTrainer, listener: StopAt) -> None:
    trainer.configure(listener=listener)
    with pytest.raises(Interrupted):
        trainer.run_training()


class SaveAndStop(StopAt):
    """Writes at one step what a stop there writes, lets the training go on, and stops it at another step."""

    def __init__(self, path: Path, save: tuple[int, int], stop: tuple[int, int]) -> None:
        super().__init__(*stop)
        self.path, self.save = path, save

    def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
        if (trainer.current_epoch, done) == self.save and phase == "train":
            trainer.write_checkpoint(self.path, trainer.current_epoch)
        super().step(trainer, phase, done, loss)


def test_training_starts_from_the_weights_and_says_what_it_took(make: Make, source: Path, planned: str) -> None:
    trainer = make("a", "ramp", source)
    report = start_from_weights(trainer, Start(source))
    given = state(trainer)
    folder = Path(trainer.output_folder)
    written = json.loads((folder / REPORT).read_text())
    assert written["coverage"] == report.coverage == 1
    assert written["sha256"] == trainer.finetuning.weights[0].sha256
    assert {row["target"]: row["sources"] for row in written["heads"]["rows"]}["spleen"] == []
    assert written["heads"]["unused"] == ["pancreas"]
    first = torch.load(folder / LATEST, weights_only=True)["network_weights"]
    assert all(torch.equal(first[name], value) for name, value in given.items())
    untrained = make("b", "ramp", source)
    untrained.initialize()
    assert changed(given, state(untrained)) == set(strategies.ALL)


def test_a_plan_that_starts_from_weights_never_trains_a_random_network(make: Make, source: Path) -> None:
    trainer = make("a", "ramp", source)
    with pytest.raises(WeightsError, match="nothing was loaded"):
        trainer.run_training()


def test_another_file_than_the_plan_names_is_refused(make: Make, source: Path, tmp_path: Path) -> None:
    trainer = make("a", "ramp", source)
    tensors, meta = load_safetensors(source)
    save_weights(source, {name: tensor + 1 for name, tensor in tensors.items()}, meta)
    with pytest.raises(WeightsError, match="is not the file that the plan starts from"):
        start_from_weights(trainer, Start(source))


def test_weights_are_read_hashed_and_judged_once_however_often_they_are_asked(
    make: Make, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, asked, judged = make("a", "ramp", source), list[Path](), list[Path]()

    def read(path: Path) -> Weights:
        asked.append(path)
        return read_weights(path)

    def check(tensors: Any, path: Path, *more: Any) -> None:
        judged.append(path)
        check_finite(tensors, path, *more)

    monkeypatch.setattr("stunet.trainers.finetune.start.read_weights", read)
    monkeypatch.setattr("stunet.weights.transfer.check_finite", check)
    start = Start(source)
    choose_heads(start, None, trainer.dataset_json)
    preview(start, trainer.plan, "3d_fullres", trainer.dataset_json)
    start_from_weights(trainer, start)
    assert asked == judged == [source]
    sent = pickle.dumps(start)  # other processes read the file themselves
    assert pickle.loads(sent).path == source
    assert len(sent) < 1000


def test_the_plan_and_its_name_say_where_a_training_starts(make: Make, source: Path) -> None:
    trainer = make("a", "sawtooth", source, head="reset")
    name, block = trainer.plans_manager.plans_name, trainer.plans_manager.plans["stunet"]
    assert name.startswith(f"STUNetPlans_T-sawtooth-Phantom.{block['weights']['sha256'][:6]}-reset-epochs4")
    assert block["weights"]["head"] == "reset"
    assert block["finetune"] == "sawtooth"


def pretrained_by(source: Path, method: str, transfers: str) -> Path:
    """A checkpoint of a pre-training without labels, with the weights and plans of `source`."""
    tensors, meta = load_safetensors(source)
    mine = {"method": method, "transfers": transfers, "state": {"head.weight": torch.ones(2)}}
    arguments = {
        "plans": meta["plans"],
        "configuration": "3d_fullres",
        "dataset_json": {**meta["dataset"], "labels": {"background": 0}},
    }
    path = source.with_name(f"{method}.pth")
    save_checkpoint({"network_weights": tensors, "init_args": arguments, "stunet": {"pretext": mine}}, path)
    return path


def test_a_pretext_gives_what_its_file_says_unless_something_else_is_asked_for(make: Make, source: Path) -> None:
    rot, mae = pretrained_by(source, "rot", "encoder"), pretrained_by(source, "mae", "all")
    for path, asked, tags, transferred in (
        (rot, None, "rot", {"encoder"}),
        (rot, "encoder", "rot", {"encoder"}),  # the same plan as without the option
        (rot, "all", "rot-all", {"encoder", "decoder"}),
        (mae, None, "mae", {"encoder", "decoder"}),
        (mae, "encoder", "mae-encoder", {"encoder"}),
        (source, "encoder", "encoder", {"encoder"}),
    ):
        trainer = make("a", "ramp", path, transfer=asked)
        name = trainer.plans_manager.plans_name
        assert re.fullmatch(rf"STUNetPlans_T-ramp-Phantom\.[0-9a-f]{{6}}-{tags}-epochs4-its2-valits1-bs2", name), name
        report = preview(Start(path), trainer.plan, "3d_fullres", trainer.dataset_json)
        parts = {strategies.part_of(fate.target, STUNET) for fate in report.tensors if fate.target and fate.source}
        assert parts == transferred, tags
        assert trainer.plan.with_weights(trainer.plan.weights) == trainer.plan


def test_a_plan_that_knows_no_pretext_takes_everything_as_ever(source: Path, pre: Path) -> None:
    """As plans that earlier versions derived from the weights of nnssl."""
    rot = pretrained_by(source, "rot", "encoder")
    plan, dataset_json = read_plan(plan_path(pre.name)), read_json(pre / "dataset.json")
    named = StartingWeights("x", Start(rot).sha256, "reset")
    old = derive(plan, dataset_json, finetune="ramp", weights=[named])
    assert old.name == "STUNetPlans_T-ramp-x-reset"
    report = preview(Start(rot), old, "3d_fullres", dataset_json)
    parts = {strategies.part_of(fate.target, STUNET) for fate in report.tensors if fate.target and fate.source}
    assert (report.transfer, parts) == ("all", {"encoder", "decoder"})
    write_json(pre / f"{old.name}.json", old.to_json())
    for asked, name in ((None, old.name), ("all", old.name), ("encoder", rf"{plan.name}-ramp-Phantom\.\w{{6}}-rot")):
        request = TrainingRequest(dataset=998, plans=old.name, pretrained=rot, transfer=asked)
        chosen = choose_plans(pre.name, request, Listener()).plan
        assert re.fullmatch(name, chosen.name), chosen.name


@pytest.mark.parametrize("strategy", ["linear", "lora", "warmup"])
def test_a_fresh_decoder_is_trained_whatever_the_strategy_freezes(make: Make, source: Path, strategy: str) -> None:
    trainer = make("a", strategy, pretrained_by(source, "rot", "encoder"), num_epochs=1)
    report = start_from_weights(trainer, Start(source.with_name("rot.pth")))
    before = state(trainer)
    trainer.run_training()
    after = torch.load(Path(trainer.output_folder) / FINAL, weights_only=True)["network_weights"]
    encoder = {"encoder"} if strategy != "linear" else set[str]()
    assert changed(before, after) == {"decoder", "heads"} | encoder
    assert json.loads((Path(trainer.output_folder) / REPORT).read_text())["transfer"] == report.transfer == "encoder"


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("full", set(strategies.ALL)),
        ("linear", {"heads"}),
        ("decoder", {"decoder", "heads"}),  # the heads have a new class
        ("encoder-frozen", {"decoder", "heads"}),
        ("quarter-1", {"encoder", "heads"}),
        ("lora", set(strategies.ALL)),
    ],
)
def test_only_what_the_strategy_names_is_trained(make: Make, source: Path, strategy: str, parts: set[str]) -> None:
    trainer = make("a", strategy, source, num_epochs=1)
    start_from_weights(trainer, Start(source))
    before = state(trainer)
    train_until(trainer, StopAt(0, 1))
    after = torch.load(Path(trainer.output_folder) / LATEST, weights_only=True)["network_weights"]
    assert set(after) == set(before)
    assert changed(before, after) == parts


def test_the_encoder_rests_in_the_first_phase_and_trains_in_the_second(make: Make, source: Path) -> None:
    trainer = make("a", "warmup", source, num_epochs=2, num_iterations_per_epoch=1)
    start_from_weights(trainer, Start(source))
    before, seen = state(trainer), dict[int, set[str]]()

    class Watch(StopAt):
        def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
            seen.setdefault(trainer.current_epoch, changed(before, state(trainer)))
            super().step(trainer, phase, done, loss)

    train_until(trainer, Watch(1, 1))
    assert seen == {0: {"decoder", "heads"}, 1: set(strategies.ALL)}


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("warmup", "layerwise", "quarter-3")]


@pytest.mark.parametrize("strategy", ["sawtooth", "lora", *OTHERS])
def test_a_stopped_fine_tuning_continues_exactly(make: Make, source: Path, tmp_path: Path, strategy: str) -> None:
    whole = make("whole", strategy, source)
    start_from_weights(whole, Start(source))
    train_until(whole, SaveAndStop(tmp_path / LATEST, save=(2, 1), stop=(3, 2)))
    resumed = make("resumed", strategy, source)
    resumed.load_checkpoint(str(tmp_path / LATEST))
    assert (resumed.current_epoch, len(resumed.to_replay)) == (2, 1)
    train_until(resumed, StopAt(3, 2))
    assert not changed(state(whole), state(resumed))
    assert resumed.logger.get_value("lrs", None) == whole.logger.get_value("lrs", None)


def test_what_the_adapters_learned_goes_on_the_weights_that_training_started_from(
    make: Make, source: Path, tmp_path: Path, peft: Any
) -> None:
    trainer = make("a", "lora", source, num_epochs=1, num_iterations_per_epoch=1)
    start_from_weights(trainer, Start(source))
    trainer.run_training()
    export_adapter(Path(trainer.output_folder) / FINAL, tmp_path / "adapter")
    network = base_network(tmp_path / "adapter", source)
    merged = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").merge_and_unload()
    for name, value in state(trainer).items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_logged_rates_are_those_of_the_schedule(make: Make, source: Path) -> None:
    trainer = make("a", "layerwise", source, num_iterations_per_epoch=1)
    start_from_weights(trainer, Start(source))
    train_until(trainer, StopAt(3, 1))
    strategy = strategies.find("layerwise")
    expected = [1e-3 * strategies.rate(strategy, epoch, 4) for epoch in range(4)]
    assert trainer.logger.get_value("lrs", None) == pytest.approx(expected)


def test_without_weights_no_layer_is_slower_than_another(make: Make) -> None:
    trainer = make("a", "layerwise", num_epochs=1)
    trainer.initialize()
    assert [group["scale"] for group in trainer.optimizer.param_groups] == [1.0]


def test_a_preview_beside_a_cascade_is_what_training_reports(make: Make, source: Path) -> None:
    trainer = make("a", "ramp", source)
    plan = trainer.plan.with_configuration("3d_lowres", inherits_from="3d_fullres", next_stage="3d_cascade_fullres")
    plan = plan.with_configuration("3d_cascade_fullres", inherits_from="3d_fullres", previous_stage="3d_lowres")
    start = Start(source)
    report = preview(start, plan, "3d_fullres", trainer.dataset_json)
    assert report == start_from_weights(trainer, start)
    assert not any(fate.kind == "inflated" for fate in report.tensors)
    of_cascade = preview(start, plan, "3d_cascade_fullres", trainer.dataset_json)
    assert sum(fate.kind == "inflated" for fate in of_cascade.tensors) == 2


def test_the_same_schedule_without_weights_has_the_rate_of_training_from_scratch(make: Make) -> None:
    trainer = make("a", "warmup", num_epochs=1, num_iterations_per_epoch=1)
    assert trainer.plans_manager.plans_name == "STUNetPlans_T-warmup-epochs1-its1-valits1-bs2"
    trainer.initialize()
    before = state(trainer)
    train_until(trainer, StopAt(0, 1))
    assert trainer.logger.get_value("lrs", None) == [1e-2]
    assert changed(before, state(trainer)) == set(strategies.ALL)  # nothing is pre-trained, so nothing is frozen
    assert make("b", "warmup", initial_lr=0.5).initial_lr == 0.5


def test_a_shallower_plan_takes_deeper_weights(make: Make, source: Path) -> None:
    trainer = make("a", "shallow", source, stages=5)
    report = start_from_weights(trainer, Start(source))
    assert report.coverage == 1
    assert len(trainer.bare_network().conv_blocks_context) == 5
    assert any(fate.kind == "unused" and report.part_of(fate) == "encoder 5" for fate in report.tensors)


def test_fewer_labelled_cases_are_chosen_by_the_seed_and_nested(make: Make) -> None:
    full, few, fewer, other = (
        make("a", num_cases=count, seed=seed) if count else make("a", seed=seed)
        for count, seed in ((0, 3), (3, 3), (2, 3), (2, 4))
    )
    chosen = [trainer.do_split() for trainer in (full, few, fewer, other)]
    assert [len(train) for train, _ in chosen] == [4, 3, 2, 2]
    assert set(chosen[2][0]) < set(chosen[1][0]) < set(chosen[0][0])
    assert chosen[2][0] != chosen[3][0]
    assert all(validation == chosen[0][1] for _, validation in chosen)
    with pytest.raises(DataError, match="num_cases=9, but fold 0 has 4 training cases"):
        make("a", num_cases=9).do_split()


def test_an_unknown_strategy_is_named_with_the_closest(make: Make) -> None:
    with pytest.raises(UsageError, match="did you mean 'sawtooth'"):
        make("a", "sawtoth")
