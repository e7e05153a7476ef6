"""The newcomer's command: the whole loop on the phantom, with the Dice that the README promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_demo_reaches_its_dice_and_can_be_run_again(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("stunet_demo")), "-o", str(tmp_path / "demo"), "-device", "cpu"]
    for _ in range(2):  # the second run finds everything done and predicts again
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / "demo" / "predictions" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 4
        assert summary["foreground_mean"]["Dice"] > 0.85
        assert "kidney_left" in done.stdout
        assert str(tmp_path / "demo") in done.stdout
