"""Fine-tuning of nnU-Net's networks from checkpoints of nnU-Net's own trainer, on plans of nnU-Net's and of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import stunet
from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import Interrupted, UsageError
from stunet.experiment.arms import Experiment
from stunet.experiment.checks import check_experiment
from stunet.files import read_json, write_json
from stunet.plans.check import check_plan
from stunet.plans.files import plan_path, read_plan
from stunet.runs.listener import Listener
from stunet.runs.plan_choice import choose_plans
from stunet.runs.training import TrainingRequest
from stunet.trainers.finetune import lora, strategies
from stunet.trainers.finetune.start import Start, start_from_weights
from stunet.trainers.progress import NullListener
from stunet.trainers.supervised import STUNetTrainer
from stunet.workspace import LATEST, preprocessed_dataset
from tests.loops import for_each
from tests.stock_plans import stock_plans, write_stock_plans

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
CPU = torch.device("cpu")
NAMES = {PLAIN_UNET.title: "nnUNetPlans", RESENC.title: "nnUNetResEncUNetMPlans"}
Checkpoint = Callable[[NNUNet], Path]


class Heard(Listener):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class StopAt(NullListener):
    """Stops in the second epoch, after its first step."""

    def step(self, trainer: Any, phase: str, done: int, loss: float) -> None:
        if (phase, trainer.current_epoch, done) == ("train", 1, 1):
            trainer.request_stop()


@pytest.fixture
def checkpoint(pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Makes a model folder of nnU-Net's trainer, with random weights."""

    def make(architecture: NNUNet) -> Path:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "stock"))
        content = stock_plans(pre.name, architecture) | {"plans_name": NAMES[architecture.title]}
        dataset_json = read_json(pre / "dataset.json")
        torch.manual_seed(7)
        plans = {**content, "continue_training": False}
        trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset_json, CPU)
        trainer.initialize()
        for norm in (each for each in trainer.network.modules() if isinstance(each, torch.nn.InstanceNorm3d)):
            torch.nn.init.normal_(norm.weight, 1, 0.1)  # nnU-Net starts each block's last with zeros
        trainer.inference_allowed_mirroring_axes = (0, 1, 2)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        folder = Path(trainer.output_folder_base)
        write_json(folder / "plans.json", content)
        write_json(folder / "dataset.json", dataset_json)
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        return folder

    return make


def trainer_of(dataset: str, request: TrainingRequest) -> STUNetTrainer:
    """The trainer that a request means, not started."""
    plan = choose_plans(dataset, request, Listener()).plan
    check_plan(plan, "3d_fullres")
    dataset_json = read_json(preprocessed_dataset(dataset) / "dataset.json")
    return STUNetTrainer(plan.to_json(), "3d_fullres", 0, dataset_json, CPU)


def state(trainer: STUNetTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lora.merged_state(trainer.bare_network()).items()}


@for_each(("architecture", "strategy"), [(PLAIN_UNET, "ramp"), (RESENC, "lora")])
def test_a_stock_checkpoint_goes_on_training_on_its_plan_and_a_stop_changes_nothing(
    architecture: NNUNet, strategy: str, pre: Path, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(architecture)
    request = TrainingRequest(
        dataset=998,
        plans=write_stock_plans(pre.name, architecture, NAMES[architecture.title]),
        pretrained=folder,
        finetune=strategy,
        set=SHORT,
    )
    whole = trainer_of(pre.name, request)
    report = start_from_weights(whole, Start(folder))
    assert (report.coverage, report.fresh) == (1, frozenset())
    assert report.changes == ()
    given = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    started = state(whole)
    assert started.keys() == given.keys()
    assert all(torch.equal(value, given[name]) for name, value in started.items())
    whole.run_training()
    changed = {name for name, value in state(whole).items() if not torch.equal(value, given[name])}
    kept = {strategies.part_of(name, architecture) for name in given.keys() - changed}
    # The lowest head has no part in the loss; adapters leave norms and biases alone.
    assert kept == ({"heads"} if strategy == "ramp" else {"encoder", "decoder", "heads"})

    stopped = trainer_of(pre.name, request)
    start_from_weights(stopped, Start(folder))
    stopped.configure(listener=StopAt())
    stopped.output_folder = f"{stopped.output_folder}_stopped"
    Path(stopped.output_folder).mkdir()
    with pytest.raises(Interrupted):
        stopped.run_training()
    resumed = trainer_of(pre.name, request)
    resumed.load_checkpoint(str(Path(stopped.output_folder) / LATEST))
    resumed.run_training()
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())


