"""What follows from a ranking: the table says why a candidate has no rank, and best-of takes what was ranked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stunet.errors import DataError, WeightsError
from stunet.files import sha256_of
from stunet.ranking.outcome import Candidate, Outcome, Result, best_of
from stunet.ranking.sample import Facts
from stunet.ranking.tables import plot, table


def outcome(first: str, second: str) -> Outcome:
    scores: dict[str, Any] = {first: Result(1.0, 0.5, 1.5, 1.0, np.ones(3)), second: "no head"}
    candidates = {name: Candidate(name, name, Facts(), against=("small",)) for name in scores}
    return Outcome("Dataset003_A", ("c", "d"), ("background", "a"), None, candidates, {"leep": scores})


def test_the_table_says_why_a_candidate_has_no_rank() -> None:
    columns, rows = table(outcome("x", "y"))
    assert columns[-1] == "against"
    assert [row[-1] for row in rows] == ["small", "no head"]


def test_names_with_dollars_are_plotted(tmp_path: Path) -> None:
    plot(outcome("a$\\x$", "y"), tmp_path / "rank.png")
    assert (tmp_path / "rank.png").is_file()


def test_best_of_is_what_was_ranked_or_an_error(tmp_path: Path) -> None:
    model = tmp_path / "T__P__3d_fullres"
    file = model / "fold_1/checkpoint_final.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text("{}")
    best = {"weights": str(model), "path": str(file), "sha256": sha256_of(file)}
    rank, scores = tmp_path / "rank.json", {"targets": {"D": {"scores": {"ccfv": {"x": 1.0}}}}}
    rank.write_text(json.dumps({**scores, "ranking": ["x"], "candidates": {"x": best}}))
    assert best_of(rank) == best_of(tmp_path) == str(model)
    other = model / "fold_0/checkpoint_final.pth"
    other.parent.mkdir()
    other.write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"fold_0.*are not those that were ranked"):
        best_of(rank)
    model.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match="weights of 'x' have gone: no model or file"):
        best_of(rank)
    rank.write_text(json.dumps({**scores, "ranking": []}))
    with pytest.raises(DataError, match="ranks no candidate"):
        best_of(rank)
