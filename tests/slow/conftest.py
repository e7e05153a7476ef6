"""What the end-to-end tests share: a place where real commands run, and models of two iterations trained in it.

Networks that are hardly trained segment noise, in which no difference between two runs goes unseen.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.datasets.phantom import make_phantom
from stunet.files import read_json, write_json
from stunet.workspace import VARIABLES

DATASET = "Dataset997_Slow"
VALUES = ["num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "batch_size=2"]
PLANS = "STUNetPlans_T-epochs1-its2-valits1-bs2"
TRAINING_CASES = [f"phantom_{number:03d}" for number in range(8)]
TIMEOUT_S = 280
# A network gives the same bits only with the same number of threads; nnU-Net predicts with as many as it has processes.
ONE_THREAD = {
    **{"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"},
    **{"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"},  # nnUNetv2_train takes all cores, shared or not
}


@dataclass(frozen=True)
class Place:
    """nnU-Net's three folders below `root`, and the real commands with exactly these variables set."""

    root: Path
    dataset: str = DATASET
    plans: str = PLANS

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results" / self.dataset

    def model(self, configuration: str) -> Path:
        """The folder of a trained model."""
        return self.results / f"STUNetTrainer__{self.plans}__{configuration}"

    @staticmethod
    def read(folder: Path) -> dict[str, np.ndarray]:
        """All segmentations of a folder by file name, as arrays (D, H, W)."""
        return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in folder.glob("*.nii.gz")}

    def start(self, *command: Any, **variables: Any) -> subprocess.Popen[str]:
        """Starts a command of the environment that the tests run in."""
        program = Path(sys.executable).with_name(str(command[0]))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")},
            **{name: str(self.root / name) for name in VARIABLES},
            **ONE_THREAD,
            **{name: str(value) for name, value in variables.items()},
        }
        return subprocess.Popen(
            [str(program), *map(str, command[1:])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: Any, **variables: Any) -> str:
        """Runs a command, which must succeed, and returns what it printed on stdout."""
        with self.start(*command, **variables) as process:
            try:
                out, err = process.communicate(timeout=TIMEOUT_S)
            finally:
                process.kill()
        assert process.returncode == 0, f"{command} ended with {process.returncode}:\n{out[-2000:]}\n{err[-4000:]}"
        return out

    def run_all(self, *commands: Sequence[Any]) -> None:
        """Runs commands that do not depend on each other, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda command: self.run(*command), commands))

    def training(self, configuration: str, fold: int) -> list[Any]:
        """The command that trains one fold for two iterations and keeps the validation's probabilities."""
        return ["stunet_train", 997, configuration, fold, "-device", "cpu", "--npz", "--set", *VALUES]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Eight cases in two folds and two held out, planned for size T with a small cascade, and preprocessed.

    The cascade consists of configurations that a user adds to the plans: planning again keeps them.
    """
    place = Place(tmp_path_factory.mktemp("slow"))
    place.raw.parent.mkdir()
    make_phantom(place.raw, len(TRAINING_CASES), seed=0, held_out=2, shape=(16, 24, 24), spacing=(6.0, 5.0, 5.0))
    planning = ["stunet_plan_and_preprocess", "-d", 997, "--size", "T"]
    place.run(*planning, "--no_pp")
    plans = read_json(place.preprocessed / "STUNetPlans_T.json")
    plans["configurations"]["3d_half"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "STUNetPlans_3d_half",
        "spacing": [2 * pitch for pitch in plans["configurations"]["3d_fullres"]["spacing"]],
        "next_stage": "3d_cascade_half",
    }
    plans["configurations"]["3d_cascade_half"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_half"}
    write_json(place.preprocessed / "STUNetPlans_T.json", plans)
    place.run(*planning, "-c", "2d", "3d_fullres", "3d_half")
    first, second = TRAINING_CASES[:4], TRAINING_CASES[4:]
    folds = [{"train": second, "val": first}, {"train": first, "val": second}]
    write_json(place.preprocessed / "splits_final.json", folds)
    return place


@pytest.fixture(scope="session")
def trained(place: Place) -> Place:
    """The place with both folds of 2d and 3d_fullres trained and validated."""
    place.run_all(*(place.training(configuration, fold) for configuration in ("3d_fullres", "2d") for fold in (0, 1)))
    return place
