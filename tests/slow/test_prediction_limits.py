"""stunet_predict where memory or disk are short: the limit is kept, and a disk that is full leaves whole files only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.networks import STUNet
from stunet.weights.checkpoints import save_checkpoint
from tests.predictor_models import STRIDES, make_model, write_image

pytestmark = pytest.mark.slow

# Runs the command and reports the peak of its own memory, which wait4 would mix with that of this process.
COMMAND = """
import sys
from stunet.cli.predict import main
from stunet.results.run_report import peak_gb
code = main(sys.argv[1:])
print("peak", peak_gb())
raise SystemExit(code)
"""


def model_of(folder: Path, classes: int, patch: int, channels: int = 1, size: str = "T") -> Path:
    """A model of these dimensions with random weights, whose labels are noise: the worst that export can meet."""
    make_model(folder, channels=channels, mirror=None, forward=(0, 1, 2))
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": [patch] * 3}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["size"] = size
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, **{f"c{n}": n for n in range(1, classes)}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    content: dict[str, Any] = {"init_args": {"configuration": "3d_fullres", "plans": {}}, "trainer_name": "x"}
    weights = STUNet(channels, classes, size, STRIDES).state_dict()
    save_checkpoint(content | {"network_weights": weights}, folder / "fold_0/checkpoint_final.pth")
    return folder


def image_of(path: Path, size: int, spacing: float, dtype: type) -> None:
    path.parent.mkdir(exist_ok=True)
    low = np.random.default_rng(0).normal(size=[-(-size // 8)] * 3) * 300
    voxels = np.kron(low.astype(np.float32), np.ones((8, 8, 8), np.float32))[:size, :size, :size].astype(dtype)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1])), path)


@pytest.mark.parametrize(
    ("classes", "patch", "size", "spacing", "channels", "dtype", "options"),
    [
        (60, 64, 160, 1.5, 1, np.int16, ""),
        (60, 64, 160, 1.5, 1, np.int16, "--precision bf16"),
        (105, 64, 96, 1.5, 1, np.int16, "--precision fp32"),
        (30, 32, 128, 1.5, 1, np.int16, "--precision fp32"),  # several windows at a time
        (3, 64, 280, 0.75, 1, np.float64, ""),  # reading takes most
        (3, 64, 160, 1.5, 3, np.float32, ""),
        (3, 64, 280, 0.75, 1, np.float32, "--statistics --preview"),
        (3, 64, 280, 0.75, 1, np.int16, "--format masks"),
        (20, 64, 160, 0.75, 1, np.int16, "--save_probabilities"),
    ],
)
def test_the_least_memory_that_is_accepted_is_not_exceeded(
    tmp_path: Path, classes: int, patch: int, size: int, spacing: float, channels: int, dtype: type, options: str
) -> None:
    model = model_of(tmp_path / "T__P__3d_fullres", classes, patch, channels)
    for channel in range(channels):
        image_of(tmp_path / f"in/a_{channel:04d}.nii.gz", size, spacing, dtype)
        shutil.copy(tmp_path / f"in/a_{channel:04d}.nii.gz", tmp_path / f"in/b_{channel:04d}.nii.gz")
    given = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "-device", "cpu", "-step_size", 1]
    arguments = [sys.executable, "-c", COMMAND, *map(str, given), "--disable_progress_bar", *options.split()]
    refused = subprocess.run([*arguments, "--max_memory", "1MB"], capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    least = float(refused.stderr.split("--max_memory ")[1].split("GB")[0])
    done = subprocess.run([*arguments, "--max_memory", f"{least}GB"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout.split("peak ")[1])
    assert peak <= least
    assert peak > 0.5 * least  # the estimate is not absurdly high


def test_a_full_disk_ends_the_run_and_more_room_lets_it_go_on(tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    model = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / f"in/{name}_0000.nii.gz", seed, shape=(50, 50, 50))
    (tmp_path / "in/c_0000.nii.gz").write_bytes(b"broken, and said so although the run ends early")
    out = tmp_path / "out"
    out.mkdir()
    predict = f'"{sys.executable}" -c "$2" -i "$0/in" -o "$0/out" --model "$1" -device cpu --disable_progress_bar'
    script = f"""
        mount -t tmpfs -o size=SIZE none "$0/out"
        {predict} --save_probabilities; echo "code $?"
        ls -A "$0/out"
        echo again
        mount -o remount,size=100m "$0/out"
        {predict} --save_probabilities --continue_prediction; echo "code $?"
        ls -A "$0/out"
        cp "$0"/out/*.gz "$0"
    """
    alone = Predictor(open_model(model), Options()).predict(tmp_path / "in/a_0000.nii.gz").labels_DHW
    for room in ("120k", "1500k", "3800k"):  # full with the first case's array, with its .npz, and with the second's
        run = ["unshare", "-Urm", "sh", "-c", script.replace("SIZE", room), str(tmp_path), str(model), COMMAND]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        first, second = done.stdout.split("again")
        assert "code 3" in first, done.stderr
        assert "the disk is full" in done.stderr
        left = first.split("code 3")[1].split()
        results = {name for name in left if name.endswith((".gz", ".npz", ".pkl", ".part"))}
        assert results in (set(), {"a.nii.gz", "a.npz", "a.pkl"})
        assert not [name for name in left if name.startswith(".part")]
        assert "code 3" in second  # because of c
        assert {"a.nii.gz", "b.nii.gz", "d.nii.gz", "a.npz", "b.npz", "d.npz"} <= set(second.split())
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T, alone)
