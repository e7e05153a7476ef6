"""Running statistics counted anew on other data: against a slow reference, with networks of nnU-Net's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import nn

from stunet.cli.models import main
from stunet.errors import DataError, WeightsError
from stunet.files import read_json, write_json
from stunet.inference.recollect import open_batch_norm, recollect
from stunet.networks import build
from stunet.plans.files import plan_path
from stunet.workspace import preprocessed_dataset
from tests.loops import for_each

BATCHES = 3


def network(norm: str = "BatchNorm", ndim: int = 3, inputs: int = 1) -> PlainConvUNet:
    torch.manual_seed(4)
    made = PlainConvUNet(
        inputs, 2, [4, 8], conv_op=getattr(nn, f"Conv{ndim}d"), kernel_sizes=3, strides=[1, 2], n_conv_per_stage=[1, 1],
        num_classes=6, n_conv_per_stage_decoder=[1], conv_bias=True, norm_op=getattr(nn, f"{norm}{ndim}d"),
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    for name, value in made.named_buffers():
        if "running" in name:
            value.uniform_(1, 2)  # as if trained on something else
    return made


def architecture(norm: str = "BatchNorm", ndim: int = 3) -> dict[str, Any]:
    """What a plan says of it."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [4, 8], "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
            "kernel_sizes": [[3] * ndim] * 2, "strides": [[1] * ndim, [2] * ndim], "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1], "conv_bias": True, "dropout_op": None, "dropout_op_kwargs": None,
            "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{ndim}d", "nonlin": "torch.nn.LeakyReLU",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def model_folder(
    folder: Path, dataset: str, *, configuration: str = "3d_fullres", norm: str = "BatchNorm",
    trainer: str = "nnUNetTrainer", folds: Sequence[str] = ("fold_0",), **changes: Any,
) -> Path:  # fmt: skip
    """A model of the dataset's own plan, with a network of nnU-Net's."""
    plans = read_json(plan_path(dataset))
    plans.pop("stunet")
    plan = plans["configurations"][configuration]
    ndim = len(plan["patch_size"])
    written = "InstanceNorm" if trainer == "nnUNetTrainerBN" else norm
    plan |= {"architecture": architecture(written, ndim), "batch_size": 2, **changes}
    for fold in folds:
        (folder / fold).mkdir(parents=True)
        weights = network(norm, ndim, inputs=6 if "previous_stage" in changes else 1).state_dict()
        content = {
            "network_weights": weights, "trainer_name": trainer, "current_epoch": 7,
            "init_args": {"configuration": configuration}, "inference_allowed_mirroring_axes": None,
        }  # fmt: skip
        torch.save(content, folder / fold / "checkpoint_final.pth")
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", read_json(preprocessed_dataset(dataset) / "dataset.json"))
    return folder


def opened(folder: Path) -> Any:
    model = open_batch_norm(folder)
    assert model is not None
    return model


def weights_in(folder: Path, fold: str = "fold_0") -> dict[str, torch.Tensor]:
    return torch.load(folder / fold / "checkpoint_final.pth", weights_only=True)["network_weights"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seen_by(model: Any) -> list[torch.Tensor]:
    """The list that every batch the model's network is run on will be put into."""
    batches: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].clone()))
    return batches


def slow_statistics(batches: list[torch.Tensor], ndim: int) -> dict[str, torch.Tensor]:
    """Mean over the batches of every channel's mean and unbiased variance, in float64, layer by layer."""
    reference = network(ndim=ndim).double().train()
    found: dict[str, list[torch.Tensor]] = {}

    def note(name: str, x: torch.Tensor) -> None:
        values = x.transpose(0, 1).flatten(1)
        found.setdefault(f"{name}.running_mean", []).append(values.mean(1))
        found.setdefault(f"{name}.running_var", []).append(values.var(1, unbiased=True))

    for name, module in reference.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    with torch.no_grad():
        for batch in batches:
            reference(batch.double())
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


