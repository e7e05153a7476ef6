"""stunet_rank evaluate: its table, its files, and its errors."""

import csv
import json
from pathlib import Path

import pytest

from stunet.cli.rank import main
from stunet.files import write_json
from tests.experiment.test_finetuned import make
from tests.loops import for_each

DICE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Scores and results of four candidates, two cases and two seeds."""
    table = {name: {"score": value, "low": value - 1, "high": value + 1} for name, value in DICE.items()}
    content = {
        "targets": {"A": {"scores": {"ccfv": table, "leep": {"a": 1, "b": 2, "c": {"error": "no head"}}}}},
        "candidates": {"a": {"architecture": "=STU-Net"}, "b": {"architecture": "=STU-Net"}},
    }
    write_json(tmp_path / "rank.json", content)
    results = {
        name: {"dice": {str(seed): {str(case): value - 0.1 * case for case in range(2)} for seed in range(2)}}
        for name, value in DICE.items()
    }
    write_json(tmp_path / "results.json", {"targets": {"A": results}})
    return [str(tmp_path / "rank.json"), str(tmp_path / "results.json")]


def test_one_table_one_plot_and_a_csv_file(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *files, "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "pool"
    assert "weighted tau" in lines[0]
    assert "TopoTE" not in out
    assert any(line.startswith("all ") and "ccfv" in line and "1.000 to 1.000" in line for line in lines)
    assert any(line.startswith("all without c, d") and "leep" in line for line in lines)
    assert "A: leep of c: no head" in err
    assert "no correlations of fewer than 4 candidates" in err
    rows = list(csv.DictReader((tmp_path / "out" / "judged.csv").read_text().splitlines()))
    assert {row["pool"] for row in rows} == {"all", "'=STU-Net"}
    assert rows[0]["weighted_tau"] == "1.0"
    assert rows[0]["first"] == "a"
    assert (tmp_path / "out" / "judged.png").stat().st_size > 10_000


def test_the_other_tau_takes_the_place_of_scipys(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *files, "--tau", "topote", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["topote_tau"] == 1
    assert not any("weighted_tau" in row for row in found["rows"])
    assert found["rows"][0]["target"] == "A"


def test_an_experiment_in_place_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = make(tmp_path, left=2)
    table = {"scratch": 0, "ours (best)": 1, "third": 2}
    content = {
        "targets": {"Dataset004_Hippocampus": {"scores": {"x": table}}},
        "candidates": {"third": {"weights": "other.pth"}},
    }
    write_json(tmp_path / "rank.json", content)
    for path in (experiment, experiment.with_suffix("")):
        assert main(["evaluate", str(tmp_path / "rank.json"), str(path), "--json"]) == 0
        out, err = capsys.readouterr()
        row = json.loads(out)["rows"][0]
        assert (row["first"], row["candidates"], row["regret_1"]) == (["third"], "3", 0)
        assert "4 of 6 arms are done" in err
        assert "only seeds that all candidates have count (0)" in err


@for_each(
    ("argv", "code", "message"),
    [
        (["rank.json"], 2, "1 files are not pairs"),
        (["rank.json", "none.json"], 3, "none.json"),
        (["rank.json", "rank.json"], 3, "rank.json"),
        (["results.json", "results.json"], 3, "missing 'scores'"),
        (["rank.json", "none.toml"], 3, "none.toml"),
        (["rank.json", "results.json", "rank.json", "results.json"], 3, "two files have scores of A"),
    ],
)
def test_mistakes_end_in_one_line(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 2