def test_a_plan_of_ours_takes_the_network_of_the_weights(pre: Path, checkpoint: Checkpoint) -> None:
    folder, heard = checkpoint(RESENC), Heard()
    result = stunet.train(998, pretrained=folder, set={**SHORT, "num_epochs": 1}, device="cpu", listener=heard)
    assert result.plan.name.startswith("STUNetPlans_ResEnc-ramp-Phantom.")
    assert (result.plan.size, result.plan.network, result.plan.root) == (None, "resenc", "STUNetPlans_T")
    assert any("is for a ResEnc U-Net, as the weights are: 3 stages" in note for note in heard.notes)
    before = read_plan(folder / "plans.json").configuration("3d_fullres")
    assert result.plan.configuration("3d_fullres").network_arguments == before.network_arguments
    report = read_json(result.folder / "transfer_report.json")
    assert report["coverage"] == 1
    changes = {what: (there, here) for what, there, here in report["changes"]}
    assert changes["mirrored axes at test time"] == ("0 1 2", "0 1")
    # The same request finds the plan that it has written.
    request = TrainingRequest(dataset=998, pretrained=folder, set={**SHORT, "num_epochs": 1})
    choice = choose_plans(pre.name, request, Listener())
    assert (choice.new, choice.plan.name) == (False, result.plan.name)
    # A bare file tells the same by its tensors.
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save(content["network_weights"], bare := pre.parent / "bare.pth")
    request = TrainingRequest(dataset=998, pretrained=bare, set={**SHORT, "num_epochs": 1})
    planned = check_plan(choose_plans(pre.name, request, Listener()).plan, "3d_fullres")
    for key in ("strides", "kernel_sizes", "features_per_stage", "n_blocks_per_stage"):
        assert planned.network_arguments[key] == before.network_arguments[key]
    with pytest.raises(UsageError, match=r"size L is asked for, but the weights .* are of a network without sizes"):
        stunet.train(998, pretrained=folder, size="L", device="cpu", dry_run=True)


def test_a_plan_of_nnunets_takes_weights_of_stunet_and_of_its_other_network(pre: Path, checkpoint: Checkpoint) -> None:
    folder = checkpoint(PLAIN_UNET)
    write_stock_plans(pre.name, RESENC, NAMES[RESENC.title])
    found = choose_plans(
        pre.name, TrainingRequest(dataset=998, plans=NAMES[RESENC.title], pretrained=folder), Listener()
    )
    assert found.plan.name.startswith(f"{NAMES[RESENC.title]}_Plain-ramp-")
    assert check_plan(found.plan, "3d_fullres").network_class == PLAIN_UNET.class_name
    own = stunet.train(998, plans="STUNetPlans_T", set={**SHORT, "num_epochs": 1}, device="cpu").model
    found = choose_plans(pre.name, TrainingRequest(dataset=998, plans=NAMES[RESENC.title], pretrained=own), Listener())
    assert found.plan.name.startswith(f"{NAMES[RESENC.title]}_T-ramp-")
    assert (found.plan.size, found.plan.network) == ("T", None)
    assert plan_path(pre.name, "STUNetPlans_T").is_file()


