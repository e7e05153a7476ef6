"""Adapters as a PEFT folder: peft makes the trained network of it and the old weights, or it is not written."""

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from stunet.architectures.nnunet_unet import NNUNet
from stunet.cli.models import main
from stunet.errors import DataError, StunetError, UsageError, WeightsError
from stunet.files import read_json
from stunet.networks import STUNet, build
from stunet.trainers.finetune import lora
from stunet.trainers.finetune.peft_export import FILE, base_network, export_adapter
from stunet.trainers.finetune.strategies import find, groups, set_trainable
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint, save_weights
from tests import nnunet_networks
from tests.loops import for_each
from tests.nnunet_networks import BOTH

HEADS = ("seg_outputs.0.weight", "seg_outputs.1.weight")
STEM = "conv_blocks_context.0.0.conv1.weight"
BIAS = "conv_blocks_context.1.0.conv1.bias"  # its weight has an adapter
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "left": 1, "right": 2}}


def strides(ndim: int) -> list[list[int]]:
    return [[1] * ndim, [2] * ndim, [2] * ndim]


def described(ndim: int) -> dict[str, Any]:
    """Plans, configuration and dataset, under nnU-Net's names and under ours."""
    arch = {"network_class_name": "stunet.networks.STUNet", "arch_kwargs": {"size": "T", "strides": strides(ndim)}}
    planned = {"architecture": arch, "spacing": [1.0] * ndim, "normalization_schemes": ["ZScoreNormalization"]}
    block = {"weights": {"name": "pretrained", "sha256": "0" * 64, "head": "slice"}, "finetune": "lora"}
    plans = {"plans_name": "STUNetPlans_T", "stunet": block, "configurations": {"fullres": planned}}
    return {"plans": plans, "configuration": "fullres", "dataset": DATASET, "dataset_json": DATASET}


def images(ndim: int) -> Tensor:
    return torch.randn(2, 1, *[8] * ndim, generator=torch.Generator().manual_seed(1))


def pretrained(path: Path, ndim: int = 3, seed: int = 0) -> STUNet:
    """A network whose weights are written with heads for seven other classes, as released ones have."""
    torch.manual_seed(seed)
    network, others = build("T", strides(ndim), num_classes=3), build("T", strides(ndim), num_classes=7)
    heads = {name: value for name, value in others.state_dict().items() if name.startswith("seg_outputs")}
    meta = {key: value for key, value in described(ndim).items() if key in ("plans", "configuration")}
    save_weights(path, network.state_dict() | heads, meta)
    return network


def trained(folder: Path, ndim: int = 3, fresh: tuple[str, ...] = HEADS) -> Path:
    """The checkpoint of three steps with adapters from base.safetensors, which is written as well."""
    for name, content in _trained(ndim, fresh).items():
        (folder / name).write_bytes(content)
    return folder / "checkpoint.pth"


@cache
def _trained(ndim: int, fresh: tuple[str, ...]) -> dict[str, bytes]:
    with TemporaryDirectory() as made:
        train(Path(made), ndim, fresh)
        return {path.name: path.read_bytes() for path in Path(made).iterdir()}


