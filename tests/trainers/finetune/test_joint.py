"""Two encoders from two pre-trainings: what is loaded where, how it trains and resumes; nnU-Net predicts the result."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet import workspace
from stunet.architectures.multi_encoder import MULTI_ENCODER
from stunet.errors import DataError, UsageError, WeightsError
from stunet.files import read_json
from stunet.networks import build
from stunet.plans.check import check_plan
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.trainers.finetune import strategies
from stunet.trainers.finetune.joint import JointStart
from stunet.trainers.finetune.peft_export import export_adapter
from stunet.trainers.finetune.start import REPORT, Start, preview, start_from_weights
from stunet.trainers.supervised import STUNetTrainer
from stunet.weights.checkpoints import save_checkpoint
from stunet.weights.reading import read_weights
from stunet.workspace import LATEST
from tests.loops import for_each
from tests.predictor_models import reference, run, write_image
from tests.trainers.finetune.test_training import SHORT, SaveAndStop, StopAt, state, train_until

Make = Callable[..., STUNetTrainer]


def strides_of(planned: str) -> list[list[int]]:
    return read_plan(plan_path(planned, "STUNetPlans_T")).configuration("3d_fullres").strides


def pretrained(path: Path, strides: list[list[int]], seed: int, method: str | None = None, **network: Any) -> Path:
    """A checkpoint of a pre-training without labels, or one of which nothing but the tensors is known."""
    torch.manual_seed(seed)
    size, channels = network.pop("size", "T"), network.pop("channels", 1)
    content: dict[str, Any] = {"network_weights": build(size, strides, channels, 3).state_dict(), "init_args": {}}
    if method:
        content["stunet"] = {"pretext": {"method": method, "transfers": "encoder", "state": {}}}
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(content, path)
    return path


@pytest.fixture
def sources(planned: str, tmp_path: Path) -> list[Path]:
    """Weights of a pretext, and others."""
    strides = strides_of(planned)
    return [pretrained(tmp_path / "rotation.pth", strides, 1, "rot"), pretrained(tmp_path / "other.pth", strides, 2)]


def start_of(paths: list[Path]) -> JointStart:
    return JointStart([Start(path) for path in paths])


def plan_for(planned: str, start: JointStart, finetune: str = "ramp", **overrides: Any) -> Plan:
    plan = read_plan(plan_path(planned, "STUNetPlans_T"))
    dataset_json = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
    named = start.plan_entries([True] * len(start.starts), dataset_json)
    return derive(plan, dataset_json, finetune=finetune, weights=named, overrides={**SHORT, **overrides})


@pytest.fixture
def make(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[Path]) -> Make:
    """Makes trainers that start from both, whose results go into a folder of their own."""

    def new(folder: str, finetune: str = "ramp", **overrides: Any) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / folder))
        plan = plan_for(planned, start_of(sources), finetune, **overrides)
        check_plan(plan, "3d_fullres")
        dataset_json = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
        return STUNetTrainer(plan.to_json(), "3d_fullres", 0, dataset_json, torch.device("cpu"))

    return new


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the network in which a tensor differs, each encoder by itself."""
    names = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return {name[:10] if name.startswith("encoders") else strategies.part_of(name, MULTI_ENCODER) for name in names}


def test_each_encoder_takes_its_own_weights_and_the_rest_is_new(make: Make, sources: list[Path]) -> None:
    trainer = make("a")
    assert re.fullmatch(
        # The values that were set do not fit beside both names.
        r"STUNetPlans_T-ramp-rotation\.[0-9a-f]{6}-rot-other\.[0-9a-f]{6}-[0-9a-f]{8}",
        trainer.plan.name,
    ), trainer.plan.name
    start = start_of(sources)
    assert preview(start, trainer.plan, "3d_fullres", trainer.dataset_json) == start_from_weights(trainer, start)
    after = state(trainer)
    for encoder, path in enumerate(sources):
        for name, value in read_weights(path).tensors.items():
            if name.startswith("conv_blocks_context"):
                assert torch.equal(after[name.replace("conv_blocks_context", f"encoders.{encoder}")], value), name
    assert trainer.finetuning.fresh == {name for name in after if not name.startswith("encoders")}
    untrained = make("b")
    untrained.initialize()
    assert changed(after, state(untrained)) == {"encoders.0", "encoders.1"}
    first = torch.load(Path(trainer.output_folder) / LATEST, weights_only=True)["network_weights"]
    assert all(torch.equal(first[name], value) for name, value in after.items())


