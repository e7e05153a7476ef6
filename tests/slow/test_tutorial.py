"""The commands of docs/tutorial.md, in their order, on the phantom: with few steps, and without a download."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from stunet.datasets.phantom import make_phantom

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
FEW = "num_epochs=1 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1 batch_size=2"
OWN = "$nnUNet_results/Dataset001_Abdomen/STUNetTrainer__STUNetPlans_T-epochs1*"
INSTEAD = {
    "num_epochs=100": FEW,
    "--size S": "--size T",
    "--pretrained STU-Net-S": f"--pretrained {OWN}",  # which would be downloaded
}


def commands() -> list[str]:
    text = re.sub(r"\\\n\s+", " ", PAGE.read_text())
    found = re.findall(r"^    (stunet_\w.*?)(?: +#.*)?$", text, re.MULTILINE)
    for words, others in INSTEAD.items():
        assert any(words in command for command in found), words
        found = [command.replace(words, others) for command in found]
    return found


def look_at(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Start the viewer, ask for its page, and end it as with Ctrl-C."""
    server = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout
    try:
        with urllib.request.urlopen(server.stdout.readline().strip(), timeout=60) as page:
            assert b"<canvas" in page.read()
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
        assert server.returncode == 0, err
    finally:
        server.kill()


def test_every_command_runs(tmp_path: Path) -> None:
    raw = tmp_path / "phantom"
    make_phantom(raw, 10, seed=3, held_out=2, shape=(16, 24, 24))
    for folder, source, ending in (("scans", "imagesTr", "_ct"), ("masks", "labelsTr", "_mask")):
        (tmp_path / folder).mkdir()
        for path in sorted((raw / source).iterdir()):
            name = path.name.removesuffix(".nii.gz").removesuffix("_0000")
            shutil.copy(path, tmp_path / folder / f"{name}{ending}.nii.gz")
    for folder, source in (("new_scans", "imagesTs"), ("new_masks", "labelsTs"), ("unlabelled", "imagesTr")):
        shutil.copytree(raw / source, tmp_path / folder)
    shutil.rmtree(raw)
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **folders, "PATH": path, "nnUNet_n_proc_DA": "1"}
    found = commands()
    assert len(found) > 12
    for command in found:
        if command.startswith("stunet_view"):
            look_at(f"exec {command} --no_browser", tmp_path, environment)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    reports = list(tmp_path.glob("nnUNet_results/*/*/fold_*/report.html"))
    assert len(reports) == 4
    assert all("<html" in report.read_text() for report in reports)
    assert len(list((tmp_path / "segmented").glob("*.nii.gz"))) == 2
