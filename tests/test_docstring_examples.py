"""Examples in docstrings run and show what is written."""

import doctest
import importlib
from pathlib import Path

import numpy as np

from tests.predictor_models import make_model
from tests.test_structure import modules


def test_examples_of_docstrings_are_true(tmp_path: Path) -> None:
    given = {
        "folder": make_model(tmp_path / "T__P__3d_fullres", mirror=None),
        "array": np.random.default_rng(0).normal(0, 1, (10, 12, 11)).astype(np.float32),
    }
    tried = 0
    for name, path in modules():
        if ">>>" in path.read_text():
            outcome = doctest.testmod(importlib.import_module(name), extraglobs=given)
            assert outcome.failed == 0, name
            tried += outcome.attempted
    assert tried > 10
