"""One file is enough for another network: the toy is recognised, planned, fine-tuned, transferred and predicted."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from stunet import architectures
from stunet.architectures.base import ENCODER, HEADS, OTHER, STEM, Recognised
from stunet.errors import DataError, WeightsError
from stunet.files import read_json, write_json
from stunet.inference import network as engine
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.model import open_model
from stunet.networks import build
from stunet.plans import memory
from stunet.plans.check import check_plan
from stunet.plans.derive import describe, fit_configurations
from stunet.plans.files import plan_path, read_plan
from stunet.plans.fit import MemoryTarget
from stunet.plans.memory import Network
from stunet.plans.plan import Plan
from stunet.trainers.finetune import lora, strategies
from stunet.trainers.supervised import STUNetTrainer
from stunet.weights.checkpoints import check_finite, save_checkpoint
from stunet.weights.reading import read_weights
from stunet.weights.recognition import recognise
from stunet.weights.transfer import transfer
from stunet.workspace import preprocessed_dataset
from tests.loops import for_each
from tests.predictor_models import make_model
from tests.toy_network import STRIDES, TOY, ToyNet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(architectures.TABLE, TOY.class_name, TOY)


def network(stages: int = 3, channels: int = 1, classes: int = 3, seed: int = 0) -> ToyNet:
    torch.manual_seed(seed)
    made = ToyNet(channels, classes, 4, [*STRIDES, [2, 2, 2]][:stages])
    made.apply(made.initialize)
    return made


def planned_for(plans: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Plans with the toy in all configurations that have a network; 2D ones are left out, as the toy has no 2D."""
    changed = copy.deepcopy(plans)
    changed["configurations"].pop("2d", None)
    for configuration in changed["configurations"].values():
        if "architecture" in configuration:
            strides = configuration["architecture"]["arch_kwargs"]["strides"]
            configuration["architecture"] = {
                "network_class_name": TOY.class_name,
                "arch_kwargs": {"width": 4, "strides": strides, **arguments},
                "_kw_requires_import": [],
            }
    return changed