def test_the_report_is_of_both_and_counts_every_tensor_once(make: Make, sources: list[Path]) -> None:
    trainer = make("a")
    report = start_from_weights(trainer, start_of(sources))
    written = json.loads((Path(trainer.output_folder) / REPORT).read_text())
    assert [each["weights"] for each in written["encoders"]] == [str(path) for path in sources]
    assert [each["coverage"] for each in written["encoders"]] == [1, 1]
    targets = [fate["target"] for fate in written["tensors"] if fate["target"]]
    assert targets == list(state(trainer))
    assert report.lines()[:3] == [
        f"encoder 1: weights: {sources[0]}; 100.0% of the encoder loaded",
        "encoder 1: pre-training: rot, images of 1 channel(s)",
        f"encoder 2: weights: {sources[1]}; 100.0% of the encoder loaded",
    ]
    assert report.warnings == ("the strides that the weights were trained with are unknown",)
    assert [row[0] for row in report.table()[1]][-4:] == ["encoder 5", "fusion", "decoder", "heads"]


@for_each(
    ("strategy", "parts"),
    [
        ("encoder-frozen", {"decoder", "heads"}),
        ("lora", {"encoders.0", "encoders.1", "decoder", "heads"}),
    ],
)
def test_a_strategy_is_one_for_both_encoders(make: Make, sources: list[Path], strategy: str, parts: set[str]) -> None:
    trainer = make(strategy, strategy, num_epochs=1)
    start_from_weights(trainer, start_of(sources))
    before = state(trainer)
    train_until(trainer, StopAt(0, 1))
    after = torch.load(Path(trainer.output_folder) / LATEST, weights_only=True)["network_weights"]
    assert changed(before, after) == parts


def test_adapters_on_both_are_not_exported_for_peft(make: Make, sources: list[Path], tmp_path: Path, peft: Any) -> None:
    trainer = make("a", "lora")
    start_from_weights(trainer, start_of(sources))
    with pytest.raises(WeightsError, match="adapters on 2 weights, and peft takes those on one"):
        export_adapter(Path(trainer.output_folder) / LATEST, tmp_path / "adapter")


def test_a_stopped_training_of_two_encoders_continues_exactly(make: Make, sources: list[Path], tmp_path: Path) -> None:
    whole = make("whole", "lora")
    start_from_weights(whole, start_of(sources))
    train_until(whole, SaveAndStop(tmp_path / LATEST, save=(0, 1), stop=(1, 1)))
    resumed = make("resumed", "lora")
    resumed.load_checkpoint(str(tmp_path / LATEST))
    train_until(resumed, StopAt(1, 1))
    assert not changed(state(whole), state(resumed))


def test_nnunet_predicts_the_result_as_we_do(make: Make, sources: list[Path], tmp_path: Path) -> None:
    trainer = make("results", num_epochs=1, num_iterations_per_epoch=1)
    start_from_weights(trainer, start_of(sources))
    trainer.run_training()
    model = Path(trainer.output_folder_base)
    found = read_weights(model)
    assert found.network.planned == {"size": "T", "encoders": 2}
    assert found.strides == [list(stride) for stride in trainer.bare_network().strides]
    image = write_image(tmp_path / "in" / "case_0000.nii.gz")
    turned = sitk.ReadImage(image)  # to the orientation of the training, which nnU-Net does not see to
    turned.SetDirection(np.eye(3).ravel())
    sitk.WriteImage(turned, image)
    theirs = reference(model, [[image]], tmp_path / "theirs")
    (outcome,) = run(model, tmp_path / "in", tmp_path / "ours")
    assert not outcome.error
    ours, stock = (
        sitk.GetArrayFromImage(sitk.ReadImage(folder / "case.nii.gz")) for folder in (tmp_path / "ours", theirs)
    )
    np.testing.assert_array_equal(ours, stock)
    assert len(np.unique(ours)) > 1


