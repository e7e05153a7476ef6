"""The method that docs/selfsupervised.md adds works as it stands there, and its table names all methods."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from stunet.networks import STUNet
from stunet.plans.demand import Demand
from stunet.trainers.pretexts.base import Pretext, Setting, mlp, pooled
from stunet.trainers.pretexts.draws import integers
from stunet.trainers.pretexts.methods import METHODS, Method
from tests.pretext_inputs import STRIDES, make_patches

TEXT = (Path(__file__).parents[3] / "docs" / "selfsupervised.md").read_text()


def test_the_documented_method_starts_at_chance_and_trains_the_encoder() -> None:
    code, row = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    given: dict = {"Pretext": Pretext, "mlp": mlp, "pooled": pooled, "integers": integers}
    given |= {"math": math, "torch": torch, "F": F}
    exec(code, given)
    torch.manual_seed(0)
    pretext = given["Mirror"](STUNet(1, 1, "T", STRIDES), Setting((16, 16, 16), (1.0, 1.0, 1.0), 4, 10))
    loss, measures, _ = pretext(make_patches(8, 16, 16, 16))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(pretext.chance_loss, abs=0.1)
    assert 0 <= float(measures["accuracy"]) <= 1
    assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set()
    assert eval(f"{{{row}}}", {"Method": Method, "Demand": Demand})["mirror"].pretext == "Mirror"


def test_the_documented_table_has_all_methods() -> None:
    table = TEXT[TEXT.index("## Methods") : TEXT.index("## Adding")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(METHODS)
