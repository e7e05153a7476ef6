"""Train convolutions through low-rank adapters, and store the result in a checkpoint.

A weight W becomes W + U D with r rows in D, and only U and D are trained (Hu et al. 2021, arXiv:2106.09685). The sum is
computed where the weight is read, so the network computes with exactly the numbers that its checkpoint holds. A
separate convolution in parallel with the frozen one would, through rounding, give results that differ from those of the
merged weight. D starts with orthonormal rows and U with zeros: at first the network computes what it did without
adapters, and its first step is the projection of the step that full fine-tuning would take.

The implementation uses torch.nn.utils.parametrize; strategies.py recognises adapters by the names that it assigns.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stunet import architectures
from stunet.architectures.base import HEADS
from stunet.errors import WeightsError
from stunet.trainers.finetune.strategies import PARAMETRIZED

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LowRank(nn.Module):
    """Adds a low-rank matrix to a convolution's weight (C', C, k...), viewed as a matrix with C' rows.

    The weight of a transposed one is (C, C', k...), and the matrix has C rows.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        # There are at most as many orthonormal rows as columns: the stem's shortcut has one column per input channel.
        rank = min(rank, rows, columns)
        # On the CPU, where the generator is: the seed gives the same rows for any device.
        down = nn.init.orthogonal_(torch.empty(rank, columns), generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # half precision would differ from what is saved
            return weight + (self.up @ self.down).view_as(weight)


def add(network: nn.Module, rank: int, seed: int, fresh: Collection[str]) -> None:
    """Add an adapter to every pre-trained convolution of encoder and decoder; the seed determines its initial values.

    Args:
        network: A network of stunet.architectures without adapters or wrappers.
        rank: Rank of the adapters; lower where a weight has fewer rows or columns.
        seed: Seed for the rows of D.
        fresh: Names of the parameters that are not pre-trained; these are trained directly.
    """
    architecture = architectures.of_network(network)
    generator = torch.Generator().manual_seed(seed)
    # A list, because registering adds modules to what we walk through.
    for name, module in list(network.named_modules()):
        weight = f"{name}.weight"
        pretrained = isinstance(module, CONVOLUTIONS) and weight not in fresh
        if pretrained and architecture.place(weight).part != HEADS:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, generator))


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state as it would be without adapters, with the adapters added to their weights."""
    state, sums = {}, {}
    for name, value in network.state_dict().items():
        module, adapted, kind = name.partition(PARAMETRIZED)
        if not adapted:
            state[name] = value
        # Once per weight: its other two tensors are in this sum.
        elif kind == "original":
            # A weight that stands under several names is one tensor, which a checkpoint then holds once.
            if value.data_ptr() not in sums:
                sums[value.data_ptr()] = network.get_submodule(module).weight.detach()  # type: ignore[operator]
            state[f"{module}.weight"] = sums[value.data_ptr()]
    return state


def adapters_state(network: nn.Module) -> dict[str, Tensor]:
    """Return what merged_state() lacks: the adapters and the weights they are added to; empty without adapters."""
    return {name: value for name, value in network.state_dict().items() if PARAMETRIZED in name}


def load(network: nn.Module, merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> None:
    """Load the two states of a network into one with the same adapters, restoring it exactly.

    Raises:
        WeightsError: The adapters do not match those of the network.
    """
    expected = {name: value.shape for name, value in adapters_state(network).items()}
    if expected != {name: value.shape for name, value in adapters.items()}:
        raise WeightsError(
            f"the checkpoint's {len(adapters)} tensors of adapters are not the {len(expected)} of the network",
            "--overwrite starts from scratch",
        )
    # From the adapters' state, not from the merged weight: subtracting U D again would not give the last bits back.
    adapted = {f"{name.partition(PARAMETRIZED)[0]}.weight" for name in expected}
    network.load_state_dict({name: value for name, value in merged.items() if name not in adapted} | dict(adapters))