def test_its_tensors_are_recognised_and_those_of_others_still_are() -> None:
    found = recognise(network(3, 2, 5).state_dict(), Path("x"))
    assert found == Recognised(TOY, {"width": 4}, None, 3, 2, 5, 3, STRIDES)
    assert isinstance(found.build(), ToyNet)
    assert recognise(build("T", STRIDES).state_dict(), Path("x")).architecture is not TOY
    wrong = network().state_dict() | {"merge.0.0.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"is not a ToyNet of width 4: 'merge\.0\.0\.weight' has shape \(3,\)"):
        recognise(wrong, Path("x"))
    with pytest.raises(WeightsError, match=r"not a STU-Net, .* or ToyNet"):
        recognise({"encoder.x": torch.zeros(1)}, Path("x"))


def test_it_is_not_known_unless_it_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(architectures.TABLE, TOY.class_name)
    with pytest.raises(WeightsError, match="not a STU-Net"):
        recognise(network().state_dict(), Path("x"))
    with pytest.raises(ValueError, match="ToyNet is not one of the networks"):
        strategies.groups(network(), strategies.find("ramp"), set())


def test_names_modules_and_features_agree() -> None:
    net = network()
    layout = TOY.layout(net)
    assert (layout.stages, layout.levels, layout.blocks) == (3, 2, 5)
    assert TOY.blocks(net) == [net.entry, *net.down, *net.merge]
    assert TOY.modules(net, HEADS) == list(net.classify)
    assert [TOY.place(name) for name in ("entry.bias", "down.2.1.bias", "x.0")] == [(STEM, 0), (ENCODER, 2), (OTHER, 0)]
    assert TOY.at_level("merge.1.0.weight", 3) == "merge.3.0.weight"
    seen: list[torch.Tensor] = []
    for stage in net.down:
        stage.register_forward_hook(lambda _, __, output: seen.append(output))
    image = torch.randn(1, 1, 8, 8, 8)
    net(image)
    outputs = list(seen)
    features = TOY.features(net, image)
    assert [tuple(each.shape) for each in features] == [(1, 4, 8, 8, 8), (1, 8, 4, 4, 4), (1, 16, 2, 2, 2)]
    assert all(torch.equal(one, other) for one, other in zip(features, outputs, strict=True))


def test_its_memory_is_planned(planned: str) -> None:
    dataset_json = read_json(preprocessed_dataset(planned) / "dataset.json")
    made = Plan(planned_for(read_plan(plan_path(planned, "STUNetPlans_T")).to_json()))
    made = fit_configurations(made, dataset_json, MemoryTarget(4.0, 3))
    fitted = check_plan(made, "3d_fullres")
    described = describe(made, "3d_fullres", dataset_json)
    assert (described.architecture, described.label) == (TOY, "ToyNet")
    patch = fitted.patch_size
    assert len(fitted.strides) == 3
    estimate = memory.estimate(described, patch, fitted.batch_size, fitted.strides)
    assert fitted.memory_gb == round(estimate, 2) <= 4
    voxels = patch[0] * patch[1] * patch[2]
    kept = 4 * voxels * (2 + 4) + 8 * voxels // 8 * (2 + 4) + 16 * voxels // 64 * 2  # two halvings of three axes
    assert memory.activation_bytes(described, patch, STRIDES) == memory.HALF * kept
    count = memory.parameters(Network({"width": 4}, 1, 3, architecture=TOY), STRIDES)
    assert count == sum(parameter.numel() for parameter in network().parameters())


@for_each(
    ("arguments", "message"),
    [({"width": "wide"}, "width 'wide' is not a number"), ({"size": "B"}, "unknown key 'size'")],
)
def test_its_arguments_in_plans_are_checked(planned: str, arguments: dict[str, Any], message: str) -> None:
    made = planned_for(read_plan(plan_path(planned, "STUNetPlans_T")).to_json(), **arguments)
    with pytest.raises(DataError, match=message):
        check_plan(Plan(made), "3d_fullres")


def test_plans_of_networks_that_are_not_in_the_table_are_refused(planned: str) -> None:
    made = planned_for(read_plan(plan_path(planned, "STUNetPlans_T")).to_json())
    made["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "other.Net"
    with pytest.raises(DataError, match=r"'other.Net' is not stunet\.networks\.STUNet or .* or tests\.toy_network"):
        check_plan(Plan(made), "3d_fullres")


def test_strategies_choose_its_parts_quarters_and_layers() -> None:
    net = network()
    count = {part: sum(p.numel() for each in modules for p in each.parameters()) for part, modules in {
        "encoder": [net.entry, net.down], "decoder": [net.lift, net.merge], "heads": [net.classify],
    }.items()}  # fmt: skip
    total = sum(count.values())
    for name, parts in (("linear", ["heads"]), ("decoder", ["decoder"]), ("encoder-frozen", ["decoder", "heads"])):
        trained = strategies.set_trainable(net, strategies.find(name).phases[0], set())
        assert trained == (sum(count[part] for part in parts), total)
    quarters = {strategies.quarter_of(name, TOY.layout(net)) for name, _ in net.named_parameters()}
    assert quarters == set(strategies.QUARTERS)
    groups = strategies.groups(net, strategies.find("layerwise"), set())
    assert [group["scale"] for group in groups] == pytest.approx([0.75**n for n in range(6)])
    assert {id(p) for p in groups[-1]["params"]} == {
        id(p) for p in [*net.entry.parameters(), *net.down[0].parameters()]
    }


def test_adapters_leave_its_heads_alone_and_are_merged() -> None:
    net, image = network(), torch.randn(1, 1, 8, 8, 8)
    before, names = [head.detach() for head in net(image)], set(net.state_dict())
    lora.add(net, 2, 0, {"entry.weight"})
    adapted = {name.partition(".parametrizations")[0] for name in lora.adapters_state(net)}
    assert adapted == {"down.0.1", "down.1.1", "down.2.1", "lift.0", "lift.1", "merge.0.0", "merge.1.0"}
    assert all(torch.equal(one, other) for one, other in zip(net(image), before, strict=True))
    assert set(lora.merged_state(net)) == names
    trained = strategies.set_trainable(net, strategies.find("lora").phases[0], {"entry.weight"})
    assert 0 < trained[0] < trained[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder of the toy, as training leaves it."""
    folder = tmp_path / "nnUNetTrainer__ToyPlans__3d_fullres"
    make_model(folder)
    plans = planned_for(read_json(folder / "plans.json"))
    for name in ("3d_lowres", "3d_cascade_fullres"):
        del plans["configurations"][name]
    write_json(folder / "plans.json", plans)
    content = {
        "network_weights": network(seed=1).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {
            "configuration": "3d_fullres",
            "plans": plans,
            "dataset_json": read_json(folder / "dataset.json"),
        },
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    save_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_its_weights_go_into_a_deeper_network_with_other_channels_and_classes(model: Path) -> None:
    given = read_weights(model)
    assert (given.network.architecture, given.strides, given.classes) == (TOY, STRIDES, ["background", "a", "b"])
    target = network(4, 2, 4, seed=2)
    report = transfer(target, given, classes=["background", "b", "c", "a"], channels=["MR0", "MR1"])
    source, state = given.tensors, target.state_dict()
    assert torch.equal(state["down.2.1.weight"], source["down.2.1.weight"])
    assert torch.equal(state["merge.2.0.weight"], source["merge.1.0.weight"])  # levels count from the coarsest
    assert torch.equal(state["classify.2.bias"][[0, 1, 3]], source["classify.1.bias"][[0, 2, 1]])
    assert torch.equal(state["entry.weight"], source["entry.weight"].repeat(1, 2, 1, 1, 1) / 2)
    parts = {row[0] for row in report.table()[1]}
    assert parts == {"stem", "encoder 0", "encoder 1", "encoder 2", "encoder 3", "decoder", "heads"}
    assert "down.3.1.weight" in report.fresh
    with pytest.raises(WeightsError, match="are of ToyNet, and the plan's network is STUNet"):
        transfer(build("T", STRIDES), given)
    holed = {name: value.clone() for name, value in source.items()} | {"down.1.1.weight": torch.zeros(8, 4, 3, 3, 3)}
    with pytest.raises(WeightsError, match=r"nothing but zeros in 1 convolutions .*'down\.1\.1\.weight'"):
        check_finite(holed, Path("x"))


def test_its_model_folder_is_built_prepared_and_predicts(model: Path) -> None:
    _, _, built = engine.build(open_model(model), "3d_fullres")
    assert isinstance(built, ToyNet)
    weights = network(seed=1).state_dict()
    ready = ReadyNetwork(built, [weights], CPU, "fp32")
    assert built.prepared_for == "cpu"
    ready.use(0)
    expected, image = network(seed=1), torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ready(image), expected(image)[0], rtol=1e-4, atol=1e-4)


def test_it_is_trained_for_an_epoch_and_its_checkpoint_is_read_as_weights(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    made = planned_for(read_plan(plan_path(planned, "STUNetPlans_T")).to_json())
    made["stunet"]["train"] = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    made["stunet"]["finetune"] = "layerwise"
    made["configurations"]["3d_fullres"]["batch_size"] = 2
    check_plan(Plan(made), "3d_fullres")
    dataset_json = read_json(preprocessed_dataset(planned) / "dataset.json")
    trainer = STUNetTrainer(made, "3d_fullres", 0, dataset_json, CPU)
    trainer.initialize()
    before = {name: value.clone() for name, value in trainer.bare_network().state_dict().items()}
    trainer.run_training()
    weights = read_weights(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert (weights.network.architecture, weights.network.arguments) == (TOY, {"width": 4})
    changed = {name for name, value in weights.tensors.items() if not torch.equal(value, before[name])}
    assert {TOY.place(name).part for name in changed} == {"stem", "encoder", "upsampling", "decoder", "heads"}
