"""Which candidates are ranked, on which cases, and what becomes of those whose features have gone."""

from pathlib import Path

import numpy as np
import pytest

from stunet.datasets import RawCase
from stunet.errors import DataError
from stunet.folds import Fold, check_fold
from stunet.ranking.outcome import Candidate
from stunet.ranking.points import DrawnPoints
from stunet.ranking.reading import Place
from stunet.runs.ranking import _named, _Read, _sample

DRAWN = DrawnPoints(*[np.zeros(1)] * 3, np.zeros((1, 3)), np.zeros((1, 3)))
PLACE = Place(RawCase("c", (Path("none.nii.gz"),), None), DRAWN, "SimpleITKIO", ("MR",))


def test_a_name_of_a_model_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    for name in ("STU-Net-B", "mine"):
        Path(name).mkdir()
    expected = {"STU-Net-B": "STU-Net-B", "mine": str(tmp_path / "mine"), "x": str(tmp_path / "mine")}
    assert _named(["STU-Net-B", "mine", "x=mine"]) == expected


def test_features_that_have_gone_are_the_error_of_their_candidate(tmp_path: Path) -> None:
    read = _Read(Candidate("x", "x", layers="encoder"), tmp_path, {"c": {}})
    assert isinstance(_sample(read, [PLACE], "encoder"), DataError)


def test_a_negative_fold_is_not_counted_from_the_end() -> None:
    with pytest.raises(DataError, match="there is no fold -1"):
        check_fold([Fold(("a",), ("b",))], -1, ["a", "b"], Path("splits_final.json"))