@for_each("configuration", ["3d_fullres", "2d"])
@for_each("trainer", ["nnUNetTrainer", "nnUNetTrainerBN"])
def test_statistics_are_those_of_the_data_and_nothing_else_changes(
    planned: str, tmp_path: Path, configuration: str, trainer: str
) -> None:
    patch = [8, 16, 16][-2 if configuration == "2d" else 0 :]
    source = model_folder(tmp_path / "model", planned, configuration=configuration, trainer=trainer, patch_size=patch)
    before = content(source)
    model = opened(source)
    batches = seen_by(model)
    target = recollect(model, planned, batches=BATCHES)
    assert target == tmp_path / f"model-bn-{planned}"
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, *patch)] * BATCHES

    old, new = weights_in(source), weights_in(target)
    expected = slow_statistics(batches, len(patch))
    assert len(expected) == 2 * 3  # convolutions: two stages down, one up
    for name, value in expected.items():
        torch.testing.assert_close(new[name].double(), value, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(new[name], old[name])
    assert new.keys() == old.keys()
    for name, value in new.items():
        if name.endswith("num_batches_tracked"):
            assert value == BATCHES
        elif "running" not in name:
            assert torch.equal(value, old[name])
        elif name.startswith("decoder.encoder."):  # the same modules under a second name
            assert torch.equal(value, new[name.removeprefix("decoder.")])

    assert content(source) == before
    kept = torch.load(target / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert {key: kept[key] for key in kept if key != "network_weights"} == {
        "trainer_name": trainer, "current_epoch": 7, "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": None,
    }  # fmt: skip
    assert {name: content(target)[name] for name in ("plans.json", "dataset.json")} == {
        name: before[name] for name in ("plans.json", "dataset.json")
    }
    assert read_json(target / "model.json")["statistics"] == {"dataset": planned, "batches": BATCHES}


def test_patches_are_pieces_of_the_preprocessed_images_with_zeros_around_small_ones(
    planned: str, tmp_path: Path
) -> None:
    patch = (8, 16, 32)  # larger than the images on the last axis
    model = opened(model_folder(tmp_path / "model", planned, patch_size=list(patch)))
    batches = seen_by(model)
    recollect(model, planned, batches=BATCHES)
    plans = read_json(plan_path(planned))
    folder = preprocessed_dataset(planned) / plans["configurations"]["3d_fullres"]["data_identifier"]
    cases = nnUNetDatasetBlosc2(str(folder))
    images = [np.asarray(cases.load_case(name)[0][:][0], np.float32) for name in cases.identifiers]
    places = [places_of(piece, images) for piece in torch.cat(batches)[:, 0].numpy()]
    assert all(len(found) == 1 for found in places)
    for axis in zip(*(found[0] for found in places), strict=True):  # case, z, y
        assert len(set(axis)) > 1


def places_of(piece: np.ndarray, images: list[np.ndarray]) -> list[tuple[int, int, int]]:
    """Where a piece comes from: number of the image, and where it starts on the first two axes; the third is padded."""
    found = []
    for number, image in enumerate(images):
        left = -(-(piece.shape[2] - image.shape[2]) // 2)
        inside = piece[:, :, left : left + image.shape[2]]
        if np.count_nonzero(piece) == np.count_nonzero(inside):
            found += [
                (number, z, y)
                for z in range(image.shape[0] - piece.shape[0] + 1)
                for y in range(image.shape[1] - piece.shape[1] + 1)
                if np.array_equal(inside, image[z : z + piece.shape[0], y : y + piece.shape[1]])
            ]
    return found


def test_every_fold_is_counted_on_the_same_patches(planned: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", planned, folds=("fold_0", "fold_3"))
    steps: list[None] = []
    target = recollect(
        opened(source), planned, target=tmp_path / "out", batches=BATCHES, on_batch=lambda: steps.append(None)
    )
    first, second = weights_in(target, "fold_0"), weights_in(target, "fold_3")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(steps) == 2 * BATCHES


def test_the_command_writes_the_new_model_and_names_it(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = model_folder(tmp_path / "model", planned)
    command = ["bn-recollect", str(source), "-d", planned[7:10], "-o", str(tmp_path / "out"), "--batches", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert main(command) == 3
    assert "exists already" in capsys.readouterr().err
    assert main([*command[:-1], "0"]) == 2


def test_stunet_has_nothing_to_recollect(planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = read_json(plan_path(planned))
    strides = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    file = tmp_path / "tiny.model"
    torch.save({"state_dict": build("T", strides, 1, 6).state_dict()}, file)
    folder = model_folder(tmp_path / "stunet", planned)
    write_json(folder / "plans.json", plans)
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    weights = {"network_weights": build("T", strides, 1, 6).state_dict()}
    torch.save(checkpoint | weights, folder / "fold_0" / "checkpoint_final.pth")
    instance_norm = model_folder(tmp_path / "model", planned, norm="InstanceNorm")
    before = content(tmp_path)
    for given in (file, folder, instance_norm):
        assert main(["bn-recollect", str(given), "-d", planned]) == 0
        shown = capsys.readouterr()
        assert "nothing to do" in shown.err
        assert shown.out == ""
    assert content(tmp_path) == before


def test_data_that_are_preprocessed_in_another_way_are_refused(planned: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", planned, spacing=[9.0, 9.0, 9.0])
    with pytest.raises(DataError, match=r"STUNetPlans_T\.spacing.*9\.0") as refused:
        recollect(opened(source), planned, batches=1)
    assert f"-t {planned}" in refused.value.hint
    assert "nnUNetv2_preprocess -d 998" in refused.value.hint
    with pytest.raises(DataError, match="no plans have this configuration"):
        recollect(opened(source), planned, batches=1, configuration="3d_lowres")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_that_cannot_be_recollected_are_refused_before_any_work(planned: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a cascade"):
        open_batch_norm(model_folder(tmp_path / "cascade", planned, previous_stage="3d_lowres"))
    other = model_folder(tmp_path / "other", planned)
    plans = json.loads((other / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"] = architecture("InstanceNorm")
    write_json(other / "plans.json", plans)
    with pytest.raises(WeightsError, match=r"running_mean"):
        open_batch_norm(other)
    with pytest.raises(WeightsError, match="has running statistics"):
        open_batch_norm(tmp_path / "other" / "fold_0" / "checkpoint_final.pth")


def test_statistics_that_overflow_are_refused_and_nothing_is_left(planned: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", planned)
    file = source / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    for name, value in checkpoint["network_weights"].items():
        if name.endswith("conv.weight"):
            value.fill_(1e38)
    torch.save(checkpoint, file)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        recollect(opened(source), planned, batches=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
