"""Fine-tuning after a ranking: its file holds whatever candidates are called, and one command shows both."""

import json
from pathlib import Path

import numpy as np
import pytest

from stunet import console
from stunet.cli import experiment, rank
from stunet.experiment.arms import read_experiment
from stunet.experiment.ranked import write_finetuning
from stunet.ranking.outcome import Candidate, Outcome, Result
from stunet.runs.listener import Listener
from stunet.runs.ranking import RankingRequest, RankingResult

NAMES = ("scratch", "none", "a\U0001f600b", 'x "y" \\ [bold]', "del\x7f", "a/b")


def ranked(folder: Path) -> RankingResult:
    scores = {name: Result(-float(n), -9, 9, 0.1, np.zeros(3)) for n, name in enumerate(NAMES)}
    candidates = {name: Candidate(name, f"/weights/{n}") for n, name in enumerate(NAMES)}
    outcome = Outcome("Dataset003_A", ("c", "d"), ("background", "a"), None, candidates, {"ccfv": scores})
    return RankingResult(dataset="Dataset003_A", folder=folder, files=(), outcome=outcome, errors={}, fold=2)


def test_the_experiment_can_be_read_whatever_candidates_are_called(tmp_path: Path) -> None:
    found = read_experiment(write_finetuning(ranked(tmp_path), 6, "2d", "P", {"num_epochs": 3, "mirror": "none"}))
    assert found.weights == {"scratch_": (), **{name: (f"/weights/{n}",) for n, name in enumerate(NAMES)}}
    assert (found.fold, found.configuration, found.plans) == (2, "2d", "P")
    assert found.set == {"num_epochs": 3, "mirror": "none"}


def test_ranking_and_fine_tuning_are_one_command_with_one_json_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(request: RankingRequest, listener: Listener) -> RankingResult:
        listener.ranked(result := ranked(tmp_path))
        return result

    monkeypatch.setattr(rank, "rank", shown)
    monkeypatch.setattr(rank, "check_finetuning", lambda *given: "3d_fullres")
    monkeypatch.setattr(experiment, "compare", console.result_json)
    given = ["-d", "3", "--models", "x", "--finetune", "2"]
    assert rank.main([*given, "-j", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [str(tmp_path / "finetune.toml"), "-j", "2", "--json"]
    assert rank.main(given) == 0
    out = capsys.readouterr().out
    assert out.index("next: stunet_train 3 3d_fullres 2") < out.index("finetune.toml")


def test_a_dataset_that_is_not_planned_is_refused_before_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw/Dataset003_A").mkdir(parents=True)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    assert rank.main(["-d", "3", "--models", "x", "--finetune", "2"]) == 3
    assert "no plans for Dataset003_A" in capsys.readouterr().err