@for_each("architecture", [PLAIN_UNET, RESENC])
def test_kernels_channels_and_depth_are_bridged_in_a_training(
    architecture: NNUNet, pre: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of three channels and kernels of 3 train on a plan of one, with thin kernels and a stage more or less."""
    name = write_stock_plans(pre.name, architecture, NAMES[architecture.title])
    path = pre / f"{name}.json"
    content = read_json(path)
    planned = content["configurations"]["3d_fullres"]
    given = planned["architecture"]["arch_kwargs"]
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    planned["patch_size"] = [16, 24, 24]
    deep = architecture.laid_out(given, strides, [[1, 3, 3], *[[3, 3, 3]] * 3])
    planned["architecture"]["arch_kwargs"] = deep
    write_json(path, content)

    wide = architecture.laid_out(given, strides[:3], [[3, 3, 3]] * 3)
    weights = architecture.build(3, 2, wide).state_dict()
    theirs = {**content, "plans_name": "Theirs", "configurations": {"3d_fullres": {**planned}}}
    theirs["configurations"]["3d_fullres"] |= {
        "architecture": {**planned["architecture"], "arch_kwargs": wide},
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
    }
    description = {
        "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    arguments = {"plans": theirs, "configuration": "3d_fullres", "dataset_json": description, "fold": 0}
    file = pre.parent / "theirs.pth"
    torch.save({"network_weights": weights, "init_args": arguments, "trainer_name": "nnUNetTrainer"}, file)
    values = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1}
    result = stunet.train(998, plans=name, pretrained=file, set=values, device="cpu")
    assert result.plan.configuration("3d_fullres").network_arguments == deep  # the plan's network stays
    report = read_json(result.folder / "transfer_report.json")
    assert report["coverage"] == 1  # of the stages that both have
    stem = min(architecture.inputs)
    fates = {fate["target"]: fate for fate in report["tensors"] if fate["target"]}
    assert fates[stem]["kind"] == "inflated"
    assert {what for what, *_ in report["changes"]} >= {"stages", "strides", "kernels", "normalisation", "classes"}
    # Only the first stages have counterparts.
    assert any("have 3 stages" in text or "the weights have 3" in text for text in report["warnings"])

    # A shallower plan takes the first stages.
    shallow = architecture.laid_out(given, strides[:2], [[1, 3, 3], [3, 3, 3]])
    planned["architecture"]["arch_kwargs"] = shallow
    write_json(path, content | {"plans_name": "Shallow"})
    write_json(path.with_name("Shallow.json"), content | {"plans_name": "Shallow"})
    trainer = trainer_of(pre.name, TrainingRequest(dataset=998, plans="Shallow", pretrained=file, set=SHORT))
    found = start_from_weights(trainer, Start(file))
    assert found.coverage == 1
    own, other = state(trainer)[stem], weights[stem]
    torch.testing.assert_close(own, other.sum(1, keepdim=True).sum(2, keepdim=True))


def test_the_whole_head_is_kept_where_cases_annotate_a_part_of_it(pre: Path, checkpoint: Checkpoint) -> None:
    folder = checkpoint(RESENC)
    write_stock_plans(pre.name, RESENC, NAMES[RESENC.title])
    description = read_json(pre / "dataset.json")
    description["labels"] = {"background": 0, "liver": 1}
    for place in (pre, Path(str(pre).replace("nnUNet_preprocessed", "nnUNet_raw"))):
        write_json(place / "dataset.json", description)
    request = TrainingRequest(dataset=998, plans=NAMES[RESENC.title], pretrained=folder, head="reuse")
    plan = choose_plans(pre.name, request, Listener()).plan
    assert plan.reused_classes is not None
    assert len(plan.reused_classes) == 5
    planned, stock = plan.configuration("3d_fullres"), read_plan(plan_path(pre.name, NAMES[RESENC.title]))
    assert planned.patch_size == stock.configuration("3d_fullres").patch_size


def test_a_strategy_that_leaves_stages_out_counts_those_of_the_weights(pre: Path, checkpoint: Checkpoint) -> None:
    source = checkpoint(RESENC)
    stages = len(read_plan(source / "plans.json").configuration("3d_fullres").strides)
    request = TrainingRequest(dataset=998, pretrained=source, finetune="shallow", device="cpu")
    plan = choose_plans(pre.name, request, Heard()).plan
    kept = strategies.kept_stages(strategies.find("shallow"), stages)
    assert len(plan.configuration("3d_fullres").strides) == kept
    again = TrainingRequest(dataset=998, network="resenc-m", finetune="shallow", device="cpu")
    with pytest.raises(UsageError, match="how many --network resenc-m has is not planned yet"):
        choose_plans(pre.name, again, Heard())


def test_arms_are_warned_of_weights_whose_network_has_other_channels(pre: Path, checkpoint: Checkpoint) -> None:
    weights, heard = {"scratch": (), "theirs": (str(checkpoint(RESENC)),)}, Heard()
    for width, warned in ((4, 0), (6, 1)):
        plans = write_stock_plans(pre.name, RESENC, NAMES[RESENC.title], width)
        experiment = Experiment(dataset=998, weights=weights, strategies=("full",), cases=(2,), seeds=(0,), plans=plans)
        check_experiment(experiment, weights, heard)
        mixed = [text for text in heard.warnings if "mixes network and weights" in text]
        assert len(mixed) == warned
    assert "theirs of network resenc, but with" in mixed[0]
