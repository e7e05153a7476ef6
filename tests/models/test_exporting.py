"""What other programs read of ours: nnU-Net's zips, and the files of nnssl as nnU-Net's fine-tuning reads them."""

import pydoc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.model_sharing import model_import
from nnunetv2.utilities.file_path_utilities import get_output_folder
from torch import nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import UsageError, WeightsError
from stunet.files import read_json, write_json
from stunet.models.exporting import NNSSL, NNUNET, export
from stunet.models.folder import check
from stunet.models.installing import import_file
from stunet.networks import STUNet
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint
from stunet.weights.nnssl import ADAPTATION
from stunet.weights.reading import read_weights
from stunet.weights.transfer import transfer
from tests.loops import for_each
from tests.nnunet_models import model, trained
from tests.nnunet_networks import BOTH, network
from tests.predictor_models import STRIDES, make_model

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def read_as_nnunet(file: Path, channels: int) -> nn.Module:
    """The network that nnU-Net's fine-tuning starts from, in the steps of its reader (of nnU-Net's repository).

    It builds the network that the plan names, repeats the input convolution for more channels, and gives stem and
    encoder, each as a whole, what the file has below their names.
    """
    content = torch.load(file, weights_only=True)
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    planned = plan["architecture_plans"]
    arguments = dict(planned["arch_kwargs"])
    for key in planned["arch_kwargs_requiring_import"]:
        arguments[key] = pydoc.locate(arguments[key])
    module = "dynamic_network_architectures.architectures.unet"
    built: Any = pydoc.locate(f"{module}.{planned['arch_class_name']}")
    made: nn.Module = built(input_channels=channels, num_classes=5, deep_supervision=False, **arguments)
    before = plan["pretrain_num_input_channels"]
    for name in plan["keys_to_in_proj"]:
        weights[f"{name}.weight"] = weights[f"{name}.weight"].repeat(1, channels // before, 1, 1, 1) * before / channels
    for key in ("key_to_encoder", "key_to_stem"):
        own = {
            name.removeprefix(f"{plan[key]}."): value
            for name, value in weights.items()
            if name.startswith(f"{plan[key]}.")
        }
        made.get_submodule(plan[key]).load_state_dict(own)
    assert plan["pretrain_plan"]["configurations"].keys() == {"median"}
    return made.eval()


# Their reader has no way to give a plain U-Net more channels: its stem is part of its encoder.
@for_each(("architecture", "channels"), [(PLAIN_UNET, 1), (RESENC, 1), (RESENC, 2)])
def test_nnunets_fine_tuning_starts_from_the_encoder_of_an_exported_file(
    tmp_path: Path, architecture: NNUNet, channels: int
) -> None:
    folder = model(tmp_path / NAME, architecture)
    notes = export(folder, tmp_path / "x.pth", form=NNSSL)
    assert "nnUNetv2_preprocess_like_nnssl" in notes[0]
    assert len(notes) == 1
    found = read_as_nnunet(tmp_path / "x.pth", channels)
    given, image = trained(architecture), torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = given.encoder(image)
        for one, other in zip(found.encoder(image.repeat(1, channels, 1, 1, 1)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_names_of_parts_are_those_that_nnssl_writes(tmp_path: Path) -> None:
    parts = [
        (RESENC, "encoder.stages", "encoder.stem", "encoder.stem.convs.0"),
        (PLAIN_UNET, "encoder.stages", "encoder.stages.0", "encoder.stages.0.0.convs.0"),
    ]
    for architecture, encoder, stem, first in parts:
        export(model(tmp_path / architecture.title / NAME, architecture), tmp_path / f"{stem}.pth", form=NNSSL)
        plan = load_checkpoint(tmp_path / f"{stem}.pth")[ADAPTATION]
        assert (plan["key_to_encoder"], plan["key_to_stem"], plan["key_to_lpe"]) == (encoder, stem, None)
        assert plan["keys_to_in_proj"] == [f"{first}.conv", f"{first}.all_modules.0"]
        assert plan["architecture_plans"]["arch_class_name"] == architecture.class_name.rpartition(".")[2]
        assert "deep_supervision" not in plan["architecture_plans"]["arch_kwargs"]


@for_each("architecture", BOTH)
def test_weights_that_labels_trained_stay_so_in_a_file_of_nnssl(tmp_path: Path, architecture: NNUNet) -> None:
    folder = model(tmp_path / NAME, architecture)
    export(folder, tmp_path / "x.pth", half=True, form=NNSSL)
    before, after = read_weights(folder), read_weights(tmp_path / "x.pth")
    assert (after.kind, after.pretext, after.transfers) == ("nnssl", None, "all")
    assert (after.classes, after.channels) == (before.classes, before.channels) == (["background", "a", "b"], ["MR0"])
    assert (after.strides, after.spacing) == (before.strides, before.spacing)
    assert after.mirror_axes == before.mirror_axes is not None
    assert all(torch.equal(value.half(), after.tensors[name]) for name, value in before.tensors.items())
    report = transfer(network(architecture, classes=4, seed=5), after, classes=["background", "b", "c", "a"])
    assert report.coverage == 1
    assert sum(value.nbytes for value in after.tensors.values()) * 1.1 + 100_000 > (tmp_path / "x.pth").stat().st_size


def test_what_nnunets_commands_do_otherwise_than_the_training_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path / NAME, RESENC)
    plans = read_json(folder / "plans.json")
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    intensities = {"0": {"mean": 40.0, "std": 270.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}}
    plans |= {"foreground_intensity_properties_per_channel": intensities, "stunet": {"orientation": "LPS"}}
    write_json(folder / "plans.json", plans)
    file = folder / "fold_0/checkpoint_final.pth"
    save_checkpoint({**load_checkpoint(file), "init_args": {"configuration": "3d_fullres"}}, file)
    assert "trained with CTNormalization" in export(folder, tmp_path / "x.pth", form=NNSSL)[1]
    assert "orientation LPS" in export(folder, tmp_path / "out", form=NNUNET)[1]
    own = make_model(tmp_path / "own" / NAME)
    assert "nnU-Net imports stunet.networks.STUNet: install stunet" in export(own, tmp_path / "own" / "out")[1]
    assert "build no STU-Net" in export(own / "fold_0/checkpoint_final.pth", tmp_path / "own.pth", form=NNSSL)[0]
    made = STUNet(1, 3, "T", STRIDES)
    assert transfer(made, read_weights(tmp_path / "own.pth"), classes=["background", "a", "b"]).coverage == 1


@for_each(
    ("name", "form", "folds", "error", "message"),
    [
        ("x.pth", None, (0,), UsageError, "ends with '.pth'"),
        ("x.zip", NNSSL, (0,), UsageError, "ends with '.zip'"),
        ("x.safetensors", NNUNET, (0,), UsageError, "ends with '.safetensors'"),
        ("x.pth", NNSSL, (0, 1), WeightsError, "2 folds"),
    ],
)
def test_endings_and_folds_that_a_format_has_not_are_refused(
    tmp_path: Path, name: str, form: str | None, folds: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(model(tmp_path / NAME, RESENC, folds), tmp_path / name, form=form)
    assert not (tmp_path / name).exists()


def test_networks_that_nnssl_has_not_are_refused(tmp_path: Path) -> None:
    for configuration, what in (("2d", "2D network"), ("3d_cascade_fullres", "previous stage")):
        folder = make_model(tmp_path / f"nnUNetTrainer__nnUNetPlans__{configuration}")
        with pytest.raises(WeightsError, match=what):
            export(folder, tmp_path / "x.pth", form=NNSSL)
    export(model(tmp_path / NAME, RESENC), tmp_path / "first.pth", form=NNSSL)
    with pytest.raises(WeightsError, match="nnssl's format already"):
        export(tmp_path / "first.pth", tmp_path / "x.pth", form=NNSSL)
    torch.save(trained(RESENC).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="no plans"):
        export(tmp_path / "bare.pth", tmp_path / "x.pth", form=NNSSL)


@for_each("architecture", [*BOTH, None])
def test_nnunet_installs_the_zip_where_its_commands_look_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: NNUNet | None
) -> None:
    given = tmp_path / NAME
    folder = model(given, architecture, (0, 1)) if architecture else make_model(given, (0, 1))
    notes = export(folder, tmp_path / "x.zip", form=NNUNET)
    plans = "nnUNetPlans" if "nnUNetPlans" in notes[0] else "STUNetPlans"
    assert notes[0].endswith(f"then nnUNetv2_predict -d Dataset001_Test -p {plans} -c 3d_fullres -i IN -o OUT -f 0 1")
    monkeypatch.setattr(model_import, "nnUNet_results", str(tmp_path / "results"))
    model_import.install_model_from_zip_file(str(tmp_path / "x.zip"))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(tmp_path / "results"))
    installed = Path(get_output_folder("Dataset001_Test", "nnUNetTrainer", plans, "3d_fullres"))
    assert check(installed)[-1].endswith("they fit the plans")
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    assert read_weights(import_file(tmp_path / "x.zip", "again").path).plan == read_weights(folder).plan


def test_names_in_plans_lead_nowhere_else_in_a_zip(tmp_path: Path) -> None:
    folder = model(tmp_path / NAME, RESENC)
    content = load_checkpoint(folder / "fold_0/checkpoint_final.pth")
    save_checkpoint({**content, "init_args": {"configuration": "3d_fullres"}}, folder / "fold_0/checkpoint_final.pth")
    write_json(folder / "plans.json", read_json(folder / "plans.json") | {"dataset_name": "my own"})
    assert "-m $nnUNet_results/'my own'/nnUNetTrainer__" in export(folder, tmp_path / "x.zip")[0]
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert all(name.startswith("my own/nnUNetTrainer__") for name in archive.namelist())
