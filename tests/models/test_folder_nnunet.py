"""Model folders of nnU-Net's networks: checked, exported and installed, and stock nnU-Net reads what is written."""

import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from stunet.architectures.nnunet_unet import NNUNet
from stunet.errors import WeightsError
from stunet.files import read_json, write_json
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.models.entry import make_entry
from stunet.models.exporting import export
from stunet.models.folder import check, describe
from stunet.models.installing import import_file
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint
from stunet.weights.reading import read_weights
from tests.loops import for_each
from tests.nnunet_models import model, trained
from tests.nnunet_networks import BOTH, network


def stock(folder: Path) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net looks through its trainers
        predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    predictor.use_mirroring = predictor.use_gaussian = False
    return predictor


@for_each("architecture", BOTH)
def test_a_model_is_checked_and_exported_and_stock_nnunet_computes_the_same(
    tmp_path: Path, architecture: NNUNet
) -> None:
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", architecture, (0, 1))
    count = len(list(network(architecture).parameters()))
    assert check(folder)[0] == f"fold_0: {count} tensors, none with NaN; they fit the plans"
    export(folder, tmp_path / "copy")
    written = load_checkpoint(tmp_path / "copy/fold_0/checkpoint_final.pth")["network_weights"]
    assert written.keys() == network(architecture).state_dict().keys()
    given = folder / "fold_0/checkpoint_final.pth"
    assert (tmp_path / "copy/fold_0/checkpoint_final.pth").stat().st_size < 1.2 * given.stat().st_size
    assert (
        read_json(tmp_path / "copy/plans.json")["configurations"]["3d_fullres"]["architecture"]
        == (read_json(folder / "plans.json")["configurations"]["3d_fullres"]["architecture"])
    )
    image = torch.randn(1, 16, 16, 16)
    logits = stock(tmp_path / "copy").predict_logits_from_preprocessed_data(image)
    with torch.inference_mode():
        expected = trained(architecture)(image[None])[0]
    torch.testing.assert_close(logits.float(), expected, rtol=2e-3, atol=2e-3)  # nnU-Net's are float16
    assert Predictor(open_model(tmp_path / "copy"), Options()).patch == (16, 16, 16)


@for_each("architecture", BOTH)
def test_one_fold_becomes_a_safetensors_file_with_each_tensor_once(tmp_path: Path, architecture: NNUNet) -> None:
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", architecture)
    export(folder, tmp_path / "x.safetensors")
    parameters = sum(4 * p.numel() for p in network(architecture).parameters())
    assert parameters < (tmp_path / "x.safetensors").stat().st_size < parameters + 40_000
    one, other = read_weights(tmp_path / "x.safetensors"), read_weights(folder)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    assert one.plan == other.plan
    export(tmp_path / "x.safetensors", tmp_path / "back")
    assert check(tmp_path / "back")[1].endswith("they fit the plans")
    export(folder, tmp_path / "half", half=True)
    assert read_weights(tmp_path / "half").tensors.keys() == one.tensors.keys()


@for_each("architecture", BOTH)
def test_a_model_is_installed_under_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: NNUNet
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    own = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5}}
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", architecture, **own)
    installed = import_file(folder, "Theirs")
    assert read_weights(installed.path).network.architecture is architecture
    assert check(installed.path)[0].startswith("files:")
    image = torch.randn(1, 1, 16, 16, 16)
    state = load_checkpoint(installed.path / "fold_0/checkpoint_final.pth")["network_weights"]
    copy = network(architecture, **own).eval()
    copy.load_state_dict(state)
    assert torch.equal(copy(image), trained(architecture, **own)(image))


def test_a_tensor_that_the_plans_do_not_have_is_named(tmp_path: Path) -> None:
    architecture = BOTH[0]
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", architecture)
    file = folder / "fold_0/checkpoint_final.pth"
    content = load_checkpoint(file)
    weights = {name: value.clone() for name, value in content["network_weights"].items()}
    save_checkpoint({**content, "network_weights": weights | {"more.weight": torch.ones(1)}}, file)
    with pytest.raises(WeightsError, match=r"1 unexpected \(e\.g\. 'more.weight'\)"):
        check(folder)


@for_each("architecture", BOTH)
def test_names_of_one_tensor_that_differ_are_not_predicted_with(tmp_path: Path, architecture: NNUNet) -> None:
    """nnU-Net takes whichever comes last."""
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", architecture)
    file = folder / "fold_0/checkpoint_final.pth"
    content = load_checkpoint(file)
    weights = {name: value.clone() for name, value in content["network_weights"].items()}
    name = next(name for name in weights if name.startswith("decoder.encoder."))
    save_checkpoint({**content, "network_weights": weights}, file)
    Predictor(open_model(folder), Options())  # equal, and not in one place
    weights[name] += 1
    save_checkpoint({**content, "network_weights": weights}, file)
    with pytest.raises(WeightsError, match=r"'encoder\..*' and 'decoder\.encoder\..*' are names of one tensor"):
        Predictor(open_model(folder), Options())


def test_another_activation_than_in_training_is_neither_read_nor_predicted_with(tmp_path: Path) -> None:
    folder = model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", BOTH[1])
    plans = read_json(folder / "plans.json")
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "torch.nn.ReLU"
    write_json(folder / "plans.json", plans)
    with pytest.raises(WeightsError, match=r"plans\.json' says activation ReLU, but .* with LeakyReLU"):
        read_weights(folder)
    with pytest.raises(WeightsError, match=r"trained with activation LeakyReLU .*, and plans\.json says ReLU"):
        Predictor(open_model(folder), Options())


def test_the_order_of_channels_is_that_of_the_file_whatever_the_entry_says(tmp_path: Path) -> None:
    own = 'title = "x"\ndata = "x"\nmodality = "MR"\nhas_plans = true\nnum_channels = 1\nchannels = ["T1"]\n'
    entry = make_entry("Mine", {"network": "plain", **tomllib.loads(own)}, "models.toml")
    weights = read_weights(model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", BOTH[0]))
    assert (weights.channels, describe(weights, entry).channels) == (["MR0"], ["MR0"])
