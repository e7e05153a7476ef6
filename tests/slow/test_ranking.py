"""From a ranking to its comparison: rank, fine-tune the best, compare, judge; stopped on the way, it goes on."""

import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_ranking_and_fine_tuning_go_on_where_they_were_killed(trained: "Place", tmp_path: Path) -> None:
    model = trained.model("3d_fullres")
    other = tmp_path / "other" / model.name
    shutil.copytree(model, other)
    shutil.rmtree(other / "fold_0")
    command = [
        "stunet_rank", "-d", 997, "--models", f"one={model}", f"other={other}", "--cases", 4, "--points", 50, "-f", 0,
        "--scores", "ccfv", "static", "-o", tmp_path / "out", "-device", "cpu",
        "--finetune", 1, "--set", "num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1",
        "batch_size=2",
    ]  # fmt: skip
    results = tmp_path / "results"
    with trained.start(*command, nnUNet_results=results) as process:
        arms = tmp_path / "out/finetune/arms.json"
        deadline = time.monotonic() + 200
        while not (arms.is_file() and list(results.glob("*/*/fold_0/training_log*"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/bank").rglob("*.safetensors")}
    out = trained.run(*command, nnUNet_results=results)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/bank").rglob("*.safetensors")} == made
    rank = read_json(tmp_path / "out/rank.json")
    assert set(rank["cases"]) <= {f"phantom_{number:03d}" for number in range(4, 8)}  # the fold's training cases
    best = rank["ranking"][0]
    assert f"{best} ramp" in out
    assert "scratch" in out
    assert {row["line"] for row in read_json(tmp_path / "out/finetune/summary.json")} == {
        "scratch ramp",
        f"{best} ramp",
    }
