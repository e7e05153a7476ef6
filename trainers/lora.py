"""How are convolutions trained through low-rank adapters, and what does a checkpoint of such a training hold?

A weight W becomes W + U D with r rows in D, and only U and D train (Hu et al. 2021, arXiv:2106.09685). The sum is made
where the weight is read, so the network computes with the very numbers that its checkpoint holds, where a convolution
beside the frozen one would give others, by rounding, than the merged one. D begins with orthonormal rows and U with
zeros: the network computes at first what it did without adapters, and its first step is the projection of the step
that full fine-tuning would make.

This is torch.nn.utils.parametrize; strategies.py tells adapters by the names that it gives.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stunet.errors import WeightsError
from stunet.trainers.strategies import HEADS, PARAMETRIZED, part_of


class LowRank(nn.Module):
    """Adds a matrix of low rank to a convolution's weight (C', C, k...), seen as a matrix of C' rows."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        down = nn.init.orthogonal_(torch.empty(rank, columns), generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # in half precision it would not be what is saved
            return weight + (self.up @ self.down).view_as(weight)


def add(network: nn.Module, rank: int, seed: int, fresh: Collection[str]) -> None:
    """Gives every pre-trained convolution of encoder and decoder an adapter, from the same seed the same.

    Args:
        network: An STUNet without adapters.
        rank: Of the adapters; less where a weight has fewer rows or columns.
        seed: Of the rows of D.
        fresh: Names of the parameters that are not pre-trained; they train themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(network.named_modules()):
        weight = f"{name}.weight"
        if isinstance(module, nn.Conv2d | nn.Conv3d) and weight not in fresh and part_of(weight) != HEADS:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, generator))


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state as it would be without adapters, which are added to their weights."""
    state = {}
    for name, value in network.state_dict().items():
        module, adapted, kind = name.partition(PARAMETRIZED)
        if not adapted:
            state[name] = value
        elif kind == "original":
            state[f"{module}.weight"] = network.get_submodule(module).weight.detach()  # type: ignore[operator]
    return state


def adapters_state(network: nn.Module) -> dict[str, Tensor]:
    """What merged_state() does not tell: the adapters and the weights beside them; empty without adapters."""
    return {name: value for name, value in network.state_dict().items() if PARAMETRIZED in name}


def load(network: nn.Module, merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> None:
    """Puts the two states of a network into one that has the same adapters, exactly as they were.

    Raises:
        WeightsError: The adapters are not those of the network.
    """
    expected = {name: value.shape for name, value in adapters_state(network).items()}
    if expected != {name: value.shape for name, value in adapters.items()}:
        raise WeightsError(
            f"the checkpoint's {len(adapters)} tensors of adapters are not the {len(expected)} of the network",
            "--overwrite starts anew",
        )
    adapted = {f"{name.partition(PARAMETRIZED)[0]}.weight" for name in expected}
    network.load_state_dict({name: value for name, value in merged.items() if name not in adapted} | dict(adapters))
