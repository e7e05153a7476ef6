"""The final validation of a training on a small phantom, compared with nnU-Net's own on the same network."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partialmethod
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import blosc2
import nnunetv2.evaluation.evaluate_predictions as evaluation
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet import workspace
from stunet.errors import DataError, Interrupted
from stunet.files import read_json
from stunet.nnunet import exchanged
from stunet.plans.derive import derive
from stunet.preprocessing import preprocess
from stunet.trainers.launch import _stops
from stunet.trainers.listener import Silent
from stunet.trainers.supervised import STUNetTrainer
from tests.predictor_models import _exact_logits

SEED = 0
REGIONS = {
    "labels": {"background": 0, "organs": [1, 2, 3, 4, 5], "kidneys": [4, 5]},
    "regions_class_order": [1, 4],
}
Make = Callable[..., STUNetTrainer]


class Cases(Silent):
    """Remembers what was predicted."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def case(self, name: str) -> None:
        self.names.append(name)


class Threads:
    """Runs what nnU-Net gives to new processes, which take seconds to start, in threads."""

    @staticmethod
    def get_context(kind: str) -> type["Threads"]:
        return Threads

    Pool = ThreadPool


@pytest.fixture
def make(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes initialised trainers, whose random networks find all classes, with preprocessed data of their own."""
    shutil.copytree(workspace.preprocessed_dataset(planned), tmp_path / "preprocessed" / planned)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

    def new(folder: str = "ours", configuration: str = "3d_fullres", **options: Any) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / folder))
        dataset = {**read_json(workspace.preprocessed_dataset(planned) / "dataset.json"), **options.pop("dataset", {})}
        plans = workspace.load_plans(workspace.plans_path(planned, "STUNetPlans_T"))
        plans["configurations"].update(options.pop("more", {}))
        plans = derive(plans, dataset, overrides={"batch_size": 2, "seed": SEED}, **options)
        trainer = STUNetTrainer(plans, configuration, 0, dataset, torch.device("cpu"))
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # says along which axes to mirror
        return trainer

    return new


def stock(trainer: STUNetTrainer, monkeypatch: pytest.MonkeyPatch, exact: bool) -> Path:
    """nnU-Net's own validation with the trainer's network; `exact`: with network and logits in float64."""
    with monkeypatch.context() as patch, exchanged(host, multiprocessing=Threads):
        if exact:
            patch.setattr(nnUNetPredictor, "_internal_predict_sliding_window_return_logits", _exact_logits)
        patch.setattr(evaluation, "multiprocessing", Threads)
        nnUNetTrainer.perform_actual_validation(trainer, save_probabilities=True)
    trainer.network.float()
    return Path(trainer.output_folder) / "validation"


def ours(trainer: STUNetTrainer, probabilities: bool = False) -> Path:
    trainer.perform_actual_validation(probabilities)
    return Path(trainer.output_folder) / "validation"


def labels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("configuration", "dataset"), [("3d_fullres", {}), ("3d_fullres", REGIONS), ("2d", {})], ids=["3d", "regions", "2d"]
)
def test_the_files_are_nnunets_in_float64(
    make: Make, monkeypatch: pytest.MonkeyPatch, configuration: str, dataset: dict[str, Any]
) -> None:
    trainer = make("ours", configuration, dataset=dataset)
    mine = ours(trainer, probabilities=True)
    reference = make("stock", configuration, dataset=dataset)
    theirs = stock(reference, monkeypatch, exact=True)
    assert names(mine) == names(theirs)
    for path in mine.glob("*.nii.gz"):
        one, other = sitk.ReadImage(str(path)), sitk.ReadImage(str(theirs / path.name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
        assert len(np.unique(labels(path))) > 1
        for geometry_of in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(one, geometry_of)() == getattr(other, geometry_of)()
        stem = path.name.removesuffix(".nii.gz")
        one, other = (np.load(folder / f"{stem}.npz")["probabilities"] for folder in (mine, theirs))
        np.testing.assert_allclose(one, other, atol=1e-4)
        one, other = (pickle.loads((folder / f"{stem}.pkl").read_bytes()) for folder in (mine, theirs))
        np.testing.assert_equal(one, other)
    one, other = (read_json(folder / "summary.json") for folder in (mine, theirs))
    assert one["mean"] == other["mean"]
    assert one["foreground_mean"] == other["foreground_mean"]
    assert [case["metrics"] for case in one["metric_per_case"]] == [
        case["metrics"] for case in other["metric_per_case"]
    ]
    assert one.keys() == other.keys()
