"""Let several processes train one network as one process would; each has a replica (DDP) or a shard (FSDP2) of it.

Gradients are averaged over the processes either way. With FSDP2, weights, gradients and momentum are sharded, and each
stage is gathered while it computes; checkpoints hold full tensors, so that any number of processes can continue from
them. group.py starts the processes, or joins those that torchrun has started; batches.py gives each process its
share of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from stunet import architectures
from stunet.architectures.base import HEADS
from stunet.trainers.pretexts.base import Pretext


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean over all processes of a value that each of them has."""
    if world_size() > 1:
        value = value / world_size()  # a new tensor: the caller's is not reduced in place
        dist.all_reduce(value)
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process; must be called by all of them."""
    if world_size() == 1:
        return flag
    held = torch.tensor(int(flag), device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return bool(held)


def unwrap(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network without DDP's and torch.compile's wrapping."""
    # nnU-Net compiles first and wraps in DDP then, so this is the order from outside.
    wrapped: Any = network.module if isinstance(network, DistributedDataParallel) else network
    return getattr(wrapped, "_orig_mod", wrapped)


def data_parallel(network: torch.nn.Module, device_ids: Any = None) -> torch.nn.Module:
    """Wrap in DDP on the network's own device; nnU-Net passes ranks, which are not device numbers on other machines.

    The lowest head is left out: it has no weight in deep supervision, and DDP waits for gradients of all it knows of.
    """
    device, bare = next(network.parameters()).device, unwrap(network)
    architecture = architectures.find_network(bare)  # None for a pretext, which freezes what it does not use
    heads = architecture.modules(bare, HEADS) if architecture else []
    unused = heads[0] if len(heads) > 1 and architecture.is_deeply_supervised(bare) else None  # type: ignore[union-attr]
    trains = [p for p in unused.parameters() if p.requires_grad] if unused is not None else []
    for parameter in trains:  # DDP notes what needs a gradient when it is constructed, and only then
        parameter.requires_grad_(False)
    wrapped = DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device.index])
    for parameter in trains:
        parameter.requires_grad_(True)
    return wrapped


def without_lowest_head(weights: Sequence[float]) -> tuple[float, ...]:
    """Return nnU-Net's weights of deep supervision in several processes as they are in one: none for the last head.

    nnU-Net gives it a tiny weight there, because DDP waits for its gradient; data_parallel() makes DDP ignore it.
    """
    kept = (*weights[:-1], 0)
    return tuple(weight / sum(kept) for weight in kept)


def shard(network: torch.nn.Module, device_ids: Any = None) -> torch.nn.Module:
    """Shard the network with FSDP2, block by block; whatever else it has forms one more group."""
    bare: Any = unwrap(network)
    core = bare.network if isinstance(bare, Pretext) else bare
    mesh = init_device_mesh(next(network.parameters()).device.type, (world_size(),))
    # From the inside out: a call takes the parameters below a module that no earlier call has taken.
    teacher = bare.find_teacher() if isinstance(bare, Pretext) else None
    for one in filter(None, (core, teacher)):
        for block in architectures.of_network(one).blocks(one):
            fully_shard(block, mesh=mesh)
    fully_shard(bare, mesh=mesh)  # changes the module's class in place
    return bare


def gather_rows(rows: Mapping[str, torch.Tensor], shares: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the rows of all processes' samples in their order, without gradient; must be called by all of them.

    Args:
        rows: (B, ...) each, of the samples of this process.
        shares: How many samples each process has.
    """
    if world_size() == 1:
        return dict(rows)
    found = {}
    for name, own in rows.items():
        padded = own.new_zeros((max(shares), *own.shape[1:]))  # as all_gather wants equal shapes
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        found[name] = torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])
    return found


@contextmanager
def skip_gradient_sync(network: Any, skip: bool) -> Iterator[None]:
    """While the block runs, accumulate gradients in each process without averaging them over the processes."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(not skip)
        yield
    elif skip and isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield


def gather(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a state with full tensors, in every process; must be called by all of them."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def full_state(network: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return gather(state) of a network, in which a tensor that has several names is gathered, and stored, once."""
    official = architectures.of_network(network).canonical
    full = gather({official(name): value for name, value in state.items()})
    return {name: full[official(name)] for name in state}


def shard_like(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Reverse gather(): shard the tensors the way those of the same name in `own` are sharded."""
    return {name: _shard_like(value, own.get(name)) for name, value in state.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with full tensors; must be called by all processes.

    Tensors that had to be gathered are in main memory, and in the first process only.
    """
    content, first = optimizer.state_dict(), world_size() == 1 or dist.get_rank() == 0

    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        # All processes have to take part, including those that do not keep the result.
        tensor = value.full_tensor()
        return tensor.cpu() if first else None

    state = {number: {key: gathered(v) for key, v in entry.items()} for number, entry in content["state"].items()}
    return {**content, "state": state}


def load_optimizer(optimizer: torch.optim.Optimizer, content: Mapping[str, Any]) -> None:
    """Load what optimizer_state() returned, with the parameters sharded differently or not at all."""
    # A state dict numbers the parameters in the order of their groups.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: _shard_like(value, parameters[number]) for key, value in entry.items()}
        for number, entry in content["state"].items()
    }
    optimizer.load_state_dict({**content, "state": state})


def _shard_like(value: Any, own: Any) -> Any:
    if not isinstance(own, DTensor) or not isinstance(value, torch.Tensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
