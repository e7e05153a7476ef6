"""The commands on 200 real MR volumes: convert, plan, preprocess, a short training of size S, predict, evaluate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
VALUES = ("num_epochs=3", "num_iterations_per_epoch=40", "num_val_iterations_per_epoch=4", "batch_size=2")
SHORT = (*VALUES, "initial_lr=0.02", "momentum=0.9")  # the README's run is longer: 300 steps


def test_hippocampus_from_download_to_dice(data: Path, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    (tmp_path / "nnUNet_raw").mkdir()
    environment = {**os.environ, **folders}

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / command), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    raw = Path(run("stunet_convert", "msd", "-i", str(data / "Task04_Hippocampus"), "-d", "4").strip())
    assert len(list((raw / "imagesTr").iterdir())) == 200
    table = run("stunet_plan_and_preprocess", "-d", "4", "--size", "S", "-c", "3d_fullres")
    assert "40x56x40" in table  # nnU-Net's own patch for this dataset
    run("stunet_train", "4", "3d_fullres", "0", "-device", "cpu", "--set", *SHORT)

    model = next((tmp_path / "nnUNet_results").glob("*/*"))
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 40
    assert summary["foreground_mean"]["Dice"] > 0.65

    # Predicting validation images from the raw files gives the segmentations of the trainer's own validation.
    images = tmp_path / "images"
    images.mkdir()
    cases = [Path(case["prediction_file"]).name.removesuffix(".nii.gz") for case in summary["metric_per_case"]][:4]
    for case in cases:
        (images / f"{case}_0000.nii.gz").symlink_to(raw / "imagesTr" / f"{case}_0000.nii.gz")
    out = tmp_path / "out"
    same = ("-device", "cpu", "--precision", "fp32")  # as the validation
    run("stunet_predict", "-i", str(images), "-o", str(out), "-d", "4", "-c", "3d_fullres", *same)
    run("stunet_evaluate", str(raw / "labelsTr"), str(out), "--chill")
    ours = json.loads((out / "summary.json").read_text())
    for case in ours["metric_per_case"]:
        name = Path(case["prediction_file"]).name
        trained = next(c for c in summary["metric_per_case"] if Path(c["prediction_file"]).name == name)
        for label in ("1", "2"):
            assert case["metrics"][label]["Dice"] == pytest.approx(trained["metrics"][label]["Dice"], abs=1e-3)
