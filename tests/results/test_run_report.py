"""Does the report of a run say what was done, with what, and how long it took?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stunet
from stunet.errors import DataError
from stunet.results.run_report import STAGES, CaseReport, RunReport, peak_gb
from tests.loops import for_each


def report() -> RunReport:
    return RunReport(["stunet_predict", "-i", "images"], "cuda:0", {"checkpoints": {"0": "ab12"}, "mirroring": True})


def test_everything_that_was_noted_is_in_the_file(tmp_path: Path) -> None:
    run = report()
    good = run.case("a")
    for name in STAGES:
        with good.stage(name):
            pass
    good.files.append("a.nii.gz")
    bad = run.case("b")
    with pytest.raises(DataError), bad.stage("read"):
        raise DataError("cannot read 'b.nii.gz'", "copy it again")
    bad.fail(DataError("cannot read 'b.nii.gz'", "copy it again"))
    run.write(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert content["command"] == ["stunet_predict", "-i", "images"]
    assert content["device"] == "cuda:0"
    assert content["made_by"]["checkpoints"] == {"0": "ab12"}
    assert (content["succeeded"], content["failed"]) == (1, 1)
    assert set(content["versions"]) == {"stunet", "python", "nnunetv2", "torch"}
    assert content["versions"]["stunet"] == stunet.__version__
    assert content["started"] <= content["ended"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["started"])
    first, second = content["cases"]
    assert list(first["seconds"]) == list(STAGES)
    assert first["files"] == ["a.nii.gz"]
    assert (second["error"], list(second["seconds"])) == ("cannot read 'b.nii.gz'; copy it again", ["read"])


def test_a_stage_that_comes_in_parts_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 100.0, 101.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    case = CaseReport("a")
    for _ in range(2):
        with case.stage("network"):
            pass
    assert case.seconds == {"network": 3.5}


def test_unknown_stages_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="'netwrk'"), CaseReport("a").stage("netwrk"):
        pass


def test_memory_is_counted_in_gigabytes() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the kernel's own number is Linux's")
    block = b"x" * 200_000_000
    kernel = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert len(block) / 1e9 < int(kernel[1]) * 1024 / 1e9 <= peak_gb() * 1.05
    assert peak_gb() < 64


@pytest.mark.process
def test_the_memory_of_a_process_that_started_this_one_is_not_counted() -> None:
    block = b"x" * 200_000_000
    code = "from stunet.results.run_report import peak_gb; print(peak_gb())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(started.stdout) < len(block) / 1e9


@for_each("target", ["missing/run.json", "file/run.json", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write the report") as caught:
        report().write(tmp_path / target)
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
