"""Training what nnU-Net's own commands have planned and preprocessed."""

import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

import stunet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import DataError, UsageError
from stunet.files import read_json, write_json
from tests.stock_plans import write_stock_plans

ROUND = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


class Heard(stunet.Listener):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def stock(pre: Path) -> Path:
    """The preprocessed phantom as nnU-Net's commands leave it: plans and data without anything of ours."""
    write_stock_plans(pre.name, PLAIN_UNET)
    write_stock_plans(pre.name, RESENC, "nnUNetResEncUNetMPlans")
    (pre / "STUNetPlans_T.json").unlink()
    shutil.rmtree(pre / "STUNetPlans_3d_fullres" / ".stunet")
    return pre


def test_they_train_with_what_is_set_and_stay_as_they_are(stock: Path) -> None:
    before, heard = read_json(stock / "nnUNetResEncUNetMPlans.json"), Heard()
    result = stunet.train(
        998, plans="nnUNetResEncUNetMPlans", set={**ROUND, "accumulation": 2}, device="cpu", listener=heard
    )
    assert read_json(stock / "nnUNetResEncUNetMPlans.json") == before
    assert result.plan.name == "nnUNetResEncUNetMPlans-epochs1-its2-valits1-acc2"
    assert result.plan.root == "nnUNetResEncUNetMPlans"
    assert ["ResEnc U-Net, 0.1 M parameters" in note for note in heard.notes] == [True]
    unknown = [text for text in heard.warnings if "says what the data there were made from" in text]
    assert len(unknown) == 1
    assert 0 <= result.dice <= 1
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(result.model), (0,), "checkpoint_final.pth")
    assert result.checkpoint is not None
    trained = torch.load(result.checkpoint, weights_only=True)["network_weights"]
    assert trained.keys() == predictor.network.state_dict().keys()
    assert all(torch.equal(value, predictor.list_of_parameters[0][name]) for name, value in trained.items())


def test_they_are_taken_only_if_they_are_named(stock: Path) -> None:
    with pytest.raises(DataError, match="no plans of stunet") as caught:
        stunet.train(998, device="cpu", dry_run=True)
    assert caught.value.hint.startswith("-p nnUNetPlans for those of nnU-Net's planner")
    with pytest.raises(UsageError, match="--size L is for STU-Net, not for a plain U-Net"):
        stunet.train(998, plans="nnUNetPlans", size="L", device="cpu", dry_run=True)
    with pytest.raises(DataError, match="did you mean 'nnUNetPlans'"):
        stunet.train(998, plans="nnUNetPlan", device="cpu", dry_run=True)
    write_json(stock / "Copied.json", {**read_json(stock / "nnUNetPlans.json"), "dataset_name": "Dataset001_Other"})
    with pytest.raises(DataError, match="are plans of Dataset001_Other"):
        stunet.train(998, plans="Copied", device="cpu", dry_run=True)


def test_a_pretraining_takes_them_too(stock: Path) -> None:
    heard = Heard()
    result = stunet.pretrain(998, "simclr", plans="nnUNetPlans", set=ROUND, device="cpu", dry_run=True, listener=heard)
    assert result.plan.name == "nnUNetPlans-simclr-epochs1-its2-valits1"
    assert "plain U-Net" in heard.notes[0]
