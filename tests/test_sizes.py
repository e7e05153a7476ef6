"""The table of sizes: its figures are those of the networks; plans/test_derive.py adds a line to it."""

import torch

from stunet.networks import STUNet
from stunet.sizes import SIZES
from tests.loops import for_each


@for_each("ndim", [2, 3])
@for_each("name", SIZES)
def test_parameters_are_those_of_the_network(name: str, ndim: int) -> None:
    with torch.device("meta"):
        network = STUNet(2, 14, name, [[1] * ndim] + [[2] * ndim] * 4)
    assert SIZES[name].parameters(2, 14, 5, ndim) == sum(parameter.numel() for parameter in network.parameters())


def test_parameters_are_the_published_ones() -> None:
    # README of uni-medical/STU-Net
    published = {"S": 14.6, "B": 58.3, "L": 440.3, "H": 1457.3}
    assert {name: round(SIZES[name].parameters() / 1e6, 1) for name in published} == published
