"""What is known of candidates before they are scored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stunet.datasets import RawCase
from stunet.ranking.candidates import _against
from stunet.ranking.points import DrawnPoints
from stunet.ranking.reading import Place

DRAWN = DrawnPoints(*[np.zeros(1)] * 3, np.zeros((1, 3)), np.zeros((1, 3)))
PLACE = Place(RawCase("c", (Path("none.nii.gz"),), None), DRAWN, "SimpleITKIO", ("MR",))


def test_what_speaks_against_a_candidate_follows_from_what_it_was_trained_on() -> None:
    def against(names: list[str], schemes: list[str], here: list[str], **more: Any) -> list[str]:
        weights = SimpleNamespace(channels=names, normalization=schemes, spacing=None)
        model = {"weights": weights, "path": Path("fold_0/checkpoint_final.pth"), "orientation": "LPS", **more}
        return _against(SimpleNamespace(**model), [PLACE], here, False)

    z = "ZScoreNormalization"
    # As of TotalSegmentator: of CT, and normalised by the image.
    assert against(["CT"], [z], ["CT"]) == []
    assert against(["CT"], [z], ["MR"]) == ["trained on CT"]
    assert against(["0"], ["CTNormalization"], ["MR"]) == ["trained on CT"]
    assert against(["T1"], [z], ["ct"]) == ["not trained on CT"]
    assert against(["T1", "T2"], [z, z], ["t2", "t1"]) == []
    assert against(["T1", "T2"], [z, z], ["T1", "FLAIR"]) == ["trained on channels T1, T2, in this order"]
    begun = {"path": Path("fold_0/checkpoint_best.pth"), "orientation": None}
    assert len(against(["MR"], [z], ["MR"], **begun)) == 2
