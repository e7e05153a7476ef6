"""How do several processes train one network as one process would? Copies of it (DDP) whose gradients are averaged.

processes.py starts them or joins those that torchrun has started; batches.py gives each its share of a batch.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stunet.networks import STUNet


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a number that each has."""
    if processes() > 1:
        value = value / processes()
        dist.all_reduce(value)
    return value


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether it holds in any process; all of them must ask."""
    if processes() == 1:
        return flag
    held = torch.tensor(int(flag), device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return bool(held)


def bare(network: torch.nn.Module) -> STUNet:
    """The network without DDP's and torch.compile's wrapping."""
    wrapped: Any = network.module if isinstance(network, DistributedDataParallel) else network
    return getattr(wrapped, "_orig_mod", wrapped)


def data_parallel(network: torch.nn.Module, device_ids: Any = None) -> torch.nn.Module:
    """DDP for the device that the network is on; nnU-Net passes ranks, which are no device numbers on a second machine.

    The lowest head is left out: deep supervision gives it no weight, and DDP waits for the gradient of all it knows of.
    """
    device, stunet = next(network.parameters()).device, bare(network)
    unused = stunet.seg_outputs[0] if stunet.decoder.deep_supervision and len(stunet.seg_outputs) > 1 else None
    trains = [p for p in unused.parameters() if p.requires_grad] if unused is not None else []
    for parameter in trains:
        parameter.requires_grad_(False)
    wrapped = DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device.index])
    for parameter in trains:
        parameter.requires_grad_(True)
    return wrapped


def without_lowest_head(loss: Any) -> Any:
    """nnU-Net's loss for deep supervision, in several processes with the weights that it has in one."""
    weights = (*loss.weight_factors[:-1], 0)
    loss.weight_factors = tuple(weight / sum(weights) for weight in weights)
    return loss


def gradients_stay(network: torch.nn.Module, stay: bool) -> AbstractContextManager[Any]:
    """While the block runs, gradients are added up in each process and not averaged over them."""
    return network.no_sync() if stay and isinstance(network, DistributedDataParallel) else nullcontext()
