"""Known results of pre-training methods."""

import numpy as np
import pytest

from stunet.ranking.sample import Facts
from stunet.ranking.scores.static import fuse, known_result


def test_known_results_are_of_the_network_or_else_of_the_method() -> None:
    cnn, transformer = (known_result(Facts(network, "mae")) for network in ("ResEnc-L", "Primus-M"))
    assert cnn is not None
    assert transformer is not None
    assert known_result(Facts("STU-Net", "mae")) == pytest.approx((cnn + transformer) / 2)
    assert known_result(Facts("STU-Net", "simmim")) == known_result(Facts("Primus-M", "simmim"))
    assert known_result(Facts("STU-Net", "supervised")) is known_result(Facts()) is None
    assert known_result(Facts("ResEnc-L", "mae"), ("KIT",)) != cnn
    assert known_result(Facts("ResEnc-L", "mae-no-skips")) == cnn


def test_mae_is_first_of_the_self_supervised_on_both_networks() -> None:
    for network in ("ResEnc-L", "Primus-M"):
        mae, *others = (
            known_result(Facts(network, method))
            for method in ("mae", "voco", "swinunetr", "simclr", "fusion", "mg", "s3d")
        )
        assert mae is not None
        assert all(other is not None and (other < mae) for other in others)


def test_ranks_of_facts_are_averaged_with_unknown_ones_in_the_middle() -> None:
    nan = np.nan
    facts = np.array([[1.0, 10, 100, 0], [0, 10, nan, 1], [nan, 20, 50, 0]])
    scores = fuse(np.repeat(facts[:, None], 2, axis=1))
    assert scores[:, 0] == pytest.approx([(1 + 0.25 + 1) / 3, (0 + 0.25 + 0.5) / 3 + 2, (0.5 + 1 + 0) / 3])
    assert (scores[:, 0] == scores[:, 1]).all()