def test_the_result_is_fine_tuned_as_one_file_of_weights(
    make: Make, sources: list[Path], planned: str, tmp_path: Path
) -> None:
    trainer = make("a", num_epochs=1)
    start_from_weights(trainer, start_of(sources))
    path = Path(trainer.output_folder) / LATEST
    with pytest.raises(WeightsError, match=r"differ in network: multi-encoder STU-Net and STU-Net"):
        start_of([path, sources[0]])
    start = Start(path)
    with pytest.raises(WeightsError, match=r"one file of weights is given, and plans .* start from 2"):
        preview(start, trainer.plan, "3d_fullres", trainer.dataset_json)


@for_each(
    ("other", "message"),
    [
        ({"size": "S"}, r"differ in size: size T .* and size S"),
        ({"channels": 2}, "differ in input channels: 1 and 2"),
        ({"ndim": 2}, "differ in axes: 3D and 2D"),
        ({"stages": 3}, "differ in stages"),
    ],
)
def test_encoders_must_be_alike(planned: str, tmp_path: Path, other: dict[str, Any], message: str) -> None:
    strides = strides_of(planned)
    one = pretrained(tmp_path / "one.pth", strides, 1)
    given = dict(other)
    ndim, stages = given.pop("ndim", 3), given.pop("stages", None)
    theirs = [stride[:ndim] for stride in strides][:stages]
    with pytest.raises(WeightsError, match=message):
        start_of([one, pretrained(tmp_path / "other.pth", theirs, 2, **given)])


def test_the_same_weights_twice_are_refused(sources: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(sources[0].read_bytes())
    with pytest.raises(UsageError, match="are the same weights: the encoders would learn the same"):
        start_of([sources[0], copy])


def test_other_processes_read_the_files_themselves(make: Make, sources: list[Path]) -> None:
    start = start_of(sources)
    preview(start, make("a").plan, "3d_fullres", make("a").dataset_json)
    sent = pickle.dumps(start)
    assert [each.path for each in pickle.loads(sent).starts] == sources
    assert len(sent) < 1000


def test_a_plan_has_as_many_weights_as_encoders(planned: str, sources: list[Path]) -> None:
    plan = plan_for(planned, start_of(sources))
    assert len(plan.weights) == plan.configuration("3d_fullres").network_arguments["encoders"] == 2
    assert plan.with_weights(plan.weights) == plan
    assert plan.configuration("3d_fullres").memory_gb > 0
    wrong = plan.with_network("3d_fullres", encoders=3)
    with pytest.raises(DataError, match=r"starts from 2 weights, and its network has 3 encoder\(s\)"):
        check_plan(wrong, "3d_fullres")
    with pytest.raises(DataError, match=r"stunet\.weights: expected a table, or a list of tables"):
        check_plan(plan.with_ours(weights=plan.to_json()["stunet"]["weights"][:1]), "3d_fullres")


def test_one_file_of_weights_again_makes_it_a_network_with_one_encoder(planned: str, sources: list[Path]) -> None:
    plan = plan_for(planned, start_of(sources))
    dataset_json = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
    one = derive(plan, dataset_json, weights=plan.weights[:1], encoders=1)
    assert check_plan(one, "3d_fullres").network_class == "stunet.networks.STUNet"
    assert one.configuration("3d_fullres").network_arguments.keys() == {"size", "strides"}