def train(folder: Path, ndim: int, fresh: tuple[str, ...]) -> None:
    network = pretrained(folder / "base.safetensors", ndim)
    lora.add(network, 8, 0, fresh)  # 8 is more than the 4 channels of the first stage
    strategy = find("lora")
    set_trainable(network, strategy.phases[0], fresh)
    optimizer = torch.optim.SGD(groups(network, strategy, fresh), 0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        network(images(ndim)).square().mean().backward()
        optimizer.step()
    content = {
        "network_weights": lora.merged_state(network),
        "optimizer_state": optimizer.state_dict(),
        "init_args": described(ndim),
        "trainer_name": "nnUNetTrainer",
        "stunet": {"fresh": list(fresh), "adapters": lora.adapters_state(network)},
    }
    save_checkpoint(content, folder / "checkpoint.pth")


@for_each(("ndim", "fresh"), [(3, HEADS), (2, HEADS), (3, (*HEADS, STEM, BIAS))])
def test_peft_computes_what_was_trained_before_and_after_merging(
    peft: Any, tmp_path: Path, ndim: int, fresh: tuple[str, ...]
) -> None:
    checkpoint = trained(tmp_path, ndim, fresh)
    export_adapter(checkpoint, tmp_path / "adapter")
    weights = load_checkpoint(checkpoint)["network_weights"]
    expected = build("T", strides(ndim), num_classes=3)
    expected.load_state_dict(weights)
    network = base_network(tmp_path / "adapter", tmp_path / "base.safetensors")
    before = network(images(ndim)).detach()
    model = peft.PeftModel.from_pretrained(network, tmp_path / "adapter")
    torch.testing.assert_close(model(images(ndim)), expected(images(ndim)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected(images(ndim)), rtol=0.1, atol=0.1)
    merged = model.merge_and_unload().state_dict()
    assert merged.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-5, atol=1e-6)


@for_each("architecture", BOTH)
@for_each("own", [{}, {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5}}])
def test_peft_computes_what_nnunets_networks_were_trained_to(
    peft: Any, tmp_path: Path, architecture: NNUNet, own: dict[str, Any]
) -> None:
    fresh = [f"decoder.seg_layers.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")]
    network, image = nnunet_networks.network(architecture, **own), torch.randn(2, 1, 8, 16, 16)
    plans = described(3)["plans"]
    plans["configurations"]["fullres"]["architecture"] = {
        "network_class_name": architecture.class_name,
        "arch_kwargs": nnunet_networks.arguments(architecture, **own),
    }
    torch.save(network.state_dict(), tmp_path / "base.pth")
    lora.add(network, 4, 0, fresh)
    set_trainable(network, find("lora").phases[0], fresh)
    optimizer = torch.optim.SGD(groups(network, find("lora"), fresh), 0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        network(image).square().mean().backward()
        optimizer.step()
    merged = lora.merged_state(network)
    content = {
        "network_weights": merged,
        "init_args": described(3) | {"plans": plans},
        "stunet": {"fresh": fresh, "adapters": lora.adapters_state(network)},
    }
    save_checkpoint(content, tmp_path / "checkpoint.pth")
    export_adapter(tmp_path / "checkpoint.pth", tmp_path / "adapter")
    assert (tmp_path / "adapter" / FILE).stat().st_size < (tmp_path / "checkpoint.pth").stat().st_size / 1.5
    expected = nnunet_networks.network(architecture, **own).eval()
    expected.load_state_dict(merged)
    base = base_network(tmp_path / "adapter", tmp_path / "base.pth").eval()
    assert not torch.allclose(base(image), expected(image), rtol=0.1, atol=0.1)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(model(image), expected(image), rtol=1e-4, atol=1e-4)


def test_the_folder_is_pefts_small_and_says_what_it_is_for(peft: Any, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, fresh=(*HEADS, STEM))
    export_adapter(checkpoint, tmp_path / "adapter")
    names = {"adapter_config.json", FILE, "plans.json", "dataset.json"}
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == names
    assert (tmp_path / "adapter" / FILE).stat().st_size < checkpoint.stat().st_size / 4
    config = peft.LoraConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == "pretrained"
    assert config.r == config.lora_alpha == 8
    assert config.rank_pattern == config.alpha_pattern != {}
    assert set(config.rank_pattern.values()) == {4}
    assert {"seg_outputs.0", "seg_outputs.1", STEM.removesuffix(".weight")} < set(config.modules_to_save)
    assert not set(config.target_modules) & set(config.modules_to_save)
    assert read_json(tmp_path / "adapter" / "dataset.json") == DATASET


def test_an_adapter_that_does_not_give_the_trained_weights_is_not_written(peft: Any, tmp_path: Path) -> None:
    content = load_checkpoint(trained(tmp_path))
    name = next(name for name in content["stunet"]["adapters"] if name.endswith("conv2.parametrizations.weight.0.up"))
    content["stunet"]["adapters"][name][0] += 0.01
    save_checkpoint(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"computes something else .* 1 merged weights \(e.g. 'conv_blocks_context"):
        export_adapter(tmp_path / "other.pth", tmp_path / "adapter")
    assert not list(tmp_path.glob("*adapter*"))


def test_other_weights_than_those_it_was_trained_on_are_refused(peft: Any, tmp_path: Path) -> None:
    export_adapter(trained(tmp_path), tmp_path / "adapter")
    pretrained(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(WeightsError, match="trained on other weights"):
        base_network(tmp_path / "adapter", tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="No such file"):
        base_network(tmp_path, tmp_path / "base.safetensors")


def test_what_is_no_single_training_with_adapters_is_refused(peft: Any, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    with pytest.raises(WeightsError, match="holds no adapters") as refusal:
        export_adapter(tmp_path / "base.safetensors", tmp_path / "adapter")
    assert "--finetune lora" in refusal.value.hint
    with pytest.raises(UsageError, match=r"ends with '\.zip'"):
        export_adapter(checkpoint, tmp_path / "adapter.zip")
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        checkpoint.with_name(f"fold_{fold}").joinpath("checkpoint_final.pth").touch()
    with pytest.raises(UsageError, match="has 2 folds"):
        export_adapter(tmp_path, tmp_path / "adapter")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_adapter(checkpoint, tmp_path / "adapter")


def test_the_command_writes_the_folder_and_prints_its_path(
    peft: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, target = trained(tmp_path), tmp_path / "new" / "adapter"
    assert main(["export", str(checkpoint), "-o", str(target), "--peft"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert captured.err == ""
    assert main(["export", str(tmp_path / "base.safetensors"), "-o", str(tmp_path / "x"), "--peft"]) == 4
    assert "--finetune lora" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(checkpoint), "-o", str(target), "--peft", "--half"])


def test_without_peft_the_command_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # Python's own way to say that there is none
    assert main(["export", str(trained(tmp_path)), "-o", str(tmp_path / "adapter"), "--peft"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "stunet_models: --peft needs peft, which is not installed"
    assert second == "  try: pip install 'stunet[peft]'"


@for_each("problem", ["RuntimeError('no operator nms')", "ModuleNotFoundError('no module accelerate')"])
def test_a_peft_that_cannot_be_imported_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    (tmp_path / "peft").mkdir()
    lines = ["try:", f"    raise {problem}", "except Exception as e:", "    raise ImportError('lazy') from e"]
    (tmp_path / "peft" / "__init__.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(StunetError, match=r"installed, but its import fails: .*no (operator nms|module accelerate)"):
        export_adapter(tmp_path, tmp_path / "adapter")
